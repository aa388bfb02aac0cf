"""WinCLIP beside a plain reading of its formulas: one image and one window at a time."""

import random

import pytest
import torch
from torch.nn.functional import interpolate, normalize

from tests.common import pixels, tiny_tokenizer
from tests.methods.common import FEW_PROMPTS, tiny_method
from tests.methods.random_variation import random_clip
from tests.methods.test_windows import windows_of
from tests.reference_forward import block
from vcp_clip_hf.methods import WinCLIPConfig, WinCLIPModel, winclip


def plain_features(model, image):
    """The full image's embedding, window embeddings by scale, and patch tokens of one image (3, H, W)."""
    clip, vision = model.clip, model.clip.vision_model
    with_positions = vision.embeddings(image[None], interpolate_pos_encoding=True)[0]
    grid = tuple(side // model.config.vision_config.patch_size for side in image.shape[1:])

    def run(tokens):
        stream = vision.pre_layrnorm(tokens)
        for layer in vision.encoder.layers:
            stream = block(layer, stream)
        return stream

    def embed(tokens):
        return clip.visual_projection(vision.post_layernorm(run(tokens)[0]))

    windows = {}
    for scale in model.config.scales:
        rows = [[0, *(1 + patch for patch in patches)] for patches in windows_of(grid, scale)]
        windows[scale] = torch.stack([embed(with_positions[row]) for row in rows])
    patches = run(with_positions)[1:]
    if model.config.patch_post_layernorm:
        patches = vision.post_layernorm(patches)
    return embed(with_positions), windows, patches, grid


def spread(scores, grid, scale, harmonic=True):
    """The mean of the windows of each patch."""
    windows, means = windows_of(grid, scale), []
    for patch in range(grid[0] * grid[1]):
        own = torch.stack([scores[number] for number, patches in enumerate(windows) if patch in patches])
        means.append(len(own) / (1 / own).sum() if harmonic else own.mean())
    return torch.stack(means)


def plain(model, image, text, references=()):
    """Map at the image size and image score, by the formulas of `WinCLIPConfig`."""
    config = model.config
    embedding, windows, patches, grid = plain_features(model, image)

    def abnormal(vectors):
        return (normalize(vectors, dim=-1) @ text.T / config.temperature).softmax(dim=-1)[..., 1]

    score = abnormal(embedding)
    if config.harmonic_of == "abnormality":
        maps = [spread(abnormal(each), grid, scale) for scale, each in windows.items()]
        maps += [score.expand(grid[0] * grid[1])] * config.use_image_scale
        zero_shot = len(maps) / sum(1 / each for each in maps)
    else:
        maps = [spread(1 - abnormal(each), grid, scale) for scale, each in windows.items()]
        maps += [(1 - score).expand(grid[0] * grid[1])] * config.use_image_scale
        zero_shot = 1 - len(maps) / sum(1 / each for each in maps)
    result = zero_shot
    if references:
        kept = [plain_features(model, each) for each in references]

        def distance(vectors, bank):
            return (1 - (normalize(vectors, dim=-1) @ normalize(bank, dim=-1).T).amax(dim=-1)) / 2

        harmonic = config.association_mean == "harmonic"
        parts = [
            spread(distance(each, torch.cat([one[1][scale] for one in kept])), grid, scale, harmonic)
            for scale, each in windows.items()
        ]
        if config.use_patch_scale:
            parts.append(distance(patches, torch.cat([one[2] for one in kept])))
        association = torch.stack(parts).mean(dim=0)
        score = (score + association.max()) / 2
        fused = {"mean": (zero_shot + association) / 2, "harmonic": 1 / (1 / zero_shot + 1 / association)}
        result = fused[config.fusion]
    if config.image_score == "map_maximum":
        score = result.max()
    pixels_map = interpolate(result.view(1, 1, *grid), size=image.shape[1:], mode="bilinear", align_corners=False)
    return pixels_map[0, 0], score


def banks(model, images):
    tokens = model.reference_tokens(images)
    return {name: normalize(each.flatten(0, 1), dim=-1) for name, each in tokens.items()}


CAOYUNKANG = {
    "use_image_scale": False,
    "temperature": 0.01,
    "harmonic_of": "normality",
    "association_mean": "arithmetic",
    "use_patch_scale": False,
    "fusion": "harmonic",
    "image_score": "map_maximum",
}


@pytest.mark.parametrize("fields", [{}, CAOYUNKANG, {"patch_post_layernorm": False, "scales": [1, 4]}], ids=str)
@pytest.mark.parametrize("few_shot", [False, True])
def test_outputs_are_those_of_a_plain_reading(fields, few_shot):
    model = tiny_method("winclip", **fields)
    images, references = pixels(2, 40, 32), pixels(2, 40, 32)
    with torch.no_grad():
        outputs = model(images, "nut", references=banks(model, references) if few_shot else None)
        text = model.text_embeds(["nut"])[0]
        for index, image in enumerate(images):
            expected, score = plain(model, image, text, list(references) if few_shot else ())
            torch.testing.assert_close(outputs.anomaly_map[index], expected, atol=1e-5, rtol=0)
            torch.testing.assert_close(outputs.image_scores[index], score, atol=1e-5, rtol=0)
    assert (outputs.reference_map is not None) == few_shot


@pytest.mark.parametrize("seed", range(6))
def test_outputs_of_random_sizes_are_those_of_a_plain_reading(seed):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    clip, side = random_clip(draw)
    grid = side // clip.config.vision_config.patch_size
    fields = {"scales": sorted(draw.sample(range(1, grid + 1), draw.randint(1, min(2, grid)))), "temperature": 0.5}
    model = WinCLIPModel.from_clip(clip, tokenizer=tiny_tokenizer(), image_size=side, **FEW_PROMPTS, **fields)
    images = pixels(3, side, side)
    with torch.no_grad():
        outputs, text = model(images[:1], "nut", references=banks(model, images[1:])), model.text_embeds(["nut"])[0]
        expected, score = plain(model, images[0], text, list(images[1:]))
    torch.testing.assert_close(outputs.anomaly_map[0], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.image_scores[0], score, atol=1e-5, rtol=0)


def test_the_text_is_the_mean_of_raw_embeddings_unless_asked():
    model = tiny_method("winclip")
    with torch.no_grad():
        embeds = model.encode_sentences(model.config.prompt_ensemble().sentences("nut")[0])
        raw = model.text_embeds(["nut"])[0, 0]
        model.config.normalize_prompts = True
        unit = model.text_embeds(["nut"])[0, 0]
    torch.testing.assert_close(raw, normalize(embeds.mean(dim=0), dim=0))
    torch.testing.assert_close(unit, normalize(normalize(embeds, dim=1).mean(dim=0), dim=0))
    assert not torch.allclose(raw, unit)


def test_passes_of_few_windows_give_the_same(monkeypatch):
    model, images = tiny_method("winclip"), pixels(2)
    with torch.no_grad():
        at_once = model(images, "nut")
        monkeypatch.setattr(winclip, "_PASS_TOKENS", 30)
        in_parts = model(images, "nut")
    torch.testing.assert_close(at_once.anomaly_map, in_parts.anomaly_map, atol=1e-6, rtol=0)


def test_an_image_among_its_references_is_normal():
    model, images = tiny_method("winclip"), pixels(2)
    with torch.no_grad():
        alone, few_shot = model(images[:1], "nut"), model(images[:1], "nut", references=banks(model, images))
    assert few_shot.reference_map.max() < 1e-5
    torch.testing.assert_close(few_shot.anomaly_map, alone.anomaly_map / 2, atol=1e-5, rtol=0)


def test_missing_banks_are_named():
    model = tiny_method("winclip")
    references = banks(model, pixels(1))
    del references["window_3"]
    with pytest.raises(ValueError, match="window_3 is missing"):
        model(pixels(1), references=references)


def test_the_default_is_anomalibs_setting():
    config = WinCLIPConfig()
    assert config.projection_dim == config.vision_config.projection_dim == config.text_config.projection_dim == 640
    assert config.scales == [2, 3] and config.image_size == 240
    vision = config.vision_config
    assert (vision.hidden_size, vision.num_attention_heads, vision.hidden_act) == (896, 14, "gelu")
    normal, abnormal = config.prompt_ensemble().sentences("metal_nut")
    assert (len(normal), len(abnormal)) == (147, 84)
    assert normal[:2] == ["a cropped photo of the metal_nut.", "a close-up photo of a metal_nut."]
    assert abnormal[-1] == "a photo of a metal_nut with damage for anomaly detection."


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"scales": []}, "scales"),
        ({"scales": [3, 2]}, "ascending"),
        ({"scales": [2, 7]}, "windows of 7 patches a side"),
        ({"temperature": 0.0}, "temperature=0.0"),
    ],
)
def test_wrong_settings_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        tiny_method("winclip", **fields)
