"""labelme files of predictions: what labelme's own loader requires of them."""

import json

import numpy as np
import pytest
from PIL import Image

from vcp_clip_hf.labelme_format import write_labelme
from vcp_clip_hf.regions import find_regions


@pytest.fixture
def records(tmp_path):
    ring = np.zeros((30, 40), bool)
    ring[5:20, 5:30] = True
    ring[9:14, 10:20] = False
    made = []
    for name, mask in {"a": ring, "deep/b": ring & False}.items():
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(path)
        regions = find_regions(mask, mask * np.float32(0.75))
        made.append({"image": str(path), "name": name, "height": 30, "width": 40, "regions": regions})
    return made


def test_files_have_the_fields_that_labelme_reads(records, tmp_path):
    """The types are those that labelme 5.4.1, 6.3.1 and 7.9.1 check when they load a file."""
    folder = write_labelme(records, tmp_path / "labelme")
    assert (folder.written, folder.kept, folder.problems) == (2, 0, [])
    content = json.loads((tmp_path / "labelme" / "a.json").read_text())
    assert list(content) == ["version", "flags", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth"]
    assert (content["imageData"], content["imageHeight"], content["imageWidth"]) == (None, 30, 40)
    assert Image.open(tmp_path / "labelme" / content["imagePath"]).size == (40, 30)
    (shape,) = content["shapes"]
    assert (shape["label"], shape["shape_type"], shape["description"]) == ("anomaly", "polygon", "score 0.750")
    assert shape["flags"] == {} and shape["group_id"] is None and shape["mask"] is None
    assert all(len(point) == 2 and all(isinstance(value, float) for value in point) for point in shape["points"])


def test_an_image_without_regions_has_a_file_without_shapes(records, tmp_path):
    write_labelme(records, tmp_path / "labelme")
    content = json.loads((tmp_path / "labelme" / "deep" / "b.json").read_text())
    assert content["shapes"] == [] and content["imagePath"] == "b.png"


def test_the_name_of_a_region_is_its_label(records, tmp_path):
    records[0]["regions"][0]["name"] = "scratch"
    write_labelme(records, tmp_path / "labelme")
    assert json.loads((tmp_path / "labelme" / "a.json").read_text())["shapes"][0]["label"] == "scratch"


def test_corrected_files_are_kept(records, tmp_path):
    write_labelme(records[:1], tmp_path / "labelme")
    (tmp_path / "labelme" / "a.json").write_text("corrected")
    folder = write_labelme(records, tmp_path / "labelme")
    assert (folder.written, folder.kept) == (1, 1)
    assert (tmp_path / "labelme" / "a.json").read_text() == "corrected"
