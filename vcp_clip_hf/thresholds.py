"""Limits for masks and labels: their ranges, the comparison with them, and the settings that they were measured with.

A value counts as at or above a limit if it is lower by at most [`TOLERANCE`]. The last digit of a map depends on the
batch size, the processor and the runtime; no verdict depends on it, because thresholds are often equal to a score.

A calibrated threshold holds for the settings that it was measured with: see [`resolve_thresholds`].

Standard library and NumPy only: this file travels with exported graphs.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np


__all__ = [
    "HIGHEST_SCORES",
    "TOLERANCE",
    "UNRECORDED",
    "Thresholds",
    "calibrated_thresholds",
    "differing_dtypes",
    "differing_settings",
    "resolve_thresholds",
]

logger = logging.getLogger(__name__)

# Largest difference between results of one image that rounding explains: ten times the one between batch sizes
TOLERANCE = 1e-6

# Upper end of the scale of each score; the lower end is 0
HIGHEST_SCORES = {"max": 1.0, "top_k": 2.0, "image_head": 1.0}

_NAMES = ("threshold", "image_threshold")
# Settings that older calibrations do not record -> the value that they were measured with, and that exports have
UNRECORDED = {"references": None, "fast_decode": False, "float8": False}
# Setting that rounds maps: thresholds are still used with another value, with a warning
_DTYPE = "dtype"
# Results without each of them
_RESULTS = {"threshold": "no masks", "image_threshold": "no labels"}


@dataclass(frozen=True)
class Thresholds:
    """
    Limits for masks and labels.

    Args:
        pixel (`float`, *optional*): pixels of the map at or above it are abnormal; `None`: no masks.
        image (`float`, *optional*): images with a score at or above it are anomalous; `None`: no labels.
    """

    pixel: float | None
    image: float | None

    @classmethod
    def of(cls, threshold: float | None, image_threshold: float | None, score_mode: str) -> "Thresholds":
        """
        Check limits, and fill in a missing image threshold: with `score_mode="max"` a score is a value of the map, so
        that the pixel threshold serves for both. Other scores have another scale.

        Raises:
            ValueError: a limit is outside the scale of the map or of the score.
        """
        highest = HIGHEST_SCORES[score_mode]
        pixel = _checked("threshold", threshold, 1.0, "a map")
        image = _checked("image_threshold", image_threshold, highest, f"the score {score_mode!r}")
        return cls(pixel, pixel if image is None and score_mode == "max" else image)

    def label(self, score: float) -> str | None:
        """Return `"anomalous"`, `"normal"`, or `None` without an image threshold."""
        if self.image is None:
            return None
        return "anomalous" if score >= _limit(self.image) else "normal"

    def mask(self, anomaly_map):
        """Return a boolean mask of the kind of the map (array or tensor), or `None` without a pixel threshold."""
        return None if self.pixel is None else anomaly_map >= _limit(self.pixel)


def _limit(threshold: float) -> float:
    """Return a value of float32, the type of maps, so that arrays, tensors and numbers are compared alike."""
    return float(np.float32(threshold - TOLERANCE))


def _checked(name: str, value: float | None, highest: float, scale: str) -> float | None:
    if value is None:
        return None
    try:
        number = math.nan if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= highest:
        raise ValueError(
            f"{name}={value!r} must be a number in [0, {highest:g}], the scale of {scale}."
            " `calibrate` finds one from normal images."
        )
    return number


def differing_settings(calibration: Mapping[str, Any] | None, current: Mapping[str, Any]) -> dict[str, tuple]:
    """
    Compare the settings of a calibration with those of a call.

    Args:
        calibration (`Mapping`, *optional*): `calibration` of `preprocessor_config.json`. Its `settings` are compared;
            calibrations of version 0.1.0 recorded `score_mode` only.
        current (`Mapping[str, Any]`): settings of the call. Those that only one side knows are not compared, nor are
            data types, see [`differing_dtypes`].

    Returns:
        `dict[str, tuple]`: name -> (value at the calibration, value of the call).
    """
    calibration = calibration or {}
    recorded = calibration.get("settings") or {name: calibration[name] for name in calibration.keys() & {"score_mode"}}
    if recorded:
        recorded = {**UNRECORDED, **recorded}
    names = [name for name in recorded if name in current and name != _DTYPE]
    if "top_k" not in (recorded.get("score_mode"), current.get("score_mode")):
        names = [name for name in names if name != "top_k_fraction"]  # only "top_k" reads it
    return {name: (recorded[name], current[name]) for name in names if _plain(recorded[name]) != _plain(current[name])}


def differing_dtypes(calibration: Mapping[str, Any] | None, current: Mapping[str, Any]) -> tuple[str, str] | None:
    """
    Return the data types of a calibration and of a call, such as `("float32", "bfloat16")`, if they differ.

    Args:
        calibration (`Mapping`, *optional*): `calibration` of `preprocessor_config.json`.
        current (`Mapping[str, Any]`): settings of the call.

    Returns:
        `tuple[str, str]` or `None`: `None` if they are equal, or if one of them is not known.
    """
    recorded = (calibration or {}).get("settings") or {}
    dtypes = recorded.get(_DTYPE), current.get(_DTYPE)
    return None if None in dtypes or dtypes[0] == dtypes[1] else dtypes


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def calibrated_thresholds(calibration: Mapping[str, Any] | None) -> list[float]:
    """Return the thresholds that a calibration measured, for images and for pixels."""
    calibration = calibration or {}
    return [calibration[what]["threshold"] for what in ("image", "pixel") if what in calibration]


def resolve_thresholds(
    given: Mapping[str, Any], stored: Mapping[str, Any], current: Mapping[str, Any]
) -> dict[str, float | None]:
    """
    Choose the thresholds of a call: those of the call, else those of the checkpoint.

    A threshold that the checkpoint's calibration measured with other settings is not used: it becomes `None`, so that
    there is no mask or no label, and a warning names the settings. With another data type, which moves maps slightly,
    it is used, with a warning. Thresholds that were set by hand hold always.

    Args:
        given (`Mapping`): `threshold` and `image_threshold` of the call; `None` or missing if not given.
        stored (`Mapping`): `threshold`, `image_threshold` and `calibration` of the checkpoint.
        current (`Mapping`): settings of the call, under the names of the calibration's `settings`.

    Returns:
        `dict[str, float | None]`: `threshold` and `image_threshold`.
    """
    chosen = {name: stored.get(name) if given.get(name) is None else given[name] for name in _NAMES}
    calibration = stored.get("calibration") or {}
    measured = calibrated_thresholds(calibration)
    differing = differing_settings(calibration, current)
    unfit = [name for name in _NAMES if differing and given.get(name) is None and chosen[name] in measured]
    # with "max", a threshold of the call serves for the label, too
    missing = unfit if given.get("threshold") is None or current.get("score_mode") != "max" else []
    if missing:
        differences = "; ".join(_difference(name, *values) for name, values in differing.items())
        _warn_once(
            f"The calibrated thresholds of this checkpoint ({', '.join(missing)}) do not apply, because they were"
            f" measured with other settings: {differences}."
            f" Results have {' and '.join(_RESULTS[name] for name in missing)}. Use the settings of the calibration,"
            " calibrate with those of this call, or pass a value of your own"
            f" ({', '.join(f'{name}=...' for name in missing)})."
        )
    dtypes = differing_dtypes(calibration, current)
    used = [name for name in _NAMES if not differing and given.get(name) is None and chosen[name] in measured]
    if dtypes and used:
        _warn_once(
            f"The calibrated thresholds of this checkpoint ({', '.join(used)}) were measured in {dtypes[0]}, and this"
            f" call computes in {dtypes[1]}. Maps differ slightly: verdicts close to a threshold can differ, and a"
            f" guaranteed rate is approximate. Calibrate in {dtypes[1]} to avoid this."
        )
    return {name: None if name in unfit else value for name, value in chosen.items()}


def _difference(name: str, recorded: Any, now: Any) -> str:
    if name == "prompts":
        return "other prompts"
    if name == "references":
        return _references_difference(recorded, now)
    return f"{name} was {_plain(recorded)!r}, is {_plain(now)!r}"


def _references_difference(recorded: Any, now: Any) -> str:
    if recorded is None:
        return "without references"
    if now is None:
        return "with references"
    if recorded["memory"] != now["memory"]:
        return "other references"
    return f"reference_weight was {recorded['weight']!r}, is {now['weight']!r}"


@lru_cache(maxsize=64)
def _warn_once(message: str) -> None:
    logger.warning(message)
