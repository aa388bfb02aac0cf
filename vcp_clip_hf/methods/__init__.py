"""The methods that VCP-CLIP's paper compares VCP-CLIP with, each a model of its own type.

Every [`AnomalyMethod`] with a `model_type` that a module of this package defines is registered with transformers' Auto
classes and can be imported from this package. There is no list of them.
"""

import pkgutil
from importlib import import_module

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor

from ..image_processing_vcp_clip import VCPCLIPImageProcessor
from .base import AnomalyMethodModel, ProductText, PromptEnsembleModel
from .configuration import AnomalyMethodConfig, PromptEnsembleConfig
from .method import AnomalyMethod, AnomalyMethodOutput


__all__ = [
    "METHODS",
    "AnomalyMethod",
    "AnomalyMethodConfig",
    "AnomalyMethodModel",
    "AnomalyMethodOutput",
    "ProductText",
    "PromptEnsembleConfig",
    "PromptEnsembleModel",
    "register_method",
]

# model_type -> class of the model
METHODS: dict[str, type[AnomalyMethod]] = {}


def register_method(model_class: type[AnomalyMethod]) -> type[AnomalyMethod]:
    """
    Register a method: `AutoModel.from_pretrained`, the pipeline, training and evaluation then know its `model_type`.

    Args:
        model_class (`type[AnomalyMethod]`): class whose `config_class` has a `model_type`.

    Returns:
        `type[AnomalyMethod]`: the given class, so that this function also serves as a decorator.
    """
    config_class = model_class.config_class
    METHODS[config_class.model_type] = model_class
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModel.register(config_class, model_class, exist_ok=True)
    AutoImageProcessor.register(config_class, image_processor_classes={"pil": VCPCLIPImageProcessor}, exist_ok=True)
    AutoProcessor.register(config_class, VCPCLIPImageProcessor, exist_ok=True)
    return model_class


def _register_all() -> None:
    for module in pkgutil.iter_modules(__path__):
        for name, value in vars(import_module(f"{__name__}.{module.name}")).items():
            is_method = isinstance(value, type) and issubclass(value, AnomalyMethod)
            if not is_method or value.__module__ != f"{__name__}.{module.name}":
                continue
            config_class = getattr(value, "config_class", None)
            if config_class is not None and config_class.model_type:
                register_method(value)
                globals().update({name: value, config_class.__name__: config_class})


_register_all()
