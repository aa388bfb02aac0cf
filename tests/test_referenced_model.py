"""Maps and scores of a model with a memory, plain and accelerated."""

import pytest
import torch
from torch import nn

from tests.common import pixels, tiny_model
from tests.memories import for_model
from vcp_clip_hf import VCPCLIPImageProcessor, accelerate_inference
from vcp_clip_hf.referenced_model import ReferencedModel


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(333)
    return tiny_model()


@pytest.fixture(params=["plain", "accelerated"])
def network(request, model):
    return model if request.param == "plain" else accelerate_inference(model)


MAPS = ("anomaly_map", "base_map", "vcp_map")


@torch.no_grad()
def test_without_weight_the_maps_are_the_models(network):
    images = pixels(2)
    memory = for_model(network, pixels(2))
    expected, found = network(images), ReferencedModel(network, memory.with_weight(0))(images)
    for name in MAPS:
        assert torch.equal(found[name], expected[name]), name
    assert torch.equal(found.image_embeds, expected.image_embeds)


@torch.no_grad()
def test_with_full_weight_the_maps_are_the_memorys(network):
    images = pixels(2)
    memory = for_model(network, pixels(2), neighborhood=3)
    outputs = ReferencedModel(network, memory.with_weight(1))(images)
    states = network(images, output_hidden_states=True).hidden_states
    expected = nn.functional.interpolate(
        memory.distances(states, (6, 6))[:, None], size=(48, 48), mode="bilinear", align_corners=True
    )[:, 0]
    for name in (*MAPS, "reference_map"):
        torch.testing.assert_close(outputs[name], expected, rtol=0, atol=1e-7)
    assert outputs.reference_map.dtype == torch.float32 and outputs.hidden_states is None
    assert expected.min() > 0 and expected.max() < 1


@torch.no_grad()
@pytest.mark.parametrize("weight", [0.25, 0.7])
def test_maps_are_fused_by_the_weight(network, weight):
    images = pixels(2)
    memory = for_model(network, pixels(3)).with_weight(weight)
    zero_shot, found = network(images), ReferencedModel(network, memory)(images)
    for name in MAPS:
        expected = (1 - weight) * zero_shot[name] + weight * found.reference_map
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-6)
    # the fused map is that of the fused branches
    share = network.config.fusion_weight
    torch.testing.assert_close(
        found.anomaly_map, (1 - share) * found.base_map + share * found.vcp_map, rtol=0, atol=1e-6
    )


@torch.no_grad()
@pytest.mark.parametrize("weight", [0, 0.3, 1])
def test_maps_are_fused_by_their_logits_if_the_configuration_says_so(weight):
    network = tiny_model(reference_fusion="logits", feature_layers=[2, 4])
    images = pixels(2)
    memory = for_model(network, pixels(3)).with_weight(weight)
    zero_shot, found = network(images), ReferencedModel(network, memory)(images)
    logits = [torch.logit(each, eps=1e-4) for each in (zero_shot.vcp_map, found.reference_map)]
    expected = ((1 - weight) * logits[0] + weight * logits[1]).sigmoid()
    if weight in (0, 1):  # one of the maps, whatever its values
        expected = found.reference_map if weight else zero_shot.vcp_map
    torch.testing.assert_close(found.vcp_map, expected, rtol=0, atol=1e-6)
    # an image of the memory has distances of 0
    itself = ReferencedModel(network, for_model(network, images).with_weight(weight))(images)
    assert itself.anomaly_map.isfinite().all()
    assert "reference_fusion" not in tiny_model().config.to_dict()
    assert network.config.to_dict()["reference_fusion"] == "logits"


@torch.no_grad()
def test_relative_maps_of_a_batch_are_those_of_its_images_plain_and_accelerated():
    network = tiny_model(reference_fusion="logits")
    images = pixels(3)
    memory = for_model(network, pixels(2), distance="relative")
    plain, fast = (ReferencedModel(each, memory)(images) for each in (network, accelerate_inference(network)))
    for name in (*MAPS, "reference_map"):
        torch.testing.assert_close(fast[name], plain[name], rtol=0, atol=1e-5)
        for index, image in enumerate(images.split(1)):
            alone = ReferencedModel(network, memory)(image)
            torch.testing.assert_close(plain[name][index], alone[name][0], rtol=0, atol=1e-5)
    scaled = ReferencedModel(network, for_model(network, images))(images)
    assert (plain.reference_map - scaled.reference_map).abs().max() > 0.01


@torch.no_grad()
def test_plain_and_accelerated_agree(model):
    images, memory = pixels(2), for_model(model, pixels(3), neighborhood=3)
    plain, fast = (ReferencedModel(each, memory)(images) for each in (model, accelerate_inference(model)))
    for name in (*MAPS, "reference_map"):
        torch.testing.assert_close(fast[name], plain[name], rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_batch_is_its_images_one_by_one(network):
    images, referenced = pixels(4), ReferencedModel(network, for_model(network, pixels(3)))
    together = referenced(images)
    for index, image in enumerate(images.split(1)):
        for name in (*MAPS, "reference_map"):
            torch.testing.assert_close(together[name][index], referenced(image)[name][0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_reference_has_no_distance(network):
    images = pixels(2)
    memory = for_model(network, torch.cat([pixels(1), images]))
    assert ReferencedModel(network, memory)(images).reference_map.max() < 1e-6
    assert ReferencedModel(network, memory.without(1))(images).reference_map.amax(dim=(1, 2)).gt(1e-3).tolist() == [
        True,
        False,
    ]


@torch.no_grad()
def test_the_embedded_patches_can_be_a_layer(network):
    """Layer 0 depends on each patch alone: a changed patch has a distance, the others have none."""
    image = pixels(1)
    memory = for_model(network, image, layers=(0,)).with_weight(1)
    changed = image.clone()
    changed[:, :, 16:24, 8:16] = torch.randn(1, 3, 8, 8)
    # positions are part of the embedded patches
    states = network(changed, output_hidden_states=[0]).hidden_states
    distances = memory.distances(states, (6, 6))[0]
    assert distances[2, 1] > 1e-3
    distances[2, 1] = 0
    assert distances.max() < 1e-6
    outputs = ReferencedModel(network, memory)(changed)
    assert outputs.anomaly_map[0].argmax().item() // 48 in range(12, 28)


@torch.no_grad()
def test_images_that_are_not_square(network):
    references, image = pixels(2, 40, 64), pixels(1, 40, 64)
    memory = for_model(network, references)
    assert memory.num_patches == 2 * 5 * 8
    outputs = ReferencedModel(network, memory)(image)
    assert outputs.anomaly_map.shape == outputs.reference_map.shape == (1, 40, 64)
    assert ReferencedModel(network, memory)(references[:1]).reference_map.max() < 1e-6
    # the map has the rows of the image: a changed top gives distances there
    changed = references[:1].clone()
    changed[..., :8, :] += 3
    found = ReferencedModel(network, for_model(network, references, layers=(0,)))(changed).reference_map[0]
    assert found[:4].min() > 1e-4 and found[16:].max() < 1e-6


@torch.no_grad()
def test_scores_of_the_top_pixels_include_the_memory(model):
    processor = VCPCLIPImageProcessor.for_model(model.config, score_mode="top_k", top_k_fraction=0.1)
    image, memory = pixels(1), for_model(model, pixels(2)).with_weight(1)
    outputs = ReferencedModel(model, memory)(image)
    (result,) = processor.post_process_anomaly_segmentation(outputs, [(48, 48)])
    top = outputs.reference_map.flatten().sort(descending=True).values
    assert result["score"] == pytest.approx(2 * top[: round(0.1 * len(top))].mean().item(), abs=1e-4)


@torch.no_grad()
def test_autocast_keeps_the_search_in_the_precision_of_the_bank(model):
    images, memory = pixels(2), for_model(model, pixels(2))
    expected = ReferencedModel(model, memory)(images)
    with torch.autocast("cpu", torch.bfloat16):
        found = ReferencedModel(model, memory)(images)
    for name in (*MAPS, "reference_map"):
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0.03)


@torch.no_grad()
def test_a_model_in_bfloat16():
    model, images = tiny_model(), pixels(2)
    memory = for_model(model, pixels(2))
    expected = ReferencedModel(model, memory)(images)
    found = ReferencedModel(model.to(torch.bfloat16), memory)(images.bfloat16())
    for name in (*MAPS, "reference_map"):
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0.05)


@torch.no_grad()
def test_a_model_without_the_second_branch():
    model, images = tiny_model(use_post_vcp=False), pixels(2)
    memory = for_model(model, pixels(1)).with_weight(1)
    outputs = ReferencedModel(model, memory)(images)
    assert outputs.vcp_map is None and torch.equal(outputs.anomaly_map, outputs.reference_map)


@torch.no_grad()
def test_the_score_of_a_method_is_fused_with_the_highest_distance(model):
    """A stand-in for methods that have an image score of their own."""

    class WithScore(nn.Module):
        config, device = model.config, model.device

        def forward(self, pixel_values, **kwargs):
            outputs = model(pixel_values, **kwargs)
            outputs["image_scores"] = torch.tensor([0.2, 0.9])
            return outputs

    memory = for_model(model, pixels(1)).with_weight(0.25)
    outputs = ReferencedModel(WithScore(), memory)(pixels(2))
    highest = outputs.reference_map.flatten(1).amax(dim=1)
    torch.testing.assert_close(outputs.image_scores, 0.75 * torch.tensor([0.2, 0.9]) + 0.25 * highest)
