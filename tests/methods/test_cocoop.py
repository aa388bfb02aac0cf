"""CoCoOp beyond the stored numbers: other sizes and settings, its options, what it computes."""

import math
import random

import pytest
import torch

from tests.common import ROUNDING, pixels, tiny_clip, tiny_tokenizer
from tests.methods.common import tiny_method
from tests.methods.plain_reading import cocoop, dice, paired_focal
from tests.methods.random_variation import random_clip, random_layers
from vcp_clip_hf.methods import CoCoOpConfig, CoCoOpModel


def make_variation(seed):
    """Return a CLIP, CoCoOp on it with random settings, images, masks and product names."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    clip, side = random_clip(draw)
    states = draw.sample(["good", "damaged", "flawless", "bad one"], 2)
    model = CoCoOpModel.from_clip(
        clip,
        tokenizer=tiny_tokenizer(),
        image_size=side,
        feature_layers=random_layers(draw, clip.config.vision_config.num_hidden_layers),
        context_init=draw.choice([None, "a b", "photo"]),
        meta_net_reduction=draw.choice([2, 4, 16]),
        normal_state=states[0],
        abnormal_state=states[1],
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("clip.") and parameter.ndim:
                parameter.normal_(std=0.5)
        model.map_logit_scale.fill_(draw.uniform(1, 3))
    images, masks = pixels(3, side, side), torch.zeros(3, side, side)
    masks[0, : side // 2, side // 3 :] = 1
    return clip, model, images, masks, [draw.choice(["nut", "metal_nut", "pcb1"]) for _ in images]


@pytest.mark.parametrize("seed", range(8))
def test_any_sizes_and_settings_equal_the_plain_reading(seed):
    clip, model, images, masks, names = make_variation(seed)
    outputs = model(images, names, labels=masks, output_layer_maps=True)
    outputs.loss.backward()
    learned = {
        "context": model.prompts.context,
        "temperature": model.map_logit_scale,
        **{f"linear1.{name}": value for name, value in model.prompts.meta_net[0].named_parameters()},
        **{f"linear2.{name}": value for name, value in model.prompts.meta_net[2].named_parameters()},
        **dict(model.adapters.named_parameters()),
    }
    gradients = {name: value.grad.clone() for name, value in learned.items()}
    model.zero_grad()

    num_context, results = model.config.num_context_tokens, []
    for image, product in zip(images, names, strict=True):
        states = (model.config.normal_state, model.config.abnormal_state)
        rows = tiny_tokenizer()([f"{state} {product.replace('_', ' ')}." for state in states]).input_ids
        prompts = [[row[0], *[0] * num_context, *row[1:]] for row in rows]
        results.append(cocoop(clip, image, prompts, learned, model.config.feature_layers))
    pairs = torch.stack([torch.stack(maps) for maps, _ in results])  # (B, K, 2, H, W)
    text = torch.stack([text for _, text in results])
    torch.testing.assert_close(outputs.text_embeds, text, atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.layer_maps, pairs[:, :, 1], atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.anomaly_map, pairs[:, :, 1].mean(dim=1), atol=1e-5, rtol=0)
    assert torch.equal(outputs.image_scores, outputs.anomaly_map.flatten(1).amax(dim=1))

    loss = sum(paired_focal(each, masks) + dice(each[:, 1], masks) for each in pairs.unbind(dim=1))
    torch.testing.assert_close(outputs.loss, loss, atol=0, rtol=1e-5)
    loss.backward()
    for name, value in learned.items():
        difference = (value.grad - gradients[name]).norm() / gradients[name].norm().clamp_min(1e-6)
        assert difference < 1e-4, name


def test_the_default_is_the_published_setting():
    config = CoCoOpConfig()
    assert config.feature_layers == [6, 12, 18, 24] and config.num_context_tokens == 4
    assert config.context_init_ids == [320, 1125, 539, 320] and config.vision_config.hidden_act == "gelu"
    with torch.device("meta"):
        model = CoCoOpModel(config)
    assert model.num_parameters(only_trainable=True) == 3_072 + 74_544 + 3_148_800 + 1


def test_the_context_starts_with_the_words():
    model = tiny_method("cocoop", context_init="a photo")
    ids = tiny_tokenizer()("a photo", add_special_tokens=False).input_ids
    assert model.config.context_init_ids == ids and model.config.num_context_tokens == len(ids)
    assert torch.equal(model.prompts.context, model.get_input_embeddings().weight[ids])
    assert math.isclose(model.map_logit_scale.item(), math.log(1 / 0.07), rel_tol=1e-6)


def test_the_context_starts_with_small_random_vectors_on_request():
    context = tiny_method("cocoop", context_init=None, num_context_tokens=40).prompts.context
    assert 0.01 < context.std() < 0.03


def test_a_new_model_without_weights_has_its_own_word_embeddings_as_context():
    config = tiny_method("cocoop").config
    model = CoCoOpModel(config)
    assert torch.equal(model.prompts.context, model.get_input_embeddings().weight[config.context_init_ids])


def test_the_vocabulary_of_openai_needs_no_tokenizer():
    model = CoCoOpModel.from_clip(tiny_clip(text={"vocab_size": 49408}), image_size=48)
    assert torch.equal(model.prompts.context, model.get_input_embeddings().weight[[320, 1125, 539, 320]])
    with pytest.raises(ValueError, match="pass the backbone's tokenizer"):
        CoCoOpModel.from_clip(tiny_clip(), image_size=48)


def test_underscores_become_spaces():
    model, images = tiny_method("cocoop"), pixels(2)
    with torch.no_grad():
        assert torch.equal(model(images, "metal_nut").anomaly_map, model(images, "metal nut").anomaly_map)
        assert not torch.allclose(model(images, "metal_nut").anomaly_map, model(images, "bolt").anomaly_map)


def test_each_image_has_its_own_text():
    model, images = tiny_method("cocoop"), pixels(3)
    with torch.no_grad():
        model.prompts.meta_net[2].weight.normal_()
        together = model(images, ["nut", "bolt", "nut"])
        alone = [model(images[index : index + 1], name) for index, name in enumerate(("nut", "bolt", "nut"))]
    assert not torch.allclose(together.text_embeds[0], together.text_embeds[2], atol=1e-3)
    torch.testing.assert_close(
        together.anomaly_map, torch.cat([each.anomaly_map for each in alone]), atol=1e-5, rtol=0
    )


def test_the_mean_of_the_largest_pixels_is_an_option():
    model, images = tiny_method("cocoop", image_score="top_pixels", num_top_pixels=10), pixels(1)
    with torch.no_grad():
        outputs = model(images)
        expected = outputs.anomaly_map.flatten().sort(descending=True).values
        assert torch.allclose(outputs.image_scores, expected[:10].mean())
        model.config.num_top_pixels = 10**6
        assert torch.allclose(model(images).image_scores, expected.mean())


def test_what_is_trained():
    model = tiny_method("cocoop").train()
    model(pixels(2), ["nut", "bolt"], labels=torch.ones(2, 48, 48)).loss.backward()
    trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {"prompts", "adapters", "map_logit_scale"}


def test_there_is_no_text_without_an_image():
    with pytest.raises(ValueError, match="call `encode_text` with image features"):
        tiny_method("cocoop").product_texts(["nut"])


def test_a_saved_model_is_loaded_bit_by_bit(tmp_path):
    model = tiny_method("cocoop", feature_layers=[2, 4])
    with torch.no_grad():
        for parameter in model.prompts.parameters():
            parameter.normal_()
        model.map_logit_scale.fill_(1.5)
    model.save_pretrained(tmp_path)
    again = CoCoOpModel.from_pretrained(tmp_path)
    for (name, ours), theirs in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    images = pixels(1)
    with torch.no_grad():
        torch.testing.assert_close(model(images, "nut").anomaly_map, again(images, "nut").anomaly_map, **ROUNDING)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_context_tokens": 3}, "has 9 tokens, but num_context_tokens is 3"),
        ({"context_init": None, "num_context_tokens": 0}, "num_context_tokens=0 must be at least 1"),
        ({"context_init": "a", "context_init_ids": [600]}, "do not fit a vocabulary of vocab_size=514"),
        ({"meta_net_reduction": 33}, r"meta_net_reduction=33 must lie in 1\.\.32"),
        ({"num_top_pixels": 0}, "num_top_pixels=0 must be at least 1"),
    ],
)
def test_contradictions_are_named(fields, words):
    with pytest.raises(ValueError, match=words):
        tiny_method("cocoop", **fields)


def test_words_without_ids_are_refused():
    with pytest.raises(ValueError, match="context_init='an image of' came without context_init_ids"):
        CoCoOpConfig(context_init="an image of")


def test_a_name_that_is_too_long_is_refused():
    model = tiny_method("cocoop", context_init=None, num_context_tokens=60)
    with pytest.raises(ValueError, match="with its 60 context vectors, more than max_position_embeddings=77"):
        model(pixels(1), "a long name")
