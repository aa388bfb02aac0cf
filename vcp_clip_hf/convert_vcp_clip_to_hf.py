"""Convert the authors' checkpoints (`train_visa.pth`, `train_mvtec.pth`) into a Hub-ready folder.

The command line also converts those of the other methods, and CLIPs of open_clip, with `--method`.

    python -m vcp_clip_hf.convert_vcp_clip_to_hf --checkpoint train_visa.pth \
        --backbone openai/clip-vit-large-patch14-336 --output vcp-clip-visa

The authors' file holds the learned part only: `trainable_linearlayer`, `New_Lan_Embed` and `Zero_try` are state dicts,
the deep prompts are plain tensors. The file is a pickle, and is read with `weights_only=True`.
"""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import CLIPModel
from transformers.utils import logging

from .anomaly_scoring import AUTHORS_SCORING
from .checkpoint_folder import CheckpointParts, load_tokenizer, save_parts
from .configuration_frozen_clip import FrozenCLIPConfig
from .configuration_vcp_clip import VCPCLIPConfig
from .convert_anomaly_clip import convert_anomaly_clip
from .convert_april_gan import convert_april_gan
from .convert_open_clip import main as convert_backbone
from .image_processing_vcp_clip import VCPCLIPImageProcessor
from .methods import AnomalyCLIPConfig, AprilGANConfig
from .modeling_vcp_clip import VCPCLIPModel
from .official_checkpoint import (
    check_entries,
    check_feature_layers,
    describe_file,
    fill_learned_part,
    linear_layers,
    read_official,
    size_in,
)


__all__ = ["convert_checkpoint", "official_image_processor"]

logger = logging.get_logger(__name__)

# Settings of the authors' test code that differ from the paper
_OFFICIAL_HIDDEN_ACT = "gelu"
_OFFICIAL_FUSION_WEIGHT = 0.8

# A `--method` whose files are a backbone, with options of its own
_OPEN_CLIP = "open_clip"

# Entries of the file that no output depends on
_WITHOUT_EFFECT = {
    "prompt_text_projection": "the authors' code does not use it",
    "Zero_try.k_proj_pre_1.bias": "adds a constant to the scores of all patches, which their softmax cancels",
}


def convert_checkpoint(
    checkpoint: str | os.PathLike,
    backbone: str | os.PathLike | CLIPModel,
    image_size: int = 518,
    feature_layers: Sequence[int] | None = None,
    **kwargs,
) -> VCPCLIPModel:
    """
    Convert a checkpoint of the authors to a model on its CLIP backbone.

    Args:
        checkpoint (`str` or `os.PathLike`): path of the `.pth` file.
        backbone (`str`, `os.PathLike` or `CLIPModel`):
            CLIP as a Hub repository, a folder or a loaded model; `openai/clip-vit-large-patch14-336` for the published
            files.
        image_size (`int`, *optional*, defaults to 518): side in pixels of the input that it was trained with.
        feature_layers (`Sequence[int]`, *optional*, defaults to evenly spaced blocks that include the last one):
            1-based image blocks, as many as the file has linear layers; 6, 12, 18, 24 for the published files.
        kwargs:
            Arguments of [`VCPCLIPModel.from_clip`], e.g. other prompts with their ids, `post_vcp_num_heads` (8, which
            the file does not contain), `fusion_weight` (0.8, from the authors' test code), `hidden_act` (`"gelu"`).

    Returns:
        [`VCPCLIPModel`] in evaluation mode.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not such a checkpoint, or does not fit the backbone; the message lists all missing and
            unexpected entries and all wrong shapes.
    """
    tensors = read_official(checkpoint)
    sizes = {
        "num_category_tokens": size_in(tensors, "New_Lan_Embed.prompt_query", 1, default=2),
        "num_deep_prompt_tokens": size_in(tensors, "prompt_embeddings", 1, default=1),
    }
    model = VCPCLIPModel.from_clip(
        backbone,
        image_size=image_size,
        feature_layers=None if feature_layers is None else list(feature_layers),
        **{
            "hidden_act": _OFFICIAL_HIDDEN_ACT,
            "fusion_weight": _OFFICIAL_FUSION_WEIGHT,
            **sizes,
            **kwargs,
        },
    )
    config = model.config
    num_blocks = config.vision_config.num_hidden_layers
    check_feature_layers(linear_layers(tensors), feature_layers, config.feature_layers, num_blocks, checkpoint)
    check_entries(tensors, _official_shapes(config), checkpoint, "VCP-CLIP", _WITHOUT_EFFECT)
    fill_learned_part(model, _to_our_names(tensors, config), checkpoint)
    for name in sorted(_WITHOUT_EFFECT.keys() & tensors.keys()):
        logger.info(f"Skipped {name}: {_WITHOUT_EFFECT[name]}.")
    return model


def official_image_processor(config: VCPCLIPConfig) -> VCPCLIPImageProcessor:
    """Return the authors' processing: squash, sigma 8, score from the 2000 largest pixels of both branches."""
    height, width = config.input_size
    # The authors average a fixed number of pixels, so the fraction depends on the input size
    num_pixels = round(AUTHORS_SCORING["top_k_fraction"] * math.prod(VCPCLIPConfig().input_size))
    fraction = min(1.0, num_pixels / (height * width))
    return VCPCLIPImageProcessor.for_model(config, **{**AUTHORS_SCORING, "top_k_fraction": fraction})


def _official_shapes(config: VCPCLIPConfig) -> dict[str, tuple[int, ...]]:
    """Return the entries that an official checkpoint of this configuration must have."""
    r, n = config.num_category_tokens, config.num_deep_prompt_tokens
    depth, text = config.text_config.num_hidden_layers, config.text_config.hidden_size
    joint, vision = config.projection_dim, config.vision_config.hidden_size
    shapes = {
        "New_Lan_Embed.prompt_query": (1, r, text),
        "New_Lan_Embed.prompt_temp": (),
        "New_Lan_Embed.prompt_linear1.fc.weight": (r, 1, 3),
        "New_Lan_Embed.prompt_linear1.fc.bias": (r,),
        "Zero_try.prompt_temp_l1": (),
        "Zero_try.q_proj_pre.weight": (vision, joint, 1),
        "Zero_try.q_proj_pre.bias": (vision,),
        "Zero_try.k_proj_pre_1.weight": (vision, vision, 1),
        "Zero_try.v_proj_pre_1.weight": (vision, vision, 1),
        "Zero_try.v_proj_pre_1.bias": (vision,),
        "Zero_try.proj_post_t.weight": (vision, vision, 1),
        "Zero_try.proj_post_t.bias": (vision,),
        "prompt_embeddings": (1, n, text),
        "deep_prompt_embeddings": (depth - 1, n, text),
        "prompt_proj.weight": (text, text),
        "prompt_proj.bias": (text,),
        "prompt_norm.weight": (text,),
        "prompt_norm.bias": (text,),
    }
    for index in range(len(config.feature_layers)):
        shapes[f"trainable_linearlayer.fc.{index}.weight"] = (joint, vision)
        shapes[f"trainable_linearlayer.fc.{index}.bias"] = (joint,)
    return shapes


def _to_our_names(tensors: dict[str, torch.Tensor], config: VCPCLIPConfig) -> dict[str, torch.Tensor]:
    state_dict = {
        "pre_vcp.category_embeddings": tensors["New_Lan_Embed.prompt_query"][0],
        "pre_vcp.mini_net.weight": tensors["New_Lan_Embed.prompt_linear1.fc.weight"],
        "pre_vcp.mini_net.bias": tensors["New_Lan_Embed.prompt_linear1.fc.bias"],
        "base_logit_scale": tensors["New_Lan_Embed.prompt_temp"],
        "vcp_logit_scale": tensors["Zero_try.prompt_temp_l1"],
        "deep_prompts.embeddings": torch.cat([tensors["prompt_embeddings"], tensors["deep_prompt_embeddings"]]),
        "deep_prompts.projection.weight": tensors["prompt_proj.weight"],
        "deep_prompts.projection.bias": tensors["prompt_proj.bias"],
        "prompt_norm.weight": tensors["prompt_norm.weight"],
        "prompt_norm.bias": tensors["prompt_norm.bias"],
    }
    projections = {"query": "q_proj_pre", "key": "k_proj_pre_1", "value": "v_proj_pre_1", "output": "proj_post_t"}
    for ours, theirs in projections.items():
        # in the authors' file these are convolutions with a kernel of one patch
        state_dict[f"post_vcp.{ours}_projection.weight"] = tensors[f"Zero_try.{theirs}.weight"].squeeze(-1)
        if ours != "key":
            state_dict[f"post_vcp.{ours}_projection.bias"] = tensors[f"Zero_try.{theirs}.bias"]
    for index in range(len(config.feature_layers)):
        for part in ("weight", "bias"):
            state_dict[f"feature_projections.{index}.{part}"] = tensors[f"trainable_linearlayer.fc.{index}.{part}"]
    return state_dict


# Name on the command line -> converter
_CONVERTERS = {
    VCPCLIPConfig.model_type: convert_checkpoint,
    AprilGANConfig.model_type: convert_april_gan,
    AnomalyCLIPConfig.model_type: convert_anomaly_clip,
}


def _image_processor(config: FrozenCLIPConfig) -> VCPCLIPImageProcessor:
    if isinstance(config, VCPCLIPConfig):
        return official_image_processor(config)
    return VCPCLIPImageProcessor.for_model(config)


def main(arguments: Sequence[str] | None = None, prog: str = "python -m vcp_clip_hf.convert_vcp_clip_to_hf") -> None:
    """
    Run the command line. Options are spelled with hyphens or underscores.

    Args:
        arguments (`Sequence[str]`, *optional*): command-line arguments; `sys.argv[1:]` by default.
        prog (`str`, *optional*): name of the program in its help.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s --checkpoint FILE --output FOLDER [OPTIONS]",
        description="Convert the authors' checkpoint (.pth) of VCP-CLIP or of another method into a folder for"
        " from_pretrained and the Hub.",
    )
    parser.add_argument(
        "--method",
        choices=[*_CONVERTERS, _OPEN_CLIP],
        default=VCPCLIPConfig.model_type,
        help="method that the file belongs to (default: %(default)s); open_clip: a CLIP itself, see"
        f" `--method {_OPEN_CLIP} --help`",
    )
    parser.add_argument(
        "--checkpoint", required=True, type=Path, metavar="FILE", help="the authors' file, e.g. train_visa.pth"
    )
    parser.add_argument(
        "--backbone",
        metavar="NAME",
        default="openai/clip-vit-large-patch14-336",
        help="CLIP: a Hub repository or a folder (default: %(default)s, which the published files need)",
    )
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of the backbone's repository")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER", help="folder to write")
    parser.add_argument(
        "--image-size", type=int, default=518, metavar="INT", help="input size in pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--feature-layers",
        type=int,
        nargs="+",
        metavar="INT",
        help="image blocks whose features are used, e.g. 6 12 18 24 (default: four at even distances; the last one"
        f" for {AnomalyCLIPConfig.model_type})",
    )
    parser.add_argument(
        "--adapter-only", action="store_true", help="write the learned part only; the configuration names the backbone"
    )
    given = [_with_hyphens(str(each)) for each in (sys.argv[1:] if arguments is None else arguments)]
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--method")
    chosen, others = chooser.parse_known_args(given)
    if chosen.method == _OPEN_CLIP:
        convert_backbone(others, prog=f"{prog} --method {_OPEN_CLIP}")
        return
    options = parser.parse_args(given)
    hub_arguments = {} if options.revision is None else {"revision": options.revision}
    try:
        model = _CONVERTERS[options.method](
            options.checkpoint, options.backbone, options.image_size, options.feature_layers, **hub_arguments
        )
    except (ValueError, OSError) as error:
        parser.exit(1, f"error: {error}\n")
    tokenizer = load_tokenizer(model.config.text_config.vocab_size, options.backbone, **hub_arguments)
    save_parts(
        options.output,
        CheckpointParts(model, _image_processor(model.config), tokenizer),
        adapter_only=options.adapter_only,
        training_facts={"converted_from": describe_file(options.checkpoint)},
    )

    learned = model.num_parameters(only_trainable=True)
    print(f"Wrote {options.output}: {learned:,} learned parameters on {options.backbone}")
    print(f"  feature layers {model.config.feature_layers}, input {options.image_size} pixels")
    print("  " + ("learned part only" if options.adapter_only else "CLIP weights included"))
    without = "no tokenizer: other prompts and product names cannot be tokenized"
    print("  " + (without if tokenizer is None else "tokenizer included"))
    for name, reason in (_WITHOUT_EFFECT if options.method == VCPCLIPConfig.model_type else {}).items():
        print(f"  skipped {name}: {reason}")


def _with_hyphens(argument: str) -> str:
    """Spell the name of a long option with hyphens; leave values alone."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return "--" + name.replace("_", "-") + equals + value


if __name__ == "__main__":
    main()
