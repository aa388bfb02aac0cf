"""The records of a watched folder: numbers, identities, torn lines and failing disks."""

import json
import resource
import signal

import pytest

from vcp_clip_hf.watch_journal import WatchJournal


STATE = {"bytes": 5, "mtime_ns": 7}


@pytest.fixture
def limit_of_files():
    """Return a function that makes writing beyond a size fail, as a full disk does."""
    former, action = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, former)
    signal.signal(signal.SIGXFSZ, action)


def append(journal, name, **more):
    return journal.append({"image": f"/in/{name}.png", "name": name, **STATE, **more})


def test_records_are_numbered_and_known_after_a_restart(tmp_path):
    journal = WatchJournal(tmp_path)
    assert (journal.last, journal.size) == (0, 0)
    assert [append(journal, name)["sequence"] for name in ("a", "b")] == [1, 2] and journal.size == 0
    journal.sync()
    assert journal.size == journal.path.stat().st_size > 0
    journal.close()

    again = WatchJournal(tmp_path)
    assert again.last == 2 and again.size == journal.size
    assert again.has("/in/a.png", STATE) and not again.has("/in/c.png", STATE)
    assert not again.has("/in/a.png", {**STATE, "mtime_ns": 8}) and not again.has("/in/a.png", {})
    assert again.names.new("a.png") == "a-2" and append(again, "c")["sequence"] == 3
    again.close()


@pytest.mark.parametrize("cut", [1, 2, 20])
def test_an_incomplete_line_counts_as_none(tmp_path, cut):
    journal = WatchJournal(tmp_path)
    append(journal, "a")
    append(journal, "b")
    journal.close()
    content = journal.path.read_bytes()
    journal.path.write_bytes(content[:-cut])  # 1: only the end of the line is missing, and the record is whole
    again = WatchJournal(tmp_path)
    whole = cut == 1
    assert again.last == (2 if whole else 1) and again.has("/in/b.png", STATE) is whole
    append(again, "c")
    again.close()
    assert [record["name"] for _, record in again.records()] == (["a", "b", "c"] if whole else ["a", "c"])
    position, record = list(again.records())[-1]
    assert json.loads(again.path.read_bytes()[position:]) == record


def test_a_record_that_does_not_fit_is_not_there(tmp_path, limit_of_files):
    journal = WatchJournal(tmp_path)
    append(journal, "a")
    size = journal.path.stat().st_size
    limit_of_files(size + 10)
    with pytest.raises(OSError):
        append(journal, "b")
    assert journal.path.stat().st_size == size and journal.last == 1 and not journal.has("/in/b.png", STATE)
    limit_of_files(resource.RLIM_INFINITY)
    assert append(journal, "b")["sequence"] == 2
    journal.close()
    assert len(journal.path.read_text().splitlines()) == 2


def test_a_removed_journal_is_an_error(tmp_path):
    journal = WatchJournal(tmp_path)
    append(journal, "a")
    journal.path.unlink()
    with pytest.raises(FileNotFoundError, match=r"predictions\.jsonl was removed or replaced"):
        journal.sync()
    journal.close()


def test_names_that_are_not_utf_8(tmp_path):
    journal = WatchJournal(tmp_path)
    append(journal, "\udcff")
    journal.close()
    assert WatchJournal(tmp_path).has("/in/\udcff.png", STATE)


def test_records_of_predict_have_no_number_and_are_left_out(tmp_path):
    (tmp_path / "predictions.jsonl").write_text('{"image": "/in/a.png", "name": "a", "bytes": 5, "mtime_ns": 7}\n')
    journal = WatchJournal(tmp_path)
    assert journal.size > 0 and journal.last == 0 and not journal.has("/in/a.png", STATE)
    journal.close()
