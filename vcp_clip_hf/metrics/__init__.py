"""Metrics of anomaly segmentation: exact or in constant memory, per product, mergeable. They know no model."""

from typing import TYPE_CHECKING

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


def __getattr__(name: str):
    # `evaluate` takes seconds to import; the evaluator does without
    if name == "AnomalySegmentationMetric":
        from .anomaly_segmentation import AnomalySegmentationMetric

        return AnomalySegmentationMetric
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
