"""VCP-CLIP for Hugging Face transformers: zero-shot anomaly segmentation with visual context prompting.

Importing this package registers the model with transformers' Auto classes, and `pipeline("anomaly-segmentation")`.
Model, image processor and pipeline are imported at once; everything else is imported on first use, so that
`import vcp_clip_hf` takes no longer than transformers and the model do.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from . import methods
from .accelerated_inference import accelerate_inference
from .calibration import Calibration
from .configuration_vcp_clip import VCPCLIPConfig
from .image_processing_vcp_clip import VCPCLIPImageProcessor
from .losses import dice_loss, focal_loss, segmentation_loss
from .modeling_vcp_clip import VCPCLIPModel, VCPCLIPOutput, VCPCLIPPreTrainedModel
from .mutual_scoring import MutualScoring
from .pipeline_anomaly_segmentation import AnomalySegmentationPipeline
from .version import EMBEDDED_CHECKPOINT, EMBEDDED_NOTICE, __version__


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

AutoConfig.register(VCPCLIPConfig.model_type, VCPCLIPConfig, exist_ok=True)
AutoModel.register(VCPCLIPConfig, VCPCLIPModel, exist_ok=True)
AutoImageProcessor.register(VCPCLIPConfig, image_processor_classes={"pil": VCPCLIPImageProcessor}, exist_ok=True)
AutoProcessor.register(VCPCLIPConfig, VCPCLIPImageProcessor, exist_ok=True)
if "anomaly-segmentation" not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline(
        "anomaly-segmentation",
        pipeline_class=AnomalySegmentationPipeline,
        pt_model=AutoModel,
        default={"model": (EMBEDDED_CHECKPOINT, "main")},
        type="image",
    )


def _say_what_applies(record: logging.LogRecord) -> bool:
    """Replace the advice to name a model's revision, which a folder of this package does not have."""
    if EMBEDDED_CHECKPOINT in record.getMessage():
        record.msg, record.args = EMBEDDED_NOTICE, ()
    return True


logging.getLogger("transformers.pipelines").addFilter(_say_what_applies)


def __getattr__(name: str) -> Any:
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_ON_FIRST_USE[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
