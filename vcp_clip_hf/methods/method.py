"""Interface and output of every method, whatever its networks: product names, references, image scores."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import ModelOutput, TransformersKwargs

from .named_product import NamedProductModel


__all__ = ["DEFAULT_PRODUCT", "AnomalyMethod", "AnomalyMethodOutput"]

# The product's name where none is given
DEFAULT_PRODUCT = "object"


@dataclass
class AnomalyMethodOutput(ModelOutput):
    """
    Output of a method.

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*, returned when `labels` are given): training loss.
        anomaly_map (`torch.FloatTensor` of shape `(batch_size, height, width)`):
            In [0, 1], float32, at the size of `pixel_values`, not smoothed. A published sum over K layers is divided
            by K.
        image_scores (`torch.FloatTensor` of shape `(batch_size,)`): the method's image score, in [0, 1], float32.
        text_scores (`torch.FloatTensor` of shape `(batch_size,)`, *optional*):
            The part of the image score that comes from the text, where other parts are added to it.
        image_logits (`torch.FloatTensor` of shape `(batch_size, 2)`, *optional*): logits of both states.
        reference_map (`torch.FloatTensor` of shape `(batch_size, height, width)`, *optional*, returned with
            `references`): the part of `anomaly_map` that comes from normal images, in [0, 1].
        layer_maps (`torch.FloatTensor` of shape `(batch_size, K, height, width)`, *optional*, returned with
            `output_layer_maps=True`): probability of the abnormal state, layer by layer.
        text_embeds (`torch.FloatTensor` of shape `(batch_size, 2, projection_dim)`): L2-normalized, normal first.
        image_embeds (`torch.FloatTensor` of shape `(batch_size, projection_dim)`): global features, not normalized.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*, returned with `output_hidden_states=True`):
            The image tower's residual stream: the input of the first block, then the output of each block, each of
            shape `(batch_size, 1 + num_patches, d_v)`.
        stem_features (`torch.FloatTensor` of shape `(batch_size, num_patches, d_s)`, *optional*, returned with
            `output_hidden_states=["stem", ...]`): the features of the image tower's convolutional stem.
    """

    loss: torch.FloatTensor | None = None
    anomaly_map: torch.FloatTensor | None = None
    image_scores: torch.FloatTensor | None = None
    text_scores: torch.FloatTensor | None = None
    image_logits: torch.FloatTensor | None = None
    reference_map: torch.FloatTensor | None = None
    layer_maps: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    stem_features: torch.FloatTensor | None = None


class AnomalyMethod:
    """
    The part of a method that pipeline, evaluation, calibration and comparison call. A class of models adds
    `forward(pixel_values, product_names, references=None, ...)`, which returns an [`AnomalyMethodOutput`].
    """

    # Whether the text depends on the product's name
    uses_product_names = True
    # Whether published image scores, without and with references, need all images of a product: `scores_of_product`
    scores_depend_on_product = False
    few_shot_scores_depend_on_product = False
    # Whether the method compares all images of a product with each other, so that a single image has no result
    judges_products = False
    # Whether it works on any CLIP: `fitted_to`
    works_on_any_clip = True
    # Fields of the configuration that a training from the beginning sets: the default one may have no learned part
    trained_fields: Mapping[str, Any] = {}
    # Whether the method has a few-shot mode: `reference_banks`, `reference_tokens`, and `references` in `segment`
    supports_references = False

    def prompt_name(self, product: str) -> str:
        """Return a product's name as the prompts contain it; `"object"` if the prompts contain no product."""
        return product if self.uses_product_names else DEFAULT_PRODUCT

    def reference_tokens(
        self, pixel_values: torch.FloatTensor, product_names: Sequence[str] | str | None = None
    ) -> dict[str, torch.Tensor]:
        """
        Return the embeddings of normal images that the few-shot mode keeps in the banks of a reference memory.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`): normal images.
            product_names (`Sequence[str]` or `str`, *optional*): names as in `forward`.

        Returns:
            `dict[str, torch.Tensor]`: name of the bank -> `(batch_size, rows, width)`, not normalized.

        Raises:
            ValueError: the method has no few-shot mode.
        """
        raise ValueError(f"{type(self).__name__} has no few-shot mode, so it cannot use reference images.")

    def reference_banks(self) -> list[str]:
        """
        Return the names of the banks that `reference_tokens` returns.

        Raises:
            ValueError: the method has no few-shot mode.
        """
        raise ValueError(f"{type(self).__name__} has no few-shot mode, so it cannot use reference images.")

    def for_product(
        self, product_name: str | None = None, references: Mapping[str, torch.Tensor] | None = None
    ) -> NamedProductModel:
        """
        Return this model bound to a product, with the arguments and outputs of VCP-CLIP's `forward`.

        Args:
            product_name (`str`, *optional*, defaults to `"object"`): name of the product.
            references (`Mapping[str, torch.Tensor]`, *optional*): banks as in `forward`.
        """
        return NamedProductModel(self, product_name, references)

    def scores_of_product(self, text_scores: torch.Tensor, map_maxima: torch.Tensor) -> torch.Tensor | None:
        """
        Return the published image scores where they depend on all images of a product, for evaluations.

        Args:
            text_scores, map_maxima (`torch.FloatTensor` of shape `(num_images,)`): `text_scores` of the output, and
                the maximum of each smoothed map at the model's size.

        Returns:
            `torch.FloatTensor` of shape `(num_images,)`, or `None` if `image_scores` are the published scores.
        """
        return None

    @staticmethod
    def names_of_images(product_names: Sequence[str] | str | None, num_images: int) -> list[str]:
        """
        Return one product name for each image.

        Args:
            product_names (`Sequence[str]` or `str`, *optional*, defaults to `"object"`): one name for each image, or
                one for all.
            num_images (`int`): number of images.

        Raises:
            ValueError: another number of names, or an empty one.
        """
        names = DEFAULT_PRODUCT if product_names is None else product_names
        names = [names] * num_images if isinstance(names, str) else list(names)
        if len(names) != num_images:
            raise ValueError(
                f"{len(names)} product_names came with {num_images} images; give one for each image, or one for all."
            )
        for name in names:
            if not isinstance(name, str) or not name.strip():
                raise ValueError(f"product_names has the entry {name!r}; expected a name such as 'metal nut'.")
        return names

    def _refuse_unknown(self, arguments: dict[str, Any]) -> None:
        known = ("pixel_values", "product_names", "labels", "references", "is_anomalous", "output_layer_maps")
        for name in arguments.keys() - TransformersKwargs.__annotations__.keys():
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise TypeError(f"{type(self).__name__}.forward() has no argument {name!r}{hint}")
