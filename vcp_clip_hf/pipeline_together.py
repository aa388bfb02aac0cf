"""The part of the pipeline that judges images together."""

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from .mutual_scoring import MEMORY_LIMIT, MutualScoring
from .pipeline_calibration import THRESHOLDS, CalibratingPipeline, without_given_thresholds
from .pipeline_inputs import Images, as_images
from .together import MutualJudge


__all__ = ["JudgingPipeline"]

# Arguments of a call that are refused for images judged together
_NOT_TOGETHER = (
    *("tile_size", "tile_overlap", "global_weight", "score_mode", "top_k_fraction", "fast_decode"),
    *("output_branch_maps", "output_layer_maps", "output_uncertainty", "reference_weight", "defect_names"),
)


class JudgingPipeline(CalibratingPipeline):
    """Base class of [`AnomalySegmentationPipeline`]: a pipeline that also judges images together."""

    def segment_together(
        self,
        images: Images,
        *,
        layers: Sequence[int | str] | None = None,
        degrees: Sequence[int] | None = None,
        interval: tuple[float, float] | None = None,
        subset_size: int | None = None,
        rescore_neighbors: Sequence[int] | None = None,
        zero_shot_weight: float = 0.0,
        memory_limit: int = MEMORY_LIMIT,
        progress: bool = True,
        batch_size: int | None = None,
        num_workers: int | None = None,
        image_column: str | None = None,
        **kwargs: Any,
    ) -> list[Any] | Iterator[Any]:
        """
        Judge unlabeled images of one product together (mutual scoring, MuSc): patches that are rare are abnormal.

        Results depend on the set of images, by design. Thresholds of the checkpoint do not apply to them: without a
        threshold of this call there are no masks and no labels. References have no part in them. The time grows with
        the square of the number of images, see [`mutual_scoring_cost`].

        Args:
            images (`Images`): at least 5 images, as in a call; each is read twice.
            layers, degrees, interval, subset_size, rescore_neighbors, zero_shot_weight (*optional*): settings of
                [`MutualScoring`], with its defaults; a [`MuScModel`] has those of its configuration as defaults.
            memory_limit (`int`, *optional*, defaults to 1 GiB):
                Bytes of patch tokens, of distances and of zero-shot maps that are kept in memory each; what exceeds
                them goes to a temporary file.
            progress (`bool`, *optional*, defaults to `True`): whether to print the cost and show progress bars.
            batch_size, num_workers (`int`, *optional*), image_column (`str`, *optional*): as in a call.
            kwargs: further arguments of a call. `prompts` and `smoothing_sigma` change the zero-shot map only;
                `score_mode`, tiles, and maps of branches and layers are refused. With `on_error="return"`, images
                that cannot be read are left out of the comparison.

        Returns:
            A list of results for a list, an iterator for a generator or a dataset, as in a call, with
            - **score** (`float`): in [0, 1]: the maximum of the map, scaled over the set so that the least abnormal
              image has 0 and the most abnormal one 1, then averaged over similar images. With
              `rescore_neighbors=()`, the maximum of the map;
            - **anomaly_map**: half the mean distance to the most similar images, in [0, 1], not smoothed, or its
              fusion with the zero-shot map;
            - **judged_with** (`dict`): number of `pictures` that were compared, of those in this image's `subset`,
              and the settings.

        Raises:
            ValueError: fewer than 5 images that can be read, or an argument is wrong.
        """
        preprocess, forward, postprocess = self._sanitize_parameters(**kwargs)
        preprocess = {**self._preprocess_params, **preprocess}
        forward = {**without_given_thresholds(self._forward_params), **forward}
        for name in _NOT_TOGETHER:
            if forward.get(name):
                raise ValueError(f"{name}={forward[name]!r} is not supported for images that are judged together.")
        given = {
            **{"layers": layers, "degrees": degrees, "interval": interval, "subset_size": subset_size},
            **{"rescore_neighbors": rescore_neighbors, "zero_shot_weight": zero_shot_weight},
        }
        scoring = self._mutual_scoring(**{name: value for name, value in given.items() if value is not None})
        product_name = forward.get("product_name")
        self._check_text(None, product_name)
        self._inference_model()
        reading = copy.copy(self)
        reading.image_processor = self.image_processor.with_one_shape()
        judge = MutualJudge(
            self._network_with(None, product_name),
            reading.image_processor,
            scoring,
            partial(reading.preprocess, **preprocess),
            *(forward.get(name) for name in ("prompt_input_ids", "smoothing_sigma", *THRESHOLDS)),
            batch_size=batch_size or self._batch_size or 1,
            num_workers=self._num_workers or 0 if num_workers is None else num_workers,
            memory_limit=memory_limit,
            progress=progress,
        )
        listed = as_images(images, image_column)
        if not isinstance(listed, (list, torch.utils.data.Dataset)):
            single = isinstance(listed, (str, Image.Image, np.ndarray, torch.Tensor))
            listed = [listed] if single else list(listed)
        options = {**self._postprocess_params, **postprocess}
        results = (self.postprocess({"results": each}, **options) for each in judge.results(listed))
        return list(results) if isinstance(images, (list, tuple, np.ndarray, torch.Tensor)) else results

    def _mutual_scoring(self, **given: Any) -> MutualScoring:
        """Return the settings of images that are judged together, with layers."""
        config, own = self.model.config, {}
        if not hasattr(config, "feature_layers"):
            raise ValueError(
                f"{type(self.model).__name__} has no image tower whose patch tokens could be compared. Judge images"
                " together with a model on CLIP."
            )
        if getattr(self.model, "judges_products", False):
            if given.get("zero_shot_weight"):
                raise ValueError(
                    f"zero_shot_weight={given['zero_shot_weight']!r} needs a zero-shot map, and"
                    f" {type(self.model).__name__} has none. Leave it out."
                )
            own = config.mutual_scoring().settings()
        scoring = MutualScoring(**{**own, **given})
        return scoring.on(config.feature_layers, config.vision_config.num_hidden_layers)
