"""Which files are due, in which order, and what happens to those that cannot be decoded."""

import os
import time

import pytest

from vcp_clip_hf.complete_files import ArrivingFiles


class Recorded(set):
    """Files with a record, by path and state."""

    def __call__(self, path, state):
        return (path, tuple(state.values())) in self

    def note(self, file):
        self.add((file.path, tuple(file.state.values())))


@pytest.fixture
def recorded():
    return Recorded()


@pytest.fixture
def arriving(tmp_path, recorded):
    def make(settle_seconds=0.0, give_up_seconds=0.3, exclude=()):
        files = ArrivingFiles(tmp_path, exclude, recorded, settle_seconds, give_up_seconds)
        files.search()
        return files

    return make


def write(path, content="x", changed=None):
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(content)
    if changed is not None:
        os.utime(path, ns=(0, changed))
    return str(path)


def ready(files, limit=10):
    return [file.relative for file in files.ready(limit)]


def test_the_order_is_time_of_change_then_name(tmp_path, arriving):
    for name, changed in (("b.png", 5), ("a.png", 5), ("z/c.png", 1), ("new.png", 9)):
        write(tmp_path / name, changed=changed)
    files = arriving()
    assert ready(files) == ["z/c.png", "a.png", "b.png", "new.png"] and ready(files, 2) == ["z/c.png", "a.png"]


def test_a_file_that_changes_waits_again(tmp_path, arriving):
    path = write(tmp_path / "a.png")
    files = arriving(settle_seconds=0.15)
    assert ready(files) == [] and 0 < files.next_due() - time.monotonic() <= 0.15
    time.sleep(0.16)
    write(tmp_path / "a.png", "longer")  # without a notification
    assert ready(files) == []
    time.sleep(0.16)
    assert ready(files) == ["a.png"] and files.lag_seconds() > 0.3
    assert files.waiting[path].state["bytes"] == 6


def test_recorded_files_are_known_by_path_size_and_time(tmp_path, arriving, recorded):
    write(tmp_path / "a.png", changed=1)
    files = arriving()
    (file,) = files.ready(1)
    recorded.note(file)
    files.record(file)
    files.search()
    assert not files.waiting and ready(arriving()) == [] and list(files.recorded) == [file.path]
    os.utime(file.path, ns=(0, 2))
    files.search()
    assert ready(files) == ["a.png"]
    os.utime(file.path, ns=(0, 1))  # back again
    files.look(file.path)
    assert not files.waiting


def test_a_damaged_file_is_tried_until_it_is_old(tmp_path, arriving):
    path = write(tmp_path / "a.png")
    files = arriving(settle_seconds=0.05, give_up_seconds=0.4)
    tries, started = 0, time.monotonic()
    while True:
        for file in files.ready(1):
            tries += 1
            if not files.try_later(file):
                assert 0.4 <= time.monotonic() - started < 5 and tries >= 3
                return
            assert files.waiting[path].due <= file.since + 0.4 + 1e-9
        time.sleep(0.005)


def test_give_up_is_never_before_settle(arriving):
    assert arriving(settle_seconds=3, give_up_seconds=1).give_up_seconds == 3


def test_notifications_are_looked_at_one_by_one(tmp_path, arriving):
    folder = tmp_path / "sub"
    write(folder / "old.png")
    files = arriving(exclude=[tmp_path / "out"])
    new, text, hidden = write(folder / "new.png"), write(folder / "a.txt"), write(folder / ".b.png")
    (folder / "old.png").unlink()
    changes = {new: {"added"}, text: {"added"}, hidden: {"added"}, str(folder / "old.png"): {"deleted"}}
    assert not files.notice(changes) and list(files.waiting) == [new]
    # folders that were not read, and those that were removed, need a search; hidden ones do not
    inner = write(folder / "inner" / "c.png")
    assert files.notice({str(folder / "inner"): {"added"}}) and files.notice({inner: {"added"}})
    assert not files.notice({write(tmp_path / ".cache" / "d.png"): {"added"}})
    files.search()
    assert ready(files) == ["sub/new.png", "sub/inner/c.png"]
    assert files.notice({str(folder / "inner"): {"deleted"}})


@pytest.mark.parametrize(
    ("kinds", "others", "at_once"),
    [
        ({"added"}, {".tmp": {"added", "deleted"}}, True),
        ({"added"}, {}, False),
        ({"added", "modified"}, {".tmp": {"deleted"}}, False),
        ({"modified"}, {}, False),
    ],
)
def test_renamed_files_are_due_at_once(tmp_path, arriving, monkeypatch, kinds, others, at_once):
    monkeypatch.setattr("vcp_clip_hf.complete_files._changed_after_writing", lambda path: False)
    files = arriving(settle_seconds=60)
    path = write(tmp_path / "a.png")
    files.notice({path: kinds, **{str(tmp_path / name): each for name, each in others.items()}})
    assert (files.next_due() - time.monotonic() < 1) is at_once


def test_moves_and_marks_are_not_renames(tmp_path, arriving, recorded, monkeypatch):
    monkeypatch.setattr("vcp_clip_hf.complete_files._changed_after_writing", lambda path: False)
    old = write(tmp_path / "old.png", changed=1)
    recorded.add((old, (1, 1)))
    files = arriving(settle_seconds=60)
    os.unlink(old)
    own = (".vcp-clip-1-old.png.moving", ".old.png.vcp-clip.json.unfinished")
    gone = {old: {"deleted"}, **{str(tmp_path / name): {"added", "deleted"} for name in own}}
    files.notice({write(tmp_path / "new.png"): {"added"}, **gone})
    assert files.next_due() - time.monotonic() > 10


def test_a_later_inode_is_a_rename(tmp_path, arriving):
    write(tmp_path / "a.tmp")
    files = arriving(settle_seconds=60)
    time.sleep(0.05)  # more than the resolution of times in the kernel
    os.rename(tmp_path / "a.tmp", tmp_path / "a.png")
    files.notice({str(tmp_path / "a.png"): {"added"}})
    assert files.next_due() - time.monotonic() < 1
    files.notice({str(tmp_path / "a.png"): {"modified"}})  # it is written to after all
    assert files.next_due() - time.monotonic() > 10


def test_an_empty_file_was_not_renamed(tmp_path, arriving):
    files = arriving(settle_seconds=60)
    path = write(tmp_path / "a.png", "")
    files.notice({path: {"added"}, str(tmp_path / "b"): {"deleted"}})
    assert files.next_due() - time.monotonic() > 10


def test_files_after_the_start_can_be_left_out(tmp_path, arriving):
    write(tmp_path / "a.png", changed=1)
    files = arriving()
    files.accepts_new = False
    write(tmp_path / "b.png")
    write(tmp_path / "a.png", "replaced", changed=2)
    files.search()
    assert ready(files) == ["a.png"] and files.waiting[str(tmp_path / "a.png")].state["bytes"] == 8


def test_pictures_that_are_left_out_are_named_once(tmp_path, arriving, monkeypatch):
    said = []
    monkeypatch.setattr("vcp_clip_hf.complete_files.logger.warning", lambda text, *words: said.append(text % words))
    write(tmp_path / "a.heic")
    files = arriving()
    files.search()
    assert len(said) == 1 and "has images that are not read" in said[0] and ".heic 1" in said[0]
