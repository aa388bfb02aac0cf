"""Formats are known by content; each file is read once."""

import json
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.trees import save_image
from vcp_clip_hf.data.annotations.coco import read_coco
from vcp_clip_hf.data.annotations.find import ANNOTATION_FORMATS, find_annotations
from vcp_clip_hf.data.annotations.labelme import read_labelme
from vcp_clip_hf.data.annotations.rasterize import rasterize
from vcp_clip_hf.data.annotations.selection import ShapeRules
from vcp_clip_hf.data.file_tree import FileTree


COCO = json.dumps({"images": [{"id": 1, "file_name": "1.png", "width": 40, "height": 28}], "annotations": []})
LABELME = json.dumps({"shapes": [], "imagePath": "1.png", "imageWidth": 40, "imageHeight": 28})
CVAT = "<annotations><version>1.1</version><image name='1.png' width='40' height='28'/></annotations>"
FILES = {
    "coco": {"deep/down/any name.json": COCO},
    "labelme": {"1.json": LABELME},
    "yolo": {"labels/1.txt": "", "classes.txt": "dent"},
    "cvat": {"export/annotations.xml": CVAT},
}
OTHERS = {
    "settings.json": '{"a": 1}',
    "list.json": "[1]",
    "voc.xml": "<annotation><object/></annotation>",
    "notes.txt": "hello",
}


@pytest.fixture
def root(tmp_path):
    save_image(tmp_path / "1.png")
    return tmp_path


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize("name", ANNOTATION_FORMATS)
def test_each_format_is_known_by_its_content(root, name):
    write(root, {**FILES[name], **OTHERS})
    found = find_annotations(FileTree(root))
    assert list(found) == [name] and len(found[name]) == 1 and len(found[name][0].images) == 1
    assert find_annotations(FileTree(root), name) == found
    other = next(each for each in ANNOTATION_FORMATS if each != name)
    assert find_annotations(FileTree(root), other) == {}


def test_all_formats_at_once(root):
    for files in FILES.values():
        write(root, files)
    assert list(find_annotations(FileTree(root))) == list(ANNOTATION_FORMATS)
    with pytest.raises(ValueError, match="no annotation format 'lableme'; did you mean 'labelme'"):
        find_annotations(FileTree(root), "lableme")


DAMAGED = {
    "labelme": ("2.json", '{"shapes": [', "not JSON"),
    "coco": ("2.json", "\x00", "not JSON"),
    "cvat": ("2.xml", "<!DOCTYPE annotations><annotations/>", "a document type definition"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_problems_beside_others(root, caplog, name):
    path, text, message = DAMAGED[name]
    write(root, {path: text})
    assert find_annotations(FileTree(root)) == {}
    assert f"Not read as annotations: {path}: {message}" in caplog.text
    ((file,),) = find_annotations(FileTree(root), name).values()
    assert file.path == path and file.problems[0].startswith(message)
    write(root, FILES[name])
    (files,) = find_annotations(FileTree(root)).values()
    assert [len(file.problems) for file in files] == [0, 1]


def test_json_that_is_nested_too_deeply_is_damaged(root, caplog):
    write(root, {"deep.json": "[" * 100_000 + "]" * 100_000})
    assert find_annotations(FileTree(root)) == {} and "deep.json: not JSON" in caplog.text


class CountingTree(FileTree):
    """A tree that counts how often each file is opened."""

    def __init__(self, root):
        super().__init__(root)
        self.opened: Counter[str] = Counter()

    def text(self, relative):
        self.opened[relative] += 1
        return super().text(relative)

    def content(self, relative):
        self.opened[relative] += 1
        return super().content(relative)


def test_every_file_is_opened_once(root):
    for files in FILES.values():
        write(root, files)
    tree = CountingTree(root)
    find_annotations(tree)
    assert set(tree.opened.values()) == {1} and len(tree.opened) == 5


KEYS = (
    *("images", "annotations", "categories", "id", "image_id", "category_id", "file_name", "name", "width", "height"),
    *("segmentation", "size", "counts", "bbox", "shapes", "imagePath", "imageWidth", "imageHeight", "flags"),
    *("label", "points", "shape_type", "mask"),
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 2**70),
    st.floats(),
    st.sampled_from(["polygon", "rectangle", "circle", "mask", "line", "a.png", "", "52203", "~", "iVBORw0KGgo="]),
)
VALUES = st.recursive(
    LEAVES,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.sampled_from(KEYS), children, max_size=6),
    max_leaves=30,
)
RECORDS = st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=8) | VALUES, max_size=4)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(RECORDS, RECORDS, RECORDS, VALUES)
def test_whatever_a_json_file_holds_the_readers_return_problems(images, annotations, categories, path):
    coco = read_coco("a.json", {"images": images, "annotations": annotations, "categories": categories})
    labelme = read_labelme("a.json", {"shapes": annotations, "imagePath": path, "flags": categories})
    for image in (*coco.images, *labelme.images):
        shapes, _ = ShapeRules(boxes_as_masks=True, line_width=2).choose(image)
        try:
            mask = rasterize(shapes, 20, 10)
        except ValueError as error:
            assert "shape" in str(error) or "annotation" in str(error)
        else:
            assert mask.shape == (10, 20)
