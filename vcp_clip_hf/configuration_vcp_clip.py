"""VCP-CLIP configuration: the architecture, the prompts and the backbone of a checkpoint."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from .configuration_frozen_clip import FrozenCLIPConfig
from .convolutional_stem import STEM_LAYER, check_stem_layer, stem_of, without_stem_layer


__all__ = ["CATEGORY_SLOT", "VCPCLIPConfig"]

# Marks the position of the learned category tokens in a prompt string.
CATEGORY_SLOT = "{}"

# The paper's prompts, and their ids in the vocabulary of OpenAI's CLIP (49408 entries, so the slot has id 49408).
_NORMAL_PROMPTS = ["a photo of a good {}"]
_ABNORMAL_PROMPTS = ["a photo of a damaged {}"]
_NORMAL_PROMPT_IDS = [[49406, 320, 1125, 539, 320, 886, 49408, 49407]]
_ABNORMAL_PROMPT_IDS = [[49406, 320, 1125, 539, 320, 13568, 49408, 49407]]


@strict
class VCPCLIPConfig(FrozenCLIPConfig):
    r"""
    Configuration of a [`VCPCLIPModel`]. The defaults are the paper's (VCP-CLIP, ECCV 2024) on CLIP ViT-L/14-336. Each
    ablation of the paper changes one or a few of these fields.

    Args:
        text_config (`dict` or `CLIPTextConfig`, *optional*, defaults to ViT-L/14's):
            CLIP's text tower. A dict is read over `CLIPTextConfig`'s own defaults.
        vision_config (`dict` or `CLIPVisionConfig`, *optional*, defaults to ViT-L/14-336's):
            CLIP's image tower. Its `image_size` is the *pretraining* size, which fixes the stored position table;
            the size this model works at is `image_size`.
        projection_dim (`int`, *optional*, defaults to 768):
            Width of CLIP's joint space.
        logit_scale_init_value (`float`, *optional*, defaults to 2.6592):
            CLIP's own temperature. VCP-CLIP does not read it; it is kept so that the backbone survives a round trip.
        image_size (`int` or `list[int]`, *optional*, defaults to 518):
            Side of the square input in pixels, or `[height, width]`; multiples of the patch size. The forward pass
            accepts any multiple; this is the size the checkpoint was trained for.
        feature_layers (`list[int]`, *optional*, defaults to four evenly spaced blocks, the last included):
            Image blocks (1-based, ascending) whose patch tokens are read: 6, 12, 18, 24 for ViT-L (section 4.1).
        num_category_tokens (`int`, *optional*, defaults to 2):
            Number r of learned tokens that stand for the product's name.
        num_deep_prompt_tokens (`int`, *optional*, defaults to 1):
            Number n of learned tokens inserted in every text block (deep text prompting). 0 switches it off.
        deep_prompt_position (`"start"` or `"end"`, *optional*, defaults to `"start"`):
            Place of these tokens: after the start token, or after the sentence, before the end token (appendix B.2).
        deep_prompt_dropout (`float`, *optional*, defaults to 0.1):
            Dropout on the inserted tokens, in training only.
        prompt_norm_eps (`float`, *optional*, defaults to 1e-6):
            Epsilon of the learned LayerNorm at the end token.
        use_pre_vcp (`bool`, *optional*, defaults to `True`):
            Whether to add the global image feature, through the Mini-Net, to the category tokens (equation 4). False
            gives the unified text prompt; with True, the text width must equal `projection_dim`.
        use_post_vcp (`bool`, *optional*, defaults to `True`):
            Whether to add the branch whose text embeddings attend to the patch tokens (equations 5 to 9). With False,
            the fused map is the base map.
        post_vcp_num_heads (`int`, *optional*, defaults to 8):
            Heads of that attention; must divide the vision width.
        fusion_weight (`float`, *optional*, defaults to 0.75):
            Weight a in `(1 - a) * base_map + a * vcp_map`: 0.75 in the paper, 0.8 in the authors' test code.
        reference_layers (`list[int | str]`, *optional*, defaults to `feature_layers`):
            Image blocks (1-based, ascending; 0 is the embedded patches) whose patch tokens a memory of normal pictures
            keeps, see [`ReferenceMemory`]; before them may stand `"stem"`, the features of a convolutional stem. The
            paper has no such memory; these six fields change nothing without it.
        reference_neighborhood (`int`, *optional*, defaults to 1):
            Odd side of the square of patches that the memory averages tokens over; 1: no averaging.
        reference_scale (`float`, *optional*, defaults to 1):
            Factor of the memory's distances: it brings the small distances of patches to the range of the zero-shot
            map.
        reference_distance (`"scaled"` or `"relative"`, *optional*, defaults to `"scaled"`):
            Way to convert distances to a map: `"scaled"` multiplies them by the factor and limits them to 1;
            `"relative"` compares them with the spacing of normal patches, see [`MemorySettings`]. Saved configurations
            name this field only if it is `"relative"`.
        reference_weight (`float`, *optional*, defaults to 0.5):
            Weight w of the memory in `(1 - w) * zero_shot_map + w * memory_map`.
        reference_fusion (`"mean"` or `"logits"`, *optional*, defaults to `"mean"`):
            Way to fuse the zero-shot map with the memory's: `"mean"` is the formula of `reference_weight`; `"logits"`
            is the sigmoid of the same mean of both logits, with probabilities limited to [1e-4, 1 - 1e-4], which suits
            a model whose probabilities are small. Image scores are always fused by the mean. Saved configurations
            name this field only if it is `"logits"`.
        use_stem_branch (`bool`, *optional*, defaults to `False`):
            Whether to add a branch that reads the features of the image tower's convolutional stem
            (`vision_config.stem`), see [`VCPCLIPStemBranch`]. The paper's model has none. Saved configurations name
            this field and the next only if it is `True`.
        stem_branch_weight (`float`, *optional*, defaults to 0.5):
            Weight of this branch's logits in the fused map, in [0, 1]; the logits of the other branches' fused map
            have the weight `1 - stem_branch_weight`.
        use_image_head (`bool`, *optional*, defaults to `False`):
            Whether to add a head with parameters of its own that scores whole images, see [`VCPCLIPImageHead`]. The
            paper's model has none. Saved configurations name this field only if it is `True`.
        normal_prompts, abnormal_prompts (`list[str]`, *optional*, defaults to the paper's good / damaged):
            Templates with one `{}` each, the category slot; the same number for both states.
        normal_prompt_input_ids, abnormal_prompt_input_ids (`list[list[int]]`, *optional*):
            Their token ids, start and end token included, `category_token_id` in the slot, no padding. Use
            [`VCPCLIPModel.set_prompts`] to change strings and ids together.
        category_token_id (`int`, *optional*, defaults to the vocabulary size):
            Id that marks the slot. It is never embedded.
        backbone_name_or_path (`str`, *optional*):
            Source of the CLIP weights: a Hub repository, or a folder, which may be relative to the checkpoint's own.
        backbone_revision (`str`, *optional*):
            Branch, tag or commit of that repository.
        backbone_included (`bool`, *optional*, defaults to `True`):
            Whether the checkpoint's weight file includes the CLIP weights. Written by
            `save_pretrained(adapter_only=...)`.

    Raises:
        ValueError: values contradict each other; the message names both.

    ```python
    >>> from vcp_clip_hf import VCPCLIPConfig, VCPCLIPModel

    >>> config = VCPCLIPConfig(use_post_vcp=False)  # table 3, the row without Post-VCP
    >>> model = VCPCLIPModel(config)  # random weights
    ```
    """

    model_type = "vcp_clip"
    title = "VCP-CLIP"
    source = "Qu et al., ECCV 2024, [arXiv 2407.12276](https://arxiv.org/abs/2407.12276)"

    num_category_tokens: int = 2
    num_deep_prompt_tokens: int = 1
    deep_prompt_position: Literal["start", "end"] = "start"
    deep_prompt_dropout: float | int = 0.1
    prompt_norm_eps: float = 1e-6
    use_pre_vcp: bool = True
    use_post_vcp: bool = True
    post_vcp_num_heads: int = 8
    fusion_weight: float | int = 0.75
    reference_layers: list[int | str] | tuple[int | str, ...] | None = None
    reference_neighborhood: int = 1
    reference_scale: float | int = 1.0
    reference_distance: Literal["scaled", "relative"] = "scaled"
    reference_weight: float | int = 0.5
    reference_fusion: Literal["mean", "logits"] = "mean"
    use_stem_branch: bool = False
    stem_branch_weight: float | int = 0.5
    use_image_head: bool = False
    normal_prompts: list[str] | tuple[str, ...] | None = None
    abnormal_prompts: list[str] | tuple[str, ...] | None = None
    normal_prompt_input_ids: list[list[int]] | None = None
    abnormal_prompt_input_ids: list[list[int]] | None = None
    category_token_id: int | None = None

    def _complete(self) -> None:
        super()._complete()
        if self.category_token_id is None:
            self.category_token_id = self.text_config.vocab_size
        # JSON knows no tuples: keep what a reload gives
        if self.reference_layers is not None:
            self.reference_layers = list(self.reference_layers)
        self.normal_prompts = list(self.normal_prompts)
        self.abnormal_prompts = list(self.abnormal_prompts)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain values, without those of parts that are not used."""
        values = super().to_dict()
        if not self.use_image_head:
            values.pop("use_image_head", None)
        if self.reference_fusion == "mean":
            values.pop("reference_fusion", None)
        if self.reference_distance == "scaled":
            values.pop("reference_distance", None)
        if not self.use_stem_branch:
            values.pop("use_stem_branch", None)
            values.pop("stem_branch_weight", None)
        return values

    def _fill_defaults(self) -> None:
        """Also set the default prompts where neither strings nor ids are given; refuse strings without their ids."""
        super()._fill_defaults()
        for state, prompts, ids in (
            ("normal", _NORMAL_PROMPTS, _NORMAL_PROMPT_IDS),
            ("abnormal", _ABNORMAL_PROMPTS, _ABNORMAL_PROMPT_IDS),
        ):
            given_prompts = getattr(self, f"{state}_prompts")
            given_ids = getattr(self, f"{state}_prompt_input_ids")
            if given_ids is None:
                if given_prompts is not None and list(given_prompts) != prompts:
                    raise ValueError(
                        f"{state}_prompts={list(given_prompts)} came without {state}_prompt_input_ids: a configuration"
                        " has no tokenizer. Give both, or build the model and call"
                        " `model.set_prompts(normal=..., abnormal=..., tokenizer=...)`."
                    )
                setattr(self, f"{state}_prompts", list(prompts))
                setattr(self, f"{state}_prompt_input_ids", [list(row) for row in ids])
            elif given_prompts is None:
                raise ValueError(
                    f"{state}_prompt_input_ids came without {state}_prompts. Give the strings too, so that the"
                    " checkpoint states its prompts in words."
                )

    def fusion_settings(self, with_references: bool) -> dict[str, Any]:
        """
        Return what the fusion of maps depends on, as a calibration of thresholds records it.

        Args:
            with_references (`bool`): whether a memory of normal images is fused too.

        Returns:
            `dict`: `branch_weights`, a `dict` with the weight of each branch, `None` for an absent one; and
            `reference_fusion`, `None` without references.
        """
        weights = {
            "fusion_weight": float(self.fusion_weight) if self.use_post_vcp else None,
            "stem_branch_weight": float(self.stem_branch_weight) if self.use_stem_branch else None,
        }
        return {"branch_weights": weights, "reference_fusion": self.reference_fusion if with_references else None}

    @property
    def memory_layers(self) -> list[int | str]:
        """Return the layers of a memory of normal pictures: `reference_layers`, by default the feature layers."""
        return list(self.feature_layers if self.reference_layers is None else self.reference_layers)

    def check_consistency(self) -> None:
        """
        Check the fields against each other.

        Raises:
            ValueError: fields contradict each other; the message names both.
        """
        super().check_consistency()
        text, vision = self.text_config, self.vision_config
        if self.num_category_tokens < 1:
            raise ValueError(f"num_category_tokens={self.num_category_tokens} must be at least 1.")
        if self.num_deep_prompt_tokens < 0:
            raise ValueError(f"num_deep_prompt_tokens={self.num_deep_prompt_tokens} must be 0 (off) or more.")
        if not 0 <= self.deep_prompt_dropout < 1:
            raise ValueError(f"deep_prompt_dropout={self.deep_prompt_dropout} must lie in [0, 1).")
        if not 0 <= self.fusion_weight <= 1:
            raise ValueError(f"fusion_weight={self.fusion_weight} must lie in [0, 1].")
        self._check_references()
        if self.use_stem_branch and stem_of(self.vision_config) is None:
            raise ValueError(
                "use_stem_branch=True reads the features of a convolutional stem, and the image tower has none"
                " (vision_config.stem)."
            )
        if not 0 <= self.stem_branch_weight <= 1:
            raise ValueError(f"stem_branch_weight={self.stem_branch_weight} must lie in [0, 1].")
        if self.use_pre_vcp and text.hidden_size != self.projection_dim:
            raise ValueError(
                f"use_pre_vcp adds the image feature (projection_dim={self.projection_dim}) to word embeddings"
                f" (text_config.hidden_size={text.hidden_size}): the two must be equal. Take a backbone where they"
                " are, or set use_pre_vcp=False."
            )
        if self.use_post_vcp and (self.post_vcp_num_heads < 1 or vision.hidden_size % self.post_vcp_num_heads):
            raise ValueError(
                f"post_vcp_num_heads={self.post_vcp_num_heads} does not divide"
                f" vision_config.hidden_size={vision.hidden_size}."
            )
        self._check_prompts()

    def _check_references(self) -> None:
        depth = self.vision_config.num_hidden_layers
        blocks = without_stem_layer(self.memory_layers)
        numbers = all(isinstance(each, int) for each in blocks)
        if not self.memory_layers or not numbers or blocks != sorted({*blocks} & {*range(depth + 1)}):
            raise ValueError(
                f"reference_layers={self.reference_layers} must be ascending, distinct, and lie in 0..{depth} (0: the"
                f" embedded patches); before them may stand {STEM_LAYER!r}."
            )
        check_stem_layer(self.memory_layers, self.vision_config)
        if self.reference_neighborhood < 1 or self.reference_neighborhood % 2 == 0:
            raise ValueError(f"reference_neighborhood={self.reference_neighborhood} must be odd, 1 or more.")
        if not 0 < self.reference_scale < float("inf"):
            raise ValueError(f"reference_scale={self.reference_scale} must be a positive number.")
        if not 0 <= self.reference_weight <= 1:
            raise ValueError(f"reference_weight={self.reference_weight} must lie in [0, 1].")

    def _check_prompts(self) -> None:
        vocab_size = self.text_config.vocab_size
        if self.category_token_id < vocab_size:
            raise ValueError(
                f"category_token_id={self.category_token_id} is an ordinary token: the vocabulary has"
                f" vocab_size={vocab_size} entries, so the slot's id must be {vocab_size} or more."
            )
        counts = {
            name: len(getattr(self, name))
            for name in (
                "normal_prompts",
                "abnormal_prompts",
                "normal_prompt_input_ids",
                "abnormal_prompt_input_ids",
            )
        }
        if len(set(counts.values())) > 1 or 0 in counts.values():
            raise ValueError(f"Both states need the same number of prompts and of id lists, at least 1; got {counts}.")
        for prompt in (*self.normal_prompts, *self.abnormal_prompts):
            if prompt.count(CATEGORY_SLOT) != 1:
                raise ValueError(
                    f"The prompt {prompt!r} must contain exactly one {CATEGORY_SLOT!r}, the category slot."
                )

        ends = set()
        for ids in (*self.normal_prompt_input_ids, *self.abnormal_prompt_input_ids):
            if ids.count(self.category_token_id) != 1:
                raise ValueError(
                    f"The prompt ids {ids} must contain category_token_id={self.category_token_id} exactly once."
                )
            self.check_prompt_ids(ids)
            ends.add((ids[0], ids[-1]))
        if len(ends) > 1:
            raise ValueError(
                f"All prompt ids must begin with one start token and end with one end token, unpadded; got"
                f" {sorted(ends)}."
            )

    def check_prompt_ids(self, ids: list[int]) -> None:
        """
        Check the ids of one prompt, with its category slot, against the text tower.

        Raises:
            ValueError: an id outside the vocabulary, or too many tokens.
        """
        vocab_size, limit = self.text_config.vocab_size, self.text_config.max_position_embeddings
        words = [token for token in ids if token != self.category_token_id]
        if len(words) < 2 or min(words) < 0 or max(words) >= vocab_size:
            raise ValueError(
                f"The prompt ids {ids} do not fit a vocabulary of vocab_size={vocab_size} entries. For prompts of"
                " another vocabulary, give their ids, or call `model.set_prompts` with the backbone's tokenizer."
            )
        length = len(words) + self.num_category_tokens + self.num_deep_prompt_tokens
        if length > limit:
            raise ValueError(
                f"The prompt ids {str(ids[:4])[:-1]}, ...] make {length} tokens with"
                f" num_category_tokens={self.num_category_tokens} and"
                f" num_deep_prompt_tokens={self.num_deep_prompt_tokens}, more than max_position_embeddings={limit}."
                " Shorten the prompt."
            )

    def move_category_slot(self, vocab_size: int) -> None:
        """
        Adapt the configuration to another size of the vocabulary: the category slot's id must stay outside of it.

        Args:
            vocab_size (`int`): the new number of entries.
        """
        former, self.text_config.vocab_size = self.category_token_id, vocab_size
        if former >= vocab_size:
            return
        self.category_token_id = vocab_size
        for field in ("normal_prompt_input_ids", "abnormal_prompt_input_ids"):
            rows = [[vocab_size if token == former else token for token in ids] for ids in getattr(self, field)]
            setattr(self, field, rows)

    @property
    def prompt_eos_token_id(self) -> int:
        """Return the prompts' end token id; `text_config.eos_token_id` is wrong in OpenAI's own repositories."""
        return self.normal_prompt_input_ids[0][-1]
