"""VCP-CLIP for Hugging Face transformers: zero-shot anomaly segmentation with visual context prompting.

Importing this package registers the model with transformers' Auto classes, and `pipeline("anomaly-segmentation")`.
Model, image processor and pipeline are imported at once; everything else is imported on first use, so that
`import vcp_clip_hf` takes no longer than transformers and the model do.

With the environment variable `VCP_CLIP_IMPORT_ON_USE=1`, model, image processor and pipeline are imported and
registered on first use, too. `vcp-clip serve` sets it, so that a server of an exported model never loads torch.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import EMBEDDED_CHECKPOINT, __version__


if TYPE_CHECKING:
    from .convert_vcp_clip_to_hf import convert_checkpoint
    from .data import load_anomaly_dataset
    from .evaluation import evaluate
    from .export import export_model
    from .exported_segmenter import open_segmenter
    from .hub import push_checkpoint
    from .metrics import AnomalySegmentationEvaluator
    from .prediction import predict_files
    from .training import train
    from .training_config import TrainingConfig


__all__ = [
    "EMBEDDED_CHECKPOINT",
    "Acceleration",
    "AnomalySegmentationEvaluator",
    "AnomalySegmentationPipeline",
    "Calibration",
    "MutualScoring",
    "TrainingConfig",
    "VCPCLIPConfig",
    "VCPCLIPImageProcessor",
    "VCPCLIPModel",
    "VCPCLIPOutput",
    "VCPCLIPPreTrainedModel",
    "__version__",
    "accelerate_inference",
    "convert_checkpoint",
    "dice_loss",
    "evaluate",
    "export_model",
    "focal_loss",
    "load_anomaly_dataset",
    "methods",
    "open_segmenter",
    "predict_files",
    "push_checkpoint",
    "segmentation_loss",
    "train",
]

# Public name -> the module that defines it, imported on first use; the block for type checkers above says the same
_ON_FIRST_USE = {
    "AnomalySegmentationEvaluator": "metrics",
    "TrainingConfig": "training_config",
    "convert_checkpoint": "convert_vcp_clip_to_hf",
    "evaluate": "evaluation",
    "export_model": "export",
    "load_anomaly_dataset": "data",
    "open_segmenter": "exported_segmenter",
    "predict_files": "prediction",
    "push_checkpoint": "hub",
    "train": "training",
}

if os.environ.get("VCP_CLIP_IMPORT_ON_USE") != "1":
    from .registration import (
        Acceleration,
        AnomalySegmentationPipeline,
        Calibration,
        MutualScoring,
        VCPCLIPConfig,
        VCPCLIPImageProcessor,
        VCPCLIPModel,
        VCPCLIPOutput,
        VCPCLIPPreTrainedModel,
        accelerate_inference,
        dice_loss,
        focal_loss,
        methods,
        segmentation_loss,
    )


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _ON_FIRST_USE.get(name, "registration")
    value = globals()[name] = getattr(import_module(f".{module}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
