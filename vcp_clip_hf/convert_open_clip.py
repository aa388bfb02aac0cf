"""Convert an open_clip checkpoint to transformers' `CLIPModel`, for example the ViT-B-16-plus-240 of WinCLIP.

    vcp-clip convert --method open_clip \
        --checkpoint timm/vit_base_patch16_plus_clip_240.laion400m_e31 --output vit-b-16-plus-240

The file may be safetensors or a pickle, which is read with `weights_only=True`. The image tower may have open_clip's
names (`visual.conv1`, `visual.transformer.resblocks.0`) or timm's (`visual.trunk.patch_embed`,
`visual.trunk.blocks.0`), the text tower open_clip's older names or newer ones with the prefix `text.`.
"""

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel
from transformers.utils import cached_file

from .atomic_write import atomic_folder
from .checkpoint_folder import load_tokenizer
from .official_checkpoint import read_official


__all__ = ["convert_open_clip"]

_PROGRAM = "python -m vcp_clip_hf.convert_open_clip"

# Files of a folder or Hub repository, in the order of preference
_WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_CONFIG_FILE = "open_clip_config.json"

# Tokenizer with the vocabulary of all models that open_clip trained with its default tokenizer
_OPENAI_TOKENIZER = "openai/clip-vit-large-patch14-336"

# Width of a head in all of open_clip's plain towers, whose files do not state the number of heads
_HEAD_WIDTH = 64

# Entries that are not used: buffers of older versions, which CLIPModel computes, and records of TorchScript files
_WITHOUT_EFFECT = ("attn_mask", "text.attn_mask", "input_resolution", "context_length", "vocab_size")

# Name in the file -> name in CLIPModel, without the prefixes of tower and block; each has a weight and a bias
_OPEN_CLIP_BLOCK = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_TIMM_BLOCK = {
    "norm1": "layer_norm1",
    "attn.proj": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_OPEN_CLIP_VISION = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "ln_post.weight": "vision_model.post_layernorm.weight",
    "ln_post.bias": "vision_model.post_layernorm.bias",
}
_TIMM_VISION = {
    "cls_token": "vision_model.embeddings.class_embedding",
    "pos_embed": "vision_model.embeddings.position_embedding.weight",
    "patch_embed.proj.weight": "vision_model.embeddings.patch_embedding.weight",
    "norm_pre.weight": "vision_model.pre_layrnorm.weight",
    "norm_pre.bias": "vision_model.pre_layrnorm.bias",
    "norm.weight": "vision_model.post_layernorm.weight",
    "norm.bias": "vision_model.post_layernorm.bias",
}
_TEXT = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}


def convert_open_clip(
    checkpoint: str | os.PathLike,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    hidden_act: str | None = None,
    **hub_arguments: Any,
) -> CLIPModel:
    """
    Convert an open_clip checkpoint.

    Every tensor of the file is used or known to have no effect, and every parameter of the model is filled. Sizes are
    read from the tensors.

    Args:
        checkpoint (`str` or `os.PathLike`):
            File (`.safetensors`, or a pickle such as `.pt` and `.bin`), or a folder or Hub repository with
            `open_clip_model.safetensors` or `open_clip_pytorch_model.bin`.
        vision_heads, text_heads (`int`, *optional*):
            Number of attention heads of the towers. Default: those in `open_clip_config.json` beside the file, else
            one for each 64 channels.
        hidden_act (`str`, *optional*):
            Activation of both towers. Default: `"quick_gelu"` if `open_clip_config.json` says so, else `"gelu"`.
        hub_arguments: arguments of `from_pretrained` such as `revision` and `token`.

    Returns:
        `CLIPModel` in evaluation mode, float32.

    Raises:
        OSError: no such file, folder or repository.
        ValueError: the file cannot be read, or is not such a checkpoint; the message lists all problems.
    """
    source = str(checkpoint)
    path, stated = _find_files(source, hub_arguments)
    tensors = _read_tensors(path)
    renamed = _to_clip_names(tensors, source)
    config = _clip_config(renamed, stated, source, vision_heads, text_heads, hidden_act)
    return _filled_model(config, renamed, source)


def _find_files(source: str, hub_arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the weight file of a checkpoint, and the `model_cfg` that lies beside it, or an empty dictionary."""
    if os.path.isfile(source):
        config = os.path.join(os.path.dirname(source), _CONFIG_FILE)
        return source, _read_model_config(config if os.path.isfile(config) else None)
    options = {"_raise_exceptions_for_missing_entries": False, **hub_arguments}
    for name in _WEIGHT_FILES:
        path = cached_file(source, name, **options)
        if path is not None:
            return path, _read_model_config(cached_file(source, _CONFIG_FILE, **options))
    raise OSError(
        f"{source} has neither {' nor '.join(_WEIGHT_FILES)}. Pass the path of the file itself if it has another name."
    )


def _read_model_config(path: str | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        return dict(values.get("model_cfg", values))
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} is not a configuration of open_clip: {error}. Download it again.") from error


def _read_tensors(path: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a file, without the prefixes of training checkpoints."""
    try:
        content = load_file(path) if path.endswith(".safetensors") else read_official(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file ({error}). It is damaged: download it again.") from error
    # A training checkpoint also has epoch, optimizer and others beside its `state_dict`
    inner = {
        name.removeprefix("state_dict."): each for name, each in content.items() if name.startswith("state_dict.")
    }
    tensors = inner or content
    others = [name for name, each in tensors.items() if not isinstance(each, torch.Tensor)]
    if others:
        raise ValueError(f"{path} has entries that are not tensors: {others}; expected a dictionary of tensors.")
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def _to_clip_names(tensors: dict[str, torch.Tensor], source: str) -> dict[str, torch.Tensor]:
    """Return all tensors with the names and orientations of `CLIPModel`."""
    renamed, unknown = {}, []
    for name, tensor in tensors.items():
        if name in _WITHOUT_EFFECT:
            continue
        if name == "logit_scale":
            # Files hold it with shape () or (1,)
            renamed[name] = tensor.reshape(()) if tensor.numel() == 1 else tensor
            continue
        found = _vision_entries(name, tensor) if name.startswith("visual.") else _text_entries(name, tensor)
        if found is None:
            unknown.append(f"{name} {tuple(tensor.shape)}")
        elif found.keys() & renamed.keys():
            unknown.append(f"{name} {tuple(tensor.shape)}: its place is taken by another tensor")
        else:
            renamed.update(found)
    if not any(name.startswith("text_model.") for name in renamed) and any("blocks.0." in name for name in tensors):
        raise ValueError(
            f"{source} has an image tower only (timm's own files, named model.safetensors, do). A CLIPModel needs the"
            f" text tower too: use the file {_WEIGHT_FILES[0]} of the same repository."
        )
    if unknown:
        raise ValueError(
            f"{source} is not a plain CLIP of open_clip: CLIPModel has no place for {len(unknown)} of its"
            f" {len(tensors)} tensors:\n  " + "\n  ".join(unknown)
        )
    return renamed


def _vision_entries(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor] | None:
    """Return the entries of `CLIPModel` for one tensor of the image tower, or `None` if it has no place there."""
    name = name.removeprefix("visual.").removeprefix("trunk.")
    if name in _OPEN_CLIP_VISION:
        return {_OPEN_CLIP_VISION[name]: tensor}
    if name in _TIMM_VISION:
        # timm keeps an axis for the batch
        return {_TIMM_VISION[name]: _without_batch(tensor) if name in ("cls_token", "pos_embed") else tensor}
    if name == "proj":
        return {"visual_projection.weight": _transposed(tensor)}
    if name in ("head.proj.weight", "head.weight"):
        return {"visual_projection.weight": tensor}
    if name in ("head.proj.bias", "head.bias"):
        # timm's conversions write a bias of zeros; CLIPModel has none
        return None if tensor.any() else {}
    if match := re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", name):
        return _block_entries("vision_model", match[1], match[2], tensor, _OPEN_CLIP_BLOCK)
    if match := re.fullmatch(r"blocks\.(\d+)\.(.+)", name):
        return _block_entries("vision_model", match[1], match[2], tensor, _TIMM_BLOCK)
    return None


def _text_entries(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor] | None:
    """Return the entries of `CLIPModel` for one tensor of the text tower, or `None` if it has no place there."""
    name = name.removeprefix("text.")
    if name in _TEXT:
        return {_TEXT[name]: tensor}
    if name == "text_projection":
        return {"text_projection.weight": _transposed(tensor)}
    if name == "text_projection.weight":  # a linear layer in newer models
        return {name: tensor}
    if match := re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", name):
        return _block_entries("text_model", match[1], match[2], tensor, _OPEN_CLIP_BLOCK)
    return None


def _block_entries(
    tower: str, index: str, name: str, tensor: torch.Tensor, names: dict[str, str]
) -> dict[str, torch.Tensor] | None:
    prefix = f"{tower}.encoder.layers.{index}."
    if name in ("attn.in_proj_weight", "attn.in_proj_bias", "attn.qkv.weight", "attn.qkv.bias"):
        if tensor.shape[0] % 3:
            return None
        kind = "weight" if name.endswith("weight") else "bias"
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{prefix}self_attn.{letter}_proj.{kind}": part for letter, part in parts}
    module, _, kind = name.rpartition(".")
    if module not in names or kind not in ("weight", "bias"):
        return None
    return {f"{prefix}{names[module]}.{kind}": tensor}


def _without_batch(tensor: torch.Tensor) -> torch.Tensor:
    """Return a class token (1, 1, D) as (D,), and positions (1, 1 + N, D) as (1 + N, D)."""
    tensor = tensor.squeeze(0)
    return tensor.squeeze(0) if tensor.ndim == 2 and tensor.shape[0] == 1 else tensor


def _transposed(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.T if tensor.ndim == 2 else tensor


def _clip_config(
    tensors: dict[str, torch.Tensor],
    stated: dict[str, Any],
    source: str,
    vision_heads: int | None,
    text_heads: int | None,
    hidden_act: str | None,
) -> CLIPConfig:
    """Return a configuration with the tensors' sizes, and with heads and activation as given or stated."""
    patches = _shaped(tensors, "vision_model.embeddings.patch_embedding.weight", 4, source)
    positions = _shaped(tensors, "vision_model.embeddings.position_embedding.weight", 2, source)
    words = _shaped(tensors, "text_model.embeddings.token_embedding.weight", 2, source)
    context = _shaped(tensors, "text_model.embeddings.position_embedding.weight", 2, source)
    projection_dim = _shaped(tensors, "text_projection.weight", 2, source)[0]
    side = math.isqrt(max(positions[0] - 1, 0))
    if side == 0 or side**2 != positions[0] - 1 or patches[2] != patches[3]:
        raise ValueError(
            f"{source} was made for images or patches that are not square: {positions[0]} positions, patches of"
            f" {patches[2]} x {patches[3]} pixels. CLIPModel holds square ones only."
        )
    vision_stated, text_stated = stated.get("vision_cfg", {}), stated.get("text_cfg", {})
    width = vision_stated.get("head_width", _HEAD_WIDTH)
    hidden_act = hidden_act or ("quick_gelu" if stated.get("quick_gelu") else "gelu")
    shared = {"projection_dim": projection_dim, "hidden_act": hidden_act, "layer_norm_eps": 1e-5}
    vision = {
        **shared,
        **_tower_sizes(tensors, "vision_model", patches[0], source),
        "num_attention_heads": _heads("vision_heads", vision_heads, patches[0], None, width, source),
        "num_channels": patches[1],
        "patch_size": patches[2],
        "image_size": side * patches[2],
    }
    text = {
        **shared,
        **_tower_sizes(tensors, "text_model", words[1], source),
        "num_attention_heads": _heads(
            "text_heads", text_heads, words[1], text_stated.get("heads"), _HEAD_WIDTH, source
        ),
        "vocab_size": words[0],
        "max_position_embeddings": context[0],
        # The last two entries of CLIP's vocabulary
        "bos_token_id": words[0] - 2,
        "eos_token_id": words[0] - 1,
        "pad_token_id": words[0] - 1,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection_dim)


def _shaped(tensors: dict[str, torch.Tensor], name: str, ndim: int, source: str) -> tuple[int, ...]:
    """Return the shape of a tensor that sizes are read from."""
    if name not in tensors:
        raise ValueError(
            f"{source} is not a CLIP of open_clip: it has no tensor for {name}; expected an image tower"
            " (visual.conv1.weight or visual.trunk.patch_embed.proj.weight, ...) and a text tower"
            " (token_embedding.weight, ...)."
        )
    shape = tuple(tensors[name].shape)
    if len(shape) != ndim or 0 in shape:
        raise ValueError(f"{source}: the tensor for {name} has shape {shape}, expected {ndim} axes.")
    return shape


def _tower_sizes(tensors: dict[str, torch.Tensor], tower: str, hidden_size: int, source: str) -> dict[str, int]:
    pattern = re.compile(rf"{tower}\.encoder\.layers\.(\d+)\.")
    indices = {int(match[1]) for name in tensors if (match := pattern.match(name))}
    if indices != set(range(len(indices))) or not indices:
        raise ValueError(f"{source}: the blocks of the {tower} are {sorted(indices)}, expected 0, 1, 2, ...")
    intermediate_size = _shaped(tensors, f"{tower}.encoder.layers.0.mlp.fc1.weight", 2, source)[0]
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": len(indices),
        "intermediate_size": intermediate_size,
    }


def _heads(name: str, given: int | None, hidden_size: int, stated: int | None, width: int, source: str) -> int:
    heads = given or stated
    if heads is None and hidden_size % width == 0:
        heads = hidden_size // width
    if heads is None or heads < 1 or hidden_size % heads:
        raise ValueError(
            f"{source}: {hidden_size} channels cannot be divided into"
            f" {f'heads of {width} channels' if heads is None else f'{heads} heads'}. Pass {name}: the"
            " weights do not state it."
        )
    return heads


def _filled_model(config: CLIPConfig, tensors: dict[str, torch.Tensor], source: str) -> CLIPModel:
    """Return a model with all tensors, after a comparison of names, shapes and values."""
    with torch.device("meta"):
        expected = {name: tuple(value.shape) for name, value in CLIPModel(config).state_dict().items()}
    problems = [f"missing: {name} {shape}" for name, shape in expected.items() if name not in tensors]
    for name, tensor in tensors.items():
        if name not in expected:
            problems.append(f"unexpected: {name} {tuple(tensor.shape)}")
        elif tuple(tensor.shape) != expected[name]:
            problems.append(f"wrong shape: {name} {tuple(tensor.shape)}, expected {expected[name]}")
        elif not tensor.isfinite().all():
            problems.append(f"not finite: {name}")
    if problems:
        raise ValueError(
            f"{source} is not a complete CLIP. The problems, with CLIPModel's names:\n  " + "\n  ".join(problems)
        )
    model = CLIPModel(config).eval()
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=True)
    model.requires_grad_(False)
    return model


def main(arguments: Sequence[str] | None = None, prog: str = _PROGRAM) -> None:
    """
    Run the command line.

    Args:
        arguments (`Sequence[str]`, *optional*): command-line arguments; `sys.argv[1:]` by default.
        prog (`str`, *optional*): name of the program in its help.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Convert an open_clip checkpoint into a CLIPModel with its tokenizer.",
    )
    parser.add_argument("--checkpoint", required=True, metavar="NAME", help="file, folder or Hub repository")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="folder to write")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of the repository")
    parser.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="folder or Hub repository of the tokenizer (default: the checkpoint's own, then OpenAI's)",
    )
    parser.add_argument(
        "--vision-heads", type=int, metavar="INT", help="heads of the image tower; default: width / 64"
    )
    parser.add_argument("--text-heads", type=int, metavar="INT", help="heads of the text tower; default: width / 64")
    parser.add_argument("--hidden-act", metavar="NAME", help="activation: gelu or quick_gelu (default: gelu)")
    options = parser.parse_args([str(each) for each in (sys.argv[1:] if arguments is None else arguments)])
    hub_arguments = {} if options.revision is None else {"revision": options.revision}
    try:
        clip = convert_open_clip(
            options.checkpoint, options.vision_heads, options.text_heads, options.hidden_act, **hub_arguments
        )
    except (ValueError, OSError) as error:
        parser.exit(1, f"error: {error}\n")
    folder = options.checkpoint if not os.path.isfile(options.checkpoint) else os.path.dirname(options.checkpoint)
    sources = [options.tokenizer] if options.tokenizer else [folder or ".", _OPENAI_TOKENIZER]
    tokenizer = load_tokenizer(clip.config.text_config.vocab_size, *sources)
    with atomic_folder(options.output) as path:
        clip.save_pretrained(path)
        if tokenizer is not None:
            tokenizer.save_pretrained(path)
    vision = clip.config.vision_config
    print(f"Wrote {options.output}: {clip.num_parameters():,} parameters")
    sizes = f"{vision.num_hidden_layers} blocks, {vision.hidden_size} channels, {vision.num_attention_heads} heads"
    print(f"  image tower: {sizes}, {vision.image_size} pixels")
    print("  " + ("tokenizer included" if tokenizer is not None else "no tokenizer: pass --tokenizer"))


if __name__ == "__main__":
    main()
