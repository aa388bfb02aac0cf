"""YOLO labels of predictions: lines, classes, and what is kept."""

import numpy as np
import pytest
import yaml
from PIL import Image

from vcp_clip_hf.regions import find_regions
from vcp_clip_hf.yolo_format import write_yolo


@pytest.fixture
def records(tmp_path):
    mask = np.zeros((30, 40), bool)
    mask[6:12, 10:30] = True
    made = []
    for name, marked in {"a": mask, "deep/b": mask & False}.items():
        path = tmp_path / "photos" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(path)
        regions = find_regions(marked, marked.astype(np.float32))
        made.append({"image": str(path), "name": name, "height": 30, "width": 40, "regions": regions})
    return made


def test_labels_images_and_classes(records, tmp_path):
    root = tmp_path / "yolo"
    folder = write_yolo(records, root)
    assert (folder.written, folder.kept, folder.problems) == (2, 0, [])
    assert (root / "labels" / "a.txt").read_text() == (
        "0 0.25000000 0.20000000 0.75000000 0.20000000 0.75000000 0.40000000 0.25000000 0.40000000\n"
    )
    assert (root / "labels" / "deep" / "b.txt").read_text() == "", "a normal image"
    assert (root / "images" / "deep" / "b.jpg").is_symlink() and (root / "images" / "a.jpg").is_file()
    assert (root / "classes.txt").read_text() == "anomaly\n"
    settings = yaml.safe_load((root / "data.yaml").read_text())
    assert settings == {"train": "images", "val": "images", "names": {0: "anomaly"}}


def test_normal_images_alone_have_a_class_too(records, tmp_path):
    write_yolo(records[1:], tmp_path / "yolo")
    assert (tmp_path / "yolo" / "classes.txt").read_text() == "anomaly\n"


def test_names_of_regions_are_classes(records, tmp_path):
    records[0]["regions"][0]["name"] = "deep\nscratch"
    write_yolo(records, tmp_path / "yolo")
    assert (tmp_path / "yolo" / "classes.txt").read_text() == "deep scratch\n"
    records[0]["regions"][0]["name"] = "hole"
    (tmp_path / "yolo" / "labels" / "a.txt").unlink()
    write_yolo(records, tmp_path / "yolo")
    assert (tmp_path / "yolo" / "labels" / "a.txt").read_text().startswith("1 0.25")


def test_corrections_and_numbers_of_classes_are_kept(records, tmp_path):
    root = tmp_path / "yolo"
    write_yolo(records[:1], root)
    (root / "labels" / "a.txt").write_text("1 0.1 0.1 0.2 0.1 0.2 0.2\n")
    (root / "classes.txt").write_text("dent\nhole: 'deep'\n")
    (root / "data.yaml").unlink()
    folder = write_yolo(records, root)
    assert (folder.written, folder.kept) == (1, 1)
    assert (root / "labels" / "a.txt").read_text().startswith("1 0.1")
    assert (root / "classes.txt").read_text().split("\n") == ["dent", "hole: 'deep'", "anomaly", ""]
    names = yaml.safe_load((root / "data.yaml").read_text())["names"]
    assert names == {0: "dent", 1: "hole: 'deep'", 2: "anomaly"}
    (root / "labels" / "a.txt").unlink()
    (root / "data.yaml").write_text("names: [dent, hole, anomaly]\n")
    write_yolo(records, root)
    assert (root / "labels" / "a.txt").read_text().startswith("2 0.25")
    assert (root / "data.yaml").read_text() == "names: [dent, hole, anomaly]\n", "the user's own file stays"
