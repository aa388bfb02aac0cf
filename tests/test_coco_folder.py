"""The COCO folder of predictions: names begin at images/, and a corrected file stays."""

import json

import numpy as np
from PIL import Image

from vcp_clip_hf.coco_folder import write_coco_folder
from vcp_clip_hf.regions import find_regions


def records(tmp_path) -> list[dict]:
    mask = np.eye(30, 40, dtype=bool)
    made = []
    for name, marked in {"a": mask, "deep/b": mask & False}.items():
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(path)
        regions = find_regions(marked, marked.astype(np.float32))
        made.append({"image": str(path), "name": name, "height": 30, "width": 40, "regions": regions})
    return made


def test_names_begin_at_the_images(tmp_path):
    folder = write_coco_folder(records(tmp_path), tmp_path / "coco")
    assert (folder.written, folder.kept, folder.problems) == (1, 0, [])
    content = json.loads((tmp_path / "coco" / "annotations" / "instances_default.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["a.png", "deep/b.png"]
    assert all((tmp_path / "coco" / "images" / image["file_name"]).is_symlink() for image in content["images"])
    assert [annotation["image_id"] for annotation in content["annotations"]] == [1]


def test_a_corrected_file_is_kept(tmp_path):
    write_coco_folder(records(tmp_path), tmp_path / "coco")
    (tmp_path / "coco" / "annotations" / "instances_default.json").write_text("corrected")
    folder = write_coco_folder(records(tmp_path), tmp_path / "coco")
    assert (folder.written, folder.kept) == (0, 1)
    assert (tmp_path / "coco" / "annotations" / "instances_default.json").read_text() == "corrected"
