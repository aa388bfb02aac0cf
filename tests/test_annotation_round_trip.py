"""Predict, correct in a tool (simulated on its files), read as ground truth, evaluate, and train."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.common import tiny_model
from tests.training_run import make_model_folder
from vcp_clip_hf import VCPCLIPImageProcessor
from vcp_clip_hf.cli import main
from vcp_clip_hf.data import AnomalyFolder
from vcp_clip_hf.generator import render_sample, select_products


FORMATS = ("coco", "labelme", "yolo")
PREDICT = ["--threshold", 0.2, "--maps", "none", "--no-overlays", "--num-workers", 0]


def run(*arguments) -> str:
    """Run the command line in this process; return what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert not end.value.code, printed.getvalue()
    return printed.getvalue()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Four images of a product with defects, one of them in a folder of its own."""
    folder = tmp_path_factory.mktemp("photos")
    product = select_products("unseen")[0]
    for number, name in enumerate(("0.png", "1.png", "2.jpg", "deep/0.png")):
        (folder / name).parent.mkdir(exist_ok=True)
        render_sample(product, 1, 100 + number, 200, "auto").image.save(folder / name)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Save a checkpoint with random weights, which is quicker than the embedded one."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = tiny_model()
    model.save_pretrained(folder)
    VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=4.0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=FORMATS)
def exact(request, images, model, tmp_path_factory):
    """Predictions in one format without tolerance."""
    output = tmp_path_factory.mktemp("predicted")
    run("predict", images, "-o", output, "-m", model, "--format", request.param, "--polygon-tolerance", 0, *PREDICT)
    return request.param, output


def folder_of(name: str, output: Path, place: Path) -> Path:
    """Return the folder that a tool would give back; a copy, so that it can be corrected."""
    shutil.copytree(output / name, place, symlinks=False)
    return place


def masks_of(folder: Path, tmp_path: Path) -> dict[str, np.ndarray]:
    builder = AnomalyFolder(data_dir=folder, cache_dir=tmp_path / "cache")
    builder.download_and_prepare()
    return {
        row["image_id"].removeprefix("images/"): np.asarray(row["mask"]) > 0 if row["label"] == 1 else None
        for row in builder.as_dataset("test")
    }


def predicted(output: Path) -> dict[str, np.ndarray]:
    masks = sorted((output / "masks").rglob("*.png"))
    return {
        str(path.relative_to(output / "masks").with_suffix("")): np.asarray(Image.open(path)) > 0 for path in masks
    }


def test_masks_come_back_as_they_were_predicted(exact, tmp_path):
    name, output = exact
    found, expected = masks_of(folder_of(name, output, tmp_path / "data"), tmp_path), predicted(output)
    assert found.keys() == expected.keys() and len(found) == 4
    for key, mask in expected.items():
        assert mask.any() and np.array_equal(found[key], mask)


@pytest.mark.parametrize("name", ["labelme", "yolo"])
def test_the_default_tolerance_keeps_nearly_all_of_a_mask(name, images, model, tmp_path):
    run("predict", images, "-o", tmp_path / "out", "-m", model, "--format", name, *PREDICT)
    found, expected = masks_of(tmp_path / "out" / name, tmp_path), predicted(tmp_path / "out")
    assert found.keys() == expected.keys()
    for key, mask in expected.items():
        assert (found[key] & mask).sum() / (found[key] | mask).sum() > 0.95


def correct(name: str, folder: Path) -> None:
    """Correct the annotations as a person would: 0 has a triangle named hole, and 1 has no defect."""
    {"coco": _correct_coco, "labelme": _correct_labelme, "yolo": _correct_yolo}[name](folder)


def _correct_coco(folder: Path) -> None:
    path = folder / "annotations" / "instances_default.json"
    content = json.loads(path.read_text())
    ids = {
        Path(image["file_name"]).name: image["id"] for image in content["images"] if "deep" not in image["file_name"]
    }
    content["annotations"] = [
        each for each in content["annotations"] if each["image_id"] not in (ids["0.png"], ids["1.png"])
    ]
    content["categories"].append({"id": 2, "name": "hole"})
    content["annotations"].append(
        {"id": 999, "image_id": ids["0.png"], "category_id": 2, "segmentation": [[10, 10, 30, 10, 10, 30]]}
    )
    path.write_text(json.dumps(content))


def _correct_labelme(folder: Path) -> None:
    for name, keep in (("0.json", 1), ("1.json", 0)):
        content = json.loads((folder / name).read_text())
        content["shapes"] = content["shapes"][:keep]
        for shape in content["shapes"]:
            shape.update(label="hole", points=[[10, 10], [30, 10], [10, 30]])
        (folder / name).write_text(json.dumps(content))


def _correct_yolo(folder: Path) -> None:
    (folder / "classes.txt").write_text("anomaly\nhole\n")
    (folder / "data.yaml").write_text("train: images\nval: images\nnames: [anomaly, hole]\n")
    (folder / "labels" / "0.txt").write_text("1 0.05 0.05 0.15 0.05 0.05 0.15\n")
    (folder / "labels" / "1.txt").write_text("")


def test_corrections_come_back_as_ground_truth(exact, tmp_path):
    name, output = exact
    folder = folder_of(name, output, tmp_path / "data")
    correct(name, folder)
    found, expected = masks_of(folder, tmp_path), predicted(output)
    rows, columns = np.indices((200, 200))
    triangle = (rows >= 10) & (columns >= 10) & (rows + columns < 39)
    assert (found["0"] ^ triangle).sum() <= 20, "centers on the slanted edge"
    assert found["1"] is None and np.array_equal(found["deep/0"], expected["deep/0"])
    builder = AnomalyFolder(data_dir=folder, cache_dir=tmp_path / "cache")
    assert "3 anomalous" in builder.describe() and "1 normal" in builder.describe()
    assert "defects: anomaly, hole" in builder.describe()


def test_corrected_predictions_are_evaluated_and_trained_on(exact, model, tmp_path):
    name, output = exact
    folder = folder_of(name, output, tmp_path / "data")
    correct(name, folder)
    run("evaluate", f"folder={folder}", "-o", tmp_path / "evaluation", "-m", model, "--num-workers", 0)
    results = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    assert "pixel_auroc" in json.dumps(results)
    options = ["--max_train_steps", 2, "--per_device_train_batch_size", 2, "--dataloader_num_workers", 0]
    options += ["--dataset", "folder", "--data_dir", folder, "--output_dir", tmp_path / "run"]
    run("train", "--model", make_model_folder(tmp_path), *options)
    assert list((tmp_path / "run").rglob("model.safetensors"))


@pytest.mark.parametrize("name", ["labelme", "yolo"])
def test_a_second_run_keeps_corrections_and_does_not_read_its_own_links(name, images, model, tmp_path):
    shutil.copytree(images, tmp_path / "photos")
    arguments = ["predict", tmp_path / "photos", "-o", tmp_path / "photos", "-m", model, "--format", name, *PREDICT]
    assert "4 annotations written" in run(*arguments)
    correct(name, tmp_path / "photos" / name)
    render_sample(select_products("unseen")[0], 1, 7, 200, "auto").image.save(tmp_path / "photos" / "new.png")
    printed = run(*arguments)
    assert "1 image segmented" in printed and "1 annotation written" in printed and "4 kept unchanged" in printed
    found = masks_of(tmp_path / "photos" / name, tmp_path)
    assert found["1"] is None and len(found) == 5
    assert "0 annotations written" in run(*arguments, "--overwrite"), "corrections are the user's work"


def test_annotation_tools_need_files(tmp_path):
    with contextlib.redirect_stderr(io.StringIO()) as stderr, pytest.raises(SystemExit) as end:
        main(["predict", str(tmp_path / "clip.mp4"), "-o", str(tmp_path / "out"), "--format", "labelme"])
    assert end.value.code == 2 and "not a video" in " ".join(stderr.getvalue().replace("│", "").split())
