"""Settings of a training run: files, command line, error messages."""

import dataclasses
import json

import pytest

from vcp_clip_hf.training_config import TrainingConfig


def make(**settings) -> TrainingConfig:
    return TrainingConfig(**{"output_dir": "out", "dataset": "visa", **settings})


def test_the_defaults_are_the_papers():
    config = make()
    assert (config.learning_rate, config.temperature_learning_rate) == (4e-5, 1e-2)
    assert (config.adam_beta1, config.adam_beta2) == (0.5, 0.999)
    assert (config.num_train_epochs, config.per_device_train_batch_size, config.seed) == (10, 32, 333)
    assert config.split == "test" and config.augmentation and config.mosaic_probability == 0


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_file_is_read_and_overridden(tmp_path, suffix):
    path = tmp_path / f"train.{suffix}"
    text = "output_dir: out\ndataset: visa\nlearning_rate: 2e-5\nmixed_precision: no\nproducts: [a, b]\n"
    values = {
        "output_dir": "out",
        "dataset": "visa",
        "learning_rate": 2e-5,
        "mixed_precision": "no",
        "products": ["a", "b"],
    }
    path.write_text(text if suffix == "yaml" else json.dumps(values))
    config = TrainingConfig.from_file(path, seed=7)
    assert config.learning_rate == 2e-5, "YAML reads 2e-5 as a string"
    assert config.mixed_precision == "no", "YAML reads no as false"
    assert (config.products, config.seed) == (["a", "b"], 7)
    # The default model is the folder of the file
    assert config.model == str(tmp_path.resolve())
    config.save(tmp_path / "saved.yaml")
    assert TrainingConfig.from_file(tmp_path / "saved.yaml") == config


def test_a_relative_model_is_relative_to_the_file(tmp_path):
    (tmp_path / "other").mkdir()
    for model, expected in (("other", str((tmp_path / "other").resolve())), ("someone/hub-name", "someone/hub-name")):
        (tmp_path / "train.yaml").write_text(f"output_dir: o\ndataset: visa\nmodel: {model}\n")
        assert TrainingConfig.from_file(tmp_path / "train.yaml").model == expected


def test_a_command_line_overrides_a_file(tmp_path):
    (tmp_path / "train.yaml").write_text("output_dir: out\ndataset: visa\nseed: 1\n")
    config = TrainingConfig.from_arguments(
        [
            *("--config", str(tmp_path / "train.yaml"), "--products", "[pcb1, pcb2]", "--learning_rate", "1e-3"),
            *("--max_train_steps", "5", "--augmentation", "false", "--dataset_options", "{size: 64}"),
        ]
    )
    assert (config.seed, config.products, config.learning_rate, config.max_train_steps) == (
        1,
        ["pcb1", "pcb2"],
        1e-3,
        5,
    )
    assert config.augmentation is False and config.dataset_options == {"size": 64}


@pytest.mark.parametrize("name", [entry.name for entry in dataclasses.fields(TrainingConfig)])
def test_every_setting_is_spelled_with_hyphens_or_underscores(name):
    required = {"output_dir": "out", "dataset": "visa"}
    value = {"output_dir": "a_b-c", "dataset": "a_b-c"}.get(name, getattr(make(), name))
    others = [f"--{other}={text}" for other, text in required.items() if other != name]
    for option in (f"--{name}", f"--{name.replace('_', '-')}"):
        config = TrainingConfig.from_arguments([option, json.dumps(value), *others])
        assert config == make(**{**required, name: value})


@pytest.mark.parametrize(
    ("arguments", "expected"), [([], False), (["--report"], True), (["--report", "false"], False)]
)
def test_a_switch_needs_no_value(arguments, expected):
    config = TrainingConfig.from_arguments(["--output-dir", "out", *arguments, "--dataset", "visa"])
    assert config.report is expected and config.dataset == "visa"


def test_the_help_has_a_line_for_every_setting(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        TrainingConfig.from_arguments(["--help"], prog="train")
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for entry in dataclasses.fields(TrainingConfig):
        option = "--" + entry.name.replace("_", "-")
        (line,) = [line for line in lines if line.startswith(f"{option} ")]
        assert entry.metadata["help"] in line
    assert lines.index("Optimization:") < lines.index(
        "--learning-rate FLOAT                    learning rate of everything but the temperatures; 2e-5 with MVTec-AD"
        " (default: 4e-05)"
    )
    assert max(map(len, lines)) <= 160


def test_settings_of_a_resumed_run_and_of_the_model_card():
    config = make(seed=7, resume="latest")
    assert config.fixed_settings()["seed"] == config.card_settings()["seed"] == 7
    assert "num_train_epochs" in config.card_settings() and "num_train_epochs" not in config.fixed_settings()
    assert (
        "image_head_learning_rate" in config.card_settings(with_image_head=True).keys() - config.card_settings().keys()
    )
    assert "resume" not in config.card_settings() and "resume" not in config.fixed_settings()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_rat", "1"], "did you mean '--learning-rate'"),
        (["--dataset=visa", "--output-dir=o", "--learning_rate=x"], "learning_rate='x'"),
        (["--config", "gone.yaml"], "gone.yaml"),
        (["--output_dir", "o"], "Missing settings: dataset"),
        (["--dataset", "visa", "--output_dir", "o", "stray"], "unexpected stray"),
    ],
)
def test_a_wrong_command_line_is_explained(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        TrainingConfig.from_arguments(arguments)
    assert error.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lerning_rate": 1.0}, "did you mean 'learning_rate'"),
        ({"zzz": 1}, "Known are"),
    ],
)
def test_unknown_settings_name_the_nearest(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig.from_dict({"output_dir": "o", "dataset": "visa", **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_train_epochs": 0}, "num_train_epochs=0 must be at least 1"),
        ({"num_train_epochs": 1.5}, "num_train_epochs=1.5"),
        ({"seed": True}, "seed=True"),
        ({"augmentation": "yes"}, "augmentation='yes'"),
        ({"products": "a"}, "products='a'"),
        ({"mixed_precision": "int8"}, "mixed_precision='int8'"),
        ({"mosaic_probability": 2}, r"mosaic_probability=2.0 must lie in \[0, 1\]"),
        ({"dataloader_num_workers": -1}, "dataloader_num_workers=-1 must be at least 0"),
        ({"products": ["a"], "validation_products": ["b"]}, "not among products"),
        ({"evaluation_targets": ["visa"]}, "allow_training_on_target"),
    ],
)
def test_wrong_values_are_explained(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_training_on_the_target_must_be_requested():
    assert make(evaluation_targets=["visa"], allow_training_on_target=True).dataset == "visa"
    assert make(evaluation_targets=["mvtec_ad"])


def test_unreadable_files_are_explained(tmp_path):
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ValueError, match="list, expected settings"):
        TrainingConfig.from_file(tmp_path / "list.yaml")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken\.json could not be read"):
        TrainingConfig.from_file(tmp_path / "broken.json")


def test_settings_of_an_image_head_that_contradict_each_other_are_refused():
    run = {"output_dir": "o", "dataset": "visa"}
    with pytest.raises(ValueError, match=r"normal_fraction=0\.5 and synthetic_anomaly_probability=0\.3 both decide"):
        TrainingConfig(**run, normal_fraction=0.5, synthetic_anomaly_probability=0.3)
    with pytest.raises(ValueError, match=r"normal_fraction=1\.5 must lie in \[0, 1\]"):
        TrainingConfig(**run, normal_fraction=1.5)
    head = {**run, "trainable": "image_head", "validation_products": 1}
    with pytest.raises(ValueError, match=r"metric_for_best_model='pixel_ap' stays the same.*image_auroc"):
        TrainingConfig(**head)
    assert TrainingConfig(**head, metric_for_best_model="image_ap").has_image_head
    assert not TrainingConfig(**run).has_image_head and TrainingConfig(**run, use_image_head=True).has_image_head
