"""AnoVL beside a plain reading, and its adaptation inside of the model."""

import copy
import random

import pytest
import torch
from torch.nn.functional import avg_pool2d, interpolate, normalize, pad

from tests.common import pixels, tiny_tokenizer
from tests.methods.common import FEW_PROMPTS, FIELDS, tiny_method
from tests.methods.random_variation import random_clip
from tests.methods.test_vv_attention import plain as value_attention
from tests.reference_forward import block
from vcp_clip_hf.methods import AnoVLConfig, AnoVLModel
from vcp_clip_hf.methods.image_views import augmented_views
from vcp_clip_hf.methods.test_time_adaptation import AdaptationNumbers


def plain_tokens(model, image):
    """Projected patch tokens of the value-value stream, and the image embedding, of one image (3, H, W)."""
    vision, project = model.clip.vision_model, model.clip.visual_projection
    stream = vision.pre_layrnorm(vision.embeddings(image[None], interpolate_pos_encoding=True)[0])
    values = stream
    for layer in vision.encoder.layers:
        values = values + value_attention(layer, stream[None])[0]
        stream = block(layer, stream)
    return project(vision.post_layernorm(values[1:])), project(vision.post_layernorm(stream[0]))


def plain_map(tokens, text, size, grid):
    probabilities = (normalize(tokens, dim=-1) @ text.T).softmax(dim=-1)[:, 1].view(1, 1, *grid)
    smooth = avg_pool2d(pad(probabilities, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return interpolate(smooth, size=size, mode="bilinear", align_corners=True)[0, 0]


def test_outputs_without_adaptation_are_those_of_a_plain_reading():
    model = tiny_method("anovl", adapt=False, augment_image_score=False)
    images = pixels(2, 40, 32)
    with torch.no_grad():
        outputs, text = model(images, "nut"), model.text_embeds(["nut"])[0]
        for index, image in enumerate(images):
            tokens, embedding = plain_tokens(model, image)
            expected = plain_map(tokens, text, (40, 32), (5, 4))
            torch.testing.assert_close(outputs.anomaly_map[index], expected, atol=1e-5, rtol=0)
            score = (normalize(embedding, dim=0) @ text.T).softmax(dim=0)[1]
            torch.testing.assert_close(outputs.image_scores[index], score, atol=1e-6, rtol=0)


@pytest.mark.parametrize("seed", range(6))
def test_outputs_of_random_sizes_are_those_of_a_plain_reading(seed):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    clip, side = random_clip(draw)
    prompts = {**FEW_PROMPTS, **FIELDS["anovl"]}
    del prompts["templates"]
    model = AnoVLModel.from_clip(clip, tokenizer=tiny_tokenizer(), image_size=side, adapt=False, **prompts)
    image = pixels(1, side, side)
    grid = (side // model.config.vision_config.patch_size,) * 2
    with torch.no_grad():
        outputs, text = model(image, "nut"), model.text_embeds(["nut"])[0]
        expected = plain_map(plain_tokens(model, image[0])[0], text, (side, side), grid)
        embeds = torch.stack([plain_tokens(model, view)[1] for view in augmented_views(image)[0]])
    score = (normalize(embeds, dim=1) @ text.T).softmax(dim=1)[:, 1].mean()
    torch.testing.assert_close(outputs.anomaly_map[0], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.image_scores[0], score, atol=1e-6, rtol=0)


def test_the_image_score_is_the_mean_over_views():
    model, images = tiny_method("anovl", adapt=False), pixels(2)
    with torch.no_grad():
        outputs, text = model(images, "nut"), model.text_embeds(["nut"])[0]
        for index, views in enumerate(augmented_views(images)):
            embeds = torch.stack([plain_tokens(model, view)[1] for view in views])
            score = (normalize(embeds, dim=1) @ text.T).softmax(dim=1)[:, 1].mean()
            torch.testing.assert_close(outputs.image_scores[index], score, atol=1e-6, rtol=0)


def test_the_map_comes_from_the_adapted_tokens():
    model, images = tiny_method("anovl", adaptation_learning_rate=0.01), pixels(1)
    with torch.no_grad():
        outputs, text = model(images, "nut"), model.text_embeds(["nut"])[0]
        tokens = plain_tokens(model, images[0])[0].view(1, 6, 6, -1)
        adapted = model.adapted_tokens(tokens, "nut").tokens[0].flatten(0, 1)
    torch.testing.assert_close(outputs.anomaly_map[0], plain_map(adapted, text, (48, 48), (6, 6)), atol=1e-5, rtol=0)
    assert not torch.allclose(adapted, tokens[0].flatten(0, 1), atol=0.1)


def test_results_depend_on_nothing_but_the_image():
    model, images = tiny_method("anovl", adaptation_learning_rate=0.01), pixels(3)
    products = ["nut", "bolt", "nut"]
    with torch.no_grad():
        together = model(images, products).anomaly_map
        for index in (2, 0, 1):
            alone = model(images[[index]], products[index]).anomaly_map[0]
            torch.testing.assert_close(alone, together[index], atol=1e-6, rtol=0)


def test_the_public_behavior_depends_on_the_order_of_the_images():
    model, images = tiny_method("anovl", adaptation_learning_rate=0.01, reset_optimizer=False), pixels(2)
    with torch.no_grad():
        first = model(images, "nut").anomaly_map
        model.forget_optimizers()
        assert torch.equal(model(images, "nut").anomaly_map, first)
        model.forget_optimizers()
        one_by_one = torch.cat([model(images[[index]], "nut").anomaly_map for index in range(2)])
        torch.testing.assert_close(one_by_one, first, atol=1e-6, rtol=0)
        model.forget_optimizers()
        other_order = model(images.flip(0), "nut").anomaly_map.flip(0)
        assert (other_order - first).abs().max() > 1e-5


def test_the_optimizer_of_a_product_is_its_own():
    model = tiny_method("anovl", reset_optimizer=False)
    tokens = torch.randn(1, 2, 3, 32)
    bank = torch.cat(model.product_texts(["nut"])["nut"].prompt_embeds)
    generator = torch.Generator().manual_seed(0)
    numbers = AdaptationNumbers(
        torch.randn(1, *bank.shape, generator=generator) / 6,
        torch.zeros(1, len(bank)),
        torch.randn(1, 5, 2, 3, 32, generator=generator) / 20,
    )
    first, second = (model.adapted_tokens(tokens, "nut", numbers).tokens for _ in range(2))
    model.adapted_tokens(tokens, "bolt", numbers)
    model.forget_optimizers()
    model.adapted_tokens(tokens, "bolt", numbers)
    assert not torch.equal(first, second)
    assert torch.equal(model.adapted_tokens(tokens, "nut", numbers).tokens, first)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_it_adapts_in_every_mode_and_leaves_no_gradients(mode):
    model, images = tiny_method("anovl", adaptation_learning_rate=0.01), pixels(1)
    with torch.no_grad():
        expected = model(images, "nut").anomaly_map
    with mode():
        outputs = model(images, "nut")
    torch.testing.assert_close(outputs.anomaly_map, expected, atol=1e-6, rtol=0)
    assert not outputs.anomaly_map.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_half_precision_adapts_in_float32():
    model, images = tiny_method("anovl"), pixels(1)
    with torch.no_grad():
        expected = model(images, "nut").anomaly_map
        half = copy.deepcopy(model).to(torch.bfloat16)(images.bfloat16(), "nut").anomaly_map
        with torch.autocast("cpu", torch.bfloat16):
            automatic = model(images, "nut").anomaly_map
    assert half.dtype == automatic.dtype == torch.float32
    torch.testing.assert_close(half, expected, atol=0.02, rtol=0)
    torch.testing.assert_close(automatic, expected, atol=0.02, rtol=0)


def test_textures_have_their_own_sentences_and_macaroni_another_name():
    model = tiny_method("anovl", textures=["wood"])
    sentences = []
    model.encode_sentences = lambda each: (sentences.append(each), torch.ones(len(each), 32))[1]
    for product in ("wood", "nut", "macaroni2"):
        model.encode_product(product)
    assert sentences[::2] == [
        ["a texture of good wood", "a texture of wood"],
        ["a good nut", "a nut", "the good nut", "the nut"],
        ["a good macaroni", "a macaroni", "the good macaroni", "the macaroni"],
    ]


def test_the_default_is_the_authors_setting():
    config = AnoVLConfig()
    assert config.projection_dim == config.vision_config.projection_dim == config.text_config.projection_dim == 640
    for texture, words in ((True, "surface picture"), (False, "manufacturing image")):
        normal, abnormal = config.prompt_ensemble(texture).sentences("tile")
        assert len(normal) == len(abnormal) == 462
        assert normal[:2] == [f"a cropped industrial photo of the {state} tile" for state in ("normal", "flawless")]
        assert abnormal[-1] == f"a {words} of a tile with damage for anomaly detection"
    assert config.image_processing["resample"] == 2 and not config.image_processing["smoothing_sigma"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"adaptation_steps": -1}, "adaptation_steps=-1"),
        ({"adaptation_learning_rate": 0.0}, "adaptation_learning_rate=0.0"),
        ({"image_size": [48, 32]}, "augment_image_score=False"),
        ({"object_templates": []}, "templates"),
        ({"abnormal_states": ["bad"]}, "'bad'"),
    ],
)
def test_wrong_settings_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        tiny_method("anovl", **fields)


def test_nothing_is_learned(tmp_path):
    model = tiny_method("anovl")
    assert not [name for name, _ in model.named_parameters() if not name.startswith("clip.")]
    with torch.no_grad():
        expected = model(pixels(1), "nut")
    assert expected.loss is None
    with pytest.raises(ValueError, match="no learned part"):
        model(pixels(1), "nut", labels=torch.zeros(1, 48, 48))
    assert isinstance(model, AnoVLModel)
