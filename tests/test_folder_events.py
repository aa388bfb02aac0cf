"""Notifications of changes in a folder."""

import sys
import time

import pytest

from vcp_clip_hf.folder_events import FolderEvents


def collect(events, count, seconds=10):
    found, end = {}, time.monotonic() + seconds
    while len(found) < count and time.monotonic() < end:
        for path, kinds in events.wait(0.1).items():
            found.setdefault(path, set()).update(kinds)
    return found


@pytest.mark.parametrize("force_polling", [False, True])
def test_changes_are_collected_except_in_excluded_folders(tmp_path, force_polling):
    (tmp_path / "in" / "out").mkdir(parents=True)
    folder = tmp_path / "in"
    (folder / "old.png").write_text("old")
    with FolderEvents(folder, [folder / "out"], force_polling) as events:
        time.sleep(0.5)  # until the thread listens
        assert events.wait(0) == {}
        (folder / "out" / "map.png").write_text("x")
        (folder / "new.png").write_text("x")
        (folder / "old.png").unlink()
        found = collect(events, 2)
    found.pop(str(folder), None)  # polling reports the folder too
    assert found.keys() == {str(folder / "new.png"), str(folder / "old.png")}
    assert "added" in found[str(folder / "new.png")] and found[str(folder / "old.png")] == {"deleted"}


def test_a_folder_without_notifications_is_a_warning(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("vcp_clip_hf.folder_events.logger.warning", lambda text, *words: said.append(text % words))
    with FolderEvents(tmp_path / "gone", []) as events:
        started = time.monotonic()
        assert events.wait(0.3) == {} and time.monotonic() - started > 0.25
    assert len(said) == 1 and "it is only searched" in said[0]


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    with pytest.raises(ImportError, match=r'pip install "vcp-clip-hf\[watch\]"'):
        FolderEvents(tmp_path, [])
