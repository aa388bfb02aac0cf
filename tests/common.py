"""Tiny models and the authors' golden tensors, shared by the tests."""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from vcp_clip_hf import VCPCLIPConfig, VCPCLIPModel
from vcp_clip_hf.prompts import tokenize_prompts
from vcp_clip_hf.vision_tower import VCPCLIPBackbone


FIXTURES = Path(__file__).parent / "fixtures"
# Largest difference between results of equal weights at other places in memory: weights that safetensors maps into
# memory are not aligned, which changes the last bits of matrix products on AMD processors
ROUNDING = {"rtol": 0, "atol": 1e-6}

TINY_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "vocab_size": 514,
    "projection_dim": 32,
    "bos_token_id": 512,
    "eos_token_id": 513,
}
TINY_VISION = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "patch_size": 8,
    "image_size": 32,
    "projection_dim": 32,
}
HYBRID_VISION = {**TINY_VISION, "stem": "efficientnet_lite0"}


@lru_cache
def tiny_tokenizer() -> CLIPTokenizer:
    """Make a CLIP tokenizer of single bytes: 514 entries."""
    letters = sorted(ByteLevel.alphabet())
    entries = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={entry: index for index, entry in enumerate(entries)}, merges=[])


def tiny_clip(**overrides) -> CLIPModel:
    """Make a CLIP of a few thousand parameters with random weights, in evaluation mode; with a stem, of our class."""
    text, vision = {**TINY_TEXT, **overrides.pop("text", {})}, {**TINY_VISION, **overrides.pop("vision", {})}
    config = CLIPConfig(text_config=text, vision_config=vision, **{"projection_dim": 32, **overrides})
    return (VCPCLIPBackbone if "stem" in vision else CLIPModel)(config).eval()


def tiny_config(normal=("a photo of a good {}",), abnormal=("a photo of a damaged {}",), **fields) -> VCPCLIPConfig:
    """Return the configuration of `tiny_model`."""
    ids = {
        f"{state}_prompt_input_ids": tokenize_prompts(prompts, tiny_tokenizer(), TINY_TEXT["vocab_size"])
        for state, prompts in (("normal", normal), ("abnormal", abnormal))
    }
    defaults = {
        "text_config": dict(TINY_TEXT),
        "vision_config": dict(TINY_VISION),
        "projection_dim": 32,
        "image_size": 48,
        "normal_prompts": list(normal),
        "abnormal_prompts": list(abnormal),
        **ids,
    }
    return VCPCLIPConfig(**{**defaults, **fields})


def tiny_model(**fields) -> VCPCLIPModel:
    """Make a VCP-CLIP of a few thousand parameters with random weights that make lively maps, in evaluation mode."""
    model = VCPCLIPModel(tiny_config(**fields)).eval()
    with torch.no_grad():
        # CLIP's own initialization is so small that all patches look alike
        for name, parameter in model.clip.named_parameters():
            if parameter.ndim > 1 and "position" not in name and ".stem." not in name:
                parameter.mul_(4)
        for scale in (model.base_logit_scale, model.vcp_logit_scale):
            if scale is not None:
                scale.fill_(4.0)
    return model


def means_around(maps: torch.Tensor, margin: int) -> torch.Tensor:
    """Return the mean of the square around each position of maps (C, H, W), over the positions that exist."""
    means = torch.zeros_like(maps)
    for row in range(maps.shape[1]):
        for column in range(maps.shape[2]):
            rows, columns = (slice(max(0, each - margin), each + margin + 1) for each in (row, column))
            means[:, row, column] = maps[:, rows, columns].mean(dim=(1, 2))
    return means


def tiny_hybrid(**fields) -> VCPCLIPModel:
    """Make a `tiny_model` whose image tower has a convolutional stem."""
    return tiny_model(**{"vision_config": dict(HYBRID_VISION), **fields})


def tiny_model_with_stem_branch(**fields) -> VCPCLIPModel:
    """Make a tiny model with a stem beside the tower and a stem branch, whose tokens differ between patches."""
    vision = {**TINY_VISION, "stem": "efficientnet_lite0", "stem_projection": False}
    model = tiny_model(**{"vision_config": vision, "use_stem_branch": True, **fields})
    with torch.no_grad():
        for projection in (*model.stem_branch.projections, *model.stem_branch.cell_projections):
            projection.bias.zero_()
    return model


def tiny_model_with_head(trained: bool = True, **fields) -> VCPCLIPModel:
    """Make a `tiny_model` with an image head; all parameters of a `trained` one matter for its scores."""
    model = tiny_model(use_image_head=True, **fields)
    if trained:
        with torch.no_grad():
            for parameter in model.image_head.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def pixels(batch_size: int = 2, height: int = 48, width: int = 48) -> torch.Tensor:
    """Return random `pixel_values`."""
    return torch.randn(batch_size, 3, height, width)


def seeded_pixels(batch_size: int, side: int = 48, seed: int = 0) -> torch.Tensor:
    """Return random `pixel_values` of square images, the same ones for each seed."""
    return torch.randn(batch_size, 3, side, side, generator=torch.Generator().manual_seed(seed))


@dataclass
class Golden:
    """A backbone, a checkpoint and the tensors that the authors' implementation computes with them."""

    config: dict
    checkpoint: Path
    backbone: CLIPModel
    expected: dict[str, torch.Tensor]
    gradients: dict[str, torch.Tensor]

    @property
    def prompts(self) -> dict:
        """Return the prompts and their ids, as configuration fields."""
        rows = [ids[: ids.index(49407) + 1] for ids in self.expected["input_ids"].tolist()]
        half = len(rows) // 2
        words = {
            state: [prompt.replace("<|class|>", "{}") for prompt in self.config[state]]
            for state in ("normal", "abnormal")
        }
        return {
            "normal_prompts": words["normal"],
            "abnormal_prompts": words["abnormal"],
            "normal_prompt_input_ids": rows[:half],
            "abnormal_prompt_input_ids": rows[half:],
        }


@lru_cache
def golden(name: str) -> Golden:
    """Load `official_a` or `official_b`; see fixtures/README.md."""
    folder = FIXTURES / name
    config = json.loads((folder / "config.json").read_text())
    tower = {"hidden_act": config["hidden_act"], "projection_dim": config["projection_dim"]}
    clip = CLIPModel(
        CLIPConfig(
            text_config={**config["text"], **tower},
            vision_config={**config["vision"], **tower},
            projection_dim=config["projection_dim"],
        )
    ).eval()
    weights = load_file(folder / "backbone.safetensors")
    tokens = torch.zeros(config["text"]["vocab_size"], config["text"]["hidden_size"])
    tokens[weights.pop("token_embedding.ids")] = weights.pop("token_embedding.rows")
    clip.load_state_dict({**weights, "text_model.embeddings.token_embedding.weight": tokens}, strict=True)
    return Golden(
        config=config,
        checkpoint=folder / "checkpoint.pth",
        backbone=clip,
        expected=load_file(folder / "expected.safetensors"),
        gradients=load_file(folder / "gradients.safetensors"),
    )
