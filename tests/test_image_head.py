"""The image head: its formula, its gradients, and how it joins and leaves a checkpoint."""

import json
import logging
import math
from pathlib import Path

import accelerate
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig

from tests.common import ROUNDING, pixels, tiny_clip, tiny_config, tiny_model, tiny_model_with_head
from vcp_clip_hf import VCPCLIPConfig, VCPCLIPModel
from vcp_clip_hf.accelerated_inference import accelerate_inference, accelerated_or_plain, freeze_for_export
from vcp_clip_hf.backbone_loading import quantize_backbone_only
from vcp_clip_hf.checkpoint_folder import load_parts
from vcp_clip_hf.image_head import VCPCLIPImageHead, image_head_loss


HEAD = "image_head."
VARIANTS = {
    "paper": {},
    "baseline": {"use_pre_vcp": False, "use_post_vcp": False},
    "one layer": {"feature_layers": [3]},
    "templates": {"normal": ("a good {}", "this {} is fine"), "abnormal": ("a bad {} here", "a {}")},
}


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def squares(images: torch.Tensor, count: int) -> torch.Tensor:
    """Return masks with a square in the first `count` images."""
    labels = torch.zeros(images.shape[0], *images.shape[-2:], dtype=torch.long)
    labels[:count, 8:24, 8:24] = 1
    return labels


# --- the score ----------------------------------------------------------------------------------------------------


def logit_by_hand(model: VCPCLIPModel, image: torch.Tensor) -> float:
    """Compute the logit of one image, patch by patch, from the formulas of the documentation."""
    head, (tokens, embeds) = model.image_head, model.encode_image(image[None])
    (text,) = model.encode_text(embeds)
    difference = text[1] - text[0]

    def corrected(contrast, correction, token):
        projected = correction.token_projection.weight @ (token / token.norm())
        return (10 * contrast + projected @ (correction.text_projection.weight @ difference)).item()

    rows = []
    for projection, correction, layer in zip(model.feature_projections, head.patch_corrections, tokens, strict=True):
        rows.append([])
        for token in layer[0]:
            projected = projection(token)
            rows[-1].append(corrected(projected / projected.norm() @ difference, correction, token))
    if model.post_vcp is not None:
        norms = [1 / layer.norm(dim=-1) for layer in tokens]
        updated, _ = model.post_vcp(text[None], tokens, norms)
        for layer, states in zip(tokens, updated, strict=True):
            contrast = states[0, 1] - states[0, 0]
            rows.append([10 * (token / token.norm() @ contrast).item() for token in layer[0]])

    total = 10 * head.bias.item()
    for row, sharpness, of_prominence, of_spread in zip(
        rows, head.log_sharpness.exp().tolist(), head.prominence_weights, head.spread_weights, strict=True
    ):
        mean = sum(row) / len(row)
        log_mean = math.log(sum(math.exp(sharpness * value) for value in row) / len(row)) / sharpness
        spread = math.sqrt(sum((value - mean) ** 2 for value in row) / len(row) + 1e-6)
        total += of_prominence.item() * (log_mean - mean) + of_spread.item() * spread
    token = embeds[0]
    return total + head.global_weight.item() * corrected(
        token / token.norm() @ difference, head.global_correction, token
    )


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_the_logit_is_the_documented_formula(fields):
    model, images = tiny_model_with_head(**fields), pixels(2)
    outputs = model(images)
    assert outputs.image_logits.std() > 1e-3, "equal logits prove nothing"
    for image, logit in zip(images, outputs.image_logits, strict=True):
        assert logit.item() == pytest.approx(logit_by_hand(model, image), abs=2e-5)
    assert torch.equal(outputs.image_scores, outputs.image_logits.sigmoid())


@torch.no_grad()
def test_an_untrained_head_rises_with_patches_that_stand_out():
    head = VCPCLIPImageHead(tiny_config(use_image_head=True))
    head.initialize()
    tokens, text = [torch.randn(1, 36, 64)] * 4, torch.nn.functional.normalize(torch.randn(1, 2, 32), dim=-1)
    base, vcp, embeds = 0.1 * torch.randn(1, 4, 36), 0.1 * torch.randn(1, 4, 36), torch.randn(1, 32)
    before = head(embeds, text, tokens, base, vcp)
    close(head(embeds, text, tokens, base + 0.5, vcp - 0.5), before)  # the level alone does not count
    base[..., 5] = 1
    assert head(embeds, text, tokens, base, vcp) > before + 0.1


@torch.no_grad()
def test_a_batch_equals_its_images_one_by_one():
    model, images = tiny_model_with_head(), pixels(4)
    together = model(images).image_logits
    for index in range(4):
        close(model(images[index : index + 1]).image_logits[0], together[index])


@pytest.mark.parametrize("size", [(48, 48), (32, 32), (24, 40), (8, 8)])
@torch.no_grad()
def test_any_grid_of_patches(size):
    scores = tiny_model_with_head()(pixels(2, *size)).image_scores
    assert scores.shape == (2,) and scores.isfinite().all() and ((scores > 0) & (scores < 1)).all()


@torch.no_grad()
def test_features_instead_of_pixels_and_anothers_prompt():
    model, images = tiny_model_with_head(), pixels(2)
    expected = model(images).image_logits
    tokens, embeds = model.encode_image(images)
    close(model(patch_tokens=torch.stack(tokens, dim=1), image_embeds=embeds).image_logits, expected)
    # the text is another one, the global token is still the image's own
    other = model(images, image_embeds=embeds[:1]).image_logits
    close(other[0], expected[0])
    assert (other[1] - expected[1]).abs() > 1e-5


@torch.no_grad()
def test_half_precision_is_close_and_scores_are_float32():
    model, images = tiny_model_with_head(), pixels(2)
    expected = model(images).image_scores
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = model(images)
    assert under_autocast.image_logits.dtype == under_autocast.image_scores.dtype == torch.float32
    close(under_autocast.image_scores, expected, atol=0.05)
    scores = model.to(torch.bfloat16)(images.bfloat16()).image_scores
    assert scores.dtype == torch.float32
    close(scores, expected, atol=0.1)


@torch.no_grad()
def test_hooks_fire_on_the_head_and_offloaded_weights_give_the_same_scores():
    model, images, fired = tiny_model_with_head(), pixels(2), set()
    expected = model(images).image_scores
    handles = [
        module.register_forward_hook(lambda *_, name=name: fired.add(name))
        for name, module in model.image_head.named_modules()
    ]
    model(images)
    silent = {name for name, _ in model.image_head.named_modules()} - fired
    assert silent == {"patch_corrections"}  # a list of modules
    for handle in handles:
        handle.remove()
    offloaded = accelerate.cpu_offload(model, torch.device("cpu"))
    close(offloaded(images).image_scores, expected, atol=1e-6)


def test_a_quantized_backbone_leaves_the_head_as_it_is():
    changed = quantize_backbone_only(BitsAndBytesConfig(load_in_8bit=True))
    assert HEAD.removesuffix(".") in changed.llm_int8_skip_modules


def test_without_a_head_nothing_is_scored():
    model, images = tiny_model(), pixels(1)
    assert model.image_head is None
    outputs = model(images)
    assert outputs.image_scores is None and outputs.image_logits is None
    assert not any(name.startswith(HEAD) for name in model.state_dict())


# --- training -----------------------------------------------------------------------------------------------------


def test_the_gradients_of_the_papers_parts_are_bit_equal_with_and_without_a_head():
    model, images = tiny_model_with_head().train(), pixels(3)
    plain = VCPCLIPModel(tiny_config()).train()
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if not name.startswith(HEAD)})
    losses = []
    for each in (model, plain):
        torch.manual_seed(0)  # of the dropout
        losses.append(each(images, labels=squares(images, 2)).loss)
        losses[-1].backward()
    assert losses[0] > losses[1]
    theirs = dict(plain.named_parameters())
    compared = 0
    for name, parameter in model.named_parameters():
        if name.startswith(HEAD):
            assert parameter.grad.abs().sum() > 0, name
        elif parameter.requires_grad:
            assert torch.equal(parameter.grad, theirs[name].grad), name
            compared += 1
    assert compared == sum(parameter.requires_grad for parameter in plain.parameters())


def test_the_loss_adds_the_cross_entropy_of_whole_images():
    model, images = tiny_model_with_head(), pixels(4)
    labels, marked = squares(images, 1), torch.tensor([0, 1, 1, 0])
    outputs = model(images, labels=labels)
    segmentation = tiny_model()
    segmentation.load_state_dict(model.state_dict(), strict=False)
    of_maps = segmentation(images, labels=labels).loss

    def cross_entropy(truth):
        scores = outputs.image_scores
        return -torch.where(truth == 1, scores, 1 - scores).log().mean()

    close(outputs.loss, of_maps + cross_entropy(torch.tensor([1, 0, 0, 0])))
    close(model(images, labels=labels.bool()).loss, outputs.loss)
    close(model(images, labels=labels, is_anomalous=marked).loss, of_maps + cross_entropy(marked))
    close(model(images, is_anomalous=marked.bool()).loss, cross_entropy(marked))
    assert model(images).loss is None


@pytest.mark.parametrize(
    ("is_anomalous", "message"),
    [
        (torch.ones(3), r"is_anomalous has shape \(3,\), expected \(2,\)"),
        (torch.ones(2, 1), r"is_anomalous has shape \(2, 1\)"),
        (torch.tensor([0, 255]), r"is_anomalous must be 0 \(normal\) or 1 \(anomalous\), got values from 0 to 255"),
    ],
)
def test_bad_labels_of_images_are_explained(is_anomalous, message):
    with pytest.raises(ValueError, match=message):
        tiny_model_with_head()(pixels(2), is_anomalous=is_anomalous)


def test_labels_for_a_head_that_does_not_exist_are_refused():
    with pytest.raises(ValueError, match=r"is for the image head, and this model has none.*use_image_head=True"):
        tiny_model()(pixels(2), is_anomalous=torch.ones(2))
    with pytest.raises(TypeError, match="did you mean 'is_anomalous'"):
        tiny_model_with_head()(pixels(2), is_anomolous=torch.ones(2))


def test_flat_maps_have_finite_gradients():
    model = tiny_model_with_head(trained=False)
    model(torch.zeros(2, 3, 48, 48), is_anomalous=torch.tensor([0, 1])).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.image_head.parameters())
    tokens, text = [torch.zeros(1, 4, 64)] * 4, torch.zeros(1, 2, 32)
    flat = torch.zeros(1, 4, 4)
    logits = model.image_head(torch.zeros(1, 32), text, tokens, flat, flat)
    model.zero_grad()
    image_head_loss(logits, torch.ones(1)).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.image_head.parameters())


def test_the_head_alone_is_trained_with_the_rest_frozen():
    model, images = tiny_model_with_head(trained=False), pixels(4)
    model.freeze_all_but_image_head()
    model.train()
    assert model.image_head.training and not model.deep_prompts.dropout.training
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=0.02)
    maps, losses, truth = model(images).anomaly_map, [], torch.tensor([0, 1, 0, 1])
    for _ in range(60):
        loss = model(images, is_anomalous=truth).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert ((model(images).image_scores > 0.5) == (truth == 1)).all()
    assert torch.equal(model(images).anomaly_map, maps)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith(HEAD), name
    with pytest.raises(ValueError, match=r"no image head to train.*use_image_head=True"):
        tiny_model().freeze_all_but_image_head()


# --- checkpoints --------------------------------------------------------------------------------------------------


def write_old_checkpoint(folder: Path, **fields) -> VCPCLIPModel:
    """Save a model without a head, as earlier versions did."""
    model = tiny_model(**fields)
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def test_configurations_and_checkpoints_without_a_head_are_as_before(tmp_path):
    model = write_old_checkpoint(tmp_path)
    assert "use_image_head" not in json.loads((tmp_path / "config.json").read_text())
    assert (
        "use_image_head" not in model.config.to_dict() and not VCPCLIPConfig.from_pretrained(tmp_path).use_image_head
    )
    loaded, images = VCPCLIPModel.from_pretrained(tmp_path), pixels(2)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(loaded(images).anomaly_map, model(images).anomaly_map, **ROUNDING)


@pytest.mark.parametrize("adapter_only", [False, True])
@torch.no_grad()
def test_a_head_comes_back_bit_equal(adapter_only, tmp_path):
    model, images = tiny_model_with_head(), pixels(2)
    model.clip.save_pretrained(tmp_path / "clip")
    model.config.backbone_name_or_path = str(tmp_path / "clip")
    model.save_pretrained(tmp_path / "model", adapter_only=adapter_only)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["use_image_head"] is True
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert {HEAD + name for name in model.image_head.state_dict()} <= stored.keys()
    loaded = VCPCLIPModel.from_pretrained(tmp_path / "model")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(loaded(images).image_logits, model(images).image_logits, **ROUNDING)


@pytest.mark.parametrize("adapter_only", [False, True])
def test_a_head_is_added_to_a_checkpoint_without_one(adapter_only, tmp_path, caplog):
    old = tiny_model()
    old.clip.save_pretrained(tmp_path / "clip")
    old.config.backbone_name_or_path = str(tmp_path / "clip")
    old.save_pretrained(tmp_path / "old", adapter_only=adapter_only)
    with caplog.at_level(logging.WARNING):
        model = VCPCLIPModel.from_pretrained(tmp_path / "old", use_image_head=True)
    assert "LOAD REPORT" not in caplog.text and "MISSING" not in caplog.text
    assert "has no image head; a new one is initialized. Its scores say little before" in caplog.text
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in old.state_dict().items())
    assert (state[f"{HEAD}prominence_weights"] == 0.1).all() and state[f"{HEAD}bias"] == 0
    assert not any(parameter.requires_grad for parameter in model.clip.parameters())
    images = pixels(2)
    torch.testing.assert_close(model(images).anomaly_map, old(images).anomaly_map, **ROUNDING)
    parts = load_parts(tmp_path / "old", use_image_head=True)
    assert parts.model.image_head is not None
    model.save_pretrained(tmp_path / "new")
    again = VCPCLIPModel.from_pretrained(tmp_path / "new")
    torch.testing.assert_close(again(images).image_logits, model(images).image_logits, **ROUNDING)


def test_the_loading_information_is_returned_on_request(tmp_path):
    write_old_checkpoint(tmp_path)
    model, report = VCPCLIPModel.from_pretrained(tmp_path, use_image_head=True, output_loading_info=True)
    assert set(report["missing_keys"]) == {HEAD + name for name in model.image_head.state_dict()}


def test_other_missing_weights_are_still_an_error(tmp_path):
    write_old_checkpoint(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["post_vcp.query_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        OSError, match=r"incomplete: 1 tensors are missing, such as post_vcp\.query_projection\.weight"
    ):
        VCPCLIPModel.from_pretrained(tmp_path, use_image_head=True)


@torch.no_grad()
def test_a_checkpoint_with_a_head_loads_without_it(tmp_path, caplog):
    model, images = tiny_model_with_head(), pixels(2)
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        loaded = VCPCLIPModel.from_pretrained(tmp_path, use_image_head=False)
    assert "LOAD REPORT" not in caplog.text
    assert loaded.image_head is None
    torch.testing.assert_close(loaded(images).anomaly_map, model(images).anomaly_map, **ROUNDING)


def test_a_new_model_with_a_head_has_the_same_other_parts():
    clip, parts = tiny_clip(), {}
    for use_image_head in (False, True):
        torch.manual_seed(3)
        model = VCPCLIPModel.from_clip(clip, tiny_config(use_image_head=use_image_head))
        parts[use_image_head] = model.state_dict()
    assert all(torch.equal(value, parts[True][name]) for name, value in parts[False].items())
    assert {name for name in parts[True].keys() - parts[False].keys() if not name.startswith(HEAD)} == set()
    assert (parts[True][f"{HEAD}patch_corrections.0.text_projection.weight"] == 0).all()
    assert parts[True][f"{HEAD}patch_corrections.0.token_projection.weight"].std() > 0.01


# --- the accelerated copy -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_the_accelerated_copy_gives_the_same_scores(fields):
    model, images = tiny_model_with_head(**fields), pixels(3)
    for scale in (model.base_logit_scale, model.vcp_logit_scale):
        if scale is not None:
            scale.fill_(math.log(1 / 0.07))
    fast = accelerate_inference(model)
    close(fast(images).image_scores, model(images).image_scores, atol=1e-6)
    close(fast(images, is_anomalous=torch.ones(3)).loss, model(images, is_anomalous=torch.ones(3)).loss, atol=1e-6)
    frozen = freeze_for_export(model, (48, 48))
    close(frozen(images).image_scores, model(images).image_scores, atol=1e-6)


@torch.no_grad()
def test_a_changed_head_is_copied_anew():
    model, images = tiny_model_with_head(), pixels(2)
    fast = accelerated_or_plain(model)
    assert accelerated_or_plain(model, fast) is fast
    model.image_head.bias.add_(1)
    again = accelerated_or_plain(model, fast)
    assert again is not fast
    close(again(images).image_scores, model(images).image_scores, atol=1e-6)
