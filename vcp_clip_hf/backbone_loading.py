"""Weights of adapter-only checkpoints: the learned part from one repository, CLIP from another."""

import os
from functools import partial

import torch
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from .configuration_vcp_clip import VCPCLIPConfig


__all__ = ["HUB_ARGUMENTS", "check_backbone", "load_adapter_weights", "load_backbone_weights"]

# Arguments of `from_pretrained` that say where files are looked for, as opposed to how the model is built
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def load_adapter_weights(location, variant: str | None, hub_arguments: dict) -> dict[str, torch.Tensor]:
    """The learned tensors of an adapter-only checkpoint: one safetensors file, or shards with an index."""

    def named(filename: str) -> str:
        # "model.safetensors" -> "model.fp16.safetensors", as save_pretrained(variant="fp16") writes
        stem, extension = filename.split(".", 1)
        return filename if variant is None else f"{stem}.{variant}.{extension}"

    find = partial(cached_file, location, _raise_exceptions_for_missing_entries=False, **hub_arguments)
    single = find(named(SAFE_WEIGHTS_NAME))
    if single is not None:
        return load_file(single)
    index_name = SAFE_WEIGHTS_INDEX_NAME
    if variant is not None:
        index_name = SAFE_WEIGHTS_INDEX_NAME.replace("index", f"index.{variant}")
    index = find(index_name)
    if index is None:
        raise OSError(f"{location} has neither {named(SAFE_WEIGHTS_NAME)} nor {index_name}: no weights to load.")
    shards, _ = get_checkpoint_shard_files(location, index, **hub_arguments)
    return {name: tensor for shard in shards for name, tensor in load_file(shard).items()}


def load_backbone_weights(config: VCPCLIPConfig, location, hub_arguments: dict) -> dict[str, torch.Tensor]:
    """CLIP's weights for an adapter-only checkpoint, under the names they have in our model."""
    name = config.backbone_name_or_path
    if name is None:
        raise ValueError(
            f"{location} holds the learned part only and its configuration names no backbone. Pass"
            " backbone_name_or_path=..., a Hub repository or a folder with the CLIP model."
        )
    # A relative folder may be meant from the checkpoint's own place
    beside = os.path.join(str(location), name)
    source = beside if not os.path.isdir(name) and os.path.isdir(beside) else name
    arguments = {key: value for key, value in hub_arguments.items() if key not in ("revision", "subfolder")}
    if config.backbone_revision is not None:
        arguments["revision"] = config.backbone_revision
    try:
        clip_config = CLIPConfig.from_pretrained(source, **arguments)
        check_backbone(config, clip_config, source)
        clip = CLIPModel.from_pretrained(source, config=clip_config, dtype=config.dtype or "auto", **arguments)
    except OSError as error:
        revision = f" (revision {config.backbone_revision})" if config.backbone_revision else ""
        raise OSError(
            f"{location} holds the learned part only; its CLIP backbone {source!r}{revision} could not be loaded:"
            f" {error}\nConnect to the network, or download it and pass backbone_name_or_path=<its folder>."
        ) from error
    return {f"clip.{key}": value for key, value in clip.state_dict().items()}


def check_backbone(config: VCPCLIPConfig, clip_config: CLIPConfig, source: str) -> None:
    """Another backbone than the one trained with gives wrong maps, or a page of shape errors: say it in one line."""
    compared = {
        "text_config": ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
        "vision_config": ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size"),
    }
    differences = [
        f"{part}.{field}: {ours} in the checkpoint, {theirs} in the backbone"
        for part, fields in compared.items()
        for field in fields
        if (ours := getattr(getattr(config, part), field)) != (theirs := getattr(getattr(clip_config, part), field))
    ]
    if differences:
        raise ValueError(
            f"The backbone {source!r} is not the one the checkpoint was trained with. {'; '.join(differences)}."
        )
