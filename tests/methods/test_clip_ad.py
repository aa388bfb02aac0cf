"""CLIP-AD (SDP and SDP+) beside a plain reading of its formulas."""

import random

import pytest
import torch
from torch.nn.functional import interpolate, normalize
from transformers import AutoModel

from tests.common import pixels, tiny_tokenizer
from tests.methods.common import FEW_PROMPTS, tiny_method
from tests.methods.random_variation import random_clip, random_layers
from tests.methods.test_vv_attention import plain as value_attention
from tests.reference_forward import attention, block
from tests.training_run import make_records, settings
from vcp_clip_hf.checkpoint_folder import complete_parts, save_parts
from vcp_clip_hf.losses import dice_loss, focal_loss
from vcp_clip_hf.methods import ClipADConfig, ClipADModel
from vcp_clip_hf.training import train


def plain_paths(model, image):
    """Original and second path after each feature layer of one image (3, H, W): two lists of (1 + N, D)."""
    vision, layers = model.clip.vision_model, model.config.feature_layers
    blocks = vision.encoder.layers
    states = [vision.pre_layrnorm(vision.embeddings(image[None], interpolate_pos_encoding=True)[0])]
    for layer in blocks:
        states.append(block(layer, states[-1]))
    original, second = [], []
    updates = [value_attention(layer, states[index][None])[0] for index, layer in enumerate(blocks)]
    for number in layers:
        own = states[number]
        if model.config.published_feature_shift and number < len(blocks):
            following = blocks[number]
            own = own + attention(following.self_attn, following.layer_norm1(own), None)
        # A stage starts where the index is a multiple of a quarter of the depth, which may be no whole number
        starts = [index for index in range(len(blocks)) if index % (len(blocks) / 4) == 0]
        first = max(start for start in starts if start < number)
        end = min((start for start in starts if start >= number), default=len(blocks))
        original.append(own)
        second.append(torch.cat([own[:1], sum(updates[first:end])[1:]]))
    return original, second


def plain_outputs(model, image, text, grid):
    """Published sum of SDP, published sum of the adapters (or `None`), and text score, of one image."""
    original, second = plain_paths(model, image)
    clip, size = model.clip, image.shape[1:]
    sdp = torch.zeros(size)
    for tokens in second:
        projected = normalize(clip.visual_projection(clip.vision_model.post_layernorm(tokens)), dim=-1)
        cosines = projected @ text.T
        weights = cosines[0].softmax(dim=0)
        weighted = 2 * weights * cosines
        channel = (weighted - weighted.mean(dim=1, keepdim=True))[1:, 1]
        sdp += interpolate(channel.view(1, 1, *grid), size=size, mode="bilinear", align_corners=False)[0, 0]
    score = (100 * projected[0] @ text.T).softmax(dim=0)[1]
    if model.adapters is None:
        return sdp, None, score
    adapted = torch.zeros(size)
    for tokens, linear in zip(original, model.adapters.fc, strict=True):
        logits = 100 * normalize(linear(tokens[1:]), dim=-1) @ text.T
        pair = interpolate(logits.T.view(1, 2, *grid), size=size, mode="bilinear", align_corners=True)
        adapted += pair.softmax(dim=1)[0, 1]
    return sdp, adapted, score


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"published_feature_shift": False},
        {"use_adapters": True},
        {"use_adapters": True, "feature_layers": [1, 3, 4]},
        {"use_adapters": True, "published_feature_shift": False, "feature_layers": [2]},
    ],
    ids=str,
)
def test_outputs_are_those_of_a_plain_reading(fields):
    model = tiny_method("clip_ad", representative="mean", **fields)
    images = pixels(2, 40, 32)
    num_layers = len(model.config.feature_layers)
    with torch.no_grad():
        outputs, text = model(images, "nut"), model.text_embeds(["nut"])[0]
        for index, image in enumerate(images):
            sdp, adapted, score = plain_outputs(model, image, text, (5, 4))
            expected = (1 + sdp / num_layers) / 2
            if adapted is not None:
                expected = (1 + sdp / num_layers + adapted / num_layers) / 3
            torch.testing.assert_close(outputs.anomaly_map[index], expected, atol=1e-5, rtol=0)
            torch.testing.assert_close(outputs.image_scores[index], score, atol=1e-5, rtol=0)
    assert outputs.anomaly_map.min() >= 0 and outputs.anomaly_map.max() <= 1


@pytest.mark.parametrize("seed", range(8))
def test_outputs_of_random_sizes_are_those_of_a_plain_reading(seed):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    clip, side = random_clip(draw)
    fields = {
        "feature_layers": random_layers(draw, clip.config.vision_config.num_hidden_layers),
        "published_feature_shift": draw.random() < 0.7,
        "use_adapters": draw.random() < 0.5,
        "representative": draw.choice(["dbscan", "mean", "kde", "pca"]),
        "dbscan_min_samples": 2,
    }
    model = ClipADModel.from_clip(clip, tokenizer=tiny_tokenizer(), image_size=side, **FEW_PROMPTS, **fields)
    image, num_layers = pixels(1, side, side), len(fields["feature_layers"])
    grid = (side // model.config.vision_config.patch_size,) * 2
    with torch.no_grad():
        outputs, text = model(image, "nut"), model.text_embeds(["nut"])[0]
        sdp, adapted, score = plain_outputs(model, image[0], text, grid)
    expected = 1 + sdp / num_layers + (0 if adapted is None else adapted / num_layers)
    parts = 2 if adapted is None else 3
    torch.testing.assert_close(outputs.anomaly_map[0], expected / parts, atol=2e-5, rtol=0)
    torch.testing.assert_close(outputs.image_scores[0], score, atol=1e-4, rtol=0)


def test_the_shift_matters_except_in_the_last_layer():
    images = pixels(1)
    model = tiny_method("clip_ad", feature_layers=[2, 4])
    with torch.no_grad():
        features = model.image_features(images)
        published = model.two_paths(features).original
        model.config.published_feature_shift = False
        clean = model.two_paths(features).original
    assert torch.equal(clean[0], features.states[2]) and torch.equal(clean[1], published[1])
    assert not torch.allclose(clean[0], published[0], atol=0.1)


@pytest.mark.parametrize("kind", ["mean", "pca", "kde", "mean_shift"])
def test_the_representative_is_the_configured_one(kind):
    model, other = (tiny_method("clip_ad", representative=each) for each in (kind, "dbscan"))
    other.clip.load_state_dict(model.clip.state_dict())
    with torch.no_grad():
        vectors, clustered = model.text_embeds(["nut"]), other.text_embeds(["nut"])
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(1, 2))
    # fewer sentences than min_samples: no cluster, so DBSCAN gives the mean
    assert torch.allclose(vectors, clustered, atol=1e-5) == (kind in ("mean", "mean_shift"))


def test_the_loss_is_that_of_the_adapters_maps():
    model = tiny_method("clip_ad", use_adapters=True).train()
    labels = (torch.rand(2, 48, 48) > 0.8).float()
    outputs = model(pixels(2), "nut", labels=labels, output_layer_maps=True)
    expected = sum(
        focal_loss(outputs.layer_maps[:, index], labels) + dice_loss(outputs.layer_maps[:, index], labels)
        for index in range(4)
    )
    torch.testing.assert_close(outputs.loss, expected)
    outputs.loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {f"adapters.fc.{index}.{kind}" for index in range(4) for kind in ("weight", "bias")}


def test_a_run_trains_the_adapters_and_nothing_else(tmp_path):
    model = tiny_method("clip_ad", use_adapters=True)
    save_parts(tmp_path / "model", complete_parts(model, tokenizer=model.tokenizer))
    run = train(settings(tmp_path, max_train_steps=2, augmentation=False), make_records(6))
    trained, before = AutoModel.from_pretrained(run.last).state_dict(), model.state_dict()
    changed = {name for name, value in trained.items() if not torch.equal(value, before[name])}
    assert changed == {f"adapters.fc.{index}.{kind}" for index in range(4) for kind in ("weight", "bias")}


def test_sdp_is_not_trained():
    model = tiny_method("clip_ad")
    assert model.adapters is None
    with pytest.raises(ValueError, match="use_adapters=True"):
        model(pixels(1), labels=torch.zeros(1, 48, 48))


def test_published_scores_depend_on_the_whole_product():
    model = tiny_method("clip_ad")
    scores = model.scores_of_product(torch.tensor([0.1, 0.3, 0.2]), torch.tensor([4.0, 5.0, 6.0]))
    torch.testing.assert_close(scores, torch.tensor([0.0, 1.5, 1.5]))


def test_the_default_is_the_authors_setting():
    config = ClipADConfig()
    assert config.projection_dim == config.vision_config.projection_dim == config.text_config.projection_dim == 640
    normal, abnormal = config.prompt_ensemble().sentences("bottle")
    assert (len(normal), len(abnormal)) == (198, 220)
    assert normal[0] == "a cropped photo of the flawless bottle." and config.feature_layers == [3, 6, 9, 12]
    assert (config.representative, config.dbscan_eps, config.dbscan_min_samples) == ("dbscan", 0.5, 15)
    assert config.image_processing["smoothing_sigma"] == 8
