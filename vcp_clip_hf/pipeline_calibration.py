"""The part of the pipeline that sets thresholds from images, and leaves references out of them."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from .anomaly_result import finish, missing_threshold
from .anomaly_scoring import AnomalyScoring
from .calibration import (
    Calibration,
    check_rate,
    describe_calibration,
    from_labeled_scores,
    from_normal_maps,
    from_normal_scores,
)
from .call_arguments import argument_names
from .pipeline_batches import BatchedPipeline
from .pipeline_inputs import CallText, Images, ListedImages, as_images, chosen, in_list
from .reference_pictures import picture_digests
from .thresholds import HIGHEST_SCORES, calibrated_thresholds
from .tiling import Tiling


__all__ = ["SCORING", "THRESHOLDS", "CalibratingPipeline", "without_given_thresholds"]

logger = logging.get_logger(__name__)

SCORING = [each.name for each in fields(AnomalyScoring)]
THRESHOLDS = ("threshold", "image_threshold")
_FALSE_ALARM_RATE = 0.01
_OF_LOADING = ("batch_size", "num_workers", "image_column")


class CalibratingPipeline(BatchedPipeline):
    """Base class of [`AnomalySegmentationPipeline`]: a pipeline that sets the thresholds of its image processor."""

    def calibrate(
        self,
        images: Images,
        labels: Sequence[int] | None = None,
        false_alarm_rate: float | None = None,
        pixel_false_alarm_rate: float | None = None,
        progress: bool = False,
        on_result: Callable[[int, dict[str, Any]], None] | None = None,
        **kwargs: Any,
    ) -> Calibration:
        """
        Set the thresholds of this pipeline from images like those it will see. `save_pretrained` keeps them.

        The image processor also takes over `smoothing_sigma`, `score_mode` and `top_k_fraction` of the calibration, so
        that later calls compute the scores that the thresholds belong to. The other settings (prompts, tiles, region
        of interest, sizes, references) are recorded with the thresholds, which do not apply to calls with others.

        With references, the distance of a reference from itself would be 0. If all images are references, each is
        therefore scored against the others, as a new image would be, and the false-alarm rate is guaranteed as for
        other images (see `calibration`). Otherwise images that are references are left out, with a warning.

        Args:
            images (`ImageLike` or many of them): images as in a call; normal ones, unless `labels` are given.
            labels (`Sequence[int]`, *optional*): 1 for anomalous, 0 for normal; gives the threshold with the best F1.
            false_alarm_rate (`float`, *optional*, defaults to 0.01):
                Target false-alarm rate on normal images; not together with `labels`.
            pixel_false_alarm_rate (`float`, *optional*):
                Target fraction of normal pixels flagged, for the threshold of masks; only from normal images. Without
                it, masks use the images' threshold, so that an image has a mask exactly if it is anomalous (with
                `score_mode="max"`).
            progress (`bool`, *optional*, defaults to `False`): show a progress bar.
            on_result (`Callable[[int, dict], None]`, *optional*):
                Function that is called for each image with its position among the given ones and its result: a `dict`
                with `score` and `anomaly_map`, with `error`, or with `left_out`, the reason why it is not used.
            kwargs: arguments of a call. Those that only shape results, such as `regions` and `min_area`, have no
                effect. With `on_error="return"`, images that cannot be read are left out, with a warning.

        Returns:
            [`Calibration`] of the image threshold; `describe()` states the rate that was reached. That of the pixel
            threshold is `image_processor.calibration["pixel"]`.

        Raises:
            ValueError: arguments exclude each other or are out of range, there are too few images or labels, or no
                threshold exists. The former thresholds stay.
        """
        _check_calibration_arguments(labels, false_alarm_rate, pixel_false_alarm_rate, kwargs)
        false_alarm_rate = _FALSE_ALARM_RATE if false_alarm_rate is None else false_alarm_rate
        shaping = {*argument_names(self.postprocess), *argument_names(finish)}
        arguments = {name: value for name, value in kwargs.items() if name not in shaping}
        scoring, conditions = self._call_settings(arguments)
        leave_one_out, num_left_out, kept = False, 0, None
        if conditions["references"] is not None:
            images = in_list(images, arguments.pop("image_column", None))
        total = len(images) if isinstance(images, (list, tuple, torch.utils.data.Subset)) else None
        if labels is not None and total not in (None, len(labels)):
            raise ValueError(f"Expected one label for each of {total} images, got {len(labels)}.")
        if conditions["references"] is not None:
            kept, leave_one_out = self._without_references(images, labels, arguments)
            num_left_out, total = total - len(kept), len(kept)
            if on_result is not None:
                reason = "copy of another image" if leave_one_out else "one of the references"
                for position in sorted({*range(len(images))} - {*kept}):
                    on_result(position, {"left_out": reason})
            images = chosen(images, kept)
            labels = labels if labels is None else [labels[position] for position in kept]
        measuring = self._without_verdicts()
        measuring._references_as_new = leave_one_out
        arguments["output_maps"] = on_result is not None or pixel_false_alarm_rate is not None
        measured = _Measured(measuring._results(images, **arguments), total, progress, kept, on_result)
        # the maps are read one by one, and the scores are collected on the way
        pixels = None if pixel_false_alarm_rate is None else from_normal_maps(measured.maps(), pixel_false_alarm_rate)
        if pixels is None:
            for _ in measured.maps():
                pass
        if labels is None:
            calibration = from_normal_scores(measured.scores, false_alarm_rate, HIGHEST_SCORES[scoring.score_mode])
        else:
            calibration = from_labeled_scores(measured.scores, measured.chosen(labels))
        for each in (calibration, pixels):
            if each is not None:
                each.leave_one_out, each.num_left_out = leave_one_out or None, num_left_out or None
        self._keep(calibration, pixels, scoring, conditions)
        return calibration

    def _set_references_and_thresholds(self, images: Sequence[Any], false_alarm_rate: float | None) -> None:
        """Set references, and thresholds from them if there are two or more."""
        memory = self.set_references(images)
        split = not memory.exact and len(images) > 1
        if split:
            logger.warning(
                f"The memory keeps a coreset of {memory.settings.max_patches:,} of {memory.num_patches:,} patches, so"
                f" that these {len(images)} references cannot be scored as new images. Every second one sets the"
                " thresholds instead, and is not in the memory. To use all of them for both, call"
                f" set_references(images, max_patches={memory.num_patches}), then calibrate(images)."
            )
            self.set_references(chosen(images, range(0, len(images), 2)))
            images = chosen(images, range(1, len(images), 2))
        if split or len(memory.pictures) > 1:
            calibration = self.calibrate(images, false_alarm_rate=false_alarm_rate)
            say = logger.info if calibration.reached else logger.warning
            say(" ".join(describe_calibration(self.image_processor.calibration)))
        elif false_alarm_rate is not None:
            raise ValueError(
                f"false_alarm_rate={false_alarm_rate!r} needs two reference_images or more. {self._obstacle()}"
            )

    def _without_references(
        self, images: Sequence[Any], labels: Sequence[int] | None, arguments: dict[str, Any]
    ) -> tuple[list[int], bool]:
        """Return positions of the images to calibrate on, and whether they are references scored as new images."""
        without = ("roi_mask", "tile_size", "fast_decode")
        names = [name for name in argument_names(self.preprocess) if name not in without]
        reading = {**self._preprocess_params, **arguments}
        digests = picture_digests(
            images, self.image_processor, **{name: reading[name] for name in names if name in reading}
        )
        known = set(self.references.pictures)
        others = [index for index, digest in enumerate(digests) if digest not in known]
        if all(digests[index] is None for index in others) and len(others) < len(images):
            # all that can be read are references
            obstacle = "For the best F1, give other images, with labels." if labels is not None else None
            obstacle = obstacle or self._obstacle()
            if obstacle is not None:
                raise ValueError(
                    "All of these images are references, whose distance from the memory is not that of a new image."
                    f" {obstacle}"
                )
            # a copy of an image would count as a second one
            once = [index for index, digest in enumerate(digests) if digest is None or digests.index(digest) == index]
            if len(once) < len(images):
                logger.warning(f"Left out of the calibration: {len(images) - len(once)} copies of other images.")
            return once, True
        if len(others) < len(images):
            logger.warning(
                f"{len(images) - len(others)} of {len(images)} images are references, and are left out of the"
                " calibration."
            )
            if labels is not None and len({labels[index] for index in others}) == 1:
                raise ValueError(
                    "Without the references, all of these images have the same label. For the best F1, give other"
                    " normal images and images with defects; from normal images alone, calibrate without labels"
                    " (without --defects on the command line)."
                )
        return others, False

    def check_call(self, **arguments: Any) -> None:
        """
        Check the arguments of later calls before anything is written.

        Args:
            arguments: arguments of a call without images.

        Raises:
            ValueError, TypeError: the model or its references refuse them, as a call would; or regions are requested,
                and these arguments have no threshold for masks.
        """
        _, conditions = self._call_settings(arguments)
        own = (self._preprocess_params, self._forward_params, self._postprocess_params)
        called = self._sanitize_parameters(**_without_loading(arguments))
        values = {name: value for step in (*own, *called) for name, value in step.items()}
        if values.get("regions"):
            settings = {name: values.get(name) for name in SCORING}
            if self.image_processor.scoring(conditions, **settings).threshold is None:
                raise ValueError(missing_threshold("Regions need"))

    def _call_settings(self, arguments: dict[str, Any]) -> tuple[AnomalyScoring, dict[str, Any]]:
        """Return the scoring of a call with these arguments, without thresholds, and its further settings."""
        preprocess, forward, _ = self._sanitize_parameters(**_without_loading(arguments))
        values = {**self._preprocess_params, **self._forward_params, **preprocess, **forward}
        tiling = Tiling.of(
            values.get("tile_size"), values.get("tile_overlap"), global_weight=values.get("global_weight", 0.0)
        )
        conditions = self.conditions(
            CallText(values.get("prompt_input_ids"), values.get("product_name")),
            tiling,
            values.get("input_range"),
            values.get("roi_mask"),
            self.active_references(values.get("reference_weight")),
            bool(values.get("fast_decode")),
        )
        settings = {name: values.get(name) for name in SCORING if name not in THRESHOLDS}
        return self.image_processor.without_thresholds().scoring(**settings), conditions

    def _without_verdicts(self) -> "CalibratingPipeline":
        """Return a copy that shares the model and computes scores and maps only."""
        self._inference_model()  # made once, for both
        measuring = copy.copy(self)
        measuring.image_processor = self.image_processor.without_thresholds()
        measuring._forward_params = without_given_thresholds(self._forward_params)
        measuring._postprocess_params = {}
        return measuring

    def _keep(
        self,
        calibration: Calibration,
        pixels: Calibration | None,
        scoring: AnomalyScoring,
        conditions: dict[str, Any],
    ) -> None:
        """Write thresholds, and the settings that they belong to, into the image processor."""
        processor = self.image_processor
        former = calibrated_thresholds(processor.calibration)
        for name in ("smoothing_sigma", "score_mode", "top_k_fraction"):
            setattr(processor, name, getattr(scoring, name))
        processor.image_threshold = calibration.threshold
        if pixels is not None:
            processor.threshold = pixels.threshold
        elif scoring.score_mode == "max":
            processor.threshold = calibration.threshold
        elif processor.threshold in former:
            processor.threshold = None  # it belongs to the former calibration
        processor.calibration = {
            "image": calibration.to_dict(),
            **({} if pixels is None else {"pixel": pixels.to_dict()}),
            "settings": {**processor.measured_with(), **conditions},
        }
        # thresholds among the pipeline's defaults would hide the new ones
        self._forward_params = without_given_thresholds(self._forward_params)

    def _results(self, images: Images, **kwargs: Any) -> Iterable[dict[str, Any]]:
        """Return results one by one, for every kind of input."""
        images = as_images(images, kwargs.pop("image_column", None))
        results = self(ListedImages(images) if isinstance(images, list) else images, **kwargs)
        return [results] if isinstance(results, dict) else results


@dataclass
class _Measured:
    """
    Scores of the results that were read; results of unreadable images are left out and counted.

    Args:
        results, total, progress: results to read, their number if it is known, and whether to show a progress bar.
        kept (`list[int]`, *optional*): position of each result's image among the given ones, if some are left out.
        on_result: see [`~CalibratingPipeline.calibrate`].
    """

    results: Iterable[dict[str, Any]]
    total: int | None
    progress: bool
    kept: list[int] | None = None
    on_result: Callable[[int, dict[str, Any]], None] | None = None
    scores: list[float] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def maps(self) -> Iterator[np.ndarray]:
        """Yield the maps one by one and collect the scores."""
        bar = tqdm(self.results, desc="calibrate", total=self.total, unit="image", disable=not self.progress)
        for position, result in enumerate(bar):
            if self.on_result is not None:
                self.on_result(position if self.kept is None else self.kept[position], result)
            if "error" in result:
                self.errors.append(result["error"])
                continue
            self.scores.append(result["score"])
            self.positions.append(position)
            yield result.get("anomaly_map")
        if self.errors and not self.scores:
            raise ValueError(f"None of the images could be read: {'; '.join(self.errors)}")
        if self.errors:
            logger.warning(
                f"{len(self.errors)} of {len(self.errors) + len(self.scores)} images could not be read and are left"
                f" out of the calibration: {'; '.join(self.errors)}"
            )

    def chosen(self, labels: Sequence[int]) -> list[int]:
        """Return the labels of the images that were read."""
        count = len(self.errors) + len(self.scores)
        if len(labels) != count:
            raise ValueError(f"Expected one label for each of {count} images, got {len(labels)}.")
        return [labels[position] for position in self.positions]


def _check_calibration_arguments(
    labels: Sequence[int] | None, rate: float | None, pixel_rate: float | None, arguments: dict[str, Any]
) -> None:
    for name in THRESHOLDS:
        if arguments.get(name) is not None:
            raise ValueError(f"{name} is a result of the calibration and cannot be given to it; leave it out.")
    for name, given, what in (
        ("false_alarm_rate", rate, "A false-alarm rate"),
        ("pixel_false_alarm_rate", pixel_rate, "A pixel false-alarm rate"),
    ):
        if given is None:
            continue
        check_rate(name, given)
        if labels is not None:
            short = "pixel rate" if name.startswith("pixel") else "rate"
            raise ValueError(
                f"{what} is reached on normal images alone, and images with defects were given (labels; --defects on"
                f" the command line). Leave out the {short}, and the threshold with the best F1 is used; or calibrate"
                " on normal images only."
            )


def without_given_thresholds(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call without thresholds."""
    return {name: value for name, value in arguments.items() if name not in THRESHOLDS}


def _without_loading(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of a call without those that only say how images are loaded."""
    return {name: value for name, value in arguments.items() if name not in _OF_LOADING}
