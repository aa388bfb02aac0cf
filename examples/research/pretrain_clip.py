"""Pretrain a tiny CLIP on generated pictures and captions: the backbone of the embedded checkpoint.

python -m examples.research.pretrain_clip --output_dir runs/clip-tiny

No pretrained CLIP can be had without a download, so this makes one, honestly small: a byte-level BPE vocabulary from
the generator's captions, a vision tower on 8 x 8 patches, and transformers' own contrastive loss. Every scene is seen
twice in a batch, whole and damaged, in the same crop and light: the captions differ in what is wrong, and where.

CLIP learns what patches show from hundreds of millions of images. This one sees some hundred thousand, so it is told:
a second loss asks of every patch whether it is nearer to the words of the damaged view or to those of the whole one,
and holds the answer against the generator's mask. The last steps see larger pictures, so that attention over many
patches is learned too. Interrupted, it goes on from the last checkpoint when it is started again.
"""

import argparse
import colorsys
import json
import math
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image, ImageFilter
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from vcp_clip_hf.atomic_write import atomic_folder
from vcp_clip_hf.data.synthetic_defects import (
    PRODUCTS,
    SEEN_DEFECTS,
    caption,
    caption_words,
    possible_defects,
    render_sample,
    select_products,
)


TOKENIZER = Path(__file__).parents[2] / "hub_configs" / "vcp-clip-tiny"
CONTEXT_LENGTH = 48  # of the model; prompts may be longer than captions
CAPTION_LENGTH = 44
PRODUCTS_PER_BATCH = 8
CROPS = (0.2, 0.8)  # shares of a scene's side; with 64 pixels, patches cover what they do of a whole scene at 224
LARGE_CROPS = (0.5, 1.0)
PATCH_SHARE = 0.15  # a patch with more damage than this is damaged
DAMAGED_WEIGHT = 4.0  # for there are many more whole patches
PLACES = [
    ["in the upper left", "at the top", "in the upper right"],
    ["on the left", "in the center", "on the right"],
    ["in the lower left", "at the bottom", "in the lower right"],
]
EXTENTS = ((0.004, "tiny"), (0.02, "small"), (0.08, "medium"), (1.01, "large"))
BRIGHTNESS = ((60, "dark"), (120, "dim"), (180, "light"), (256, "bright"))
COLORS = ("reddish", "yellowish", "greenish", "cyan", "bluish", "purple")
# Words to ask with, beyond those of the captions
FURTHER_WORDS = ("a photo of this is there it with without", "no not in on the an object product part thing")


def make_tokenizer(vocab_size: int) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges come from the captions' words; every other word is spelt in bytes."""
    words = sorted(
        {*caption_words(), *FURTHER_WORDS, *(word for row in PLACES for place in row for word in place.split())}
    )
    words += [name for _, name in EXTENTS]
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2 - len(alphabet),
        initial_alphabet=sorted(alphabet),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(words, trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    letters = sorted(alphabet)
    entries = [*letters, *(letter + "</w>" for letter in letters)]
    merges = [tuple(pair) for pair in learned["merges"]]
    for first, second in merges:
        if first + second not in entries:
            entries.append(first + second)
    entries = [*entries[: vocab_size - 2], "<|startoftext|>", "<|endoftext|>"]
    known = set(entries)
    merges = [pair for pair in merges if pair[0] in known and pair[1] in known and "".join(pair) in known]
    return CLIPTokenizer(vocab={entry: index for index, entry in enumerate(entries)}, merges=merges)


def load_tokenizer(options: argparse.Namespace) -> CLIPTokenizer:
    """The one that is kept (training a vocabulary breaks ties at random), or a new one where there is none."""
    folder = Path(options.tokenizer)
    if not (folder / "tokenizer.json").is_file():
        make_tokenizer(options.vocab_size).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


# --- scenes ---------------------------------------------------------------------------------------------------------


def _render(task: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict]:
    family, seed, index, size = task
    sample = render_sample(family, seed, index, size, "auto", SEEN_DEFECTS, pair=True)
    facts = {"product": sample.product, "defect": sample.defect}
    return np.asarray(sample.image), np.asarray(sample.normal), np.asarray(sample.mask) > 0, facts


def render_pool(folder: Path, products: list[str], count: int, size: int, seed: int, workers: int) -> None:
    """Render `count` scenes, whole and damaged, into arrays on disk; done once."""
    if (folder / "facts.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    shape = (count, size, size, 3)
    damaged = np.lib.format.open_memmap(folder / "damaged.npy", "w+", np.uint8, shape)
    whole = np.lib.format.open_memmap(folder / "whole.npy", "w+", np.uint8, shape)
    masks = np.lib.format.open_memmap(folder / "masks.npy", "w+", bool, shape[:3])
    able = [name for name in products if possible_defects(name, SEEN_DEFECTS)]
    tasks = [(able[index % len(able)], seed, index // len(able), size) for index in range(count)]
    facts = []
    with ProcessPoolExecutor(workers) as pool:
        for index, (image, normal, mask, fact) in enumerate(
            tqdm(pool.map(_render, tasks, chunksize=16), total=count, desc="render")
        ):
            damaged[index], whole[index], masks[index] = image, normal, mask
            facts.append(fact)
    for array in (damaged, whole, masks):
        array.flush()
    (folder / "facts.json").write_text(json.dumps(facts))


@dataclass(frozen=True)
class Sizes:
    """What the pictures of a step are like: small ones first, larger ones at the end."""

    steps: int
    large_steps: int
    image_size: int
    large_image_size: int
    batch_size: int
    large_batch_size: int
    patch_size: int

    def at(self, step: int) -> tuple[int, int, tuple[float, float]]:
        """-> side in pixels, pairs in the batch, range of crops."""
        if step < self.steps - self.large_steps:
            return self.image_size, self.batch_size // 2, CROPS
        return self.large_image_size, self.large_batch_size // 2, LARGE_CROPS

    def batches(self, start: int) -> list[list[tuple[int, int]]]:
        """The places of every batch from `start` on."""
        return [[(step, index) for index in range(self.at(step)[1])] for step in range(start, self.steps)]


class Views(Dataset):
    """
    Pairs of views of one scene: damaged and whole, in the same crop; items are functions of seed and place alone.

    The pairs of one batch show a few products only: what they are is then soon told apart, and what is wrong with them
    is what is left to learn.
    """

    def __init__(self, pool: Path, sizes: "Sizes", tokenizer: CLIPTokenizer, seed: int):
        self.pool, self.sizes, self.tokenizer, self.seed = pool, sizes, tokenizer, seed
        self.facts = json.loads((pool / "facts.json").read_text())
        self.scenes: dict[str, list[int]] = {}
        for scene, fact in enumerate(self.facts):
            self.scenes.setdefault(fact["product"], []).append(scene)
        self.arrays, self.patch_size = None, sizes.patch_size
        self.mean, self.std = (np.array(value, np.float32) for value in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))

    def __getitem__(self, place: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        step, index = place
        size, _, crops = self.sizes.at(step)
        if self.arrays is None:  # opened in each worker
            self.arrays = [np.load(self.pool / f"{name}.npy", mmap_mode="r") for name in ("damaged", "whole", "masks")]
        rng = np.random.default_rng((self.seed, step, index))
        batch = np.random.default_rng((self.seed, step))
        products = batch.choice(sorted(self.scenes), min(PRODUCTS_PER_BATCH, len(self.scenes)), replace=False)
        scene = int(rng.choice(self.scenes[str(rng.choice(products))]))
        damaged, whole, mask = (array[scene] for array in self.arrays)
        side = len(mask)

        # 1. one crop for both: often around the defect, mostly small, so that words are tied to places
        crop = int(side * math.exp(rng.uniform(math.log(crops[0]), math.log(crops[1]))))
        top, left = (int(rng.integers(side - crop + 1)) for _ in range(2))
        if rng.random() < 0.7:
            rows, columns = np.nonzero(mask)
            chosen = int(rng.integers(len(rows)))
            top = int(np.clip(rows[chosen] - rng.integers(crop), 0, side - crop))
            left = int(np.clip(columns[chosen] - rng.integers(crop), 0, side - crop))
        window = (slice(top, top + crop), slice(left, left + crop))
        turn, flip = int(rng.integers(4)), rng.random() < 0.5
        gray, contrast, brightness = rng.random() < 0.2, rng.uniform(0.7, 1.3), rng.uniform(-30, 30)
        blur = rng.uniform(0.3, 1.2) if rng.random() < 0.3 else 0.0
        noise = rng.normal(0, rng.uniform(0, 10), (size, size, 3)) if rng.random() < 0.4 else 0.0

        # 2. pictures
        pictures = []
        for source in (damaged, whole):
            picture = Image.fromarray(source[window]).resize((size, size), Image.Resampling.BICUBIC)
            picture = picture.filter(ImageFilter.GaussianBlur(blur)) if blur else picture
            pixels = np.rot90(np.asarray(picture.convert("L").convert("RGB") if gray else picture, np.float32), turn)
            pixels = pixels[:, ::-1] if flip else pixels
            pixels = ((pixels - 128) * contrast + 128 + brightness + noise).clip(0, 255)
            pictures.append(pixels)

        # 3. captions: what is wrong if it can be seen here, and where
        seen = np.rot90(mask[window], turn)
        seen = seen[:, ::-1] if flip else seen
        share = float(seen.mean())
        product = self.facts[scene]["product"]
        visible = share > 0.0008 or seen.sum() > 0.25 * mask.sum()
        texts = [
            caption({"product": product, "defect": self.facts[scene]["defect"] if visible else "good"}, rng),
            caption({"product": product, "defect": "good"}, rng),
        ]
        if visible and rng.random() < 0.7:
            row, column = (int(3 * position.mean() / crop) for position in np.nonzero(seen))
            extent = next(name for limit, name in EXTENTS if share < limit)
            texts[0] += f" , {extent} , {PLACES[row][column]}"
        if rng.random() < 0.5:
            looks = _looks(pictures[1])
            texts = [f"{text} , {looks}" for text in texts]
        pictures = [((pixels / 255 - self.mean) / self.std).transpose(2, 0, 1) for pixels in pictures]
        ids = self.tokenizer(texts, padding="max_length", max_length=CAPTION_LENGTH, truncation=True).input_ids

        # 4. which patches are damaged; -1 in both views if their captions do not differ
        grid = size // self.patch_size
        shares = Image.fromarray(seen.astype(np.float32)).resize((grid, grid), Image.Resampling.BOX)
        patches = np.stack([np.asarray(shares) > PATCH_SHARE, np.zeros((grid, grid), bool)]).astype(np.int8)
        if not visible:
            patches[:] = -1
        return torch.from_numpy(np.stack(pictures).astype(np.float32)), torch.tensor(ids), torch.from_numpy(patches)


def _looks(pixels: np.ndarray) -> str:
    """How bright, and of what colour, a picture is on the whole: so that whole products differ in words too."""
    red, green, blue = pixels.mean(axis=(0, 1))
    brightness = next(name for limit, name in BRIGHTNESS if (red + green + blue) / 3 < limit)
    hue, saturation, _ = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
    return f"{brightness} , {'gray' if saturation < 0.12 else COLORS[round(hue * 6) % 6]}"


# --- training -----------------------------------------------------------------------------------------------------


def make_config(tokenizer: CLIPTokenizer, options: argparse.Namespace) -> CLIPConfig:
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
    """Linear warm-up, then half a cosine down to 2 %."""
    if step < options.warmup_steps:
        return options.learning_rate * (step + 1) / options.warmup_steps
    progress = (step - options.warmup_steps) / max(1, options.steps - options.warmup_steps)
    return options.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def patch_alignment(model: CLIPModel, outputs, patches: torch.Tensor) -> tuple[torch.Tensor, float]:
    """
    Is every patch nearer to the words of the damaged view, or to those of the whole one?

    Args:
        model: whose projection takes patch tokens to the space of the words.
        outputs (`CLIPOutput`): of pairs of views, damaged and whole in turn.
        patches (`torch.Tensor` of shape `(batch_size, grid, grid)`): 1 damaged, 0 whole, -1 not asked.

    Returns:
        The weighted cross-entropy, and for the log the AUROC of the patches of damaged views.
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
        if (step + 1) % 20 == 0:
            logits = outputs.logits_per_image.detach().float()
            # damaged (even) and whole (odd) views of one scene: is each nearer to its own words than to the other's?
            own, other = logits.diagonal(), logits[torch.arange(len(logits)), torch.arange(len(logits)) ^ 1]
            record = {
                "step": step + 1,
                "loss": outputs.loss.item(),
                "patch_loss": patch_loss.item(),
                "patch_auroc": patch_auroc,
                "right_image": (logits.argmax(dim=1).cpu() == torch.arange(len(logits))).float().mean().item(),
                "right_of_pair": (own > other).float().mean().item(),
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


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--steps", type=int, default=1900)
    parser.add_argument("--batch_size", type=int, default=128, help="images, in pairs")
    parser.add_argument("--large_steps", type=int, default=300, help="the last steps, with larger pictures")
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
    parser.add_argument("--tokenizer", default=str(TOKENIZER), help="folder; made if there is none in it")
    parser.add_argument("--vocab_size", type=int, default=1024, help="of a new tokenizer, at most")
    parser.add_argument("--scenes", type=int, default=20_000)
    parser.add_argument("--scene_size", type=int, default=160)
    parser.add_argument("--exclude", nargs="*", default=[], help="product families to keep out")
    parser.add_argument("--seed", type=int, default=333)
    parser.add_argument("--mixed_precision", default="bf16", choices=("no", "bf16", "fp16"))
    parser.add_argument("--dataloader_num_workers", type=int, default=1)
    parser.add_argument("--checkpointing_steps", type=int, default=100)
    return parser


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    return make_parser().parse_args(arguments)


if __name__ == "__main__":
    pretrain(parse())
