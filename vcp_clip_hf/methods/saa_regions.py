"""Boxes that a text finds (Grounding DINO) and masks of these boxes (SAM)."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import GroundingDinoForObjectDetection, PreTrainedTokenizerBase, SamModel
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


__all__ = ["BoxMasks", "Boxes", "find_boxes", "imagenet_input", "largest_area"]

# Number of boxes whose masks are decoded at once
_BLOCK = 64


@dataclass
class Boxes:
    """
    Boxes of an image.

    Args:
        boxes (`torch.FloatTensor` of shape `(num_boxes, 4)`): center x, center y, width, height, as fractions of the
            image's width and height.
        scores (`torch.FloatTensor` of shape `(num_boxes,)`): highest probability of a token, in [0, 1].
        phrases (`list[str]`): words of the caption that each box shows.
    """

    boxes: torch.Tensor
    scores: torch.Tensor
    phrases: list[str]

    @property
    def areas(self) -> torch.Tensor:
        """Return the areas of the boxes as fractions of the image, `(num_boxes,)`."""
        return self.boxes[:, 2] * self.boxes[:, 3]

    def filtered(self, max_area: float, word: str | None = None) -> "Boxes":
        """
        Return the boxes that are smaller than an area and do not show a word.

        Args:
            max_area (`float`): area as a fraction of the image; boxes without an area are left out too.
            word (`str`, *optional*): word that no phrase of the result contains.
        """
        kept = (self.areas > 0) & (self.areas < max_area)
        if word:
            named = [word.lower() in phrase for phrase in self.phrases]
            kept &= ~torch.tensor(named, dtype=torch.bool, device=kept.device)
        phrases = [phrase for phrase, keep in zip(self.phrases, kept.tolist(), strict=True) if keep]
        return Boxes(self.boxes[kept], self.scores[kept], phrases)

    def joined(self, other: "Boxes") -> "Boxes":
        """Return the boxes of both."""
        return Boxes(
            torch.cat([self.boxes, other.boxes]),
            torch.cat([self.scores, other.scores]),
            [*self.phrases, *other.phrases],
        )


def largest_area(boxes: Boxes) -> float:
    """Return the area of the largest box as a fraction of the image; 1 if there is none."""
    return boxes.areas.amax().item() if len(boxes.areas) else 1.0


def imagenet_input(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """
    Resize an image (bilinear, antialiased) and normalize it with the mean and standard deviation of ImageNet.

    Args:
        image (`torch.FloatTensor` of shape `(3, height, width)`): values in [0, 1].
        size (`tuple[int, int]`): height and width of the result.

    Returns:
        `torch.FloatTensor` of shape `(1, 3, *size)`.
    """
    resized = nn.functional.interpolate(image[None], size=size, mode="bilinear", antialias=True)
    mean, deviation = (image.new_tensor(each).view(3, 1, 1) for each in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return (resized - mean) / deviation


def find_boxes(
    detector: GroundingDinoForObjectDetection,
    tokenizer: PreTrainedTokenizerBase,
    image: torch.Tensor,
    caption: str,
    box_threshold: float,
    text_threshold: float,
    edges: tuple[int, int] = (800, 1333),
) -> Boxes:
    """
    Find the boxes of an image that show a caption.

    Args:
        detector (`GroundingDinoForObjectDetection`): the detector.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        image (`torch.FloatTensor` of shape `(3, height, width)`): RGB, values in [0, 1].
        caption (`str`): text; it is made lower case, and a period is added at its end.
        box_threshold (`float`): lower limit of the highest probability of a token, for boxes that are returned.
        text_threshold (`float`): lower limit of the probability of a token, for the words of the phrases.
        edges (`tuple[int, int]`, *optional*): shortest edge of the detector's input, and the limit of its longest.

    Returns:
        [`Boxes`]
    """
    text = caption.lower().strip()
    text = text if text.endswith(".") else f"{text}."
    tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=detector.config.max_text_len)
    pixel_values = imagenet_input(image, get_size_with_aspect_ratio(tuple(image.shape[-2:]), *edges))
    outputs = detector(
        pixel_values.to(detector.dtype), **{name: each.to(image.device) for name, each in tokens.items()}
    )
    probabilities = outputs.logits[0].float().sigmoid()
    scores = probabilities.amax(dim=1)
    kept = scores > box_threshold
    ids = tokens["input_ids"][0]
    # The start token is left out, and so is the last position of the longest text, as in Grounding DINO's own code
    shown = probabilities[kept] > text_threshold
    shown[:, 0], shown[:, -1] = False, False
    phrases = [tokenizer.decode(ids[row[: len(ids)].cpu()]) for row in shown]
    return Boxes(outputs.pred_boxes[0].float()[kept], scores[kept], phrases)


class BoxMasks:
    """
    Masks of boxes of one image: the image is encoded once.

    Args:
        segmenter (`SamModel`): the model.
        image (`torch.FloatTensor` of shape `(3, height, width)`): values in [0, 1], with the channels in the order of
            the model's input.
    """

    def __init__(self, segmenter: SamModel, image: torch.Tensor):
        self.segmenter, self.size = segmenter, tuple(image.shape[-2:])
        self.side = segmenter.config.vision_config.image_size
        scale = self.side / max(self.size)
        self.resized = tuple(int(edge * scale + 0.5) for edge in self.size)
        pixel_values = imagenet_input(image, self.resized)
        padding = (0, self.side - self.resized[1], 0, self.side - self.resized[0])
        padded = nn.functional.pad(pixel_values, padding).to(segmenter.dtype)
        self.embeddings = segmenter.get_image_embeddings(padded)

    def of(self, boxes: torch.Tensor) -> torch.Tensor:
        """
        Return one mask for each box.

        Args:
            boxes (`torch.FloatTensor` of shape `(num_boxes, 4)`): as in [`Boxes`].

        Returns:
            `torch.BoolTensor` of shape `(num_boxes, height, width)`: at the size of the image.
        """
        masks = [self._decode(block) for block in boxes.split(_BLOCK) if len(block)]
        return torch.cat(masks) if masks else torch.zeros(0, *self.size, dtype=torch.bool, device=boxes.device)

    def _decode(self, boxes: torch.Tensor) -> torch.Tensor:
        centers, sides = boxes[:, :2], boxes[:, 2:]
        height, width = self.resized
        corners = torch.cat([centers - sides / 2, centers + sides / 2], dim=1) * boxes.new_tensor([width, height] * 2)
        outputs = self.segmenter(
            image_embeddings=self.embeddings,
            input_boxes=corners[None].to(self.embeddings.dtype),
            multimask_output=False,
        )
        logits = outputs.pred_masks[0].float()
        logits = nn.functional.interpolate(logits, size=(self.side, self.side), mode="bilinear")
        logits = logits[..., :height, :width]
        return nn.functional.interpolate(logits, size=self.size, mode="bilinear")[:, 0] > 0
