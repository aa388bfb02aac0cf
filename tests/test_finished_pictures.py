"""Marks and moves: never over another file, never the wrong file, and repaired after a kill at any step."""

import errno
import json
import os

import pytest

from vcp_clip_hf import finished_pictures
from vcp_clip_hf.finished_pictures import FinishedPictures
from vcp_clip_hf.prediction_records import file_state


@pytest.fixture
def watched(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.fixture
def move(tmp_path):
    return FinishedPictures("move", tmp_path / "out")


def record_of(path, name=None, sequence=1, content="content", **more):
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(content)
    state = file_state(str(path))
    return {"image": str(path), "name": name or path.stem, "sequence": sequence, **state, **more}


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_files_are_kept_by_default(watched, tmp_path):
    record = record_of(watched / "a.png")
    FinishedPictures("keep", tmp_path / "out")(record)
    assert files(tmp_path) == {"in/a.png": "content"}


def test_a_mark_holds_the_newest_record(watched, tmp_path):
    mark = FinishedPictures("mark", tmp_path / "out")
    old = record_of(watched / "a.png", sequence=9)
    mark(old)
    new = record_of(watched / "a.png", "a-2", 2, "replaced")  # each output folder has its own numbers
    for record in (new, old):
        mark(record)
    assert json.loads((watched / "a.png.vcp-clip.json").read_text()) == new
    (watched / "a.png.vcp-clip.json").write_text("torn")
    mark(new)
    assert json.loads((watched / "a.png.vcp-clip.json").read_text()) == new


def test_moves_never_overwrite(watched, tmp_path, move):
    for name in ("a.png", "a-2.png"):
        record_of(tmp_path / "out" / "done" / name, content="foreign")
    move(record_of(watched / "a.png"))
    move(record_of(watched / "sub" / "b.png", "sub/b", 2))
    move(record_of(watched / "bad.png", "bad", 3, error="damaged"))
    assert files(tmp_path) == {
        "out/done/a.png": "foreign",
        "out/done/a-2.png": "foreign",
        "out/done/a-3.png": "content",
        "out/done/sub/b.png": "content",
        "out/failed/bad.png": "content",
    }


def test_a_replaced_file_is_not_moved(watched, tmp_path, move):
    record = record_of(watched / "a.png")
    (watched / "a.png").write_text("another image")
    move(record)
    assert files(tmp_path) == {"in/a.png": "another image"}
    (watched / "a.png").unlink()
    move(record)  # somebody else took it
    assert files(tmp_path) == {}


def test_links_are_replaced_by_what_they_show(watched, tmp_path, move):
    target = tmp_path / "elsewhere" / "a.png"
    record = record_of(target)
    (watched / "a.png").symlink_to(os.path.relpath(target, watched))
    move({**record, "image": str(watched / "a.png")})
    assert files(tmp_path) == {"elsewhere/a.png": "content", "out/done/a.png": "content"}
    assert not (tmp_path / "out" / "done" / "a.png").is_symlink()


@pytest.mark.parametrize("taken", [False, True])
def test_other_disks_and_file_systems_without_links(watched, tmp_path, move, monkeypatch, taken):
    def refuse(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(finished_pictures.os, "link", refuse)
    if taken:
        record_of(tmp_path / "out" / "done" / "a.png", content="foreign")
    move(record_of(watched / "a.png"))
    assert files(tmp_path).pop(f"out/done/a{'-2' * taken}.png") == "content"
    assert len(files(tmp_path)) == 1 + taken


def test_a_file_that_cannot_be_moved_stays_and_is_named(watched, tmp_path, move, said):
    (tmp_path / "out").write_text("a file instead of a folder")
    move(record_of(watched / "a.png"))
    assert (watched / "a.png").read_text() == "content" and len(said) == 1 and "could not be moved" in said[0]
    (watched / "b.png.vcp-clip.json").mkdir()
    FinishedPictures("mark", tmp_path)(record_of(watched / "b.png"))
    assert "could not be marked" in said[1]


class KilledError(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("step", ["before", "rename", "link", "unlink"])
def test_an_interrupted_move_is_repaired(watched, tmp_path, move, monkeypatch, step):
    records = [record_of(watched / f"{name}.png", name, number) for number, name in enumerate("abc", 1)]
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        if step == "before":
            raise KilledError
        original = getattr(os, step)

        def killed(*arguments):
            if step == "rename":
                original(*arguments)
            raise KilledError

        patch.setattr(finished_pictures.os, step, killed)
        move(records[1])
    move.repair(watched, [], iter(records))
    assert files(tmp_path) == {f"out/done/{name}.png": "content" for name in "abc"}
    move.repair(watched, [], iter(records))
    assert len(files(tmp_path)) == 3


def test_an_interrupted_move_is_finished_when_files_are_kept_now(watched, tmp_path):
    moved, kept = record_of(watched / "a.png"), record_of(watched / "b.png", "b", 2)
    os.rename(watched / "a.png", watched / ".vcp-clip-1-a.png.moving")
    FinishedPictures("keep", tmp_path / "out").repair(watched, [], [moved, kept])
    assert files(tmp_path) == {"in/b.png": "content", "out/done/a.png": "content"}


def test_a_hidden_file_without_a_record_gets_its_name_back(watched, tmp_path, move):
    record_of(watched / "sub" / ".vcp-clip-7-a.png.moving")
    other = record_of(watched / "sub" / "a.png", "x", 9, "newer")
    move.repair(watched, [], [{**other, "bytes": 0}])
    assert files(watched) == {"sub/a.png": "newer", "sub/a-2.png": "content"}


def test_marks_that_are_missing_are_repaired(watched, tmp_path):
    mark = FinishedPictures("mark", tmp_path)
    records = [record_of(watched / f"{name}.png", name, number) for number, name in enumerate("ab", 1)]
    (watched / "b.png").write_text("a new image, without a record")
    mark.repair(watched, [], iter(records))
    assert files(watched).keys() == {"a.png", "b.png", "a.png.vcp-clip.json"}
