"""VCP-CLIP for Hugging Face transformers: zero-shot anomaly segmentation with visual context prompting.

Importing this package registers the model with transformers' Auto classes, and `pipeline("anomaly-segmentation")`.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModel
from transformers.pipelines import PIPELINE_REGISTRY

from .accelerated_inference import accelerate_inference
from .configuration_vcp_clip import VCPCLIPConfig
from .image_processing_vcp_clip import VCPCLIPImageProcessor
from .losses import dice_loss, focal_loss, segmentation_loss
from .modeling_vcp_clip import VCPCLIPModel, VCPCLIPOutput, VCPCLIPPreTrainedModel
from .pipeline_anomaly_segmentation import AnomalySegmentationPipeline
from .version import EMBEDDED_CHECKPOINT, __version__


__all__ = [
    "EMBEDDED_CHECKPOINT",
    "AnomalySegmentationPipeline",
    "VCPCLIPConfig",
    "VCPCLIPImageProcessor",
    "VCPCLIPModel",
    "VCPCLIPOutput",
    "VCPCLIPPreTrainedModel",
    "__version__",
    "accelerate_inference",
    "dice_loss",
    "focal_loss",
    "segmentation_loss",
]

AutoConfig.register(VCPCLIPConfig.model_type, VCPCLIPConfig, exist_ok=True)
AutoModel.register(VCPCLIPConfig, VCPCLIPModel, exist_ok=True)
AutoImageProcessor.register(VCPCLIPConfig, image_processor_classes={"pil": VCPCLIPImageProcessor}, exist_ok=True)
if "anomaly-segmentation" not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline(
        "anomaly-segmentation",
        pipeline_class=AnomalySegmentationPipeline,
        pt_model=AutoModel,
        default={"model": (EMBEDDED_CHECKPOINT, "main")},
        type="image",
    )
