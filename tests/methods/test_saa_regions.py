"""Boxes and masks of SAA against the image processors and the post-processing of transformers."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GroundingDinoProcessor
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from tests.methods.tiny_saa import tiny_bert_tokenizer, tiny_detector, tiny_segmenter
from vcp_clip_hf.methods.saa_regions import Boxes, BoxMasks, find_boxes, imagenet_input, largest_area


SIZES = [(64, 64), (60, 90), (120, 50)]


def picture(size, seed=0):
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8))


def as_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


# At these sizes, nothing is resized: the image processor would round to 8 bits, and another query could come first
@pytest.mark.parametrize("size", [(96, 96), (96, 130), (150, 96)])
def test_boxes_scores_and_phrases_are_those_of_transformers(size):
    torch.manual_seed(0)
    detector, tokenizer = tiny_detector(), tiny_bert_tokenizer()
    image = picture(size)
    edges = {"shortest_edge": 96, "longest_edge": 160}
    processor = GroundingDinoProcessor(GroundingDinoImageProcessorPil(size=edges, do_pad=False), tokenizer)
    inputs = processor(images=image, text="defect on nut.", return_tensors="pt")
    with torch.no_grad():
        outputs = detector(**inputs)
        got = find_boxes(detector, tokenizer, as_tensor(image), " Defect on nut", 0.6, 0.4, (96, 160))
        exact = find_boxes(detector, tokenizer, as_tensor(image), "defect on nut.", 0.6, 0.4, (96, 160))
    assert torch.equal(got.boxes, exact.boxes)
    (expected,) = processor.post_process_grounded_object_detection(
        outputs, inputs.input_ids, threshold=0.6, text_threshold=0.4, target_sizes=[(1, 1)]
    )
    corners = torch.cat([got.boxes[:, :2] - got.boxes[:, 2:] / 2, got.boxes[:, :2] + got.boxes[:, 2:] / 2], dim=1)
    assert 0 < len(got.scores) == len(expected["scores"])
    torch.testing.assert_close(got.scores, expected["scores"], atol=1e-4, rtol=0)
    torch.testing.assert_close(corners, expected["boxes"], atol=1e-4, rtol=0)
    assert got.phrases == list(expected["text_labels"])


@pytest.mark.parametrize("size", SIZES)
def test_inputs_are_those_of_the_image_processors(size):
    image = picture(size)
    processor = GroundingDinoImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 160}, do_pad=False)
    expected = processor(image, return_tensors="pt").pixel_values
    got = imagenet_input(as_tensor(image), tuple(expected.shape[-2:]))
    torch.testing.assert_close(got, expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_masks_are_those_of_transformers(size):
    torch.manual_seed(0)
    segmenter, image = tiny_segmenter(), picture(size)
    boxes = torch.tensor([[0.5, 0.5, 0.6, 0.4], [0.3, 0.7, 0.2, 0.2], [0.5, 0.5, 1.0, 1.0]])
    processor = SamImageProcessorPil(
        size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}, mask_size={"longest_edge": 32}
    )
    inputs = processor(image, return_tensors="pt")
    height, width = inputs["reshaped_input_sizes"][0].tolist()
    corners = [
        [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
        for x, y, w, h in boxes.tolist()
    ]
    with torch.no_grad():
        outputs = segmenter(inputs["pixel_values"], input_boxes=torch.tensor([corners]), multimask_output=False)
        (expected,) = processor.post_process_masks(
            outputs.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
        )
        got = BoxMasks(segmenter, as_tensor(image)).of(boxes)
    assert got.shape == (3, *size) and 0.1 < got.float().mean() < 0.9
    # The image processor rounds resized pixels to 8 bits
    assert (got != expected[:, 0]).float().mean() < 0.01


def test_masks_of_many_boxes_are_decoded_in_blocks(monkeypatch):
    torch.manual_seed(0)
    masks, boxes = BoxMasks(tiny_segmenter(), torch.rand(3, 40, 50)), torch.rand(5, 4)
    with torch.no_grad():
        at_once = masks.of(boxes)
        monkeypatch.setattr("vcp_clip_hf.methods.saa_regions._BLOCK", 2)
        assert torch.equal(masks.of(boxes), at_once)
    assert masks.of(boxes[:0]).shape == (0, 40, 50)


def test_boxes_are_filtered_by_area_and_word():
    boxes = Boxes(
        torch.tensor([[0.5, 0.5, 0.2, 0.5], [0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.0, 0.5], [0.5, 0.5, 0.1, 0.1]]),
        torch.tensor([0.1, 0.2, 0.3, 0.4]),
        ["hole", "hole", "hole", "defect on carpets"],
    )
    assert largest_area(boxes) == 0.25 and largest_area(boxes.filtered(0.0)) == 1.0
    assert boxes.filtered(0.25).scores.tolist() == boxes.scores[[0, 3]].tolist()
    kept = boxes.filtered(1.0, "Carpet")
    assert kept.scores.tolist() == boxes.scores[:2].tolist() and kept.phrases == ["hole", "hole"]
    assert len(kept.joined(boxes).phrases) == 6
