"""YOLO segmentation: which text files are labels, their classes, their images, and what is wrong in a line."""

import pytest

from tests.data.trees import save_image
from vcp_clip_hf.data.annotations.yolo import read_yolo
from vcp_clip_hf.data.file_tree import FileTree


SQUARE = "0 0.1 0.1 0.5 0.1 0.5 0.6 0.1 0.6"


def read(root, files: dict[str, str], pictures=("images/1.png",)) -> dict:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name in pictures:
        save_image(root / name)
    return {file.path: file for file in read_yolo(FileTree(root))}


CLASSES = {"classes.txt": "dent\nscratch\n"}


@pytest.mark.parametrize(
    "classes",
    [
        CLASSES,
        {"labels/classes.txt": "dent\nscratch"},
        {"obj.names": "\ufeffdent\nscratch\n"},
        {"data.yaml": "names: [dent, scratch]\nnc: 2\n"},
        {"data.yaml": "path: ./\ntrain: train.txt\nnames:\n  0: dent\n  1: scratch\n"},
        {"dataset.yml": "names:\n  '0': dent\n  1: scratch\n", **CLASSES},
    ],
)
def test_classes_come_from_a_list(tmp_path, classes):
    found = read(tmp_path, {"labels/1.txt": f"{SQUARE}\n\n1 .1 .1 .5 1e-1 .5 .6\n", **classes})
    (file,) = found.values()
    (image,) = file.images
    assert [shape.label for shape in image.shapes] == ["dent", "scratch"] and not image.problems
    assert image.shapes[0].parts == ((0.1, 0.1, 0.5, 0.1, 0.5, 0.6, 0.1, 0.6),) and image.in_fractions
    assert set(file.also_read) == set(classes)


def test_the_image_of_a_label_file(tmp_path):
    found = read(tmp_path, {"a/labels/train/1.txt": SQUARE, "b/2.txt": SQUARE, **CLASSES}, ["b/2.jpg"])
    assert found["a/labels/train/1.txt"].images[0].stems == ("a/images/train/1", "a/train/1", "a/labels/train/1")
    assert found["b/2.txt"].images[0].stems == ("b/2",)


def test_an_empty_label_file_is_an_annotated_image(tmp_path):
    found = read(tmp_path, {"labels/1.txt": "\n", "2.txt": "", **CLASSES}, ["images/1.png", "2.png"])
    assert [file.images[0].shapes for file in found.values()] == [(), ()]


def test_other_text_files_are_left_alone(tmp_path):
    others = {
        "README.txt": "These are gaskets.",
        "train.txt": "images/1.png\n",
        "empty.txt": "",
        "images/classes.txt": "dent\nscratch\n",
    }
    assert list(read(tmp_path, {"labels/1.txt": SQUARE, **others, **CLASSES})) == ["labels/1.txt"]


@pytest.mark.parametrize("content", [{}, {"notes.txt": "seen on monday"}, {"data.yaml": "names: [dent]"}])
def test_a_folder_without_label_files(tmp_path, content):
    assert read(tmp_path, content) == {}


def test_lists_of_classes_that_contradict_each_other(tmp_path):
    found = read(tmp_path, {"labels/1.txt": SQUARE, "data.yaml": "names: [hole]", **CLASSES})
    assert found["classes.txt"].problems == [
        "classes.txt and data.yaml name different classes; keep the one that belongs to the labels"
    ]
    assert "class 0 has no name" in found["labels/1.txt"].images[0].problems[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 .1 .1 .5 .1 .5", "line 1: 5 coordinates, expected x and y of at least three points"),
        ("0 .1 .1 .5 .1 .5 .6 .9", "line 1: 7 coordinates"),
        ("0 .1 .1", "line 1: '0 .1 .1' is not a class and its coordinates"),
        ("0 .1 nan .5 .1 .5 .6", "is not a class and its coordinates"),
        ("dent .1 .1 .5 .1 .5 .6", "line 1: 'dent .1 .1 .5 .1 .5 .6' is not a class"),
        ("0 1e999 .1 .5 .1 .5 .6", "line 1: a coordinate is not a finite number"),
        ("2 .1 .1 .5 .1 .5 .6", r"line 1: class 2 has no name; list the classes in data.yaml (names: [...])"),
    ],
)
def test_lines_that_cannot_be_read(tmp_path, line, message):
    (problem,) = read(tmp_path, {"labels/1.txt": line, **CLASSES})["labels/1.txt"].images[0].problems
    assert message in problem


def test_four_numbers_are_a_bounding_box(tmp_path):
    (image,) = read(tmp_path, {"labels/1.txt": "1 0.5 0.5 0.5 0.25", **CLASSES})["labels/1.txt"].images
    (shape,) = image.shapes
    assert (shape.kind, shape.label) == ("bounding box", "scratch")
    assert shape.parts == ((0.25, 0.375, 0.75, 0.375, 0.75, 0.625, 0.25, 0.625),)


def test_bytes_that_are_not_text(tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "1.txt").write_bytes(b"\xff\xfe0")
    (image,) = read(tmp_path, CLASSES)["labels/1.txt"].images
    assert "unreadable: 'utf-8' codec" in image.problems[0]
    (tmp_path / "classes.txt").write_bytes(b"d\xe9faut")
    (first, *_) = read_yolo(FileTree(tmp_path))
    assert first.path == "classes.txt" and "not a text in UTF-8" in first.problems[0]
