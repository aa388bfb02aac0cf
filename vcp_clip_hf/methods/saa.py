"""SAA and SAA+ (Cao et al., arXiv 2305.10724; github.com/caoyunkang/Segment-Any-Anomaly, no license).

A detector that reads text finds boxes of defects, and SAM finds their masks. Nothing is trained, and there is no CLIP.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import (
    AutoTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SamConfig,
    SamModel,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.utils import can_return_tuple

from ..backbone_loading import without_load_report
from ..configuration_segmenter import SegmenterConfig
from ..prompts import check_tokenizer
from .method import DEFAULT_PRODUCT, AnomalyMethod, AnomalyMethodOutput
from .saa_prompts import ProductKnowledge, find_knowledge
from .saa_regions import Boxes, BoxMasks, find_boxes, imagenet_input, largest_area
from .saa_saliency import dense_features, make_saliency_network, object_saliency, self_saliency


__all__ = ["SAAConfig", "SAAModel", "confidence_map", "picture_of", "rescored"]

_DETECTOR, _SEGMENTER = "IDEA-Research/grounding-dino-tiny", "facebook/sam-vit-huge"
# Factor of the mean saliency in the exponent of a mask's score
_SALIENCY_FACTOR = 3.0
# The image processor pads with its mean color, which is 0 after normalization up to the rounding to 8 bits
_PADDING = 0.01


@strict
class SAAConfig(SegmenterConfig):
    r"""
    Configuration of a [`SAAModel`].

    Args:
        detector_config (`dict` or `GroundingDinoConfig`, *optional*): detector; by default that with Swin-T.
        segmenter_config (`dict` or `SamConfig`, *optional*): SAM; by default transformers' own, with ViT-B.
        plus (`bool`, *optional*, defaults to `True`):
            SAA+: captions of the product, limits of areas and of the number of masks, and saliency. `False`: SAA, the
            boxes of `naive_prompt` with their own scores.
        naive_prompt (`str`, *optional*, defaults to `"defect"`): the only caption of SAA.
        box_threshold, text_threshold (`float`, *optional*, default to 0.1):
            Lower limits of the probability of a box, and of the tokens in its phrase.
        products (`dict`, *optional*): name -> values of further products for SAA+, see [`find_knowledge`].
        saliency_backbone (`str`, *optional*, defaults to `"wide_resnet50_2.racm_in1k"`): network of timm.
        num_largest_distances (`int`, *optional*, defaults to 400): distances in the mean of the saliency.
        saliency_sizes (`list[int]`, *optional*, defaults to `[256, 1024]`):
            Sides of the saliency network's input in pixels, for products with one object and with several.
        detector_edges (`list[int]`, *optional*, defaults to `[800, 1333]`):
            Shortest edge of the detector's input in pixels, and the limit of its longest edge.
        swap_channels (`bool`, *optional*, defaults to `True`):
            Whether SAM and the saliency network get the channels in the order blue, green, red, as in the authors'
            code, instead of red, green, blue.
        image_size (`int` or `list[int]`, *optional*, defaults to 1024): size of `pixel_values`.
    """

    model_type = "saa"
    title = "SAA / SAA+"
    source = (
        "Cao et al. 2023, [arXiv 2305.10724](https://arxiv.org/abs/2305.10724); code: "
        "[Segment-Any-Anomaly](https://github.com/caoyunkang/Segment-Any-Anomaly) (no license)"
    )
    # The ratio of the image is kept: boxes and masks depend on it
    image_processing = {"resize_mode": "pad", "smoothing_sigma": 0.0, "score_mode": "image_head"}
    sub_configs_defaults = {"detector_config": GroundingDinoConfig, "segmenter_config": SamConfig}
    # There is no CLIP that could lie elsewhere
    backbone_name_or_path = None
    backbone_revision = None
    backbone_included = True

    detector_config: dict | GroundingDinoConfig | None = None
    segmenter_config: dict | SamConfig | None = None
    plus: bool = True
    naive_prompt: str = "defect"
    box_threshold: float | int = 0.1
    text_threshold: float | int = 0.1
    products: dict[str, dict] | None = None
    saliency_backbone: str = "wide_resnet50_2.racm_in1k"
    num_largest_distances: int = 400
    saliency_sizes: list[int] | tuple[int, ...] = (256, 1024)
    detector_edges: list[int] | tuple[int, ...] = (800, 1333)
    swap_channels: bool = True
    image_size: int | list[int] | tuple[int, ...] = 1024

    def _complete(self) -> None:
        super()._complete()
        self.saliency_sizes, self.detector_edges = list(self.saliency_sizes), list(self.detector_edges)

    def check_consistency(self) -> None:
        """Check the fields."""
        super().check_consistency()
        for name in ("saliency_sizes", "detector_edges"):
            if len(getattr(self, name)) != 2:
                raise ValueError(f"{name}={getattr(self, name)} must be two sizes in pixels.")
        for name in ("box_threshold", "text_threshold"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1).")
        for product in self.products or {}:
            find_knowledge(product, self.products)

    @property
    def text_config(self) -> Any:
        """Return the configuration of the detector's text tower."""
        return self.detector_config.text_config

    @property
    def vision_config(self) -> Any:
        """Return the configuration of SAM's image tower."""
        return self.segmenter_config.vision_config


class SAAModel(AnomalyMethod, PreTrainedModel):
    r"""
    SAA and SAA+: find boxes of defects by text, segment them, and average the scores of the masks at each pixel.

    SAA+ multiplies the score of a mask by `exp(3 * mean saliency inside it)`. Its maps are divided by `exp(3)`, the
    largest factor, so that they lie in [0, 1].

    Args:
        config ([`SAAConfig`]): the configuration.
        saliency_network (`nn.Module`, *optional*):
            Network that returns feature maps, the largest one first, instead of the one of timm that
            `config.saliency_backbone` names.

    Raises:
        ImportError: SAA+ without timm.
    """

    config: SAAConfig
    config_class = SAAConfig
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    works_on_any_clip = False

    def __init__(self, config: SAAConfig, saliency_network: nn.Module | None = None):
        super().__init__(config)
        # Children of the model, so that transformers ties the weights that they share
        self.frozen_detector = GroundingDinoForObjectDetection._from_config(config.detector_config)
        self.frozen_segmenter = SamModel._from_config(config.segmenter_config)
        if config.plus:
            given = saliency_network is not None
            self.frozen_saliency = saliency_network if given else make_saliency_network(config.saliency_backbone)
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self.post_init()
        self.requires_grad_(False)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """Load a checkpoint, as in [`~transformers.PreTrainedModel.from_pretrained`]."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).requires_grad_(False)
        return loaded

    @classmethod
    def from_networks(
        cls,
        detector: str | os.PathLike | GroundingDinoForObjectDetection = _DETECTOR,
        segmenter: str | os.PathLike | SamModel = _SEGMENTER,
        tokenizer: PreTrainedTokenizerBase | None = None,
        saliency_network: nn.Module | None = None,
        dtype: torch.dtype | str = "auto",
        **fields,
    ) -> "SAAModel":
        """
        Build the model from its pretrained networks.

        Args:
            detector (`str`, `os.PathLike` or `GroundingDinoForObjectDetection`, *optional*): Hub repository, folder or
                loaded model of the detector; by default that with Swin-T, as in the authors' code.
            segmenter (`str`, `os.PathLike` or `SamModel`, *optional*): the same for SAM; by default that with ViT-H.
            tokenizer (`PreTrainedTokenizerBase`, *optional*): tokenizer of the detector; by default loaded with it,
                needed with a loaded detector.
            saliency_network (`nn.Module`, *optional*): network with its weights, instead of that of timm.
            dtype (`torch.dtype` or `str`, *optional*, defaults to `"auto"`): dtype of the weights; "auto": as stored.
            fields: fields of the configuration.

        Returns:
            [`SAAModel`] in evaluation mode.

        Raises:
            OSError: a network cannot be found.
            ImportError: SAA+ without timm.
        """
        if not isinstance(detector, PreTrainedModel):
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(detector)
            detector = GroundingDinoForObjectDetection.from_pretrained(detector, dtype=dtype)
        if not isinstance(segmenter, PreTrainedModel):
            segmenter = SamModel.from_pretrained(segmenter, dtype=dtype)
        config = SAAConfig(
            detector_config=detector.config.to_dict(), segmenter_config=segmenter.config.to_dict(), **fields
        )
        parts = {"detector": detector, "segmenter": segmenter}
        if config.plus:
            parts["saliency"] = saliency_network or make_saliency_network(config.saliency_backbone, True)
        state_dict = {
            f"frozen_{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()
        }
        with without_load_report():  # tied weights are stored once, and the others would be reported as missing
            model = cls.from_pretrained(
                None, saliency_network=saliency_network, config=config, state_dict=state_dict, dtype=detector.dtype
            )
        model.name_or_path = model.config.name_or_path = ""
        if tokenizer is not None:
            model.tokenizer = tokenizer
        return model

    @classmethod
    def fitted_to(cls, backbone: None = None, **kwargs) -> "SAAModel":
        """
        Build the model from the networks that the authors take.

        Args:
            backbone (`None`): must be absent, because there is no CLIP.
            kwargs: arguments of `from_networks`.

        Raises:
            ValueError: a CLIP is given.
        """
        if backbone is not None:
            raise ValueError(f"{cls.__name__} is not built on a CLIP, so the backbone {backbone!r} has no effect.")
        return cls.from_networks(**kwargs)

    # --- the tokenizer ----------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """
        Return the detector's tokenizer, loaded on first use from the checkpoint.

        Raises:
            ValueError: there is none.
        """
        if self._tokenizer is None:
            try:
                self.tokenizer = AutoTokenizer.from_pretrained(self.name_or_path)
            except (OSError, ValueError, TypeError) as error:
                raise ValueError(
                    "This SAAModel has no tokenizer, which turns captions into tokens. Set `model.tokenizer` to the"
                    f" tokenizer of its detector. {error}"
                ) from error
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        check_tokenizer(tokenizer, self.config.text_config.vocab_size)
        self._tokenizer = tokenizer

    def save_pretrained(self, save_directory: str | os.PathLike, *args, adapter_only: bool = False, **kwargs):
        """
        Save configuration, weights and, if it is loaded, the tokenizer.

        Args:
            save_directory (`str` or `os.PathLike`): folder, made if missing.
            args, kwargs: as in [`~transformers.PreTrainedModel.save_pretrained`].
            adapter_only (`bool`, *optional*, defaults to `False`): must be `False`.

        Raises:
            ValueError: `adapter_only`.
        """
        if adapter_only:
            raise ValueError("SAAModel has no learned part that could be saved alone; leave out adapter_only.")
        super().save_pretrained(save_directory, *args, **kwargs)
        if self._tokenizer is not None:
            self._tokenizer.save_pretrained(save_directory)

    def prompt_name(self, product: str) -> str:
        """Return a product's name as the captions contain it; SAA has one caption for all products."""
        return super().prompt_name(product if self.config.plus else DEFAULT_PRODUCT)

    # --- images -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor,
        product_names: Sequence[str] | str | None = None,
        labels: torch.Tensor | None = None,
        references: Mapping[str, torch.Tensor] | None = None,
        output_layer_maps: bool = False,
        **kwargs,
    ) -> AnomalyMethodOutput:
        r"""
        Compute anomaly maps and image scores, image by image.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`):
                Images from the image processor, normalized with CLIP's mean and standard deviation. Padding in its
                mean color, on the right and at the bottom, is left out.
            product_names (`Sequence[str]` or `str`, *optional*, defaults to `"object"`):
                One name for each image, or one for all.
            labels, references, output_layer_maps: must be absent.
            return_dict (`bool`, *optional*): `False` for a plain tuple.

        Returns:
            [`AnomalyMethodOutput`] with `anomaly_map`, and its maximum as `image_scores`.

        Raises:
            ValueError: a wrong shape, labels, references or layer maps.
            TypeError: an unknown keyword argument.
        """
        self._refuse_unknown(kwargs)
        for name, given in (("labels", labels is not None), ("references", references is not None)):
            if given:
                raise ValueError(f"SAAModel is not trained and has no few-shot mode, so it cannot use {name}.")
        if output_layer_maps:
            raise ValueError("SAAModel makes its map from masks, so there are no maps of layers (and no uncertainty).")
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
            raise ValueError(f"pixel_values has shape {tuple(pixel_values.shape)}, expected (batch_size, 3, H, W).")
        names = self.names_of_images(product_names, len(pixel_values))
        anomaly_map = torch.zeros(len(pixel_values), *pixel_values.shape[-2:], device=pixel_values.device)
        for each, image, name in zip(anomaly_map, pixel_values, names, strict=True):
            picture = picture_of(image)
            height, width = picture.shape[-2:]
            each[:height, :width] = self.segment_picture(picture, name)
        return AnomalyMethodOutput(anomaly_map=anomaly_map, image_scores=anomaly_map.flatten(1).amax(dim=1))

    def segment_picture(self, picture: torch.Tensor, product: str) -> torch.Tensor:
        """
        Segment one image.

        Args:
            picture (`torch.FloatTensor` of shape `(3, height, width)`): RGB, values in [0, 1].
            product (`str`): name of the product.

        Returns:
            `torch.FloatTensor` of shape `(height, width)`, in [0, 1].
        """
        channels = picture.flip(0) if self.config.swap_channels else picture
        masks = BoxMasks(self.frozen_segmenter, channels)
        if not self.config.plus:
            found = self._boxes(picture, self.config.naive_prompt)
            return confidence_map(masks.of(found.boxes), found.scores)
        knowledge = find_knowledge(product, self.config.products)
        objects = self._boxes(picture, knowledge.object_phrase).filtered(1 / knowledge.num_objects)
        found = self._defects(picture, knowledge, largest_area(objects))
        defects = masks.of(found.boxes)
        saliency = self._saliency(channels, masks, objects, knowledge.num_objects)
        scores = rescored(defects, found.scores, saliency)
        best = scores.argsort(descending=True, stable=True)[: knowledge.max_masks]
        return confidence_map(defects[best], scores[best]) / math.exp(_SALIENCY_FACTOR)

    def _boxes(self, picture: torch.Tensor, caption: str) -> Boxes:
        config = self.config
        limits = config.box_threshold, config.text_threshold, tuple(config.detector_edges)
        return find_boxes(self.frozen_detector, self.tokenizer, picture, caption, *limits)

    def _defects(self, picture: torch.Tensor, knowledge: ProductKnowledge, object_area: float) -> Boxes:
        """Return the boxes of all captions of defects, smaller than the limit and without those of the product."""
        found = Boxes(picture.new_zeros(0, 4), picture.new_zeros(0), [])
        for caption, word in knowledge.captions:
            boxes = self._boxes(picture, caption)
            found = found.joined(boxes.filtered(knowledge.max_area_fraction * object_area, word))
        return found

    def _saliency(self, channels: torch.Tensor, masks: BoxMasks, objects: Boxes, num_objects: int) -> torch.Tensor:
        """Return the saliency of each pixel, `(height, width)`."""
        side_for_one, side_for_several = self.config.saliency_sizes
        side = side_for_one if num_objects == 1 else side_for_several
        network = self.frozen_saliency
        inputs = imagenet_input(channels, (side, side)).to(next(network.parameters()).dtype)
        features = dense_features(network(inputs))
        if num_objects == 1:
            saliency = self_saliency(features, self.config.num_largest_distances)
        else:
            on_grid = nn.functional.interpolate(masks.of(objects.boxes)[None].float(), size=features.shape[:2])
            saliency = object_saliency(features, on_grid[0] > 0)
        return nn.functional.interpolate(saliency[None, None], size=channels.shape[-2:], mode="bilinear")[0, 0]


def picture_of(pixel_values: torch.Tensor) -> torch.Tensor:
    """
    Return the picture in the model's input: without the image processor's normalization and padding.

    Args:
        pixel_values (`torch.FloatTensor` of shape `(3, height, width)`): one image from the image processor.

    Returns:
        `torch.FloatTensor` of shape `(3, h, w)`: RGB, values in [0, 1].
    """
    pixel_values = pixel_values.float()
    shown = (pixel_values.abs() >= _PADDING).any(dim=0)
    height, width = (_last(shown.any(dim=side)) for side in (1, 0))
    mean, deviation = (pixel_values.new_tensor(each).view(3, 1, 1) for each in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (pixel_values[:, :height, :width] * deviation + mean).clamp(0, 1)


def _last(shown: torch.Tensor) -> int:
    """Return the number of entries up to the last one that is `True`; that of all entries if none is."""
    rows = shown.nonzero()
    return int(rows[-1]) + 1 if len(rows) else len(shown)


def rescored(masks: torch.Tensor, scores: torch.Tensor, saliency: torch.Tensor) -> torch.Tensor:
    """
    Multiply the scores of masks by `exp(3 * mean saliency inside the mask)`; scores of empty masks do not change.

    Args:
        masks (`torch.BoolTensor` of shape `(num_masks, height, width)`): the masks.
        scores (`torch.FloatTensor` of shape `(num_masks,)`): their scores.
        saliency (`torch.FloatTensor` of shape `(height, width)`): saliency of the pixels.

    Returns:
        `torch.FloatTensor` of shape `(num_masks,)`.
    """
    means = [saliency[mask].mean() if mask.any() else saliency.new_zeros(()) for mask in masks]
    return scores * (_SALIENCY_FACTOR * torch.stack(means)).exp() if means else scores


def confidence_map(masks: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """
    Return at each pixel the sum of the scores of its masks, divided by 1 + their number: the pixels of a single mask
    have half its score.

    Args:
        masks (`torch.BoolTensor` of shape `(num_masks, height, width)`): the masks.
        scores (`torch.FloatTensor` of shape `(num_masks,)`): their scores.

    Returns:
        `torch.FloatTensor` of shape `(height, width)`: 0 where there is no mask.
    """
    weighted = (masks * scores.view(-1, 1, 1)).sum(dim=0)
    return weighted / (1 + masks.sum(dim=0))
