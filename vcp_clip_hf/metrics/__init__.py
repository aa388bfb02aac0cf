"""Metrics of anomaly segmentation, independent of any model: exact or in constant memory, per product, mergeable."""

from typing import TYPE_CHECKING, Any

from .curves import (
    RankedScores,
    UndefinedMetricError,
    auroc,
    average_precision,
    f1_max,
    iou,
    pro,
    pro_200_steps,
)
from .evaluator import IMAGE_METRICS, PIXEL_METRICS, AnomalySegmentationEvaluator


if TYPE_CHECKING:
    from .anomaly_segmentation import AnomalySegmentationMetric

__all__ = [
    "IMAGE_METRICS",
    "PIXEL_METRICS",
    "AnomalySegmentationEvaluator",
    "AnomalySegmentationMetric",
    "RankedScores",
    "UndefinedMetricError",
    "auroc",
    "average_precision",
    "f1_max",
    "iou",
    "pro",
    "pro_200_steps",
]


def __getattr__(name: str) -> Any:
    # The library evaluate is optional and takes seconds to import
    if name == "AnomalySegmentationMetric":
        from .anomaly_segmentation import AnomalySegmentationMetric

        return AnomalySegmentationMetric
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
