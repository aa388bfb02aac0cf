"""AnomalyCLIP beyond the authors' numbers: other sizes and settings, its options, what it computes and keeps."""

import random

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.common import pixels
from tests.methods.common import tiny_method
from tests.methods.plain_reading import anomaly_clip, dice, encode_text, paired_focal
from tests.methods.random_variation import random_clip, random_layers
from vcp_clip_hf.methods import AnomalyCLIPConfig, AnomalyCLIPModel


BOS, EOS = 512, 513


def make_variation(seed):
    """Return a CLIP, AnomalyCLIP on it with random settings, and images, masks and labels."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    clip, side = random_clip(draw)
    depth, text_depth = clip.config.vision_config.num_hidden_layers, clip.config.text_config.num_hidden_layers
    num_context = draw.randint(1, 6)
    model = AnomalyCLIPModel.from_clip(
        clip,
        image_size=side,
        feature_layers=random_layers(draw, depth),
        dpam_layer=draw.randint(2, depth + 1),
        num_context_tokens=num_context,
        deep_prompt_depth=draw.randint(1, text_depth),
        num_deep_prompt_tokens=draw.randint(1, num_context + 1),
        temperature=draw.choice([0.07, 0.2]),
        local_loss_weight=draw.choice([1, 4, 2.5]),
        normal_prompt_ids=[BOS, *(draw.randrange(500) for _ in range(draw.randint(1, 3))), EOS],
        abnormal_prompt_ids=[BOS, *(draw.randrange(500) for _ in range(draw.randint(1, 4))), EOS],
    )
    with torch.no_grad():
        for parameter in model.prompts.parameters():
            parameter.normal_()
    images, masks = pixels(2, side, side), torch.zeros(2, side, side)
    masks[0, : side // 2, side // 3 :] = 1
    return clip, model, images, masks


@pytest.mark.parametrize("seed", range(8))
def test_any_sizes_and_settings_equal_the_plain_reading(seed):
    clip, model, images, masks = make_variation(seed)
    config = model.config
    labels = torch.tensor([1, 0])
    outputs = model(images, labels=masks, is_anomalous=labels, output_layer_maps=True)
    outputs.loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.prompts.named_parameters()}
    model.zero_grad()

    prompts = model.prompts
    text = torch.stack(
        [
            encode_text(clip, [ids[0], *[0] * len(context), *ids[1:]], context, list(prompts.deep_prompts))
            for ids, context in (
                (config.normal_prompt_ids, prompts.normal_context),
                (config.abnormal_prompt_ids, prompts.abnormal_context),
            )
        ]
    )
    settings = (config.feature_layers, config.dpam_layer, config.temperature)
    results = [anomaly_clip(clip, image, text, *settings) for image in images]
    pairs = torch.stack([torch.stack(maps) for maps, _ in results])  # (B, K, 2, H, W)
    scores = torch.stack([score for _, score in results])
    torch.testing.assert_close(outputs.text_embeds[0], text, atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.layer_maps, pairs[:, :, 1], atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.anomaly_map, pairs[:, :, 1].mean(dim=1), atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.image_scores, scores[:, 1], atol=1e-5, rtol=0)

    local = sum(
        paired_focal(pairs[:, layer], masks) + dice(pairs[:, layer, 1], masks) + dice(pairs[:, layer, 0], 1 - masks)
        for layer in range(pairs.shape[1])
    )
    loss = cross_entropy(scores.log(), labels) + config.local_loss_weight * local
    torch.testing.assert_close(outputs.loss, loss, atol=0, rtol=1e-5)
    loss.backward()
    for name, parameter in prompts.named_parameters():
        difference = (parameter.grad - gradients[name]).norm() / gradients[name].norm().clamp_min(1e-6)
        # Gradients of the deep prompts are rounded to half precision
        assert difference < (2e-3 if "deep" in name else 1e-4), name


def test_the_default_is_the_published_setting():
    config = AnomalyCLIPConfig()
    assert config.feature_layers == [24] and config.first_value_block == 6 and config.image_size == 518
    assert config.vision_config.hidden_act == config.text_config.hidden_act == "quick_gelu"
    with torch.device("meta"):
        model = AnomalyCLIPModel(config)
    assert model.num_parameters(only_trainable=True) == 43_008
    assert config.image_processing == {"smoothing_sigma": 4.0, "score_mode": "image_head"}


def test_deep_prompts_in_half_precision_are_an_option():
    model, images = tiny_method("anomaly_clip"), pixels(1)
    with torch.no_grad():
        rounded = model(images).text_embeds
        model.config.deep_prompt_cast = "none"
        exact = model(images).text_embeds
        for parameter in model.prompts.deep_prompts:
            parameter.copy_(parameter.half())
        same = model(images).text_embeds
    assert 0 < (rounded - exact).abs().max() < 1e-4
    assert torch.equal(rounded, same)


def test_the_layer_norm_of_the_global_feature_is_an_option():
    model, images = tiny_method("anomaly_clip"), pixels(1)
    with torch.no_grad():
        model.clip.vision_model.post_layernorm.weight.mul_(torch.linspace(0.5, 2, 64))
        without = model(images)
        model.config.global_post_layernorm = True
        with_norm = model(images)
        expected = model.clip.get_image_features(images, interpolate_pos_encoding=True).pooler_output
    assert torch.equal(without.anomaly_map, with_norm.anomaly_map)
    torch.testing.assert_close(with_norm.image_embeds, expected)
    assert not torch.allclose(without.image_scores, with_norm.image_scores, atol=1e-4)


def test_product_names_change_nothing():
    model, images = tiny_method("anomaly_clip"), pixels(2)
    with torch.no_grad():
        assert torch.equal(model(images).anomaly_map, model(images, ["nut", "bolt"]).anomaly_map)


def test_hidden_states_are_those_of_the_ordinary_stream():
    model, images = tiny_method("anomaly_clip"), pixels(2)
    with torch.no_grad():
        plain, states = model(images), model(images, output_hidden_states=True).hidden_states
        outputs = model(images, output_hidden_states=[-1])
    assert len(states) == 5 and torch.equal(outputs.hidden_states[-1], states[-1])
    torch.testing.assert_close(outputs.image_scores, plain.image_scores, atol=1e-6, rtol=0)
    hidden = states[0]
    with torch.no_grad():
        for layer, expected in zip(model.clip.vision_model.encoder.layers, states[1:], strict=True):
            hidden = layer(hidden, None)
            torch.testing.assert_close(hidden, expected)


def test_text_is_embedded_again_after_a_step_only():
    model, images = tiny_method("anomaly_clip"), pixels(2)
    calls = []
    model.clip.text_model.final_layer_norm.register_forward_hook(lambda *_: calls.append(1))
    optimizer = torch.optim.SGD(model.prompts.parameters(), lr=1.0)
    with torch.no_grad():
        model.eval()(images), model(images)
    assert len(calls) == 1
    model.train()(images, labels=torch.ones(2, 48, 48)).loss.backward()
    optimizer.step()
    with torch.no_grad():
        before = model.eval()(images).text_embeds
        assert len(calls) == 3
        model._forget_texts()
        assert torch.equal(model(images).text_embeds, before)


def test_only_the_prompts_are_trained():
    model = tiny_method("anomaly_clip").train()
    model(pixels(2), labels=torch.ones(2, 48, 48)).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {f"prompts.{name}" for name in ("normal_context", "abnormal_context", "deep_prompts_0")}


def test_a_saved_model_is_loaded_bit_by_bit(tmp_path):
    model = tiny_method("anomaly_clip", feature_layers=[2, 4], dpam_layer=3)
    model.save_pretrained(tmp_path)
    again = AnomalyCLIPModel.from_pretrained(tmp_path)
    for (name, ours), theirs in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    images = pixels(1)
    with torch.no_grad():
        assert torch.equal(model(images).anomaly_map, again(images).anomaly_map)


def test_new_prompts_are_small_random_vectors():
    model = tiny_method("anomaly_clip", num_context_tokens=40)
    for parameter in model.prompts.parameters():
        assert 0.01 < parameter.std() < 0.03 and parameter.mean().abs() < 0.01


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dpam_layer": 1}, "dpam_layer=1 must lie in 2..5"),
        ({"dpam_layer": 6}, "dpam_layer=6 must lie in 2..5"),
        ({"deep_prompt_depth": 4}, "deep_prompt_depth=4 must lie in 1..3"),
        ({"num_context_tokens": 0}, "num_context_tokens=0 must be at least 1"),
        ({"temperature": 0}, "temperature=0 must be positive"),
        ({"normal_prompt_ids": [1, 514]}, "normal_prompt_ids=.* of a vocabulary of 514 entries"),
        ({"abnormal_prompt_ids": [512, 5, 513], "num_context_tokens": 75}, "make 78 tokens, more than"),
        ({"normal_prompt_ids": [512, 5, 513], "num_deep_prompt_tokens": 6}, "would overwrite the end token"),
    ],
)
def test_contradictions_are_named(fields, words):
    with pytest.raises(ValueError, match=words):
        tiny_method("anomaly_clip", **fields)
