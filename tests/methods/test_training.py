"""Trained methods through `train`: data with names, their own losses, checkpoints that can be resumed and loaded."""

import pytest
import torch
from torch.optim import Adam
from transformers import AutoModel

from tests.common import tiny_clip, tiny_tokenizer
from tests.methods.common import tiny_method
from tests.training_run import make_records, settings
from vcp_clip_hf.checkpoint_folder import complete_parts, save_parts
from vcp_clip_hf.methods import METHODS
from vcp_clip_hf.training import train
from vcp_clip_hf.training_data import collate_examples, training_examples


TRAINED = [name for name in METHODS if any(p.requires_grad for p in tiny_method(name).parameters())]


def save_method(model_type, folder):
    torch.manual_seed(0)
    model = tiny_method(model_type)
    save_parts(folder / "model", complete_parts(model, tokenizer=model.tokenizer))
    return model


def test_the_trained_methods():
    assert set(TRAINED) == {"april_gan", "anomaly_clip", "cocoop"}


@pytest.mark.parametrize("model_type", TRAINED)
def test_a_run_learns_is_resumed_and_loaded(model_type, tmp_path):
    save_method(model_type, tmp_path)
    records = make_records(12)
    short = train(settings(tmp_path, max_train_steps=2, augmentation=False), records)
    assert short.loss > 0
    options = {"num_train_epochs": 2, "augmentation": False}
    whole = train(settings(tmp_path, "whole", **options), records)
    train(settings(tmp_path, "parts", max_train_steps=2, **options), records)
    parts = train(settings(tmp_path, "parts", resume="latest", **options), records)
    assert whole.state.step == parts.state.step == 6
    one, other = (AutoModel.from_pretrained(run.last).state_dict() for run in (whole, parts))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    started = AutoModel.from_pretrained(tmp_path / "model").state_dict()
    changed = {name.split(".")[0] for name, value in one.items() if not torch.equal(value, started[name])}
    assert changed and "clip" not in changed


def test_a_new_clip_ad_is_the_variant_that_is_trained(tmp_path):
    config = settings(
        tmp_path, model="clip_ad", backbone="embedded", max_train_steps=1, augmentation=False, mixed_precision="no"
    )
    model = AutoModel.from_pretrained(train(config, make_records(6)).last)
    assert model.config.use_adapters and model.adapters is not None


@pytest.mark.parametrize("model_type", TRAINED)
def test_a_step_is_that_of_the_methods_own_loss(model_type, tmp_path):
    model = save_method(model_type, tmp_path)
    config = settings(tmp_path, max_train_steps=1, augmentation=False, per_device_train_batch_size=6)
    records = make_records(6)
    trained = AutoModel.from_pretrained(train(config, records).last)

    processor = complete_parts(model).image_processor
    batch = collate_examples(list(training_examples(records, processor, config, with_names=True)))
    assert batch["product_names"] == records["product"]
    batch.pop("has_mask")
    temperatures = [p for name, p in model.named_parameters() if name == "map_logit_scale"]
    others = [p for name, p in model.named_parameters() if p.requires_grad and name != "map_logit_scale"]
    groups = [{"params": others, "lr": config.learning_rate}]
    if temperatures:
        groups.append({"params": temperatures, "lr": config.temperature_learning_rate})
    optimizer = Adam(groups, betas=(0.5, 0.999))
    model.train()(**batch).loss.backward()
    optimizer.step()
    for name, value in trained.named_parameters():
        if not name.startswith("clip."):
            torch.testing.assert_close(value, model.get_parameter(name), atol=1e-4, rtol=1e-3, msg=name)


def test_a_method_by_name_starts_from_any_clip(tmp_path):
    tiny_clip().save_pretrained(tmp_path / "clip")
    tiny_tokenizer().save_pretrained(tmp_path / "clip")
    config = settings(tmp_path, model="april_gan", backbone=str(tmp_path / "clip"), max_train_steps=1)
    result = train(config, make_records(4))
    assert AutoModel.from_pretrained(result.last).config.model_type == "april_gan"


def test_a_method_by_name_needs_a_backbone(tmp_path):
    with pytest.raises(ValueError, match="needs a CLIP: set backbone"):
        train(settings(tmp_path, model="april_gan"), make_records(4))


def test_what_methods_cannot_do_is_refused(tmp_path):
    save_method("april_gan", tmp_path)
    with pytest.raises(ValueError, match="image head is VCP-CLIP's"):
        train(settings(tmp_path, use_image_head=True), make_records(4))
    with pytest.raises(ValueError, match="image_feature_dir"):
        train(settings(tmp_path, augmentation=False, image_feature_dir=str(tmp_path / "features")), make_records(4))
    with pytest.raises(ValueError, match="gradient_checkpointing is for VCP-CLIP"):
        train(settings(tmp_path, augmentation=False, gradient_checkpointing=True), make_records(4))
    records = make_records(4).map(lambda row: {**row, "mask": None})
    with pytest.raises(ValueError, match="trained with masks"):
        train(settings(tmp_path, augmentation=False), records)


def test_a_method_without_a_learned_part_is_not_trained(tmp_path):
    save_method("winclip", tmp_path)
    with pytest.raises(ValueError, match="nothing to train"):
        train(settings(tmp_path), make_records(4))
