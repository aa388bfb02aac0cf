"""A tiny model of any method, shared by the tests."""

import torch

from tests.common import tiny_clip, tiny_tokenizer
from tests.methods.tiny_saa import tiny_saa
from vcp_clip_hf.methods import METHODS, AnomalyMethod


# Prompt ensembles of a few sentences
FEW_PROMPTS = {
    "normal_states": ["good {}", "{}"],
    "abnormal_states": ["bad {}"],
    "templates": ["a {}.", "the {}."],
}

# Methods that judge an image by itself
ALONE = [name for name, model in METHODS.items() if not model.judges_products]
# Those of them that are loaded without further packages
LOADED = [name for name in ALONE if METHODS[name].works_on_any_clip]

# Fields that do not fit the tiny towers otherwise
FIELDS = {
    "anovl": {"object_templates": ["a {}", "the {}"], "texture_templates": ["a texture of {}"]},
    "anomaly_clip": {"deep_prompt_depth": 2, "num_context_tokens": 4, "num_deep_prompt_tokens": 2},
}


def tiny_method(model_type: str = "april_gan", vision: dict | None = None, **fields) -> AnomalyMethod:
    """Make a method on a CLIP of a few thousand parameters, with lively maps, in evaluation mode."""
    if model_type == "saa":
        return tiny_saa(**fields)
    clip = tiny_clip(vision=vision or {})
    with torch.no_grad():
        # CLIP's own initialization is so small that all patches look alike
        for name, parameter in clip.named_parameters():
            if parameter.ndim > 1 and "position" not in name and ".stem." not in name:
                parameter.mul_(4)
    model_class = METHODS[model_type]
    few = {name: value for name, value in FEW_PROMPTS.items() if name in model_class.config_class.own_fields()}
    return model_class.from_clip(
        clip, tokenizer=tiny_tokenizer(), **{"image_size": 48, **few, **FIELDS.get(model_type, {}), **fields}
    )
