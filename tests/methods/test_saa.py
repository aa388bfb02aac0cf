"""SAA and SAA+ against a plain reading of the method, and through pipeline, evaluation and checkpoints.

Boxes and masks are compared with transformers' own functions in `test_saa_regions`; here they are given.
"""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoModel, pipeline

from tests.common import pixels
from tests.methods.test_named_product import pictures, tiny_of
from tests.methods.tiny_saa import TinySaliency, tiny_bert_tokenizer, tiny_saa
from tests.training_run import make_records, settings
from vcp_clip_hf.checkpoint_folder import complete_parts, load_parts, save_parts
from vcp_clip_hf.evaluation import evaluate
from vcp_clip_hf.image_processing_vcp_clip import VCPCLIPImageProcessor
from vcp_clip_hf.method_comparison import compare_methods, load_method
from vcp_clip_hf.methods import METHODS, SAAConfig, SAAModel
from vcp_clip_hf.methods.saa import confidence_map, picture_of, rescored
from vcp_clip_hf.methods.saa_regions import BoxMasks, find_boxes
from vcp_clip_hf.training import train


# Values with which boxes of random networks are kept and left out
KNOWN = {
    "one": {"prompts": [["scratch.", "nut"]], "object_phrase": "one,", "max_masks": 4, "max_area_fraction": 0.9},
    "two": {"prompts": [["black hole", "hole"]], "num_objects": 2, "max_masks": 50, "max_area_fraction": 2.0},
}


def plain_saliency(model, channels, object_masks, num_objects):
    """Compare positions one by one; return the saliency at the size of the image."""
    side = model.config.saliency_sizes[0 if num_objects == 1 else 1]
    resized = nn.functional.interpolate(channels[None], size=(side, side), mode="bilinear", antialias=True)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    levels = model.frozen_saliency((resized - mean.view(3, 1, 1)) / deviation.view(3, 1, 1))
    grid = levels[0].shape[-1]
    vectors = np.zeros((grid, grid, sum(each.shape[1] for each in levels)))
    for row in range(grid):
        for column in range(grid):
            parts = [each[0, :, row * each.shape[2] // grid, column * each.shape[3] // grid] for each in levels]
            vector = torch.cat(parts).double().numpy()
            vectors[row, column] = vector / np.linalg.norm(vector)
    vectors = vectors.reshape(grid * grid, -1)
    if num_objects == 1:
        distances = np.sort(0.5 * (1 - vectors @ vectors.T), axis=1)[:, ::-1]
        found = distances[:, : model.config.num_largest_distances].mean(axis=1)
    else:
        height, width = object_masks.shape[1:]
        places = [
            [bool(mask[row * height // grid, column * width // grid]) for row in range(grid) for column in range(grid)]
            for mask in object_masks
        ]
        found = np.zeros(grid * grid)
        for own, inside in enumerate(places):
            others = [
                any(each[place] for index, each in enumerate(places) if index != own) for place in range(grid**2)
            ]
            rest = np.where((np.array(others) & ~np.array(inside))[:, None], vectors, 0)
            distances = 0.5 * (1 - (vectors @ rest.T).max(axis=1))
            found = np.maximum(found, np.where(inside, distances, 0))
    found = torch.tensor(found, dtype=torch.float32).view(1, 1, grid, grid)
    return nn.functional.interpolate(found, size=channels.shape[-2:], mode="bilinear")[0, 0]


def plain_map(model, picture, name):
    """Return the map of SAA+, and the number of masks that were candidates."""
    known = KNOWN[name]

    def boxes_of(caption):
        found = find_boxes(model.frozen_detector, model.tokenizer, picture, caption, 0.1, 0.1, (96, 160))
        return list(zip(found.boxes, found.scores.tolist(), found.phrases, strict=True))

    channels = picture[[2, 1, 0]]
    masks = BoxMasks(model.frozen_segmenter, channels)
    num_objects = known.get("num_objects", 1)
    objects = [box for box, _, _ in boxes_of(known.get("object_phrase", f"{name},")) if box[2] * box[3] > 0]
    objects = [box for box in objects if box[2] * box[3] < 1 / num_objects]
    area = max([float(box[2] * box[3]) for box in objects], default=1.0)
    captions = [(f"{kind} on {name}", name) for kind in ("defect", "damage", "flaw")] + known["prompts"]
    candidates = [
        (masks.of(box[None])[0], score)
        for caption, word in captions
        for box, score, phrase in boxes_of(caption)
        if 0 < float(box[2] * box[3]) < known["max_area_fraction"] * area and word not in phrase
    ]
    object_masks = masks.of(torch.stack(objects)) if objects else torch.zeros(0, *picture.shape[1:])
    saliency = plain_saliency(model, channels, object_masks, num_objects)
    scored = []
    for mask, score in candidates:
        inside = saliency[mask]
        scored.append((score * float(np.exp(3 * float(inside.mean()))) if len(inside) else score, mask))
    scored.sort(key=lambda each: -each[0])
    total, weights = np.zeros(picture.shape[1:]), np.ones(picture.shape[1:])
    for score, mask in scored[: known["max_masks"]]:
        total += mask.numpy() * score
        weights += mask.numpy()
    return total / weights / np.exp(3), len(candidates)


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_saa_plus_is_the_plain_reading(name, size):
    model = tiny_saa(3, products=KNOWN)
    picture = torch.rand(3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, candidates = plain_map(model, picture, name)
        got = model.segment_picture(picture, name)
    assert candidates > 4 and expected.max() > 0.02 and len(np.unique(expected)) > 3
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_plain_saa_adds_the_masks_of_one_caption():
    model, picture = tiny_saa(plus=False), torch.rand(3, 64, 64)
    with torch.no_grad():
        found = find_boxes(model.frozen_detector, model.tokenizer, picture, "defect", 0.1, 0.1, (96, 160))
        masks = BoxMasks(model.frozen_segmenter, picture.flip(0)).of(found.boxes).double()
    expected = (masks * found.scores.view(-1, 1, 1)).sum(dim=0) / (1 + masks.sum(dim=0))
    torch.testing.assert_close(model.segment_picture(picture, "nut"), expected.float(), atol=1e-6, rtol=0)
    assert not hasattr(model, "frozen_saliency")


def test_without_boxes_the_map_is_zero():
    for fields in ({"plus": False}, {"products": {"one": KNOWN["one"]}}):
        outputs = tiny_saa(**fields, box_threshold=0.99999)(pixels(1, 64, 64), "one")
        assert not outputs.anomaly_map.any() and outputs.image_scores.item() == 0


def test_a_single_mask_has_half_its_score():
    masks = torch.zeros(2, 1, 4, dtype=torch.bool)
    masks[0, 0, :2], masks[1, 0, 1:3] = True, True
    scores = torch.tensor([0.6, 0.3])
    torch.testing.assert_close(confidence_map(masks, scores), torch.tensor([[0.3, 0.3, 0.15, 0.0]]))
    saliency = torch.tensor([[0.0, 0.2, 0.4, 1.0]])
    expected = scores * torch.tensor([0.3, 0.9]).exp()
    torch.testing.assert_close(rescored(masks, scores, saliency), expected)
    assert torch.equal(rescored(torch.zeros_like(masks), scores, saliency), scores)


@pytest.mark.parametrize("size", [(60, 80), (80, 60), (64, 64)])
def test_the_picture_is_found_in_the_models_input(size):
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8))
    processor = VCPCLIPImageProcessor.for_model(SAAConfig(plus=False, image_size=80))
    assert (processor.resize_mode, processor.smoothing_sigma, processor.score_mode) == ("pad", 0, "image_head")
    picture = picture_of(processor(image, return_tensors="pt").pixel_values[0])
    scale = 80 / max(size)
    assert tuple(picture.shape[1:]) == (round(size[0] * scale), round(size[1] * scale))
    if scale == 1:
        levels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
        torch.testing.assert_close(picture, levels, atol=1e-5, rtol=0)
    assert picture_of(torch.zeros(3, 16, 16)).shape == (3, 16, 16)


def test_padding_has_no_part_in_the_result():
    model = tiny_saa(products=KNOWN)
    inspect, (image,) = tiny_of(model), pictures(1)
    result = inspect(image, product_name="two")
    values = inspect.image_processor(image, return_tensors="pt").pixel_values
    with torch.no_grad():
        outputs = model(values, "two")
    assert result["anomaly_map"].shape == (60, 80) and result["score"] == pytest.approx(outputs.image_scores.item())
    assert not outputs.anomaly_map[0, 48:].any() and outputs.anomaly_map[0, :48].any()


def test_channels_in_their_own_order_are_an_option():
    image = pixels(1, 64, 64)
    swapped, own = (tiny_saa(swap_channels=swap)(image, "nut").anomaly_map for swap in (True, False))
    assert not torch.equal(swapped, own)


def test_what_saa_cannot_do_is_refused(tmp_path):
    model, image = tiny_saa(), pixels(1, 64, 64)
    for arguments, words in (
        ({"labels": torch.zeros(1, 64, 64)}, "cannot use labels"),
        ({"references": {}}, "no few-shot mode"),
        ({"output_layer_maps": True}, "no maps of layers"),
    ):
        with pytest.raises(ValueError, match=words):
            model(image, **arguments)
    with pytest.raises(ValueError, match="expected"):
        model(image[0])
    with pytest.raises(TypeError, match="did you mean 'product_names'"):
        model(image, product_name="nut")
    with pytest.raises(ValueError, match="no learned part"):
        model.save_pretrained(tmp_path, adapter_only=True)
    with pytest.raises(ValueError, match="not built on a CLIP"):
        SAAModel.fitted_to("embedded")
    inspect = tiny_of(model)
    with pytest.raises(ValueError, match="no image tower"):
        inspect.segment_together(pictures(5), progress=False)
    with pytest.raises(ValueError, match="few-shot"):
        inspect.set_references(pictures(2))
    with pytest.raises(ValueError, match="no maps of layers"):
        inspect(pictures(1)[0], output_uncertainty=True)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="must be two sizes"):
        SAAConfig(detector_edges=[800])
    with pytest.raises(ValueError, match="box_threshold"):
        SAAConfig(box_threshold=1.5)
    with pytest.raises(ValueError, match="did you mean 'naive_prompt'"):
        SAAConfig(naive_promt="crack")
    with pytest.raises(ValueError, match="has the keys"):
        SAAConfig(products={"gear": {"masks": 1}})


def test_a_model_without_tokenizer_says_what_to_do():
    model = tiny_saa()
    model._tokenizer = None
    with pytest.raises(ValueError, match=r"Set `model\.tokenizer`"):
        model(pixels(1, 64, 64))
    with pytest.raises(ValueError, match="vocab_size=1100"):
        model.tokenizer = tiny_bert_tokenizer(1200)


def test_evaluation_and_comparison():
    model = tiny_saa()
    processor, records = VCPCLIPImageProcessor.for_model(model.config), make_records(6)
    report = evaluate(model, processor, {"own": records}, "published", 4, progress=False)
    metrics = report.results["own"]["per_product"]["product_1"]
    rows = [row for row in records if row["product"] == "product_1"]
    images = processor([row["image"] for row in rows], return_tensors="pt").pixel_values
    scores = model(images, "product_1").image_scores
    bad, good = (scores[[row["label"] for row in rows].index(label)] for label in (1, 0))
    assert metrics["image_auroc"] == float(bad > good) and bad != good
    parts = complete_parts(model, tokenizer=model.tokenizer)
    text = compare_methods({"saa": parts}, {"own": records}, progress=False).to_markdown()
    assert "SAA / SAA+" in text and "nothing is trained" in text


def test_saa_is_saved_and_loaded_without_further_packages(tmp_path):
    model = tiny_saa(plus=False)
    save_parts(tmp_path, complete_parts(model, tokenizer=model.tokenizer))
    parts, (picture,) = load_parts(tmp_path), pictures(1)
    again = AutoModel.from_pretrained(tmp_path)
    for loaded in (parts.model, again):
        for kind in ("named_parameters", "named_buffers"):
            one, other = dict(getattr(model, kind)()), dict(getattr(loaded, kind)())
            assert one.keys() == other.keys() and all(torch.equal(other[name], one[name]) for name in one)
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
    results = [each(picture) for each in (tiny_of(model), pipeline("anomaly-segmentation", model=str(tmp_path)))]
    assert np.array_equal(results[0]["anomaly_map"], results[1]["anomaly_map"])
    card = (tmp_path / "README.md").read_text()
    assert "grounding-dino, sam" in card and "Learned parameters | 0" in card and "Nothing is trained." in card
    assert load_method("saa", str(tmp_path)).model.config.naive_prompt == "defect"
    with pytest.raises(ValueError, match="nothing to train"):
        train(settings(tmp_path, model=str(tmp_path)), make_records(4))


def test_saa_plus_is_saved_and_loaded_with_its_saliency_network(tmp_path, monkeypatch):
    model, image = tiny_saa(products=KNOWN), pixels(1, 64, 64)
    model.save_pretrained(tmp_path)
    again = SAAModel.from_pretrained(tmp_path, saliency_network=TinySaliency())
    assert torch.equal(model(image, "one").anomaly_map, again(image, "one").anomaly_map)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="vcp-clip-hf"):
        SAAModel.from_pretrained(tmp_path)


def test_the_networks_may_be_folders(tmp_path):
    model = tiny_saa(plus=False)
    model.frozen_detector.save_pretrained(tmp_path / "detector")
    model.tokenizer.save_pretrained(tmp_path / "detector")
    model.frozen_segmenter.save_pretrained(tmp_path / "segmenter")
    fields = {"plus": False, "image_size": 64, "detector_edges": [96, 160]}
    again = SAAModel.from_networks(tmp_path / "detector", tmp_path / "segmenter", **fields)
    image = pixels(1, 64, 64)
    assert torch.equal(model(image).anomaly_map, again(image).anomaly_map)


def test_the_method_is_registered():
    assert METHODS["saa"] is SAAModel and not SAAModel.works_on_any_clip
