"""Methods on the command line: comparison, product names, facts."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.methods.common import tiny_method
from tests.test_cli import run
from vcp_clip_hf.checkpoint_folder import complete_parts, save_parts
from vcp_clip_hf.methods import METHODS
from vcp_clip_hf.prediction import read_predictions


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of pictures of one product: good ones, and one with a bright square and its mask."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name in ("test/good/0", "test/good/1", "test/bad/0", "ground_truth/bad/0"):
        path = folder / "nut" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(80, 150, (48, 48, 3), dtype=np.uint8)
        if "bad" in name:
            pixels[10:20, 10:20] = 255
        if "ground_truth" in name:
            pixels = (pixels == 255).all(axis=2).astype(np.uint8) * 255
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Saved checkpoints of two methods."""
    folders = {}
    for name in ("april_gan", "winclip"):
        model, folders[name] = tiny_method(name), tmp_path_factory.mktemp(name)
        save_parts(folders[name], complete_parts(model, tokenizer=model.tokenizer))
    return folders


def test_several_methods_after_one_option_make_one_table(data, checkpoints, tmp_path):
    methods = [f"{name}={folder}" for name, folder in checkpoints.items()]
    done = run(
        *("evaluate", "--method", *methods, "--dataset", f"folder={data}", "--num-workers", 0, "--seed", 5),
        *("-o", tmp_path),
    )
    assert "APRIL-GAN folder" in done.stdout and "WinCLIP folder" in done.stdout
    assert "zero-shot, nothing is trained" in done.stdout
    values = json.loads((tmp_path / "methods.json").read_text())
    assert list(values["methods"]) == ["april_gan", "winclip"] and values["seed"] == 5
    assert (tmp_path / "sheets" / "winclip" / "folder" / "nut.png").is_file()


def test_options_that_exclude_each_other(data, checkpoints):
    dataset = f"folder={data}"
    assert "--model" in run("evaluate", dataset, "--method", "winclip", "-m", "x", check=2).stderr
    assert "--backbone is for" in run("evaluate", dataset, "--backbone", "embedded", check=2).stderr
    assert "more than once" in run("evaluate", dataset, "--method", "winclip", "winclip", check=2).stderr
    assert "known are" in run("evaluate", dataset, "--method", "winclap", check=1).stderr
    assert "--backbone" in run("evaluate", dataset, "--method", "winclip", check=1).stderr


def test_predict_and_calibrate_take_the_name_of_the_product(data, checkpoints, tmp_path):
    model, images = checkpoints["winclip"], data / "nut" / "test" / "good"
    named = ("--product-name", "nut")
    run("calibrate", images, "-m", model, "-o", tmp_path / "calibrated", "--false-alarm-rate", 0.4, *named)
    for name, options in (("named", named), ("unnamed", ())):
        run("predict", images, "-m", tmp_path / "calibrated", "-o", tmp_path / name, "--num-workers", 0, *options)
    labels = {name: [row["label"] for row in read_predictions(tmp_path / name)] for name in ("named", "unnamed")}
    assert labels["unnamed"] == [None, None] and None not in labels["named"]
    settings = json.loads((tmp_path / "named" / "run.json").read_text())["settings"]
    assert settings["product_name"] == "nut"
    other = ("predict", images, "-m", tmp_path / "calibrated", "-o", tmp_path / "named", "--product-name", "bolt")
    assert "product_name" in run(*other, check=1).stderr


def test_info_knows_methods(checkpoints):
    listed = run("info", "--methods").stdout
    assert all(f"{config.title}: " in listed for config in (model.config_class for model in METHODS.values()))
    facts = json.loads(run("info", "-m", checkpoints["winclip"], "--json").stdout)
    assert facts["method"] == "WinCLIP" and "prompts" not in facts
