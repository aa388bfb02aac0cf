"""Images of several sources, their problems, and their names for output files."""

import os
from pathlib import Path

import pytest

from vcp_clip_hf.input_images import find_inputs, list_inputs


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names_of(root: Path) -> dict[str, str]:
    return {os.path.relpath(image.path, root): image.name for image in list_inputs([root])}


def make_deep_folder(root: Path) -> None:
    """Make a folder whose path is longer than the system allows: not even an administrator can list it by path."""
    here = os.open(root, os.O_RDONLY)
    for _ in range(40):
        os.mkdir("d" * 120, dir_fd=here)
        inside = os.open("d" * 120, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inside
    os.close(here)


def test_sources_with_problems_do_not_affect_the_others(tmp_path):
    touch(tmp_path, "a.png", "full/b.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").symlink_to(tmp_path / "gone.png")
    sources = ["gone.png", "a.png", "empty", "broken.png", "full", "none*.png"]
    found = find_inputs([tmp_path / source for source in sources])
    assert [Path(image.path).name for image in found.images] == ["a.png", "b.png"]
    assert [os.path.basename(source) for source, _ in found.problems] == [
        *("gone.png", "empty", "broken.png", "none*.png")
    ]
    sentences = [sentence for _, sentence in found.problems]
    assert sentences[0].startswith("is neither a file, a folder, nor a pattern")
    assert sentences[1].startswith("has no image") and sentences[2].startswith("is a broken link to")
    with pytest.raises(FileNotFoundError, match=r"gone.png.*\n.*empty"):
        list_inputs([tmp_path / source for source in sources])


def test_a_folder_that_cannot_be_read_is_a_problem(tmp_path):
    touch(tmp_path, "a.png")
    make_deep_folder(tmp_path)
    found = find_inputs([tmp_path])
    assert len(found.images) == 1
    ((folder, sentence),) = found.problems
    assert folder.startswith(str(tmp_path / ("d" * 120))) and "cannot be read" in sentence


def test_one_file_is_listed_once(tmp_path, monkeypatch):
    touch(tmp_path, "d/a.png")
    monkeypatch.chdir(tmp_path)
    assert len(list_inputs(["d", "./d/a.png", tmp_path / "d", "d/*.png"])) == 1


def test_names_are_valid_on_every_system(tmp_path):
    odd = [
        "new\nline.png",
        'quo"te.png',
        "a:b?.png",
        "emoji 😀.png",
        os.fsdecode(b"\xff\xfe.png"),
        "dot..png",
        " .png",
    ]
    odd += ["x" * 250 + ".png", "😀" * 60 + ".png", "tab\t.png", "back\\slash.png", "-o.png", "=cmd.png"]
    touch(tmp_path, *odd)
    names = names_of(tmp_path)
    assert set(names) == set(odd)
    for name in names.values():
        name.encode("utf-8")
        assert not set(name) & set('<>:"|?*\\\n\t\0') and len(name.encode()) <= 210 and not name.endswith((".", " "))
    assert names["emoji 😀.png"] == "emoji 😀" and names["new\nline.png"] == "new_line"


def test_names_differ_in_more_than_upper_and_lower_case(tmp_path):
    touch(
        tmp_path, "a.png", "A.png", "a.jpg", "Ä.png", "A\u0308.png", "b/a.png", "B/A.png", "a-2.png", "ß.png", "SS.png"
    )
    names = names_of(tmp_path)
    assert len(names) == 10 and len({name.casefold() for name in names.values()}) == 10


def test_a_folder_with_the_ending_of_an_image_does_not_collide(tmp_path):
    touch(tmp_path, "a.png/b.png", "a.jpg", "c/../d.png")
    assert names_of(tmp_path) == {"a.png/b.png": "a.png_/b", "a.jpg": "a", "d.png": "d"}


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://example.org/x/part.png?size=1", "part"),
        ("https://example.org/", "example"),
        ("https://example.org/a/%2e%2e?x=/../y", "%2e%2e"),
        ("http://example.org/" + "n" * 400, None),
    ],
)
def test_names_of_urls(url, name):
    (image,) = list_inputs([url])
    assert image.path == url and len(image.name) <= 200 and "/" not in image.name
    assert name is None or image.name == name
