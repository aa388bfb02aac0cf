"""Configuration that every model on a frozen CLIP has: its towers, the input size, the layers that it reads."""

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

from .configuration_segmenter import SegmenterConfig
from .convolutional_stem import STEMS, stem_of


__all__ = ["FrozenCLIPConfig"]

# The default towers: OpenAI's ViT-L/14-336 with plain GELU, as the VCP-CLIP authors run it
_VIT_L_14_336_TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "gelu",
}
_VIT_L_14_336_VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "image_size": 336,
    "projection_dim": 768,
    "hidden_act": "gelu",
}


@strict
class FrozenCLIPConfig(SegmenterConfig):
    r"""
    Configuration of a model that segments with a frozen CLIP; the base class of each model's own.

    Args:
        text_config (`dict` or `CLIPTextConfig`, *optional*, defaults to ViT-L/14's):
            CLIP's text tower. A dict is read over `CLIPTextConfig`'s own defaults.
        vision_config (`dict` or `CLIPVisionConfig`, *optional*, defaults to ViT-L/14-336's):
            CLIP's image tower. Its `image_size` is the *pretraining* size, which fixes the stored position table;
            the size this model works at is `image_size`. Its optional field `stem` names a convolutional network
            before the tower, one of [`STEMS`]; with `stem_projection=False`, the tower does not read it, and it serves
            references and the stem branch only.
        projection_dim (`int`, *optional*, defaults to 768):
            Width of CLIP's joint space.
        logit_scale_init_value (`float`, *optional*, defaults to 2.6592):
            CLIP's own temperature.
        image_size (`int` or `list[int]`, *optional*, defaults to 518):
            Side of the square input in pixels, or `[height, width]`; multiples of the patch size. The forward pass
            accepts any multiple.
        feature_layers (`list[int]`, *optional*, defaults to four evenly spaced blocks, the last included):
            Image blocks (1-based, ascending) whose patch tokens are read.
        backbone_name_or_path (`str`, *optional*):
            Source of the CLIP weights: a Hub repository, or a folder, which may be relative to the checkpoint's own.
        backbone_revision (`str`, *optional*):
            Branch, tag or commit of that repository.
        backbone_included (`bool`, *optional*, defaults to `True`):
            Whether the checkpoint's weight file includes the CLIP weights. Written by
            `save_pretrained(adapter_only=...)`.

    Raises:
        ValueError: values contradict each other; the message names both.
    """

    sub_configs_defaults = {"text_config": CLIPTextConfig, "vision_config": CLIPVisionConfig}
    # Towers that stand for `None`
    default_text_config = _VIT_L_14_336_TEXT
    default_vision_config = _VIT_L_14_336_VISION

    text_config: dict | CLIPTextConfig | None = None
    vision_config: dict | CLIPVisionConfig | None = None
    projection_dim: int = 768
    logit_scale_init_value: float | int = 2.6592
    feature_layers: list[int] | tuple[int, ...] | None = None
    backbone_name_or_path: str | None = None
    backbone_revision: str | None = None
    backbone_included: bool = True

    def _complete(self) -> None:
        """Set the fields whose `None` stands for a value that depends on the towers."""
        super()._complete()
        if self.feature_layers is None:
            depth = self.vision_config.num_hidden_layers
            self.feature_layers = sorted({max(1, depth * quarter // 4) for quarter in (1, 2, 3, 4)})
        # JSON knows no tuples: keep what a reload gives
        self.feature_layers = list(self.feature_layers)

    def _fill_defaults(self) -> None:
        """Set the fields whose `None` stands for a value; the towers are not configurations yet."""
        if self.text_config is None:
            self.text_config = dict(self.default_text_config)
        if self.vision_config is None:
            self.vision_config = dict(self.default_vision_config)

    def check_consistency(self) -> None:
        """
        Check the fields against each other.

        Raises:
            ValueError: fields contradict each other; the message names both.
        """
        super().check_consistency()
        self._check_stem()
        patch_size = self.vision_config.patch_size
        for side in self.input_size:
            if side <= 0 or side % patch_size:
                below = max(patch_size, side - side % patch_size)
                raise ValueError(
                    f"image_size={self.image_size} is not a multiple of patch_size={patch_size};"
                    f" the nearest sides are {below} and {below + patch_size}."
                )
        self._check_layers("feature_layers", self.feature_layers)

    def _check_stem(self) -> None:
        vision, stem = self.vision_config, stem_of(self.vision_config)
        if stem is None:
            return
        if stem not in STEMS:
            raise ValueError(
                f"vision_config.stem={stem!r} is unknown. Known stems are {', '.join(STEMS)}; without this field, the"
                " image tower is CLIP's own."
            )
        patch_size = STEMS[stem].patch_size
        if vision.patch_size != patch_size or vision.num_channels != 3:
            raise ValueError(
                f"vision_config.stem={stem!r} needs patch_size={patch_size} and num_channels=3, got"
                f" patch_size={vision.patch_size} and num_channels={vision.num_channels}."
            )

    def _check_layers(self, name: str, layers: list[int]) -> None:
        depth = self.vision_config.num_hidden_layers
        if not layers or list(layers) != sorted(set(layers)):
            raise ValueError(f"{name}={layers} must be ascending, distinct and not empty.")
        if layers[0] < 1 or layers[-1] > depth:
            raise ValueError(
                f"{name}={layers} must lie in 1..{depth}: the image tower has"
                f" num_hidden_layers={depth} blocks, counted from 1."
            )

    def to_clip_config(self) -> CLIPConfig:
        """Return the configuration of the backbone, which shares both sub-configurations with this one."""
        # Building a CLIPConfig resets the attention implementation of its parts unless it is passed along
        attn_implementation = {
            "": self._attn_implementation,
            "text_config": self.text_config._attn_implementation,
            "vision_config": self.vision_config._attn_implementation,
        }
        return CLIPConfig(
            text_config=self.text_config,
            vision_config=self.vision_config,
            projection_dim=self.projection_dim,
            logit_scale_init_value=self.logit_scale_init_value,
            dtype=self.dtype,
            attn_implementation=attn_implementation,
        )
