"""Passes of an optimizer step: their division, and trainings that are the same whatever it is."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from tests.test_training import assert_same_weights
from tests.training_run import make_model_folder, make_records, settings
from vcp_clip_hf.training import make_accelerator, train
from vcp_clip_hf.training_checkpoints import latest_checkpoint
from vcp_clip_hf.training_config import TrainingConfig
from vcp_clip_hf.training_passes import accumulating, training_passes


CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("batch_size", "steps", "limit", "device", "expected"),
    [
        (1, 8, None, CPU, (1, 8)),
        (1, 8, None, GPU, (8, 1)),
        (1, 32, None, GPU, (8, 4)),
        (4, 8, None, GPU, (2, 4)),
        (32, 2, None, GPU, (1, 2)),
        (8, 1, None, GPU, (1, 1)),
        (1, 8, 1, GPU, (1, 8)),
        (1, 6, 4, CPU, (3, 2)),
        (1, 7, 4, CPU, (1, 7)),
        (3, 4, 7, CPU, (2, 2)),
        (2, 4, 1, CPU, (1, 4)),
        (1, 4, 100, CPU, (4, 1)),
    ],
)
def test_the_passes_of_a_step_are_of_equal_size_within_the_limit(batch_size, steps, limit, device, expected):
    config = TrainingConfig(
        "out",
        "visa",
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=steps,
        images_per_pass=limit,
    )
    passes = training_passes(config, device)
    assert (passes.batches, passes.per_step) == expected
    assert passes.images == batch_size * passes.batches and passes.batches * passes.per_step == steps


def test_a_pass_at_the_end_of_the_data_has_the_weight_of_its_batches():
    config = TrainingConfig(
        "out", "visa", per_device_train_batch_size=4, gradient_accumulation_steps=2, images_per_pass=8
    )
    passes = training_passes(config, CPU)
    assert [passes.share(count) for count in (8, 5, 4, 1)] == [1, 1, 0.5, 0.5]


def test_the_accelerator_gets_its_own_number_of_steps_back():
    accelerator = SimpleNamespace(gradient_accumulation_steps=8)
    with pytest.raises(KeyError), accumulating(accelerator, 2):
        assert accelerator.gradient_accumulation_steps == 2
        raise KeyError
    assert accelerator.gradient_accumulation_steps == 8


def test_an_impossible_limit_is_refused():
    with pytest.raises(ValueError, match="images_per_pass=0 must be at least 1"):
        TrainingConfig("out", "visa", images_per_pass=0)


# The second step of the last case has four of its eight batches: there are 24 images
@pytest.mark.parametrize(("batch_size", "steps", "limit"), [(1, 8, 8), (1, 8, 4), (2, 8, 16)])
def test_without_dropout_joined_batches_give_the_same_gradients(tmp_path, batch_size, steps, limit):
    make_model_folder(tmp_path, deep_prompt_dropout=0.0)
    records = make_records()
    changes = {
        "max_train_steps": 2,
        "learning_rate": 1e-30,  # so that rounding does not grow from step to step
        "temperature_learning_rate": 1e-30,
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": steps,
    }
    alone = train(settings(tmp_path, "alone", **changes), records)
    joined = train(settings(tmp_path, "joined", images_per_pass=limit, **changes), records)
    assert alone.state.epoch == joined.state.epoch and alone.state.step_in_epoch == joined.state.step_in_epoch
    expected, found = mean_gradients(tmp_path / "alone"), mean_gradients(tmp_path / "joined")
    assert expected.norm() > 0.1
    assert (found - expected).norm() < 1e-5 * expected.norm()


def mean_gradients(folder):
    """Return Adam's running mean of all gradients, of the newest checkpoint."""
    tensors = load_file(latest_checkpoint(folder / "checkpoints") / "optimizer.safetensors")
    return torch.cat([tensors[name].flatten() for name in sorted(tensors) if name.endswith(".exp_avg")])


def test_a_run_with_joined_batches_is_resumed_exactly(tmp_path):
    make_model_folder(tmp_path)
    records = make_records()
    changes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "images_per_pass": 2}
    changes |= {"num_train_epochs": 2, "checkpointing_steps": 100}
    config = settings(tmp_path, "whole", **changes)
    accelerator = make_accelerator(config)
    whole = train(config, records, accelerator=accelerator)
    assert accelerator.gradient_accumulation_steps == 4
    train(settings(tmp_path, "parts", max_train_steps=4, **changes), records)
    parts = train(settings(tmp_path, "parts", resume="latest", **changes), records)
    assert parts.state == whole.state and whole.state.step == 12
    assert_same_weights(whole.last, parts.last)
    with pytest.raises(ValueError, match="images_per_pass: 2 then, 4 now"):
        train(settings(tmp_path, "parts", resume="latest", **{**changes, "images_per_pass": 4}), records)
