"""Pretrain a tiny CLIP on generated pictures and captions: the backbone of the embedded checkpoint.

    python -m examples.research.pretrain_clip --output_dir runs/clip-tiny

A pretrained CLIP would have to be downloaded; this one is small and made from generated data only: a byte-level BPE
vocabulary from the generator's captions, a vision tower on 8 x 8 patches, and transformers' own contrastive loss over
pairs of views (`captioned_views.py`).

CLIP learns what patches show from hundreds of millions of images. This model sees some hundred thousand, and gets a
second loss: each patch is classified by whether it is nearer to the caption of the damaged view or to that of the
whole view, with the generator's mask as target. The last steps use larger pictures, so that the model learns attention
over many patches. Started again after an interruption, the program continues from the last checkpoint.
"""

import argparse
import json
import math
import os
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from vcp_clip_hf.atomic_write import atomic_folder
from vcp_clip_hf.generator import PRODUCTS, select_products

from .captioned_views import Sizes, Views, load_tokenizer, render_pool


__all__ = ["make_config", "make_parser", "parse", "patch_alignment", "pretrain", "save"]

TOKENIZER = Path(__file__).parents[2] / "hub_configs" / "vcp-clip-tiny"
CONTEXT_LENGTH = 48  # tokens; prompts may be longer than captions
DAMAGED_WEIGHT = 4.0  # weight of damaged patches, which are much rarer than whole ones
LOGGING_STEPS = 20


def make_config(tokenizer: CLIPTokenizer, options: argparse.Namespace) -> CLIPConfig:
    """Return the configuration of the tiny CLIP."""
    return CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": options.projection_dim,
            "intermediate_size": 4 * options.projection_dim,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": CONTEXT_LENGTH,
            "projection_dim": options.projection_dim,
            "hidden_act": "gelu",
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            "hidden_size": options.width,
            "intermediate_size": 4 * options.width,
            "num_hidden_layers": options.depth,
            "num_attention_heads": options.width // 64,
            "patch_size": options.patch_size,
            "image_size": options.image_size,
            "projection_dim": options.projection_dim,
            "hidden_act": "gelu",
        },
        projection_dim=options.projection_dim,
    )


def learning_rate(step: int, options: argparse.Namespace) -> float:
    """Return the learning rate of a step: linear warm-up, then half a cosine down to 2 %."""
    if step < options.warmup_steps:
        return options.learning_rate * (step + 1) / options.warmup_steps
    progress = (step - options.warmup_steps) / max(1, options.steps - options.warmup_steps)
    return options.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def patch_alignment(model: CLIPModel, outputs: Any, patches: torch.Tensor) -> tuple[torch.Tensor, float]:
    """
    Classify each patch by whether it is nearer to the caption of the damaged or of the whole view.

    Args:
        model (`CLIPModel`): model whose projection takes patch tokens to the joint space.
        outputs (`CLIPOutput`): outputs for pairs of views, damaged and whole alternating.
        patches (`torch.Tensor` of shape `(batch_size, grid, grid)`): 1 damaged, 0 whole, -1 ignored.

    Returns:
        `tuple[torch.Tensor, float]`: weighted cross-entropy, and the AUROC of the patches of damaged views.
    """
    tokens = model.vision_model.post_layernorm(outputs.vision_model_output.last_hidden_state[:, 1:])
    tokens = torch.nn.functional.normalize(model.visual_projection(tokens), dim=-1)
    damaged, whole = outputs.text_embeds[0::2], outputs.text_embeds[1::2]
    contrast = (damaged - whole).repeat_interleave(2, dim=0)
    logits = (tokens @ contrast.unsqueeze(-1).to(tokens.dtype)).squeeze(-1).float() * model.logit_scale.exp()
    target = patches.flatten(1)
    asked = target >= 0
    weight = torch.where(target > 0, DAMAGED_WEIGHT, 1.0)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits[asked], target[asked].float(), weight[asked])
    with torch.no_grad():
        values, labels = logits[0::2][asked[0::2]].detach(), target[0::2][asked[0::2]] > 0
        ranks = values.argsort().argsort().float()
        positive = labels.sum()
        auroc = (ranks[labels].mean() - (positive - 1) / 2) / (~labels).sum()
    return loss, auroc.item()


def save(folder: Path, model: CLIPModel, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write a checkpoint: weights, moments of the optimizer, number of finished steps."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    moments = {
        f"{names[parameter]}.{key}": value.detach().clone()
        for parameter, entries in optimizer.state.items()
        for key, value in entries.items()
    }
    with atomic_folder(folder) as path:
        model.save_pretrained(path)
        save_file(moments, path / "optimizer.safetensors")
        (path / "step.json").write_text(json.dumps({"step": step}))


def resume(folder: Path, model: CLIPModel, optimizer: torch.optim.Optimizer) -> int:
    """Load the checkpoint, if there is one; return the number of finished steps."""
    if not (folder / "step.json").is_file():
        return 0
    model.load_state_dict(load_file(folder / "model.safetensors"))
    moments = load_file(folder / "optimizer.safetensors")
    for name, parameter in model.named_parameters():
        optimizer.state[parameter] = {
            key: moments[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}.{key}" in moments
        }
    return json.loads((folder / "step.json").read_text())["step"]


def pretrain(options: argparse.Namespace) -> CLIPModel:
    """Pretrain and save a CLIP in `--output_dir`."""
    set_seed(options.seed)
    accelerator = Accelerator(mixed_precision=options.mixed_precision)
    output_dir = Path(options.output_dir)
    tokenizer = load_tokenizer(options)
    products = sorted(set(select_products("seen")) - set(options.exclude))
    render_pool(output_dir / "pool", products, options.scenes, options.scene_size, options.seed, os.cpu_count() or 1)

    model = CLIPModel(make_config(tokenizer, options))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(products)} of {len(PRODUCTS)} products")
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.98)
    )
    start = resume(output_dir / "checkpoint", model, optimizer)
    sizes = Sizes(**{field.name: getattr(options, field.name) for field in fields(Sizes)})
    views = Views(output_dir / "pool", sizes, tokenizer, options.seed)
    loader = DataLoader(views, batch_sampler=sizes.batches(start), num_workers=options.dataloader_num_workers)
    model, optimizer = accelerator.prepare(model, optimizer)
    log = open(output_dir / "log.jsonl", "a")  # noqa: SIM115
    model.train()
    bar, began = tqdm(total=options.steps, initial=start, desc="pretrain"), time.perf_counter()
    images = 0
    for step, batch in enumerate(loader, start=start):
        pixel_values, input_ids, patches = (part.flatten(0, 1).to(accelerator.device) for part in batch)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options)
        outputs = model(
            input_ids=input_ids, pixel_values=pixel_values, return_loss=True, interpolate_pos_encoding=True
        )
        patch_loss, patch_auroc = patch_alignment(accelerator.unwrap_model(model), outputs, patches)
        accelerator.backward(outputs.loss + options.patch_loss_weight * patch_loss)
        images += len(pixel_values)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            accelerator.unwrap_model(model).logit_scale.clamp_(0, math.log(100))
        bar.update()
        if (step + 1) % LOGGING_STEPS == 0:
            record = {
                "step": step + 1,
                "loss": outputs.loss.item(),
                "patch_loss": patch_loss.item(),
                "patch_auroc": patch_auroc,
                **_accuracies(outputs.logits_per_image.detach().float()),
                "images_per_second": images / (time.perf_counter() - began),
            }
            log.write(json.dumps(record) + "\n")
            log.flush()
            bar.set_postfix({key: f"{value:.3f}" for key, value in record.items() if key != "step"})
        if (step + 1) % options.checkpointing_steps == 0:
            save(output_dir / "checkpoint", accelerator.unwrap_model(model), optimizer.optimizer, step + 1)
    model = accelerator.unwrap_model(model)
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    return model


def _accuracies(logits: torch.Tensor) -> dict[str, float]:
    """
    Return how often an image is nearest to its own caption: among all captions, and among the two of its pair.

    Args:
        logits (`torch.FloatTensor` of shape `(batch_size, batch_size)`): images x captions; views of a pair are
            neighbors.
    """
    index = torch.arange(len(logits))
    own, other = logits.diagonal(), logits[index, index ^ 1]
    return {
        "right_image": (logits.argmax(dim=1).cpu() == index).float().mean().item(),
        "right_of_pair": (own > other).float().mean().item(),
    }


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--steps", type=int, default=1900)
    parser.add_argument("--batch_size", type=int, default=128, help="number of images, two per pair")
    parser.add_argument("--large_steps", type=int, default=300, help="number of last steps, with larger pictures")
    parser.add_argument("--large_image_size", type=int, default=160)
    parser.add_argument("--large_batch_size", type=int, default=32)
    parser.add_argument("--patch_loss_weight", type=float, default=4.0)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--warmup_steps", type=int, default=100)
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--patch_size", type=int, default=8)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--projection_dim", type=int, default=128)
    parser.add_argument("--tokenizer", default=str(TOKENIZER), help="folder of the tokenizer; made if it has none")
    parser.add_argument("--vocab_size", type=int, default=1024, help="largest vocabulary of a new tokenizer")
    parser.add_argument("--scenes", type=int, default=20_000)
    parser.add_argument("--scene_size", type=int, default=160)
    parser.add_argument("--exclude", nargs="*", default=[], help="product families to keep out")
    parser.add_argument("--seed", type=int, default=333)
    parser.add_argument("--mixed_precision", default="bf16", choices=("no", "bf16", "fp16"))
    parser.add_argument("--dataloader_num_workers", type=int, default=1)
    parser.add_argument("--checkpointing_steps", type=int, default=100)
    return parser


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line, or `arguments`."""
    return make_parser().parse_args(arguments)


if __name__ == "__main__":
    pretrain(parse())
