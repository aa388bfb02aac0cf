"""The model, its image processor and its pipeline, registered with transformers' Auto classes on import."""

import logging

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from . import methods
from .accelerated_inference import accelerate_inference
from .acceleration_settings import Acceleration
from .calibration import Calibration
from .configuration_vcp_clip import VCPCLIPConfig
from .image_processing_vcp_clip import VCPCLIPImageProcessor
from .losses import dice_loss, focal_loss, segmentation_loss
from .modeling_vcp_clip import VCPCLIPModel, VCPCLIPOutput, VCPCLIPPreTrainedModel
from .mutual_scoring import MutualScoring
from .pipeline_anomaly_segmentation import AnomalySegmentationPipeline
from .version import EMBEDDED_CHECKPOINT, EMBEDDED_NOTICE


__all__ = [
    "Acceleration",
    "AnomalySegmentationPipeline",
    "Calibration",
    "MutualScoring",
    "VCPCLIPConfig",
    "VCPCLIPImageProcessor",
    "VCPCLIPModel",
    "VCPCLIPOutput",
    "VCPCLIPPreTrainedModel",
    "accelerate_inference",
    "dice_loss",
    "focal_loss",
    "methods",
    "segmentation_loss",
]

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
