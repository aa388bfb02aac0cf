"""Convert the checkpoints of AnomalyCLIP's authors (`checkpoints/9_12_4_multiscale*/epoch_<n>.pth`).

    vcp-clip convert --method anomaly_clip --checkpoint 9_12_4_multiscale/epoch_15.pth --output anomaly-clip-visa

The weights in the folder `9_12_4_multiscale` were trained on VisA, those in `9_12_4_multiscale_visa` on MVTec-AD (to
be tested on VisA). Such a file has the entry `prompt_learner` with

- `ctx_pos`, `ctx_neg`, `compound_prompts_text.<i>`: the learned vectors;
- `compound_prompt_projections.<i>`: linear layers that the authors' code never calls; they are left out;
- `tokenized_prompts_*`, and their word embeddings `token_prefix_*` and `token_suffix_*`: copies of the backbone's word
  embeddings, with which they are compared.
"""

import os
import re
from collections.abc import Mapping, Sequence

import torch
from transformers import CLIPModel
from transformers.utils import logging

from .methods import AnomalyCLIPConfig, AnomalyCLIPModel
from .official_checkpoint import check_entries, fill_learned_part, read_official, size_in


__all__ = ["convert_anomaly_clip"]

logger = logging.get_logger(__name__)

_PREFIX = "prompt_learner."
# State -> its name in the file
_STATES = {"normal": "pos", "abnormal": "neg"}
_UNUSED = re.compile(re.escape(_PREFIX) + r"compound_prompt_projections\.\d+\.(weight|bias)")
# Largest difference of the word embeddings from the backbone's, whose file may have them in half precision
_EMBEDDING_TOLERANCE = 1e-3


def convert_anomaly_clip(
    checkpoint: str | os.PathLike,
    backbone: str | os.PathLike | CLIPModel,
    image_size: int = 518,
    feature_layers: Sequence[int] | None = None,
    **kwargs,
) -> AnomalyCLIPModel:
    """
    Convert a checkpoint of the authors to a model on its CLIP backbone.

    Args:
        checkpoint (`str` or `os.PathLike`): path of the `.pth` file.
        backbone (`str`, `os.PathLike` or `CLIPModel`):
            CLIP as a Hub repository, a folder or a loaded model; `openai/clip-vit-large-patch14-336` for the published
            files.
        image_size (`int`, *optional*, defaults to 518): side in pixels of the input that it was trained with.
        feature_layers (`Sequence[int]`, *optional*, defaults to the last block, as in the authors' scripts):
            1-based image blocks. The file does not depend on them.
        kwargs: arguments of [`AnomalyCLIPModel.from_clip`], such as `dpam_layer`, which the file does not contain, or
            `hidden_act` (`"quick_gelu"` in both towers, as in the authors' code). `normal_prompt` and
            `abnormal_prompt` are needed if the words are not the authors'.

    Returns:
        [`AnomalyCLIPModel`] in evaluation mode.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not such a checkpoint, or does not fit the backbone; the message lists all missing and
            unexpected entries and all wrong shapes.
    """
    tensors = read_official(checkpoint)
    num_deep = sum(name.startswith(f"{_PREFIX}compound_prompts_text.") for name in tensors)
    defaults = AnomalyCLIPConfig()
    num_context = size_in(tensors, f"{_PREFIX}ctx_pos", 2, defaults.num_context_tokens)
    num_deep_tokens = size_in(tensors, f"{_PREFIX}compound_prompts_text.0", 0, defaults.num_deep_prompt_tokens)
    model = AnomalyCLIPModel.from_clip(
        backbone,
        image_size=image_size,
        feature_layers=None if feature_layers is None else list(feature_layers),
        num_context_tokens=num_context,
        deep_prompt_depth=num_deep + 1,
        num_deep_prompt_tokens=num_deep_tokens,
        **{"hidden_act": "quick_gelu", **kwargs},
    )
    unused = [name for name in tensors if _UNUSED.fullmatch(name)]
    check_entries(tensors, _official_shapes(model.config), checkpoint, "AnomalyCLIP", unused)
    for state in _STATES:
        _take_prompt(tensors, state, model, checkpoint)
    fill_learned_part(model, _to_our_names(tensors, num_deep), checkpoint)
    if unused:
        logger.info(f"Skipped {_PREFIX}compound_prompt_projections: the authors' code does not use them.")
    return model


def _official_shapes(config: AnomalyCLIPConfig) -> dict[str, tuple[int, ...]]:
    """Return the entries that an official checkpoint of this configuration must have."""
    width, length = config.text_config.hidden_size, config.text_config.max_position_embeddings
    num_context, shapes = config.num_context_tokens, {}
    for name in _STATES.values():
        shapes |= {
            f"ctx_{name}": (1, 1, num_context, width),
            f"token_prefix_{name}": (1, 1, 1, width),
            f"token_suffix_{name}": (1, 1, length - 1 - num_context, width),
            f"tokenized_prompts_{name}": (1, 1, length),
        }
    for index in range(config.deep_prompt_depth - 1):
        shapes[f"compound_prompts_text.{index}"] = (config.num_deep_prompt_tokens, width)
    return {_PREFIX + name: shape for name, shape in shapes.items()}


def _take_prompt(
    tensors: Mapping[str, torch.Tensor], state: str, model: AnomalyCLIPModel, checkpoint: str | os.PathLike
) -> None:
    """Check the stored prompt of a state against model and backbone, and set its ids in the configuration."""
    config, name = model.config, _STATES[state]
    row = tensors[f"{_PREFIX}tokenized_prompts_{name}"].flatten().long()
    if row.min() < 0 or row.max() >= config.text_config.vocab_size:
        raise ValueError(
            f"{checkpoint}: tokenized_prompts_{name} has ids from {row.min()} to {row.max()}, but the backbone's"
            f" vocabulary has {config.text_config.vocab_size} entries. Pass the backbone that the file was made with."
        )
    # The authors read the text embedding at the largest id
    words, end = 1 + config.num_context_tokens, int(row.argmax())
    if end < words:
        raise ValueError(f"{checkpoint}: tokenized_prompts_{name} has no end token after its context.")
    ids = [int(row[0]), *row[words : end + 1].tolist()]

    known = getattr(config, f"{state}_prompt_ids")
    if known is not None and ids != known:
        raise ValueError(
            f"{checkpoint}: tokenized_prompts_{name} are the ids {ids}, but {known} are those of"
            f" {getattr(config, f'{state}_prompt')!r}. Pass the words of the file as {state}_prompt."
        )
    embedding = model.get_input_embeddings()
    with torch.no_grad():
        embeds = embedding(row.to(embedding.weight.device)).float().cpu()
    for part, expected in (("prefix", embeds[:1]), ("suffix", embeds[words:])):
        stored = tensors[f"{_PREFIX}token_{part}_{name}"].float().view_as(expected)
        difference = (stored - expected).abs().max()
        if difference > _EMBEDDING_TOLERANCE:
            raise ValueError(
                f"{checkpoint}: token_{part}_{name} differs by {difference:.2g} from the backbone's word embeddings."
                " Pass the backbone that the file was made with."
            )
    setattr(config, f"{state}_prompt_ids", ids)


def _to_our_names(tensors: Mapping[str, torch.Tensor], num_deep: int) -> dict[str, torch.Tensor]:
    state_dict = {f"prompts.{state}_context": tensors[f"{_PREFIX}ctx_{name}"][0, 0] for state, name in _STATES.items()}
    deep = {
        f"prompts.deep_prompts_{index}": tensors[f"{_PREFIX}compound_prompts_text.{index}"]
        for index in range(num_deep)
    }
    return state_dict | deep
