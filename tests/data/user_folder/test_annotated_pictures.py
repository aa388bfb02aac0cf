"""Folders with annotations: one ground truth in four formats, pairing, contradictions, and what is said about them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.helpers import check_row, counts, prepared
from tests.data.trees import BOX, HEIGHT, MARKED, SMALL, WIDTH, save_image, save_mask
from vcp_clip_hf.data import AnomalyFolder, DatasetLayoutError, load_anomaly_dataset


LEFT, TOP, RIGHT, BOTTOM = BOX[0], BOX[1], BOX[2] + 1, BOX[3] + 1  # along pixel edges
SQUARE = [(LEFT, TOP), (RIGHT, TOP), (RIGHT, BOTTOM), (LEFT, BOTTOM)]
OTHER = [(30, 20), (36, 20), (36, 24), (30, 24)]
FORMATS = ("coco", "labelme", "yolo", "cvat")
# Where `write` puts the annotation of a.png
SOURCES = {"coco": "annotations.json", "labelme": "a.json", "yolo": "labels/a.txt", "cvat": "annotations.xml"}
TWO_KINDS = {"a.png": [("dent", SQUARE)], "b.png": [("scratch", SQUARE), ("Dent", OTHER)], "c.png": []}


def write(root: Path, name: str, pictures: dict[str, list], size=(WIDTH, HEIGHT), images=True) -> None:
    """Write images and their shapes, as {path: [(label, points), ...]}, in one of the formats."""
    if images:
        for path in pictures:
            save_image(root / path)
    _WRITERS[name](root, pictures, size)


def write_coco(root: Path, pictures: dict, size) -> None:
    labels = sorted({label for shapes in pictures.values() for label, _ in shapes})
    content = {
        "images": [
            {"id": number, "file_name": path, "width": size[0], "height": size[1]}
            for number, path in enumerate(pictures)
        ],
        "categories": [{"id": number, "name": label} for number, label in enumerate(labels)],
        "annotations": [
            {
                "image_id": number,
                "category_id": labels.index(label),
                "segmentation": [[value for point in points for value in point]],
            }
            for number, shapes in enumerate(pictures.values())
            for label, points in shapes
        ],
    }
    for number, annotation in enumerate(content["annotations"]):
        annotation["id"] = number
    (root / "annotations.json").write_text(json.dumps(content))


def write_labelme(root: Path, pictures: dict, size) -> None:
    for path, shapes in pictures.items():
        content = {
            "shapes": [{"label": label, "points": points, "shape_type": "polygon"} for label, points in shapes],
            "imagePath": path.rpartition("/")[2],
            "imageWidth": size[0],
            "imageHeight": size[1],
        }
        (root / path).with_suffix(".json").write_text(json.dumps(content))


def write_yolo(root: Path, pictures: dict, size) -> None:
    labels = sorted({label for shapes in pictures.values() for label, _ in shapes})
    (root / "classes.txt").write_text("\n".join(labels))
    for path, shapes in pictures.items():
        lines = [
            f"{labels.index(label)} " + " ".join(f"{x / size[0]:.8f} {y / size[1]:.8f}" for x, y in points)
            for label, points in shapes
        ]
        target = (root / "labels" / path).with_suffix(".txt")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("\n".join(lines))


def write_cvat(root: Path, pictures: dict, size) -> None:
    images = []
    for number, (path, shapes) in enumerate(pictures.items()):
        polygons = [
            f'<polygon label="{label}" points="{";".join(f"{x:.2f},{y:.2f}" for x, y in points)}"/>'
            for label, points in shapes
        ]
        images.append(
            f'<image id="{number}" name="{path}" width="{size[0]}" height="{size[1]}">{"".join(polygons)}</image>'
        )
    (root / "annotations.xml").write_text(f"<annotations><version>1.1</version>{''.join(images)}</annotations>")


_WRITERS = {"coco": write_coco, "labelme": write_labelme, "yolo": write_yolo, "cvat": write_cvat}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def folder(root, **options) -> AnomalyFolder:
    return AnomalyFolder(data_dir=root, cache_dir=root.parent / "cache", **options)


def rows(root, split="test", **options) -> dict[str, dict]:
    found = {row["image_id"]: row for row in prepared(folder(root, **options))[split]}
    for row in found.values():
        check_row(row)
    return found


def message_of(root, **options) -> str:
    with pytest.raises(DatasetLayoutError) as caught:
        prepared(folder(root, **options))
    return str(caught.value)


# What is read


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_ground_truth_in_every_format(root, name):
    write(root, name, TWO_KINDS)
    builder = folder(root)
    assert f'layout "{name} annotations"' in builder.describe()
    found = rows(root)
    assert {key: (row["label"], row["defect"]) for key, row in found.items()} == {
        "a": (1, "dent"),
        "b": (1, "dent+scratch"),
        "c": (0, "good"),
    }
    assert np.array_equal(np.asarray(found["a"]["mask"]) > 0, MARKED)
    assert np.array_equal(np.asarray(found["b"]["mask"]) > 0, MARKED | SMALL)
    assert found["a"]["product"] == "data"
    assert rows(root, annotations=name, product="gear")["a"]["product"] == "gear"


@pytest.mark.parametrize("name", FORMATS)
def test_images_in_folders_and_splits(root, name):
    pictures = {"train/good/1.png": [], "train/bad/1.png": [("dent", SQUARE)], "Test/2.png": [("dent", SQUARE)]}
    write(root, name, pictures)
    splits = prepared(folder(root))
    assert {split: counts(part) for split, part in splits.items()} == {"train": (1, 1, 0), "test": (0, 1, 0)}


def test_the_layout_of_exports_with_a_folder_of_images(root):
    """CVAT's archives have images/<subset>/ and annotations/instances_<subset>.json, and the names begin below."""
    write(root, "coco", {"1.png": [("dent", SQUARE)]}, images=False)
    (root / "annotations").mkdir()
    (root / "annotations.json").rename(root / "annotations" / "instances_Train.json")
    save_image(root / "images" / "deep" / "1.png")
    assert list(rows(root, "train")) == ["images/deep/1"]


def test_absolute_paths_and_paths_from_above_the_folder(root):
    """Predictions state a path as it was given to the command."""
    save_image(root / "1.png")
    save_image(root / "b" / "1.png")
    shapes = [("dent", SQUARE)]
    write(root, "coco", {str(root / "1.png"): shapes, "data/b/1.png": shapes}, images=False)
    assert set(rows(root)) == {"1", "b/1"}


@pytest.mark.parametrize("name", FORMATS)
def test_images_that_no_annotation_mentions(root, name, caplog):
    write(root, name, {"images/a.png": [("dent", SQUARE)], "images/c.png": []})
    for extra in ("images/x.png", "images/good/y.png"):
        save_image(root / extra)
    assert {key: row["label"] for key, row in rows(root).items()} == {
        "images/a": 1,
        "images/c": 0,
        "images/x": -1,
        "images/good/y": 0,
    }
    assert (
        "1 of 4 images in" in caplog.text and "images/x.png" in caplog.text and 'unannotated="normal"' in caplog.text
    )
    assert rows(root, unannotated="normal")["images/x"]["label"] == 0
    assert 'images/x.png: without an annotation; add one, or pass unannotated="normal"' in message_of(
        root, unannotated="error"
    )


def test_a_image_turned_by_exif_is_annotated_upright(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (HEIGHT, WIDTH)).save(root / "a.jpg", exif=exif)
    for name in FORMATS:
        write(root, name, {"a.jpg": [("dent", SQUARE)]}, images=False)
        assert np.array_equal(np.asarray(rows(root, annotations=name)["a"]["mask"]) > 0, MARKED)


def test_tags_and_flags_are_labels_of_the_image(root):
    write(root, "cvat", {"a.png": [], "b.png": []})
    path = root / "annotations.xml"
    path.write_text(path.read_text().replace('height="28">', 'height="28"><tag label="OK"/><tag label="blurred"/>', 1))
    assert rows(root)["a"]["label"] == 0
    path.write_text(path.read_text().replace('"OK"', '"reject"'))
    message = message_of(root)
    assert "a.png: label 'reject' means anomalous, and its annotation has no shape; outline the defect" in message
    assert "or correct the label (in annotations.xml)" in message


def test_lines_boxes_and_labels_on_request(root):
    write(root, "cvat", {"a.png": [("dent", SQUARE), ("part", OTHER)]})
    path = root / "annotations.xml"
    path.write_text(path.read_text().replace("<polygon", '<polyline label="cut" points="2,2;12,2"/><polygon', 1))
    assert "pass line_width=5 to draw lines" in message_of(root)
    mask = np.asarray(rows(root, line_width=2, ignore_labels=["part"])["a"]["mask"]) > 0
    assert mask[1:3, 2:12].all() and mask[MARKED].all() and not mask[SMALL].any()

    (root / "annotations.xml").unlink()
    write(root, "yolo", {"a.png": [("dent", SQUARE)]})
    box = [(LEFT + RIGHT) / 2 / WIDTH, (TOP + BOTTOM) / 2 / HEIGHT, (RIGHT - LEFT) / WIDTH, (BOTTOM - TOP) / HEIGHT]
    (root / "labels" / "a.txt").write_text("0 " + " ".join(map(str, box)))
    assert "1 bounding box, the first is line 1 ('dent'): a box is not a segmentation" in message_of(root)
    assert np.array_equal(np.asarray(rows(root, boxes_as_masks=True)["a"]["mask"]) > 0, MARKED)


# What does not fit


@pytest.mark.parametrize("name", FORMATS)
def test_an_annotation_without_a_image(root, name):
    write(root, name, TWO_KINDS)
    (root / "a.png").unlink()
    source = SOURCES[name]
    expected = " (expected images/a.png or another ending)" if name == "yolo" else ""
    picture = "its image" if name == "yolo" else "the image 'a.png'"
    assert f"{source}: {picture} does not exist inside the folder{expected}; put it there, or delete" in message_of(
        root
    )
    builder = folder(root, on_error="skip")
    assert counts(prepared(builder)["test"]) == (1, 1, 0)
    assert [problem.path for problem in builder.left_out] == [source]


@pytest.mark.parametrize("name", FORMATS)
def test_names_that_fit_several_images(root, name):
    write(root, name, {"one/a.png": [("dent", SQUARE)]})
    save_image(root / "two" / "a.png")
    if name == "labelme":
        (root / "one" / "a.json").rename(root / "a.json")
    elif name == "yolo":
        save_image(root / "one" / "a.jpg")
    else:
        for path in root.glob("annotations.*"):
            path.write_text(path.read_text().replace("one/a.png", "a.png"))
    message = message_of(root)
    if name == "yolo":
        assert "labels/one/a.txt: its image can be any of one/a.jpg, one/a.png; give the images" in message
    else:
        assert "the image 'a.png' can be any of one/a.png, two/a.png; write its path" in message


@pytest.mark.parametrize("name", FORMATS)
def test_a_image_that_is_annotated_twice(root, name):
    write(root, name, TWO_KINDS)
    original = root / SOURCES[name]
    copy = root / "a.txt" if name == "yolo" else original.with_stem("copy")
    copy.write_text(original.read_text())
    message = message_of(root)
    assert "a.png: annotated 2 times, in " in message and f"{copy.name}" in message and "keep one of them" in message


@pytest.mark.parametrize("name", FORMATS)
def test_sizes_that_differ(root, name):
    write(root, name, {"a.png": [("dent", SQUARE)]}, size=(80, 56))
    if name == "yolo":  # states no size
        assert rows(root)["a"]["label"] == 1
    else:
        message = message_of(root)
        assert "states 80 x 56 pixels, and the image has 40 x 28; annotate this image" in message
        assert str(root) in message


@pytest.mark.parametrize("name", FORMATS)
def test_polygons_outside_the_image(root, name):
    write(root, name, {"a.png": [("dent", SQUARE), ("dent", [(1, 1), (55, 1), (1, 9)])]})
    assert "(polygon 'dent') has the point (55, 1), which lies outside the image of 40 x 28" in message_of(root)


@pytest.mark.parametrize("name", FORMATS)
def test_shapes_and_folders_that_contradict_each_other(root, name):
    write(root, name, {"good/1.png": [("dent", SQUARE)], "bad/1.png": [], "bad/2.png": [("OK", SQUARE)]})
    save_image(root / "ng" / "7.png")
    message = message_of(root)
    assert "good/1.png: folder 'good' means normal, and its annotation has 1 shape; delete what is wrong" in message
    assert "bad/1.png: folder 'bad' means anomalous, and its annotation has no shape; outline the defect" in message
    assert "bad/2.png: a shape has the label 'OK', which means normal; pass ignore_labels=['OK']" in message
    assert "ng/7.png: in a folder of anomalous images, but without an annotation; outline the defect" in message


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_annotation_leaves_its_image_out(root, name):
    write(root, name, TWO_KINDS)
    damaged = SOURCES[name]
    (root / damaged).write_bytes((root / damaged).read_bytes()[:-11])
    assert damaged in message_of(root, annotations=name)
    if name in ("labelme", "yolo"):
        assert set(rows(root, on_error="skip")) == {"b", "c"}, "not an image of an unknown label"


def test_two_kinds_of_ground_truth_need_a_choice(root):
    write(root, "labelme", TWO_KINDS)
    write(root, "cvat", TWO_KINDS)
    message = message_of(root)
    assert "Choose one of them: annotations='labelme' or annotations='cvat'." in message
    assert "a.json: annotations of labelme, 3 files" in message
    assert rows(root, annotations="cvat").keys() == rows(root, layout="annotations", annotations="labelme").keys()
    (root / "annotations.xml").unlink()
    save_mask(root / "masks" / "a.png")
    assert "annotations='labelme' or layout='kinds'" in message_of(root)
    assert len(rows(root, annotations="labelme")) == 3, "masks are not images"
    assert counts(prepared(folder(root, layout="flat"))["test"]) == (0, 1, 2)


def test_a_table_goes_before_annotations(root):
    write(root, "labelme", TWO_KINDS)
    (root / "metadata.csv").write_text("image,label\na.png,0\n")
    assert {key: row["label"] for key, row in rows(root).items()} == {"a": 0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"annotations": "cvat"}, "no annotations of cvat"),
        ({"layout": "annotations"}, "no annotations of COCO, labelme, YOLO or CVAT"),
        ({"annotations": "voc"}, "There is no annotation format 'voc'"),
        ({"annotations": "coco", "layout": "flat"}, "layout 'flat' reads no annotations"),
        ({"unannotated": "maybe"}, 'unannotated=\'maybe\' must be "unknown", "normal" or "error"'),
        ({"line_width": -1}, "line_width=-1 must be a number of pixels"),
        ({"ignore_labels": "part"}, "must be a list of names"),
    ],
)
def test_options_that_do_not_fit(root, options, message):
    save_image(root / "good" / "1.png")
    with pytest.raises(ValueError, match=message):
        folder(root, **options)


# Files that come from elsewhere


@pytest.mark.parametrize("name", ["coco", "labelme", "cvat"])
@pytest.mark.parametrize("path", ["../other.png", "{root}/../other.png", "..\\other.png", "data/../../other.png"])
def test_images_outside_are_not_read(root, name, path):
    save_image(root.parent / "other.png")
    save_image(root / "a.png")
    path = path.format(root=root)
    write(root, name, {"a.png": [("dent", SQUARE)]}, images=False)
    source = root / SOURCES[name]
    escaped = path if name == "cvat" else json.dumps(path)[1:-1]
    source.write_text(source.read_text().replace("a.png", escaped))
    assert "other.png' does not exist inside the folder" in message_of(root)
    if not path.startswith("data"):
        found = rows(root, outside_files=True)
        assert sorted(row["label"] for row in found.values()) == [-1, 1]


def test_the_folder_of_predictions_may_be_linked(root):
    save_image(root.parent / "photos" / "a.png")
    (root / "a.png").symlink_to(root.parent / "photos" / "a.png")
    write(root, "labelme", {"a.png": [("dent", SQUARE)]}, images=False)
    assert rows(root)["a"]["label"] == 1


# Large files, and changes


def test_a_large_file_is_opened_once(root, monkeypatch):
    from vcp_clip_hf.data.file_tree import FileTree

    save_image(root / "0.png")
    for number in range(1, 400):
        (root / f"{number}.png").symlink_to("0.png")
    write(root, "coco", {f"{number}.png": [("dent", SQUARE)] for number in range(400)}, images=False)
    opened, looked = [], []
    text, find = FileTree.text, FileTree.find
    monkeypatch.setattr(FileTree, "text", lambda self, path: opened.append(path) or text(self, path))
    monkeypatch.setattr(FileTree, "find", lambda self, *args, **kw: looked.append(1) or find(self, *args, **kw))
    builder = folder(root)
    builder.download_and_prepare()
    assert counts(builder.as_dataset("test")) == (0, 400, 0)
    assert opened == ["annotations.json"] and len(looked) == 400 + 2  # one look for each image, two for tables


def test_a_changed_annotation_is_noticed(root):
    write(root, "labelme", TWO_KINDS)
    assert rows(root)["c"]["label"] == 0
    write(root, "labelme", {**TWO_KINDS, "c.png": [("hole", OTHER)]}, images=False)
    assert rows(root)["c"]["defect"] == "hole"


def test_rows_may_be_prepared_in_processes_and_streamed(root):
    write(root, "coco", TWO_KINDS)
    options = {"cache_dir": str(root.parent / "cache")}
    table = load_anomaly_dataset("folder", str(root), split="test", num_proc=2, **options)
    stream = load_anomaly_dataset("folder", str(root), split="test", streaming=True, **options)
    for row, other in zip(table, stream, strict=True):
        assert row["image_id"] == other["image_id"] and row["label"] == other["label"]
