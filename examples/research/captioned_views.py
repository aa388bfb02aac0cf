"""Make pictures with captions to pretrain a tiny CLIP on: vocabulary, rendered scenes, and pairs of views of a scene.

Every scene exists twice, whole and damaged. A pair of views shows both in the same crop and light, so that the
captions differ only in what is wrong, and where. Rendered scenes come from a pool on disk; scenes of photographed
materials, and anomalies painted on rendered products, are made anew for every pair.
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
from vcp_clip_hf.generator.fields import Dice

from .material_scenes import DEFECT_WORDS, MaterialScene, MaterialScenes, damage, describe
from .view_light import ViewLight


__all__ = ["CROPS", "LARGE_CROPS", "Sizes", "Views", "load_tokenizer", "render_pool"]

CAPTION_LENGTH = 44  # tokens
PRODUCTS_PER_BATCH = 8
# Ranges of the crop's side, as a share of the scene's
CROPS, LARGE_CROPS = (0.45, 0.8), (0.7, 1.0)
# Shares of the pairs: photographed materials, and rendered products with painted anomalies; the others are rendered
MATERIAL_SHARE, PAINTED_SHARE = 0.5, 0.15
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
    """

    steps: int
    large_steps: int
    image_size: int
    large_image_size: int
    batch_size: int
    large_batch_size: int

    def at(self, step: int) -> tuple[int, int, tuple[float, float]]:
        """Return the side in pixels, the number of pairs, and the range of crops of a step."""
        if step < self.steps - self.large_steps:
            return self.image_size, self.batch_size // 2, CROPS
        return self.large_image_size, self.large_batch_size // 2, LARGE_CROPS

    def batches(self, start: int) -> list[list[tuple[int, int]]]:
        """Return the (step, index) places of every batch, beginning with step `start`."""
        return [[(step, index) for index in range(self.at(step)[1])] for step in range(start, self.steps)]


class Views(Dataset):
    """
    Pairs of views of one scene, damaged and whole, in the same crop; an item depends on seed and place alone.

    The rendered products in one batch are few. The model soon distinguishes them, and the damage remains to be
    learned.

    Args:
        pool (`Path`): folder that `render_pool` wrote.
        materials ([`MaterialScenes`]): scenes of photographed materials.
        sizes ([`Sizes`]): sizes of the pictures.
        tokenizer (`CLIPTokenizer`): tokenizer of the captions.
        seed (`int`): seed of all choices.
    """

    def __init__(self, pool: Path, materials: MaterialScenes, sizes: Sizes, tokenizer: CLIPTokenizer, seed: int):
        self.materials = materials
        self.pool, self.sizes, self.tokenizer, self.seed = pool, sizes, tokenizer, seed
        self.facts = json.loads((pool / "facts.json").read_text())
        self.scenes: dict[str, list[int]] = {}
        for scene, fact in enumerate(self.facts):
            self.scenes.setdefault(fact["product"], []).append(scene)
        self.arrays = None
        self.mean, self.std = (np.array(value, np.float32) for value in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))

    def __getitem__(self, place: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return pixel values (2, 3, size, size), token ids (2, length) and damaged pixels (2, size, size), uint8."""
        step, index = place
        size, _, crops = self.sizes.at(step)
        rng = np.random.default_rng((self.seed, step, index))
        damaged, whole, mask, name, defect = self._pair(step, rng, (self.seed, step, index))
        window = _window(mask, crops, rng)
        light = ViewLight.draw(size, rng)
        pictures = [light.picture(source[window]) for source in (damaged, whole)]
        seen = light.turned(mask[window])  # the damaged pixels of this crop
        texts = self._captions(name, defect, seen, pictures[1], rng)
        pixel_values = np.stack([((pixels / 255 - self.mean) / self.std).transpose(2, 0, 1) for pixels in pictures])
        ids = self.tokenizer(texts, padding="max_length", max_length=CAPTION_LENGTH, truncation=True).input_ids
        target = Image.fromarray(seen.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR)
        labels = np.stack([np.asarray(target) >= 0.5, np.zeros((size, size), bool)]).astype(np.uint8)
        return torch.from_numpy(pixel_values.astype(np.float32)), torch.tensor(ids), torch.from_numpy(labels)

    def _pair(
        self, step: int, rng: np.random.Generator, seed: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, str, str]:
        """Return a damaged and a whole picture, the mask, and the names of the product or material and the defect."""
        if self.arrays is None:  # opened in each worker
            self.arrays = [np.load(self.pool / f"{name}.npy", mmap_mode="r") for name in ("damaged", "whole", "masks")]
        source = rng.random()
        if source >= MATERIAL_SHARE + PAINTED_SHARE:
            return self._rendered(self._scene(step, rng))
        size = self.arrays[2].shape[1]
        for attempt in range(8):
            dice = Dice(seed, attempt)
            if source < MATERIAL_SHARE:
                scene = self.materials.scene(dice, size)
            else:
                number = self._scene(step, rng)
                product = self.facts[number]["product"]
                scene = MaterialScene(self.arrays[1][number], np.ones((size, size), bool), product)
            try:
                damaged, mask, kind = damage(scene, dice, self.materials)
            except ValueError:
                continue
            return damaged, scene.pixels, mask, scene.name, kind
        return self._rendered(self._scene(step, rng))

    def _rendered(self, scene: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, str, str]:
        """Return a scene of the pool, as `_pair` does."""
        facts = self.facts[scene]
        return (*(array[scene] for array in self.arrays), facts["product"], facts["defect"])

    def _scene(self, step: int, rng: np.random.Generator) -> int:
        """Choose a scene of one of the products of this step's batch."""
        batch = np.random.default_rng((self.seed, step))
        products = batch.choice(sorted(self.scenes), min(PRODUCTS_PER_BATCH, len(self.scenes)), replace=False)
        return int(rng.choice(self.scenes[str(rng.choice(products))]))

    def _captions(
        self, name: str, defect: str, seen: np.ndarray, whole: np.ndarray, rng: np.random.Generator
    ) -> list[str]:
        """Return the captions of both views: what is wrong, where, and how the picture looks."""
        if defect in DEFECT_WORDS:
            texts = [describe(name.replace("_", " "), kind, rng) for kind in (defect, None)]
        else:
            texts = [caption({"product": name, "defect": each}, rng) for each in (defect, "good")]
        if seen.any() and rng.random() < 0.7:
            row, column = (int(3 * position.mean() / len(seen)) for position in np.nonzero(seen))
            extent = next(word for limit, word in EXTENTS if seen.mean() < limit)
            texts[0] += f" , {extent} , {PLACES[row][column]}"
        if rng.random() < 0.5:
            looks = _looks(whole)
            texts = [f"{text} , {looks}" for text in texts]
        return texts


def _window(mask: np.ndarray, crops: tuple[float, float], rng: np.random.Generator) -> tuple[slice, slice]:
    """Choose a square crop of a scene around a damaged pixel; small crops are more frequent."""
    side = len(mask)
    crop = int(side * math.exp(rng.uniform(math.log(crops[0]), math.log(crops[1]))))
    rows, columns = np.nonzero(mask)
    chosen = int(rng.integers(len(rows)))
    top = int(np.clip(rows[chosen] - rng.integers(crop), 0, side - crop))
    left = int(np.clip(columns[chosen] - rng.integers(crop), 0, side - crop))
    return slice(top, top + crop), slice(left, left + crop)


def _looks(pixels: np.ndarray) -> str:
    """Return words for the mean brightness and color of a picture, so that whole products differ in words too."""
    red, green, blue = pixels.mean(axis=(0, 1))
    brightness = next(name for limit, name in BRIGHTNESS if (red + green + blue) / 3 < limit)
    hue, saturation, _ = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
    return f"{brightness} , {'gray' if saturation < 0.12 else COLORS[round(hue * 6) % 6]}"
