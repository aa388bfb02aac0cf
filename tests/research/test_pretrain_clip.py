"""Pretraining of the tiny CLIP: its model, its loss of maps, and a continuation that is bit-equal."""

import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import default_collate
from transformers import CLIPModel

from examples.research import pretrain_clip
from examples.research.captioned_views import Sizes, Views, load_tokenizer
from examples.research.efficientnet_stem import stem_state
from examples.research.material_scenes import MaterialScenes
from tests.research.stem_weights import random_weights, write_random_weights
from vcp_clip_hf.losses import segmentation_loss
from vcp_clip_hf.vision_tower import VCPCLIPBackbone


SMALL = ["--width", "64", "--depth", "2", "--map_layers", "1", "2", "--projection_dim", "32"]
SMALL += ["--image_size", "32", "--large_image_size", "48", "--batch_size", "8", "--large_batch_size", "4"]
SMALL += ["--steps", "4", "--large_steps", "1", "--scenes", "8", "--scene_size", "64", "--checkpointing_steps", "2"]
SMALL += ["--dataloader_num_workers", "0", "--mixed_precision", "no", "--warmup_steps", "2"]
STEM = "vision_model.embeddings.patch_embedding.stem."


@pytest.fixture(autouse=True)
def _as_a_process_of_its_own():
    """Forget the mixed precision of earlier tests: Accelerate keeps that of the first run of a process."""
    AcceleratorState._reset_state()


@pytest.fixture(scope="module")
def stem_weights(tmp_path_factory):
    return write_random_weights(tmp_path_factory.mktemp("stem") / "weights.pt")


def options(output_dir="", *arguments: object):
    return pretrain_clip.parse(["--output_dir", str(output_dir), *SMALL, *map(str, arguments)])


def small_model(stem_weights=None, *arguments: str) -> CLIPModel:
    chosen = options("", *arguments)
    return pretrain_clip.make_model(pretrain_clip.make_config(load_tokenizer(chosen), chosen), stem_weights)


# --- model -----------------------------------------------------------------------------------------------------------


def test_a_model_with_a_frozen_stem(stem_weights):
    model = small_model(stem_weights)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith(STEM)} and frozen
    expected = stem_state(random_weights())
    assert all(torch.equal(model.get_parameter(STEM + name), value) for name, value in expected.items())
    groups = pretrain_clip.make_optimizer(model).param_groups
    optimized = {id(each) for group in groups for each in group["params"]}
    assert optimized == {id(each) for each in model.parameters() if each.requires_grad}


def test_vectors_and_scalars_have_no_weight_decay(stem_weights):
    decayed, others = pretrain_clip.make_optimizer(small_model(stem_weights)).param_groups
    assert decayed["weight_decay"] > 0 == others["weight_decay"]
    assert {each.ndim > 1 for each in decayed["params"]} == {True}
    assert {each.ndim > 1 for each in others["params"]} == {False}


def test_a_model_without_a_stem_is_a_plain_clip():
    model = small_model(None, "--stem", "none")
    assert not any("stem" in name for name, _ in model.named_parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    plain = CLIPModel(model.config)
    plain.load_state_dict(model.state_dict(), strict=True)
    images = torch.randn(1, 3, 32, 32)
    ours, theirs = (each.eval().vision_model(images).pooler_output for each in (model, plain))
    assert torch.equal(ours, theirs)


def test_the_default_model_is_small():
    chosen = pretrain_clip.parse(["--output_dir", ""])
    with torch.device("meta"):
        model = VCPCLIPBackbone(pretrain_clip.make_config(load_tokenizer(chosen), chosen))
    assert sum(parameter.numel() for parameter in model.parameters()) < 5e6
    assert max(chosen.map_layers) == chosen.depth and chosen.image_size % chosen.patch_size == 0


def test_the_learning_rate_warms_up_and_ends_at_2_percent():
    chosen = options("", "--steps", "100", "--warmup_steps", "10", "--learning_rate", "0.5")
    rates = [pretrain_clip.learning_rate(step, chosen) for step in range(101)]
    assert rates[0] == pytest.approx(0.05) and rates[10] == pytest.approx(0.5) == max(rates)
    assert rates[55] == pytest.approx(0.5 * 0.51) and rates[100] == pytest.approx(0.01)
    assert rates[10:] == sorted(rates[10:], reverse=True)


# --- loss of maps ----------------------------------------------------------------------------------------------------


def plain_model(scale: float) -> CLIPModel:
    """Return a model whose projection leaves patch tokens as they are."""
    model = small_model(None, "--stem", "none")
    model.visual_projection = model.vision_model.post_layernorm = nn.Identity()
    model.logit_scale.data.fill_(math.log(scale))
    return model


def perfect(side: int = 4, size: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return tokens that equal the caption of the damage exactly where it is, captions, and labels, of two pairs."""
    patches = torch.zeros(4, side, side)
    patches[0, 1, 2] = patches[2, 0, :2] = 1
    captions = torch.eye(6)[:4]  # damaged, whole, damaged, whole
    damaged, whole = (captions[part].repeat_interleave(2, dim=0)[:, None] for part in ([0, 2], [1, 3]))
    tokens = torch.where(patches.flatten(1)[..., None] > 0, damaged, whole)
    labels = patches.repeat_interleave(size // side, 1).repeat_interleave(size // side, 2).to(torch.uint8)
    return tokens, captions, labels


@torch.no_grad()
def test_perfect_maps_have_a_small_loss_and_reversed_maps_a_large_one():
    tokens, captions, labels = perfect()
    model = plain_model(20.0)
    loss, auroc = pretrain_clip.map_loss(model, [tokens], captions, labels)
    assert auroc > 0.99 and loss < 0.4  # what is left is the soft border of interpolated maps
    worse, reversed_auroc = pretrain_clip.map_loss(model, [tokens], captions[[1, 0, 3, 2]], labels)
    assert reversed_auroc < 0.01 and worse > 5
    blind, _ = pretrain_clip.map_loss(model, [torch.ones_like(tokens)], captions, labels)
    assert loss < blind < worse


@torch.no_grad()
def test_the_loss_of_maps_equals_a_plain_reading(stem_weights):
    """Patch by patch: project, take the mean of its cosines with damaged captions minus whole ones; then pixels."""
    model = small_model(stem_weights)
    layers = [torch.randn(4, 16, 64) for _ in range(3)]
    captions = nn.functional.normalize(torch.randn(4, 32), dim=-1)
    labels = (torch.rand(4, 24, 24) < 0.2).to(torch.uint8)
    labels[1::2] = 0
    maps = torch.zeros(4, 3, 4, 4)
    for image, layer, patch in itertools.product(range(4), range(3), range(16)):
        token = model.visual_projection(model.vision_model.post_layernorm(layers[layer][image, patch]))
        cosines = [torch.dot(token, caption) / token.norm() for caption in captions]
        difference = (cosines[0] + cosines[2]) / 2 - (cosines[1] + cosines[3]) / 2
        maps[image, layer, patch // 4, patch % 4] = model.logit_scale.exp() * difference
    upsampled = nn.functional.interpolate(maps, size=(24, 24), mode="bilinear", align_corners=False)
    expected = 0.0
    for layer in range(3):
        probabilities = torch.sigmoid(upsampled[:, layer])
        entropies = torch.where(labels > 0, -4 * probabilities.log(), -(1 - probabilities).log())
        focal_and_dice = segmentation_loss(probabilities.unsqueeze(1), labels.float())
        expected += (focal_and_dice + entropies.mean()) / 3
    loss, auroc = pretrain_clip.map_loss(model, layers, captions, labels)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    values, positive = upsampled[0::2, -1, ::2, ::2].flatten(), labels[0::2, ::2, ::2].flatten() > 0
    pairs = values[positive][:, None] - values[~positive][None]
    # interpolation repeats values at the border, and ranks order these ties in any way
    assert auroc == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean().item(), abs=2e-3)


def test_the_loss_of_maps_trains_both_towers_and_not_the_stem(stem_weights):
    model = small_model(stem_weights)
    images, labels = torch.randn(4, 3, 32, 32), torch.zeros(4, 32, 32)
    labels[0::2, :16] = 1
    texts = torch.randint(5, 500, (4, 8))
    text_embeds = nn.functional.normalize(model.get_text_features(texts).pooler_output, dim=-1)
    tokens = model.vision_model(images).last_hidden_state[:, 1:]
    pretrain_clip.map_loss(model, [tokens], text_embeds, labels)[0].backward()
    for name in ("text_model.embeddings.token_embedding.weight", "visual_projection.weight", "logit_scale"):
        assert model.get_parameter(name).grad.abs().max() > 0, name
    projection = model.vision_model.embeddings.patch_embedding.stem_projection
    assert projection.weight.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in model.vision_model.embeddings.patch_embedding.stem.parameters())


# --- checkpoints -----------------------------------------------------------------------------------------------------


def train_a_little(model: CLIPModel, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        pixel_values = torch.randn(2, 3, 32, 32, generator=generator)
        input_ids = torch.randint(5, 500, (2, 8), generator=generator)
        loss = model(pixel_values=pixel_values, input_ids=input_ids, return_loss=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_resumed_optimizer_continues_bit_for_bit(stem_weights, tmp_path):
    model = small_model(stem_weights)
    optimizer = pretrain_clip.make_optimizer(model)
    assert pretrain_clip.resume(tmp_path / "none", model, optimizer) == 0
    train_a_little(model, optimizer, range(3))
    pretrain_clip.save(tmp_path / "checkpoint", model, optimizer, 3)
    train_a_little(model, optimizer, range(3, 6))

    torch.manual_seed(99)
    other = small_model(write_random_weights(tmp_path / "other.pt", seed=1))
    continued = pretrain_clip.make_optimizer(other)
    assert pretrain_clip.resume(tmp_path / "checkpoint", other, continued) == 3
    train_a_little(other, continued, range(3, 6))
    ours, theirs = other.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    expected = stem_state(random_weights())
    assert all(torch.equal(ours[STEM + name], value) for name, value in expected.items()), "the stem is unchanged"


def test_interrupted_pretraining_ends_with_the_same_weights(stem_weights, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    model = pretrain_clip.pretrain(options(whole, "--stem_weights", stem_weights))
    shutil.copytree(whole / "pool", parts / "pool")

    original, seen = pretrain_clip.save, []

    def stop_after_two(folder, model, optimizer, step):
        original(folder, model, optimizer, step)
        seen.append(step)
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pretrain_clip, "save", stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            pretrain_clip.pretrain(options(parts, "--stem_weights", stem_weights))
    pretrain_clip.pretrain(options(parts, "--stem_weights", stem_weights))
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (parts, whole))
    assert seen == [2] and ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    # saved and loaded again, the backbone is the trained one
    loaded = VCPCLIPBackbone.from_pretrained(whole)
    trained = model.state_dict()
    assert loaded.state_dict().keys() == trained.keys()
    assert all(torch.equal(value, trained[name]) for name, value in loaded.state_dict().items())
    expected = stem_state(random_weights())
    assert all(torch.equal(trained[STEM + name], value) for name, value in expected.items())


def test_the_log_has_losses_and_accuracies(stem_weights, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain_clip, "LOGGING_STEPS", 2)
    pretrain_clip.pretrain(options(tmp_path, "--stem_weights", stem_weights))
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [2, 4]
    for record in records:
        assert 0 < record["contrastive_loss"] < 10 and 0 < record["map_loss"] < 20
        assert all(0 <= record[name] <= 1 for name in ("map_auroc", "right_image", "right_of_pair"))


def launch_two_processes(words: list[str]) -> None:
    """Run the pretraining in two processes of this machine."""
    launch = ["torch.distributed.run", "--nproc_per_node", "2", "-m", "examples.research.pretrain_clip"]
    done = subprocess.run(
        [sys.executable, "-m", *launch, *words],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout


def test_two_processes_compute_the_mean_gradients_of_their_shares(stem_weights, tmp_path):
    """Each process takes every second pair of a batch; here, one process computes both shares."""
    words = ["--output_dir", str(tmp_path), *SMALL, "--stem_weights", str(stem_weights), "--steps", "2"]
    launch_two_processes(words)
    chosen, accelerator = pretrain_clip.parse(words), Accelerator(cpu=True)
    sizes = Sizes(**{field.name: getattr(chosen, field.name) for field in fields(Sizes)})
    views = Views(tmp_path / "pool", MaterialScenes("train"), sizes, load_tokenizer(chosen), chosen.seed)

    def weights_after(shares: list[slice]) -> torch.Tensor:
        set_seed(chosen.seed)
        model = small_model(stem_weights).train()
        optimizer = pretrain_clip.make_optimizer(model)
        for step, places in enumerate(sizes.batches(0)):
            for share in shares:
                batch = default_collate([views[place] for place in places[share]])
                (pretrain_clip._loss(model, batch, accelerator, chosen)[0] / len(shares)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = pretrain_clip.learning_rate(step, chosen)
            optimizer.step()
            optimizer.zero_grad()
        return torch.cat([value.flatten() for _, value in sorted(model.named_parameters())])

    trained = torch.cat([value.flatten() for _, value in sorted(load_file(tmp_path / "model.safetensors").items())])
    first, second = slice(0, None, 2), slice(1, None, 2)
    # Adam's first steps have about the size of the learning rate, whatever the size of the gradient
    assert (trained - weights_after([first, second])).abs().mean() < 1e-6
    assert (trained - weights_after([first])).abs().mean() > 1e-5
