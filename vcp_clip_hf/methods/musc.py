"""MuSc (Li et al., ICLR 2024, arXiv 2401.16753; github.com/xrli-U/MuSc, MIT): compares all images of a product."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict

from ..image_processing_vcp_clip import VCPCLIPImageProcessor
from ..mutual_scoring import MEMORY_LIMIT, MutualScoring
from ..together import MutualJudge
from .base import AnomalyMethodModel, AnomalyMethodOutput, ImageFeatures
from .configuration import AnomalyMethodConfig


__all__ = ["MuScConfig", "MuScModel"]


@strict
class MuScConfig(AnomalyMethodConfig):
    r"""
    Configuration of a [`MuScModel`]. The defaults are those of the authors for MVTec-AD, on ViT-L/14-336 at 518 pixels
    with plain GELU; for VisA they take `rescore_neighbors=[1, 8, 9]`.

    Args:
        degrees, interval, subset_size, rescore_neighbors (*optional*): settings of [`MutualScoring`].
        kwargs: fields of [`AnomalyMethodConfig`]. `feature_layers` are the layers whose patch tokens are compared.
    """

    model_type = "musc"
    title = "MuSc"
    source = (
        "Li et al., ICLR 2024, [arXiv 2401.16753](https://arxiv.org/abs/2401.16753); code: "
        "[MuSc](https://github.com/xrli-U/MuSc) (MIT)"
    )

    position_interpolation: Literal["bicubic_antialias", "bicubic", "bilinear"] = "bicubic"
    degrees: list[int] | tuple[int, ...] = (1, 3, 5)
    interval: list[float | int] | tuple[float | int, ...] = (0.0, 0.3)
    subset_size: int | None = None
    rescore_neighbors: list[int] | tuple[int, ...] = (1, 2, 3)

    def _complete(self) -> None:
        super()._complete()
        for name in ("degrees", "interval", "rescore_neighbors"):
            setattr(self, name, list(getattr(self, name)))

    def check_consistency(self) -> None:
        """Check the fields against each other."""
        super().check_consistency()
        self.mutual_scoring()

    def mutual_scoring(self) -> MutualScoring:
        """Return the settings of the comparison, with layers."""
        names = ("degrees", "interval", "subset_size", "rescore_neighbors")
        return MutualScoring(self.feature_layers, **{name: getattr(self, name) for name in names})


class MuScModel(AnomalyMethodModel):
    r"""
    MuSc: each patch is compared with the patches of all other images of its product; rare patches are abnormal.

    A single image has no result, so `forward` returns features only, when they are requested with
    `output_hidden_states`. `pipe.segment_together(images)` and evaluations give maps and scores.

    Args:
        config ([`MuScConfig`]): the configuration.
    """

    config: MuScConfig
    uses_product_names = False
    judges_products = True

    def __init__(self, config: MuScConfig):
        super().__init__(config)
        self.post_init()

    def segment(
        self, features: ImageFeatures, product_names: list[str], references: Mapping[str, torch.Tensor] | None = None
    ) -> AnomalyMethodOutput:
        """Return the global features; a single image has no map and no score."""
        return AnomalyMethodOutput(image_embeds=self.clip.visual_projection(features.pooled))

    def forward(
        self,
        pixel_values: torch.FloatTensor,
        product_names: Sequence[str] | str | None = None,
        labels: torch.Tensor | None = None,
        references: Mapping[str, torch.Tensor] | None = None,
        output_hidden_states: bool | int | Sequence[int | str] | None = None,
        **kwargs,
    ) -> AnomalyMethodOutput:
        r"""
        Compute the features that images are compared by.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`): images.
            product_names (`Sequence[str]` or `str`, *optional*): no effect.
            labels, references (`None`): must be absent.
            output_hidden_states (`bool`, `int` or `Sequence[int | str]`): hidden states to return, as in
                [`AnomalyMethodModel.forward`]; required, here or in the configuration.
            kwargs: further arguments of [`AnomalyMethodModel.forward`].

        Returns:
            [`AnomalyMethodOutput`] with `image_embeds` and the requested states only.

        Raises:
            ValueError: no hidden states are requested, or there are labels or references.
        """
        if labels is not None:
            raise ValueError("MuScModel has no learned part, so labels give no loss. Leave them out.")
        if references is not None:
            raise ValueError("MuScModel has no few-shot mode, so it cannot use references.")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_hidden_states is False:
            raise ValueError(
                "MuSc compares all images of a product with each other, so a single image has no result. Call"
                " `pipe.segment_together(images)`, or on the command line `vcp-clip predict --together`."
            )
        return super().forward(pixel_values, product_names, output_hidden_states=output_hidden_states, **kwargs)

    def judge(
        self,
        image_processor: VCPCLIPImageProcessor,
        load: Callable[[Any], dict[str, Any]],
        batch_size: int = 1,
        num_workers: int = 0,
        progress: bool = False,
    ) -> MutualJudge:
        """
        Return a judge that compares the images of a product, for evaluations.

        Args:
            image_processor ([`VCPCLIPImageProcessor`]): its size is that of the comparison.
            load (`Callable`): function that returns the prepared inputs of an image, see [`MutualJudge`].
            batch_size, num_workers (`int`): images in one forward pass; processes that read images.
            progress (`bool`, *optional*, defaults to `False`): whether to show progress bars.
        """
        return MutualJudge(
            self.for_product(),
            image_processor,
            self.config.mutual_scoring(),
            load,
            prompt_input_ids=None,
            smoothing_sigma=None,
            threshold=None,
            image_threshold=None,
            batch_size=batch_size,
            num_workers=num_workers,
            memory_limit=MEMORY_LIMIT,
            progress=progress,
        )
