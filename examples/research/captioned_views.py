"""Pictures with captions to pretrain a tiny CLIP on: vocabulary, rendered scenes, and pairs of views of one scene.

Every scene exists twice, whole and damaged. A pair of views shows both in the same crop and light, so that the
captions differ only in what is wrong, and where.
"""

import argparse
import colorsys
import json
import math
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import CLIPTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from vcp_clip_hf.generator import SEEN_DEFECTS, possible_defects, render_sample
from vcp_clip_hf.generator.captions import caption, caption_words

from .view_light import ViewLight


__all__ = ["CROPS", "LARGE_CROPS", "Sizes", "Views", "load_tokenizer", "render_pool"]

CAPTION_LENGTH = 44  # tokens
PRODUCTS_PER_BATCH = 8
# Ranges of the crop's side, as a share of the scene's. With small crops of 64 pixels, a patch covers as much of the
# scene as it does when a whole scene has 224 pixels
CROPS, LARGE_CROPS = (0.2, 0.8), (0.5, 1.0)
PATCH_SHARE = 0.15  # a patch counts as damaged above this share of damaged pixels
PLACES = [
    ["in the upper left", "at the top", "in the upper right"],
    ["on the left", "in the center", "on the right"],
    ["in the lower left", "at the bottom", "in the lower right"],
]
# Upper limits and words: share of damaged pixels, mean gray value
EXTENTS = ((0.004, "tiny"), (0.02, "small"), (0.08, "medium"), (1.01, "large"))
BRIGHTNESS = ((60, "dark"), (120, "dim"), (180, "light"), (256, "bright"))
COLORS = ("reddish", "yellowish", "greenish", "cyan", "bluish", "purple")
# Words of prompts that captions do not have
FURTHER_WORDS = ("a photo of this is there it with without", "no not in on the an object product part thing")


# --- vocabulary -----------------------------------------------------------------------------------------------------


def make_tokenizer(vocab_size: int) -> CLIPTokenizer:
    """Return a CLIP tokenizer with merges from the captions' words; other words are spelled in bytes."""
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
    """Load the tokenizer of `--tokenizer`; make it if the folder has none. Training it breaks ties at random."""
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
    """Render `count` scenes, whole and damaged, into arrays on disk; skipped if the folder is complete."""
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


# --- views ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """
    Sizes of the pictures and batches of each step: small pictures first, larger ones at the end.

    Args:
        steps, large_steps (`int`): number of all steps, and of those with large pictures.
        image_size, large_image_size (`int`): sides in pixels.
        batch_size, large_batch_size (`int`): images in a batch, two per pair.
        patch_size (`int`): side of a patch in pixels.
    """

    steps: int
    large_steps: int
    image_size: int
    large_image_size: int
    batch_size: int
    large_batch_size: int
    patch_size: int

    def at(self, step: int) -> tuple[int, int, tuple[float, float]]:
        """Return the side in pixels, the number of pairs, and the range of crops of a step."""
        if step < self.steps - self.large_steps:
            return self.image_size, self.batch_size // 2, CROPS
        return self.large_image_size, self.large_batch_size // 2, LARGE_CROPS

    def batches(self, start: int) -> list[list[tuple[int, int]]]:
        """Return the (step, index) places of every batch, beginning with step `start`."""
        return [[(step, index) for index in range(self.at(step)[1])] for step in range(start, self.steps)]


def _light(size: int, rng: np.random.Generator) -> ViewLight:
    """Draw turn, light and camera, which both views of a pair share."""
    turn, flip = int(rng.integers(4)), rng.random() < 0.5
    gray, contrast, brightness = rng.random() < 0.2, rng.uniform(0.7, 1.3), rng.uniform(-30, 30)
    blur = rng.uniform(0.3, 1.2) if rng.random() < 0.3 else 0.0
    noise = rng.normal(0, rng.uniform(0, 10), (size, size, 3)) if rng.random() < 0.4 else 0.0
    return ViewLight(
        size=size,
        turn=turn,
        flip=flip,
        gray=gray,
        contrast=contrast,
        brightness=brightness,
        gamma=1.0,
        slope=1.0,
        blur=blur,
        noise=noise,
        quality=None,
    )


class Views(Dataset):
    """
    Pairs of views of one scene, damaged and whole, in the same crop; an item depends on seed and place alone.

    The pairs of one batch show a few products only. The model soon distinguishes these products, and the damage
    remains to be learned.

    Args:
        pool (`Path`): folder that `render_pool` wrote.
        sizes ([`Sizes`]): sizes of the pictures.
        tokenizer (`CLIPTokenizer`): tokenizer of the captions.
        seed (`int`): seed of all choices.
    """

    def __init__(self, pool: Path, sizes: Sizes, tokenizer: CLIPTokenizer, seed: int):
        self.pool, self.sizes, self.tokenizer, self.seed = pool, sizes, tokenizer, seed
        self.facts = json.loads((pool / "facts.json").read_text())
        self.scenes: dict[str, list[int]] = {}
        for scene, fact in enumerate(self.facts):
            self.scenes.setdefault(fact["product"], []).append(scene)
        self.arrays = None
        self.mean, self.std = (np.array(value, np.float32) for value in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))

    def __getitem__(self, place: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return pixel values (2, 3, size, size), token ids (2, length) and damaged patches (2, grid, grid)."""
        step, index = place
        size, _, crops = self.sizes.at(step)
        if self.arrays is None:  # opened in each worker
            self.arrays = [np.load(self.pool / f"{name}.npy", mmap_mode="r") for name in ("damaged", "whole", "masks")]
        rng = np.random.default_rng((self.seed, step, index))
        scene = self._scene(step, rng)
        damaged, whole, mask = (array[scene] for array in self.arrays)
        window = _window(mask, crops, rng)
        light = _light(size, rng)
        pictures = [light.picture(source[window]) for source in (damaged, whole)]

        seen = light.turned(mask[window])  # the damaged pixels of this crop
        visible = seen.mean() > 0.0008 or seen.sum() > 0.25 * mask.sum()
        texts = self._captions(scene, seen, visible, pictures[1], rng)
        pixel_values = np.stack([((pixels / 255 - self.mean) / self.std).transpose(2, 0, 1) for pixels in pictures])
        ids = self.tokenizer(texts, padding="max_length", max_length=CAPTION_LENGTH, truncation=True).input_ids
        patches = _damaged_patches(seen, size // self.sizes.patch_size)
        if not visible:
            patches[:] = -1  # the captions do not differ
        return torch.from_numpy(pixel_values.astype(np.float32)), torch.tensor(ids), torch.from_numpy(patches)

    def _scene(self, step: int, rng: np.random.Generator) -> int:
        """Choose a scene of one of the products of this step's batch."""
        batch = np.random.default_rng((self.seed, step))
        products = batch.choice(sorted(self.scenes), min(PRODUCTS_PER_BATCH, len(self.scenes)), replace=False)
        return int(rng.choice(self.scenes[str(rng.choice(products))]))

    def _captions(
        self, scene: int, seen: np.ndarray, visible: bool, whole: np.ndarray, rng: np.random.Generator
    ) -> list[str]:
        """Return the captions of both views: what is wrong if it is visible, where, and how the picture looks."""
        product = self.facts[scene]["product"]
        texts = [
            caption({"product": product, "defect": self.facts[scene]["defect"] if visible else "good"}, rng),
            caption({"product": product, "defect": "good"}, rng),
        ]
        if visible and rng.random() < 0.7:
            row, column = (int(3 * position.mean() / len(seen)) for position in np.nonzero(seen))
            extent = next(name for limit, name in EXTENTS if seen.mean() < limit)
            texts[0] += f" , {extent} , {PLACES[row][column]}"
        if rng.random() < 0.5:
            looks = _looks(whole)
            texts = [f"{text} , {looks}" for text in texts]
        return texts


def _window(mask: np.ndarray, crops: tuple[float, float], rng: np.random.Generator) -> tuple[slice, slice]:
    """Choose a square crop of a scene, in 7 of 10 cases around a damaged pixel; small crops are more frequent."""
    side = len(mask)
    crop = int(side * math.exp(rng.uniform(math.log(crops[0]), math.log(crops[1]))))
    top, left = (int(rng.integers(side - crop + 1)) for _ in range(2))
    if rng.random() < 0.7:
        rows, columns = np.nonzero(mask)
        chosen = int(rng.integers(len(rows)))
        top = int(np.clip(rows[chosen] - rng.integers(crop), 0, side - crop))
        left = int(np.clip(columns[chosen] - rng.integers(crop), 0, side - crop))
    return slice(top, top + crop), slice(left, left + crop)


def _damaged_patches(seen: np.ndarray, grid: int) -> np.ndarray:
    """Return int8 of shape (2, grid, grid): 1 for damaged patches of the damaged view; the whole view has none."""
    shares = Image.fromarray(seen.astype(np.float32)).resize((grid, grid), Image.Resampling.BOX)
    return np.stack([np.asarray(shares) > PATCH_SHARE, np.zeros((grid, grid), bool)]).astype(np.int8)


def _looks(pixels: np.ndarray) -> str:
    """Return words for the mean brightness and color of a picture, so that whole products differ in words too."""
    red, green, blue = pixels.mean(axis=(0, 1))
    brightness = next(name for limit, name in BRIGHTNESS if (red + green + blue) / 3 < limit)
    hue, saturation, _ = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
    return f"{brightness} , {'gray' if saturation < 0.12 else COLORS[round(hue * 6) % 6]}"
