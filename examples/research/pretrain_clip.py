r"""Pretrain a tiny CLIP on generated pictures and captions: the backbone of the embedded checkpoint.

    python -m examples.research.pretrain_clip --output_dir runs/clip-tiny
    ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 -m examples.research.pretrain_clip \
        --output_dir runs/clip-tiny --dataloader_num_workers 0   # faster on two cores

A pretrained CLIP would have to be downloaded; this one is small: a byte-level BPE vocabulary from the generator's
captions, an image tower on 8 x 8 patches whose stem is the frozen start of an ImageNet network
(`efficientnet_stem.py`), and CLIP's contrastive loss over pairs of views (`captioned_views.py`).

CLIP learns what patches show from hundreds of millions of images. This model sees tens of thousands, and gets a second
loss: the patches of some blocks are compared with what the captions of damaged views have in common, relative to those
of whole views; upsampled to pixels, these maps get the losses that VCP-CLIP is trained with and a cross-entropy, with
the exact mask of the damage as target. The last steps use larger pictures. Started again after an interruption, the
program continues from the last checkpoint.
"""

import argparse
import json
import math
import os
import time
from dataclasses import fields
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from vcp_clip_hf.atomic_write import atomic_folder
from vcp_clip_hf.backbone_loading import load_backbone, read_backbone_config
from vcp_clip_hf.convolutional_stem import STEMS, stem_of
from vcp_clip_hf.generator import PRODUCTS, select_products
from vcp_clip_hf.losses import segmentation_loss
from vcp_clip_hf.modeling_frozen_clip import with_blocks_of
from vcp_clip_hf.vision_tower import LayerStates, VCPCLIPBackbone, VCPCLIPVisionEncoder

from .captioned_views import Sizes, Views, load_tokenizer, render_pool
from .efficientnet_stem import load_stem
from .material_scenes import MaterialScenes


__all__ = [
    "learning_rate",
    "make_config",
    "make_model",
    "make_parser",
    "map_loss",
    "parse",
    "pretrain",
    "resume",
    "save",
]

TOKENIZER = Path(__file__).parents[2] / "hub_configs" / "vcp-clip-tiny"
CONTEXT_LENGTH = 48  # tokens; prompts may be longer than captions
EAGER_SIZE = 160  # pixels; up to here, attention without the fused kernel is faster on a CPU
DAMAGED_WEIGHT = 4.0  # weight of damaged pixels, which are much rarer than whole ones
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
            **({} if options.stem == "none" else {"stem": options.stem}),
        },
        projection_dim=options.projection_dim,
    )


def learning_rate(step: int, options: argparse.Namespace) -> float:
    """Return the learning rate of a step: linear warm-up, then half a cosine down to 2 %."""
    if step < options.warmup_steps:
        return options.learning_rate * (step + 1) / options.warmup_steps
    progress = (step - options.warmup_steps) / max(1, options.steps - options.warmup_steps)
    return options.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def make_model(config: CLIPConfig, stem_weights: Path | None = None) -> CLIPModel:
    """Return a CLIP with random weights, whose stem, if the configuration names one, has its ImageNet weights."""
    model = VCPCLIPBackbone(config)
    model.vision_model.encoder = with_blocks_of(model.vision_model.encoder, VCPCLIPVisionEncoder)
    if stem_of(config.vision_config) is not None:
        load_stem(model.vision_model.embeddings.patch_embedding.stem, stem_weights)
    return model


def continue_model(checkpoint: str, options: argparse.Namespace) -> CLIPModel:
    """
    Return the CLIP of a checkpoint with a stem added, whose projection starts at zero: its features are unchanged.

    Args:
        checkpoint (`str`): checkpoint of this package whose image tower has no stem.
        options (`argparse.Namespace`): the stem and its weights.
    """
    config, name = read_backbone_config(checkpoint, {})
    plain = load_backbone(name, config, torch.float32, {}).state_dict()
    config.vision_config.stem = options.stem
    model = make_model(config, options.stem_weights)
    model.load_state_dict(plain, strict=False)
    projection = model.vision_model.embeddings.patch_embedding.stem_projection
    nn.init.zeros_(projection.weight)
    nn.init.zeros_(projection.bias)
    return model


def map_loss(
    model: CLIPModel, patch_tokens: list[torch.Tensor], text_embeds: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """
    Compute the loss of maps that compare patches with the difference of damaged and whole views' captions.

    Args:
        model (`CLIPModel`): model whose projection takes patch tokens to the joint space.
        patch_tokens (list of `torch.Tensor` of shape `(batch_size, num_patches, width)`): tokens of some blocks, for
            pairs of views, damaged and whole alternating.
        text_embeds (`torch.Tensor` of shape `(batch_size, projection_dim)`): embedded captions, normalized.
        labels (`torch.Tensor` of shape `(batch_size, side, side)`): 1 damaged, 0 whole.

    Returns:
        `tuple[torch.Tensor, float]`: the mean over blocks of focal loss, dice loss, and cross-entropy with more weight
        on damaged pixels, summed; and the AUROC of the last block on every second row and column of damaged views.
    """
    # the mean over the batch: what captions of damage have in common
    contrast = (text_embeds[0::2] - text_embeds[1::2]).float().mean(dim=0)
    maps = []
    for tokens in patch_tokens:
        tokens = model.visual_projection(model.vision_model.post_layernorm(tokens))
        tokens = nn.functional.normalize(tokens.float(), dim=-1)
        maps.append((tokens @ contrast) * model.logit_scale.exp())
    logits = torch.stack(maps, dim=1)
    grid = math.isqrt(logits.shape[-1])
    logits = nn.functional.interpolate(logits.unflatten(-1, (grid, grid)), size=labels.shape[-2:], mode="bilinear")
    target = labels.float()
    weight = torch.where(target > 0, DAMAGED_WEIGHT, 1.0).unsqueeze(1)
    entropy = nn.functional.binary_cross_entropy_with_logits(
        logits, target.unsqueeze(1).expand_as(logits), weight.expand_as(logits)
    )
    loss = segmentation_loss(logits.sigmoid(), target) / len(maps) + entropy
    with torch.no_grad():
        values, positive = logits[0::2, -1, ::2, ::2], labels[0::2, ::2, ::2] > 0
        ranks = values.flatten().argsort().argsort().float()
        count = positive.sum()
        auroc = (ranks[positive.flatten()].mean() - (count - 1) / 2) / (~positive).sum()
    return loss, auroc.item()


def make_optimizer(model: CLIPModel) -> torch.optim.AdamW:
    """Return the optimizer of all parameters that are not frozen; vectors and scalars have no weight decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed, others = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


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
        if parameter.requires_grad:
            optimizer.state[parameter] = {key: moments[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
    return json.loads((folder / "step.json").read_text())["step"]


def pretrain(options: argparse.Namespace) -> CLIPModel:
    """Pretrain and save a CLIP in `--output_dir`."""
    set_seed(options.seed)
    accelerator = Accelerator(mixed_precision=options.mixed_precision)
    output_dir = Path(options.output_dir)
    tokenizer = load_tokenizer(options)
    products = sorted(set(select_products("seen")) - set(options.exclude))
    with accelerator.main_process_first():
        workers = os.cpu_count() or 1
        render_pool(output_dir / "pool", products, options.scenes, options.scene_size, options.seed, workers)

    if options.initial_checkpoint is None:
        model = make_model(make_config(tokenizer, options), options.stem_weights)
    else:
        model = continue_model(options.initial_checkpoint, options)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(products)} of {len(PRODUCTS)} products")
    optimizer = make_optimizer(model)
    start = resume(output_dir / "checkpoint", model, optimizer)
    sizes = Sizes(**{field.name: getattr(options, field.name) for field in fields(Sizes)})
    views = Views(output_dir / "pool", MaterialScenes("train"), sizes, tokenizer, options.seed)
    # each process takes its share of every batch
    batches = [batch[accelerator.process_index :: accelerator.num_processes] for batch in sizes.batches(start)]
    loader = DataLoader(views, batch_sampler=batches, num_workers=options.dataloader_num_workers)
    model.to(accelerator.device)
    optimizer = accelerator.prepare(optimizer)
    model.train()
    is_main, began = accelerator.is_main_process, time.perf_counter()
    bar = tqdm(total=options.steps, initial=start, desc="pretrain", disable=not is_main)
    images, recent = 0, []
    for step, batch in enumerate(loader, start=start):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options)
        loss, facts = _loss(model, batch, accelerator, options)
        accelerator.backward(loss)
        _average_gradients(model, accelerator)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        images += batch[0].shape[:2].numel() * accelerator.num_processes
        recent.append(facts)
        bar.update()
        if is_main and (step + 1) % LOGGING_STEPS == 0:
            means = {key: sum(each[key] for each in recent) / len(recent) for key in facts}
            recent.clear()
            record = {"step": step + 1, **means, "images_per_second": images / (time.perf_counter() - began)}
            with open(output_dir / "log.jsonl", "a") as log:
                log.write(json.dumps(record) + "\n")
            bar.set_postfix({key: f"{value:.3f}" for key, value in record.items() if key != "step"})
        if is_main and (step + 1) % options.checkpointing_steps == 0:
            save(output_dir / "checkpoint", model, optimizer.optimizer, step + 1)
    if is_main:
        model.save_pretrained(output_dir)
        tokenizer.save_pretrained(output_dir)
    return model


def _loss(
    model: CLIPModel, batch: list[torch.Tensor], accelerator: Accelerator, options: argparse.Namespace
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the loss of a batch of `Views`, and losses and accuracies for the log."""
    pixel_values, input_ids, labels = (part.flatten(0, 1).to(accelerator.device) for part in batch)
    _set_attention(model, pixel_values)
    with accelerator.autocast():
        text_embeds = nn.functional.normalize(model.get_text_features(input_ids).pooler_output, dim=-1)
        recorded = LayerStates(options.map_layers)
        image_embeds = model.visual_projection(
            model.vision_model(pixel_values, interpolate_pos_encoding=True, layer_states=recorded).pooler_output
        )
        logits = nn.functional.normalize(image_embeds, dim=-1) @ text_embeds.T * model.logit_scale.exp()
    targets = torch.arange(len(logits), device=logits.device)
    contrastive = sum(nn.functional.cross_entropy(each.float(), targets) for each in (logits, logits.T)) / 2
    tokens = [recorded.states[layer][:, 1:] for layer in options.map_layers]
    segmentation, auroc = map_loss(model, tokens, text_embeds, labels)
    losses = {"contrastive_loss": contrastive.item(), "map_loss": segmentation.item(), "map_auroc": auroc}
    facts = {**losses, **_accuracies(logits.detach().float())}
    return options.contrastive_weight * contrastive + segmentation, facts


def _set_attention(model: CLIPModel, pixel_values: torch.Tensor) -> None:
    """Choose the faster attention of a CPU: with few patches, the backward pass of the fused kernel is slow."""
    if pixel_values.device.type == "cpu":
        wanted = "eager" if pixel_values.shape[-1] <= EAGER_SIZE else "sdpa"
        if model.config._attn_implementation != wanted:
            model.set_attn_implementation(wanted)


def _average_gradients(model: CLIPModel, accelerator: Accelerator) -> None:
    """Replace gradients by their mean over the processes."""
    if accelerator.num_processes > 1:
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        mean = accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
        for gradient, part in zip(gradients, mean.split([each.numel() for each in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


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
    parser.add_argument("--steps", type=int, default=1700)
    parser.add_argument("--batch_size", type=int, default=48, help="number of images, two per pair")
    parser.add_argument("--large_steps", type=int, default=1300, help="number of last steps, with larger pictures")
    parser.add_argument("--large_image_size", type=int, default=192)
    parser.add_argument("--large_batch_size", type=int, default=24)
    parser.add_argument("--contrastive_weight", type=float, default=0.3)
    parser.add_argument("--learning_rate", type=float, default=6e-4)
    parser.add_argument("--warmup_steps", type=int, default=60)
    parser.add_argument("--image_size", type=int, default=128)
    parser.add_argument("--patch_size", type=int, default=8)
    parser.add_argument("--stem", default="efficientnet_lite0", choices=("none", *STEMS))
    parser.add_argument("--stem_weights", type=Path, help="file; by default that of the installed package")
    parser.add_argument("--initial_checkpoint", help="checkpoint to start from: its CLIP, with a stem added")
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--map_layers", type=int, nargs="+", default=[4], help="blocks with a loss of maps")
    parser.add_argument("--projection_dim", type=int, default=128)
    parser.add_argument("--tokenizer", default=str(TOKENIZER), help="folder of the tokenizer; made if it has none")
    parser.add_argument("--vocab_size", type=int, default=1024, help="largest vocabulary of a new tokenizer")
    parser.add_argument("--scenes", type=int, default=8_000)
    parser.add_argument("--scene_size", type=int, default=224)
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
