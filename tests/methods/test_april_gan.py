"""APRIL-GAN beyond the authors' numbers: its few-shot mode, its configuration, its gradients."""

import pytest
import torch
from torch.nn.functional import interpolate, normalize

from tests.common import pixels
from tests.methods.common import tiny_method
from vcp_clip_hf.methods import AprilGANConfig


def banks(model, images):
    tokens = model.reference_tokens(images)
    return {name: normalize(each.flatten(0, 1), dim=-1) for name, each in tokens.items()}


def test_the_default_is_the_published_setting():
    config = AprilGANConfig()
    assert config.feature_layers == config.few_shot_layers == [6, 12, 18, 24]
    assert config.image_size == 518 and config.vision_config.hidden_act == "gelu"
    normal, abnormal = config.prompt_ensemble().sentences("metal_nut")
    assert len(normal) == 245 and len(abnormal) == 175
    assert normal[0] == "a bad photo of a metal_nut." and abnormal[0] == "a bad photo of a damaged metal_nut."


@pytest.mark.parametrize("layers", [[0, 2], [2, 2], [4, 2], [5], []])
def test_wrong_few_shot_layers_are_refused(layers):
    with pytest.raises(ValueError, match="few_shot_layers"):
        tiny_method(few_shot_layers=layers)


def test_the_few_shot_map_is_the_sum_of_both_parts():
    model = tiny_method(few_shot_layers=[2, 3])
    images = pixels(2)
    with torch.no_grad():
        references = banks(model, pixels(3))
        zero_shot, few_shot = model(images, "nut"), model(images, "nut", references=references)
        states = model.image_features(images, [2, 3]).states
    distances = []
    for layer in (2, 3):
        cosines = normalize(states[layer][:, 1:], dim=-1) @ references[f"layer_{layer}"].T
        distances.append(1 - cosines.amax(dim=-1))
    grid = torch.stack(distances, dim=1).unflatten(-1, (6, 6))
    summed = interpolate(grid, size=(48, 48), mode="bilinear", align_corners=True).sum(dim=1)
    expected = (4 * zero_shot.anomaly_map + summed) / (4 + 2 * 2)
    assert torch.allclose(few_shot.anomaly_map, expected, atol=1e-5)
    assert torch.allclose(few_shot.reference_map, summed / 4, atol=1e-5)
    maxima = few_shot.anomaly_map.flatten(1).amax(dim=1)
    assert torch.allclose(few_shot.image_scores, (zero_shot.image_scores + maxima) / 2)


def test_an_image_among_its_references_has_no_distance():
    model, images = tiny_method(), pixels(1)
    with torch.no_grad():
        outputs = model(images, references=banks(model, images))
    assert outputs.reference_map.abs().max() < 1e-5


def test_published_scores_depend_on_the_whole_product():
    model = tiny_method()
    text, maxima = torch.tensor([0.2, 0.4]), torch.tensor([0.5, 0.7])
    assert torch.allclose(model.scores_of_product(text, maxima), torch.tensor([0.1, 0.7]))
    # the authors' code divides zero by zero for a single image
    assert model.scores_of_product(text[:1], maxima[:1]).isnan().all()


def test_only_the_adapters_are_trained():
    model = tiny_method().train()
    model(pixels(2), ["nut", "bolt"], labels=torch.ones(2, 48, 48)).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {f"adapters.fc.{index}.{kind}" for index in range(4) for kind in ("weight", "bias")}
