"""Folders and files are written atomically."""

import pytest

from vcp_clip_hf.atomic_write import atomic_file, atomic_folder


def fill(folder, text="new"):
    with atomic_folder(folder) as path:
        assert path != folder and not list(path.iterdir())
        (path / "file.txt").write_text(text)


def test_a_folder_replaces_an_older_one_as_a_whole(tmp_path):
    folder = tmp_path / "parent" / "folder"
    fill(folder, "old")
    (folder / "more.txt").touch()
    fill(folder)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"file.txt": "new"}
    assert list(folder.parent.iterdir()) == [folder]


def test_remains_of_a_killed_process_are_removed(tmp_path):
    for state in ("unfinished", "outdated"):
        (tmp_path / f".folder.{state}").mkdir()
        (tmp_path / f".folder.{state}" / "rest.txt").touch()
    fill(tmp_path / "folder")
    fill(tmp_path / "folder")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "file.txt"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_folder(error, tmp_path):
    fill(tmp_path / "folder", "old")
    for name in ("folder", "other"):
        with pytest.raises(type(error)), atomic_folder(tmp_path / name) as path:
            (path / "half.txt").touch()
            raise error
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "file.txt"]
    assert (tmp_path / "folder" / "file.txt").read_text() == "old"


def test_a_file_is_replaced_only_when_it_is_complete(tmp_path):
    for text in ("old", "new"):
        with atomic_file(tmp_path / "file.txt") as path:
            path.write_text(text)
    with pytest.raises(OSError, match="disk full"), atomic_file(tmp_path / "file.txt") as path:
        path.write_text("half")
        raise OSError("disk full")
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]
    assert (tmp_path / "file.txt").read_text() == "new"
