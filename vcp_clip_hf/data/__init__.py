"""Datasets for anomaly segmentation: published ones, folders of the user's own images, generated images.

Nothing here knows a model. Start with [`load_anomaly_dataset`].
"""

from .base import AnomalyDatasetBuilder
from .config import AnomalyDatasetConfig
from .datasets_by_name import DatasetSummary, dataset_builder, list_datasets, load_anomaly_dataset
from .layout_errors import DatasetLayoutError, LayoutProblem
from .records import FEATURES, LABEL_NAMES, AnomalyRecord
from .standalone_files import export_dataset
from .user_folder.folder import AnomalyFolder


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
