"""Datasets for anomaly segmentation: builders, folders, export. Knows no model."""

from .base import AnomalyDatasetBuilder, AnomalyDatasetConfig
from .export import export_dataset
from .folder import AnomalyFolder
from .layout_errors import DatasetLayoutError, LayoutProblem
from .records import FEATURES, LABEL_NAMES, AnomalyRecord
from .registry import DatasetSummary, dataset_builder, list_datasets, load_anomaly_dataset


__all__ = [
    "FEATURES",
    "LABEL_NAMES",
    "AnomalyDatasetBuilder",
    "AnomalyDatasetConfig",
    "AnomalyFolder",
    "AnomalyRecord",
    "DatasetLayoutError",
    "DatasetSummary",
    "LayoutProblem",
    "dataset_builder",
    "export_dataset",
    "list_datasets",
    "load_anomaly_dataset",
]
