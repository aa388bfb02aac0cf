"""Folders for annotation tools: links to the images, and corrected annotations stay."""

import os
from pathlib import Path

import pytest

from vcp_clip_hf.linked_pictures import ToolFolder


@pytest.fixture
def images(tmp_path):
    (tmp_path / "photos" / "b").mkdir(parents=True)
    for name in ("a.png", "b/a.jpg"):
        (tmp_path / "photos" / name).write_bytes(name.encode())
    return tmp_path / "photos"


def records(images: Path) -> list[dict]:
    return [
        {"image": str(images / "a.png"), "name": "a"},
        {"image": str(images / "b" / "a.jpg"), "name": "b/a"},
        {"image": str(images / "gone.png"), "name": "gone"},
        {"image": "http://127.0.0.1/a.png", "name": "a-2"},
        {"image": str(images / "broken.png"), "name": "broken", "error": "cannot be read"},
    ]


def test_pictures_are_linked_and_others_are_problems(images, tmp_path):
    folder = ToolFolder(tmp_path / "out" / "tool")
    links = {record["name"]: link for record, link in folder.pictures(records(images), "images")}
    assert links == {"a": tmp_path / "out/tool/images/a.png", "b/a": tmp_path / "out/tool/images/b/a.jpg"}
    assert all(link.is_symlink() and not os.path.isabs(os.readlink(link)) for link in links.values())
    assert links["b/a"].read_bytes() == b"b/a.jpg"
    assert [(path, reason.split(";")[0]) for path, reason in folder.problems] == [
        (str(images / "gone.png"), "the image file does not exist any more, so no tool can show it"),
        ("http://127.0.0.1/a.png", "annotation tools need a file"),
    ]


def test_links_follow_their_record(images, tmp_path):
    (first,) = (link for _, link in ToolFolder(tmp_path).pictures(records(images)[:1]))
    (images / "other.png").write_bytes(b"other")
    changed = [{"image": str(images / "other.png"), "name": "a"}]
    assert [link for _, link in ToolFolder(tmp_path).pictures(changed)] == [first]
    assert first.read_bytes() == b"other" and (images / "a.png").read_bytes() == b"a.png"


def test_pictures_are_copied_where_links_are_not_possible(images, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)  # as on Windows without the right to make links
    (link,) = (link for _, link in ToolFolder(tmp_path / "out").pictures(records(images)[:1]))
    assert not link.is_symlink() and link.read_bytes() == b"a.png"
    (images / "a.png").write_bytes(b"new")
    list(ToolFolder(tmp_path / "out").pictures(records(images)[:1]))
    assert link.read_bytes() == b"new"


def test_an_annotation_is_written_once(tmp_path):
    folder = ToolFolder(tmp_path / "tool")
    folder.write(folder.folder / "b" / "a.json", "predicted")
    assert folder.describe() == f"1 annotation written to {tmp_path / 'tool'}"
    (folder.folder / "b" / "a.json").write_text("corrected")
    again = ToolFolder(tmp_path / "tool")
    again.write(folder.folder / "b" / "a.json", "predicted")
    assert (folder.folder / "b" / "a.json").read_text() == "corrected"
    assert "0 annotations written" in again.describe() and "1 kept unchanged" in again.describe()
