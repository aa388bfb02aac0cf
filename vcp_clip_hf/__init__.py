"""VCP-CLIP for Hugging Face transformers: zero-shot anomaly segmentation with visual context prompting.

Importing this package registers the model with transformers' Auto classes.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModel

from .configuration_vcp_clip import VCPCLIPConfig
from .image_processing_vcp_clip import VCPCLIPImageProcessor
from .losses import dice_loss, focal_loss, segmentation_loss
from .modeling_vcp_clip import VCPCLIPModel, VCPCLIPOutput, VCPCLIPPreTrainedModel
from .version import __version__


__all__ = [
    "VCPCLIPConfig",
    "VCPCLIPImageProcessor",
    "VCPCLIPModel",
    "VCPCLIPOutput",
    "VCPCLIPPreTrainedModel",
    "__version__",
    "dice_loss",
    "focal_loss",
    "segmentation_loss",
]

AutoConfig.register(VCPCLIPConfig.model_type, VCPCLIPConfig, exist_ok=True)
AutoModel.register(VCPCLIPConfig, VCPCLIPModel, exist_ok=True)
AutoImageProcessor.register(VCPCLIPConfig, image_processor_classes={"pil": VCPCLIPImageProcessor}, exist_ok=True)
