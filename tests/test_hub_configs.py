"""Every folder of hub_configs loads, can be trained, and is what `write_hub_configs` writes."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel

from examples.research import write_hub_configs
from tests.common import tiny_clip
from vcp_clip_hf import VCPCLIPConfig, VCPCLIPImageProcessor, VCPCLIPModel
from vcp_clip_hf.data import list_datasets
from vcp_clip_hf.methods import METHODS
from vcp_clip_hf.training_config import TrainingConfig


ROOT = Path(__file__).parent.parent / "hub_configs"
FOLDERS = sorted(path for path in ROOT.iterdir() if path.is_dir())
SETTINGS = write_hub_configs.settings()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_every_folder_loads(folder):
    config = AutoConfig.from_pretrained(folder)
    assert type(config) is (METHODS[folder.name].config_class if folder.name in METHODS else VCPCLIPConfig)
    processor = VCPCLIPImageProcessor.from_pretrained(folder)
    assert (processor.size.height, processor.size.width) == config.input_size
    training = TrainingConfig.from_file(folder / "train.yaml")
    assert training.model == str(folder) and training.dataset not in training.evaluation_targets
    assert {training.dataset, *training.evaluation_targets} <= {summary.name for summary in list_datasets()}
    with torch.device("meta"):
        AutoModel.from_config(config)


def test_the_folders_are_what_the_script_writes(tmp_path):
    write_hub_configs.write(tmp_path)
    written = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    for path in written:
        ours, theirs = (
            [line for line in (root / path).read_text().splitlines() if "transformers_version" not in line]
            for root in (ROOT, tmp_path)
        )
        assert ours == theirs, path
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in FOLDERS}


@pytest.mark.parametrize("name", SETTINGS)
def test_each_differs_from_the_papers_main_setting_where_it_says(name):
    fields, training = SETTINGS[name]
    main, ours = VCPCLIPConfig().to_dict(), VCPCLIPConfig.from_pretrained(ROOT / name).to_dict()
    changed = {key for key in main if main[key] != ours[key]} - {"_name_or_path", "backbone_name_or_path"}
    # the layers follow from the depth of another tower
    assert set(fields) <= changed <= {*fields, "feature_layers"}
    run = TrainingConfig.from_file(ROOT / name / "train.yaml")
    paper = TrainingConfig(output_dir="", dataset="visa")
    for key in (
        "learning_rate",
        "temperature_learning_rate",
        "num_train_epochs",
        "per_device_train_batch_size",
        "seed",
    ):
        assert getattr(run, key) == training.get(key, getattr(paper, key))


def test_the_main_setting_trains_with_either_auxiliary_set():
    visa, mvtec = (
        TrainingConfig.from_file(ROOT / f"vcp-clip-vit-large-patch14-336-{name}" / "train.yaml")
        for name in ("visa", "mvtec-ad")
    )
    assert (visa.dataset, visa.learning_rate, visa.mosaic_probability) == ("visa", 4e-5, 0.0)
    assert (mvtec.dataset, mvtec.learning_rate, mvtec.mosaic_probability) == ("mvtec_ad", 2e-5, 0.2)
    assert mvtec.evaluation_targets == ["visa"] and len(visa.evaluation_targets) == 9


def test_the_settings_of_an_image_head_train_it_alone_on_half_normal_images():
    run = TrainingConfig.from_file(ROOT / "image_head.yaml", model="trained")
    assert (run.trainable, run.normal_fraction, run.metric_for_best_model) == ("image_head", 0.5, "image_auroc")
    visa = TrainingConfig.from_file(ROOT / "vcp-clip-vit-large-patch14-336-visa" / "train.yaml")
    assert (run.dataset, run.evaluation_targets) == (visa.dataset, visa.evaluation_targets)


def test_anomaly_clip_is_trained_as_by_its_authors():
    run = TrainingConfig.from_file(ROOT / "anomaly_clip" / "train.yaml")
    assert (run.learning_rate, run.adam_beta1, run.adam_beta2, run.seed) == (1e-3, 0.5, 0.999, 111)
    assert (run.num_train_epochs, run.per_device_train_batch_size, run.augmentation) == (15, 8, False)
    processor = VCPCLIPImageProcessor.from_pretrained(ROOT / "anomaly_clip")
    assert (processor.smoothing_sigma, processor.score_mode) == (4.0, "image_head")


def test_clip_ad_is_trained_as_by_its_authors():
    run = TrainingConfig.from_file(ROOT / "clip_ad" / "train.yaml")
    assert (run.learning_rate, run.adam_beta1, run.adam_beta2, run.seed) == (1e-4, 0.9, 0.999, 42)
    assert (run.num_train_epochs, run.per_device_train_batch_size, run.augmentation) == (5, 8, False)
    config = METHODS["clip_ad"].config_class.from_pretrained(ROOT / "clip_ad")
    assert config.use_adapters and config.feature_layers == [3, 6, 9, 12]


def test_cocoop_is_trained_as_the_baseline():
    run, baseline = (TrainingConfig.from_file(ROOT / name / "train.yaml") for name in ("cocoop", "vcp-clip-baseline"))
    assert {**vars(run), "model": "", "output_dir": ""} == {**vars(baseline), "model": "", "output_dir": ""}


def test_another_backbone_is_refused():
    config = VCPCLIPConfig.from_pretrained(
        ROOT / "vcp-clip-baseline",
        text_config={"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 2},
        vision_config={"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 24},
    )
    with pytest.raises(ValueError, match=r"vocab_size: 49408 in the checkpoint, 514 in the backbone"):
        VCPCLIPModel.from_clip(tiny_clip(), config=config)
