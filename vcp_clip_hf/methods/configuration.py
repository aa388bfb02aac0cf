"""Base classes of the methods' configurations: for all methods on CLIP, and for those with prompt ensembles."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig

from ..configuration_frozen_clip import FrozenCLIPConfig
from .prompt_ensemble import PromptEnsemble, read_prompts


__all__ = [
    "VIT_B_16_PLUS_240_TEXT",
    "VIT_B_16_PLUS_240_VISION",
    "AnomalyMethodConfig",
    "PromptEnsembleConfig",
]

# The towers of open_clip's ViT-B-16-plus-240, the backbone of WinCLIP, AnoVL and CLIP-AD
VIT_B_16_PLUS_240_TEXT = {
    "hidden_size": 640,
    "intermediate_size": 2560,
    "num_attention_heads": 10,
    "projection_dim": 640,
    "hidden_act": "gelu",
}
VIT_B_16_PLUS_240_VISION = {
    "hidden_size": 896,
    "intermediate_size": 3584,
    "num_attention_heads": 14,
    "num_hidden_layers": 12,
    "patch_size": 16,
    "image_size": 240,
    "projection_dim": 640,
    "hidden_act": "gelu",
}


@strict
class AnomalyMethodConfig(FrozenCLIPConfig):
    r"""
    Configuration of an [`AnomalyMethodModel`]; the base class of each method's own.

    Args:
        position_interpolation (`str`, *optional*, defaults to `"bicubic_antialias"`):
            Way to resize CLIP's position table from the pretrained grid to that of the images:
            `"bicubic_antialias"`, `"bicubic"` or `"bilinear"`, the last two without antialiasing.
        kwargs: fields of [`FrozenCLIPConfig`].
    """

    # Arguments of the image processor that differ from its defaults
    image_processing = {"smoothing_sigma": 0.0, "score_mode": "image_head"}

    position_interpolation: Literal["bicubic_antialias", "bicubic", "bilinear"] = "bicubic_antialias"

    @classmethod
    def fitted_fields(cls, clip_config: CLIPConfig) -> dict[str, Any]:
        """
        Return the fields whose defaults may not fit a CLIP, with values that do.

        Args:
            clip_config (`CLIPConfig`): configuration of the CLIP.
        """
        patch_size = clip_config.vision_config.patch_size
        return {"image_size": max(1, round(cls.image_size / patch_size)) * patch_size}


@strict
class PromptEnsembleConfig(AnomalyMethodConfig):
    r"""
    Configuration of a method with a prompt ensemble.

    Args:
        normal_states, abnormal_states (`list[str]`, *optional*, defaults to the method's):
            Phrases with one `{}`, the product.
        templates (`list[str]`, *optional*, defaults to the method's):
            Sentences with one `{}`, the state phrase.
        kwargs: fields of [`AnomalyMethodConfig`].
    """

    normal_states: list[str] | tuple[str, ...] | None = None
    abnormal_states: list[str] | tuple[str, ...] | None = None
    templates: list[str] | tuple[str, ...] | None = None

    def _fill_defaults(self) -> None:
        super()._fill_defaults()
        for field, name in (("normal_states", "normal"), ("abnormal_states", "abnormal"), ("templates", "templates")):
            given = getattr(self, field)
            setattr(self, field, read_prompts(self.model_type)[name] if given is None else list(given))

    def check_consistency(self) -> None:
        """Check the fields against each other."""
        super().check_consistency()
        self.prompt_ensemble()

    def prompt_ensemble(self) -> PromptEnsemble:
        """Return the state phrases and templates."""
        return PromptEnsemble(tuple(self.normal_states), tuple(self.abnormal_states), tuple(self.templates))
