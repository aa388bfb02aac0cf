"""Each named ablation is a valid configuration, can be trained, and is applied without training where possible."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.test_cli import run
from tests.training_run import make_model_folder, make_records, settings
from vcp_clip_hf import EMBEDDED_CHECKPOINT, VCPCLIPConfig, VCPCLIPImageProcessor, VCPCLIPModel
from vcp_clip_hf.ablations import list_ablations, load_ablation, paper_settings_file
from vcp_clip_hf.training import train
from vcp_clip_hf.training_config import TrainingConfig


ROOT = Path(__file__).parent.parent
BASE = ROOT / "hub_configs" / "vcp-clip-vit-large-patch14-336-visa"


def test_there_are_37_ablations_of_the_papers_main_setting():
    assert len(list_ablations()) == len(set(list_ablations())) == 37
    assert paper_settings_file() == BASE / "train.yaml"


@pytest.mark.parametrize("name", list_ablations())
def test_each_changes_the_fields_it_names_to_a_valid_configuration(name):
    ablation, base = load_ablation(name), VCPCLIPConfig.from_pretrained(BASE).to_dict()
    config = VCPCLIPConfig.from_pretrained(BASE, **ablation.config_fields)
    config.check_consistency()
    changed = {key for key, value in config.to_dict().items() if base[key] != value}
    assert changed == set(ablation.config_fields)
    processor = ablation.image_processor(VCPCLIPImageProcessor.from_pretrained(BASE))
    assert (processor.size.height, processor.size.width) == config.input_size
    assert processor.smoothing_sigma == pytest.approx(8 * config.input_size[0] / 518)
    training = TrainingConfig.from_arguments(["--ablation", name])
    assert (training.model, training.output_dir) == (str(BASE), f"runs/ablation-{name}")
    main = TrainingConfig.from_file(BASE / "train.yaml", ablation=name, output_dir=training.output_dir)
    assert training == main
    with torch.device("meta"):
        VCPCLIPModel(config)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("without-dtp", {"num_deep_prompt_tokens": 0}),
        ("layers-6-12", {"feature_layers": [6, 12]}),
        ("heads-16", {"post_vcp_num_heads": 16}),
        ("fusion-weight-0.25", {"fusion_weight": 0.25}),
        ("resolution-798", {"image_size": 798}),
    ],
)
def test_names_say_what_changes(name, fields):
    assert load_ablation(name).config_fields == fields


def test_prompts_and_their_token_ids_belong_together():
    """Two prompts of one template differ in the state word only, as their ids do."""
    words = {}
    for name in list_ablations():
        if name.startswith("prompt-"):
            fields = load_ablation(name).config_fields
            for state in ("normal", "abnormal"):
                (prompt,), (ids,) = fields[f"{state}_prompts"], fields[f"{state}_prompt_input_ids"]
                tokens = prompt.split()
                assert len(tokens) == len(ids) - 2, "each word is one token between start and end"
                for word, token in zip(tokens, ids[1:-1], strict=True):
                    assert words.setdefault(word, token) == token
    assert len(set(words.values())) == len(words) and words["{}"] == 49408


def test_an_unknown_name_gives_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'heads-4'"):
        load_ablation("head-4")
    with pytest.raises(ValueError, match="Unknown ablation 'zzz'; known are without-dtp"):
        TrainingConfig(output_dir="o", dataset="visa", ablation="zzz")


def test_a_saved_configuration_keeps_its_ablation_and_its_folder(tmp_path):
    TrainingConfig.from_arguments(["--ablation", "heads-4", "--output_dir", "mine"]).save(tmp_path / "saved.yaml")
    saved = TrainingConfig.from_file(tmp_path / "saved.yaml")
    assert (saved.ablation, saved.output_dir) == ("heads-4", "mine")


def test_training_an_ablation(tmp_path):
    make_model_folder(tmp_path)
    config = settings(tmp_path, ablation="resolution-224", max_train_steps=1)
    result = train(config, make_records(8))
    trained = VCPCLIPModel.from_pretrained(result.last).config
    processor = VCPCLIPImageProcessor.from_pretrained(result.last)
    assert trained.image_size == 224 == processor.size.height
    assert processor.smoothing_sigma == pytest.approx(8 * 224 / 518)


def test_evaluating_an_ablation_that_needs_no_training(tmp_path):
    for index, record in enumerate(make_records(4)):
        kind = "broken" if record["label"] else "good"
        (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
        record["image"].save(tmp_path / "data" / kind / f"{index}.png")
    # without its stem branch, which finds all these squares whatever the other branches give
    shutil.copytree(EMBEDDED_CHECKPOINT, tmp_path / "model")
    config = VCPCLIPConfig.from_pretrained(EMBEDDED_CHECKPOINT, use_stem_branch=False)
    config.save_pretrained(tmp_path / "model")
    reports = {}
    for name in (None, "fusion-weight-0.0"):
        output = tmp_path / str(name)
        options = [
            "-o",
            output,
            "--model",
            tmp_path / "model",
            "--num-workers",
            0,
            *(() if name is None else ("--ablation", name)),
        ]
        run("evaluate", f"folder={tmp_path / 'data'}", *options)
        reports[name] = json.loads((output / "results.json").read_text())
    assert reports["fusion-weight-0.0"]["settings"]["ablation"] == "fusion-weight-0.0"
    assert "ablation" not in reports[None]["settings"]
    one, other = (next(iter(report["results"].values())) for report in reports.values())
    assert one != other, "the map without Post-VCP is another one"


def test_evaluate_refuses_what_needs_training_and_prompts_of_another_vocabulary(tmp_path):
    refused = run("evaluate", "folder=x", "--ablation", "heads-4", check=1).stderr
    assert "changes post_vcp_num_heads" in refused and "vcp-clip train --ablation heads-4" in refused
    refused = run("evaluate", "folder=x", "--ablation", "prompt-this-is-a-good-damaged", check=1).stderr
    assert "category_token_id" in refused or "vocabulary" in refused


def test_an_installed_package_has_the_named_configurations(tmp_path):
    build = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, timeout=120, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    program = (
        "from vcp_clip_hf.ablations import list_ablations, paper_settings_file;"
        "print(len(list_ablations()), paper_settings_file())"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=240, capture_output=True, text=True,
        env=environment,
    )  # fmt: skip
    installed = tmp_path / "vcp_clip_hf" / "hub_configs" / "vcp-clip-vit-large-patch14-336-visa" / "train.yaml"
    assert done.stdout.split() == ["37", str(installed)] and installed.is_file()
    assert (tmp_path / "vcp_clip_hf" / Path(EMBEDDED_CHECKPOINT).relative_to(ROOT / "vcp_clip_hf")).is_dir()
