"""Our methods equal the authors' numbers, and the checker finds what differs."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.common import FIXTURES
from tests.methods.golden import CHECKERS, GoldenFolder, Quantity, RecordedTokenizer, compare, main


RIVALS = FIXTURES / "rivals"
# One folder holds distances only, for tests of the reference memory
FOLDERS = [path for path in sorted(RIVALS.iterdir()) if (path / "backbone.safetensors").is_file()]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_methods_equal_the_authors_numbers(folder):
    wrong = [
        f"{name}: {difference}, tolerance {tolerance}" for name, difference, tolerance, ok in compare(folder) if not ok
    ]
    assert not wrong, "\n".join(wrong)


def test_there_is_a_folder_of_every_checked_method():
    assert {GoldenFolder(folder).method for folder in FOLDERS} == set(CHECKERS)


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(RIVALS / "april_gan", tmp_path / "copy")
    return tmp_path / "copy"


def change(folder, file="expected.safetensors", **tensors):
    save_file({**load_file(folder / file), **tensors}, folder / file)


def test_each_quantity_has_a_line(copy, capsys):
    assert main([str(copy)]) == 0
    text = capsys.readouterr().out
    stored = [*load_file(copy / "expected.safetensors"), *load_file(copy / "gradients.safetensors")]
    given = ("pixel_values", "masks", "reference_pixel_values_bottle", "reference_pixel_values_metal_nut")
    assert all(f"{name} " in text for name in stored if name not in given)


@pytest.mark.parametrize(
    ("file", "name", "by"),
    [
        ("expected.safetensors", "anomaly_map", 1e-4),
        ("expected.safetensors", "loss_trajectory", 1e-3),
        ("gradients.safetensors", "fc.1.weight", 1e-3),
        ("gradients.safetensors", "after_4_steps.fc.0.bias", 1e-3),
    ],
)
def test_a_difference_beyond_its_tolerance_fails(copy, capsys, file, name, by):
    change(copy, file, **{name: load_file(copy / file)[name] + by})
    assert main([str(copy)]) == 1
    failed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith("FAIL")]
    assert failed == [name if file.startswith("expected") else f"gradients/{name}"]


def test_an_unknown_quantity_is_not_passed_over(copy, capsys):
    change(copy, something_new=torch.zeros(3))
    assert main([str(copy)]) == 1
    assert "something_new" in capsys.readouterr().out


def test_a_folder_that_cannot_be_compared_does_not_end_the_run(copy, capsys):
    (copy / "learned.safetensors").unlink()
    assert main([str(copy), str(RIVALS / "winclip")]) == 1
    assert "zero_shot.anomaly_map" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("method", "absent"),
    [
        ("anomalyclip", ("masks", "labels", "loss", "focal", "dice")),
        ("anovl", ("tta.", "noise.", "loss.", "adapter_", "adapted_")),
        ("cocoop", ("masks", "loss", "focal", "dice")),
    ],
)
def test_a_folder_without_training_is_compared(tmp_path, method, absent):
    copy = shutil.copytree(RIVALS / method, tmp_path / method)
    tensors = load_file(copy / "expected.safetensors")
    save_file({k: v for k, v in tensors.items() if not k.startswith(absent)}, copy / "expected.safetensors")
    (copy / "gradients.safetensors").unlink(missing_ok=True)
    assert all(ok for *_, ok in compare(copy))


def test_prompts_in_another_order_fail(copy):
    expected = load_file(copy / "expected.safetensors")
    change(copy, input_ids_bottle=expected["input_ids_bottle"].flip(0))
    verdicts = {name: ok for name, _, _, ok in compare(copy)}
    assert not verdicts["input_ids_bottle"]


def test_tolerances_come_from_the_readme(copy):
    (copy / "README.md").write_text(
        "# april_gan\n- Tolerance (max abs): 2e-5; layer_maps and patch_* 3e-4 (reason).\n"
    )
    folder = GoldenFolder(copy)
    quantity = Quantity(torch.zeros(1), torch.zeros(1))
    assert folder.tolerance("image_score", quantity) == 2e-5
    assert folder.tolerance("patch_tokens_6", quantity) == 3e-4
    assert folder.tolerance("gradients/fc.0.bias", quantity) == 1e-4


def test_missing_values_are_equal_to_missing_values_only():
    nan = torch.tensor([float("nan"), 1.0])
    assert Quantity(nan, nan).difference() == 0
    assert Quantity(nan, torch.ones(2)).difference() == float("inf")
    assert Quantity(torch.ones(2), torch.ones(3)).difference() == float("inf")


def test_the_recorded_tokenizer_knows_its_sentences_only():
    tokenizer = RecordedTokenizer(49408)
    ids = torch.tensor([[49406, 5, 6, 49407, 0], [49406, 5, 7, 8, 49407]])
    assert tokenizer.record(["a nut", "a flawless"], ids).difference() < 1e-6
    assert tokenizer(["a flawless"]).input_ids == [[5, 7, 8]]
    with pytest.raises(KeyError, match="a bolt"):
        tokenizer(["a bolt"])


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("WinCLIP+", "winclip"),
        ("clip-ad, SDP+", "clip_ad"),
        ("VAND-APRIL-GAN few_shot", "april_gan"),
        ("Anomaly_CLIP", "anomalyclip"),
    ],
)
def test_a_method_is_recognized_in_any_spelling(tmp_path, name, method):
    (tmp_path / "config.json").write_text(json.dumps({"method": name}))
    assert GoldenFolder(tmp_path).method == method
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text(f"# {name}\n\nNumbers of the authors' code.\n")
    assert GoldenFolder(tmp_path).method == method


def test_an_unknown_name_falls_back_to_the_stored_tensors(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "method": "ours, b"}))
    (copy / "README.md").write_text("# Model b\n")
    change(copy, few_shot_layer_maps=torch.zeros(1))
    assert GoldenFolder(copy).method == "april_gan"


@pytest.mark.parametrize(
    ("folder", "keys"),
    [
        ("anomalyclip", ["image_size", "temperature", "lam", "gaussian_sigma"]),
        ("april_gan", ["image_size", "logit_scale"]),
        ("clip_ad", ["dataset", "rep_vec", "smoothing_sdp", "templates", "class_name"]),
        ("musc", ["image_size", "r_list", "rscin_k", "interval", "divide_num"]),
        ("winclip", ["image_size", "scales", "temperature", "templates"]),
    ],
)
def test_a_setting_that_is_not_stated_is_the_published_one(tmp_path, folder, keys):
    copy = shutil.copytree(RIVALS / folder, tmp_path / folder)
    config = json.loads((copy / "config.json").read_text())
    for key in keys:
        config.pop(key)
    config["class_name"] = config.get("class_name", "bottle")
    (copy / "config.json").write_text(json.dumps(config))
    assert all(ok for *_, ok in compare(copy))
