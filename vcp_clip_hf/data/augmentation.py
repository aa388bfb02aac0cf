"""Augmentation of image and mask together, for training.

VCP-CLIP (ECCV 2024) was trained with rotation by up to 30 degrees, turns by right angles, brightness and contrast,
Gaussian noise, and one of box blur, color jitter and Gaussian blur, each with probability 0.5; on MVTec-AD also with a
2 x 2 mosaic of images of one product, with probability 0.2. The authors used albumentations with its default limits,
which [`AugmentationConfig`] repeats. That package is no longer maintained and its successor is under the AGPL; each
step takes a few lines of Pillow and NumPy, so no other library is used.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch.utils.data import Dataset

from ..image_loading import load_image, load_mask
from .records import ANOMALOUS, NORMAL


__all__ = ["AugmentationConfig", "AugmentedDataset", "TrainingAugmentation", "augmentation_rng", "mosaic"]

_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class AugmentationConfig:
    """
    Probabilities and limits of the augmentation. The defaults are the paper's probabilities and the limits of
    albumentations 1.x.

    Args:
        rotate_prob, rotate_limit (`float`): probability of a rotation, and its largest angle in degrees; the border is
            mirrored.
        quarter_turn_prob (`float`): probability of a turn by 0, 90, 180 or 270 degrees, all equally likely.
        brightness_contrast_prob, brightness_limit, contrast_limit (`float`):
            `image * (1 + c) + 255 * b`, with c and b between minus and plus their limit.
        noise_prob (`float`), noise_variance (`tuple[float, float]`):
            Gaussian noise on every channel; variance in squared levels of 0..255.
        blur_or_jitter_prob (`float`):
            Probability of one of box blur, color jitter and Gaussian blur, all equally likely.
        box_blur_size (`int`): side of the box in pixels, odd.
        jitter_limit (`float`): brightness, contrast, saturation (as factors) and hue (as a part of the color circle).
        gaussian_blur_sizes (`tuple[int, int]`): smallest and largest kernel; sigma 0.3 ((size - 1) / 2 - 1) + 0.8.
        mosaic_prob (`float`): 2 x 2 images of one product; 0.2 in the paper's runs on MVTec-AD, otherwise 0.
        mosaic_limit (`int`):
            Maximum length in pixels of the longer side of a mosaic, or that of its first image, if this is longer;
            1,036 is twice the paper's input size.

    Raises:
        ValueError: a probability lies outside 0..1, or a limit is impossible.
    """

    rotate_prob: float = 0.5
    rotate_limit: float = 30.0
    quarter_turn_prob: float = 0.5
    brightness_contrast_prob: float = 0.5
    brightness_limit: float = 0.2
    contrast_limit: float = 0.2
    noise_prob: float = 0.5
    noise_variance: tuple[float, float] = (10.0, 50.0)
    blur_or_jitter_prob: float = 0.5
    box_blur_size: int = 3
    jitter_limit: float = 0.2
    gaussian_blur_sizes: tuple[int, int] = (3, 7)
    mosaic_prob: float = 0.0
    mosaic_limit: int = 1036

    def __post_init__(self):
        wrong = [
            f"{name}={value}" for name, value in vars(self).items() if name.endswith("_prob") and not 0 <= value <= 1
        ]
        wrong += [f"{name}={getattr(self, name)}" for name in _LIMITS if not 0 <= getattr(self, name) <= _LIMITS[name]]
        low, high = self.noise_variance
        if not 0 <= low <= high:
            wrong.append(f"noise_variance={self.noise_variance}")
        small, large = self.gaussian_blur_sizes
        if not 1 <= small <= large or small % 2 == 0 or large % 2 == 0:
            wrong.append(f"gaussian_blur_sizes={self.gaussian_blur_sizes}")
        if self.box_blur_size < 1 or self.box_blur_size % 2 == 0:
            wrong.append(f"box_blur_size={self.box_blur_size}")
        if self.mosaic_limit < 2:
            wrong.append(f"mosaic_limit={self.mosaic_limit}")
        if wrong:
            raise ValueError(
                f"AugmentationConfig({', '.join(wrong)}): probabilities must lie in 0..1, limits must not be negative"
                f" ({', '.join(f'{name} at most {limit:g}' for name, limit in _LIMITS.items())}), ranges must ascend,"
                " blur sizes must be odd."
            )


_LIMITS = {"rotate_limit": 180.0, "brightness_limit": 1.0, "contrast_limit": 1.0, "jitter_limit": 0.5}


def augmentation_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Return the random generator for one item of one epoch, so that results do not depend on workers or order."""
    return np.random.default_rng(np.random.SeedSequence((seed, epoch, index)))


class TrainingAugmentation:
    """
    Augments an image and its mask together.

    Args:
        config ([`AugmentationConfig`], *optional*):
            Probabilities and limits; the paper's by default. Mosaics are not made here but in [`AugmentedDataset`],
            which has the other images.

    ```python
    >>> augment = TrainingAugmentation()
    >>> image, mask = augment(image, mask, augmentation_rng(seed=333, epoch=0, index=17))
    ```
    """

    def __init__(self, config: AugmentationConfig | None = None):
        self.config = config or AugmentationConfig()

    def __call__(
        self, image: Image.Image, mask: Image.Image | None, rng: np.random.Generator
    ) -> tuple[Image.Image, Image.Image | None]:
        """
        Augment one image.

        Args:
            image (`PIL.Image.Image`): image of any mode.
            mask (`PIL.Image.Image`, *optional*): binary mask of the same size.
            rng (`np.random.Generator`): random generator, see [`augmentation_rng`].

        Returns:
            `tuple[PIL.Image.Image, PIL.Image.Image | None]`: image (RGB) and mask (L, exactly 0 and 255; None without
            a mask). A quarter turn swaps width and height.

        Raises:
            ValueError: the sizes differ, or the mask is not binary.
        """
        config = self.config
        image = load_image(image)
        mask = None if mask is None else _binary(mask)
        if mask is not None and mask.size != image.size:
            raise ValueError(f"The mask has {mask.size} pixels (width, height), the image {image.size}.")
        if rng.random() < config.rotate_prob:
            angle = rng.uniform(-config.rotate_limit, config.rotate_limit)
            image = _rotated(image, angle, Image.Resampling.BILINEAR)
            mask = mask and _rotated(mask, angle, Image.Resampling.NEAREST)
        if rng.random() < config.quarter_turn_prob:
            turn = _QUARTERS[int(rng.integers(4))]
            if turn is not None:
                image, mask = image.transpose(turn), mask and mask.transpose(turn)
        pixels = np.asarray(image, np.float32)
        if rng.random() < config.brightness_contrast_prob:
            contrast = rng.uniform(-config.contrast_limit, config.contrast_limit)
            brightness = rng.uniform(-config.brightness_limit, config.brightness_limit)
            pixels = _rounded(pixels * np.float32(1 + contrast) + np.float32(255 * brightness))
        if rng.random() < config.noise_prob:
            deviation = math.sqrt(rng.uniform(*config.noise_variance))
            noise = rng.standard_normal(pixels.shape, dtype=np.float32)
            noise *= np.float32(deviation)
            pixels = _rounded(pixels + noise)
        if rng.random() < config.blur_or_jitter_prob:
            pixels = _ONE_OF[int(rng.integers(3))](pixels, config, rng)
        return Image.fromarray(pixels.astype(np.uint8)), mask


def mosaic(
    images: Sequence[Image.Image], masks: Sequence[Image.Image | None], limit: int = 1036
) -> tuple[Image.Image, Image.Image | None]:
    """
    Join four images to one, 2 x 2, row by row. The others are resized to the size of the first.

    Args:
        images (`Sequence[PIL.Image.Image]`): four images.
        masks (`Sequence[PIL.Image.Image | None]`): their masks; None stands for an empty mask.
        limit (`int`): maximum length in pixels of the longer side, unless that of the first image is longer.

    Returns:
        `tuple[PIL.Image.Image, PIL.Image.Image | None]`: image (RGB) and mask (L, 0 and 255; None if all four masks
        are None).

    Raises:
        ValueError: there are not four images and masks, or a mask and its image differ in size.
    """
    if len(images) != 4 or len(masks) != 4:
        raise ValueError(f"A mosaic takes 4 images and 4 masks, got {len(images)} and {len(masks)}.")
    width, height = images[0].size
    shrink = min(1.0, max(limit, width, height) / (2 * max(width, height)))
    width, height = max(1, round(width * shrink)), max(1, round(height * shrink))
    canvas, marks = Image.new("RGB", (2 * width, 2 * height)), Image.new("L", (2 * width, 2 * height))
    for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
        corner = (number % 2 * width, number // 2 * height)
        image = load_image(image)
        if mask is not None:
            mask = _binary(mask)
            if mask.size != image.size:
                raise ValueError(f"Mask {number} has {mask.size} pixels (width, height), its image {image.size}.")
            marks.paste(_resized_mask(mask, (width, height)), corner)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        canvas.paste(image, corner)
    return canvas, marks if any(mask is not None for mask in masks) else None


class AugmentedDataset(Dataset):
    """
    Augments the rows of a dataset: first mosaics of one product, then [`TrainingAugmentation`].

    The items are the rows with image and mask replaced. The `label` of a mosaic is 1 if any of its four images is
    anomalous; `defect` and `image_id` are those of the row. Item `i` of epoch `e` is always the same, whatever the
    worker and the order.

    Args:
        dataset (`Dataset` or sequence of `dict`): rows with the keys "image" and "mask", as all builders give them.
        augmentation ([`TrainingAugmentation`] or [`AugmentationConfig`], *optional*):
            Augmentation; the paper's by default.
        seed (`int`, *optional*, defaults to 333): seed of all random choices.
        products (`Sequence[str]`, *optional*):
            Product of every row, for mosaics; by default the column "product".
        transform (`Callable`, *optional*): function that is applied last to every item, a dict.

    Raises:
        ValueError: `mosaic_prob` is greater than 0, and the products are unknown. Reading an item: its image or one of
            its mosaic has the label 0, and a mask that is not empty.
    """

    def __init__(
        self,
        dataset: Any,
        augmentation: TrainingAugmentation | AugmentationConfig | None = None,
        seed: int = 333,
        products: Sequence[str] | None = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
    ):
        if not isinstance(augmentation, TrainingAugmentation):
            augmentation = TrainingAugmentation(augmentation)
        if seed < 0:
            raise ValueError(f"seed={seed} must not be negative.")
        self.dataset, self.augmentation, self.seed, self.transform = dataset, augmentation, seed, transform
        self._partners: list[np.ndarray] | None = None
        if augmentation.config.mosaic_prob > 0:
            self._partners = _same_product(_products_of(dataset) if products is None else products, len(dataset))
        # in shared memory, so that persistent workers, which hold copies of this object, see set_epoch
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose other augmentations; call it before iterating. Also calls `set_epoch` of the underlying dataset."""
        if epoch < 0:
            raise ValueError(f"epoch={epoch} must not be negative.")
        self._epoch.fill_(epoch)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for a dataset of {len(self)} rows")
        index = index % len(self)
        rng = augmentation_rng(self.seed, int(self._epoch), index)
        row = self._row(index)
        image, mask = row["image"], row["mask"]
        if self._partners is not None and rng.random() < self.augmentation.config.mosaic_prob:
            others = [self._row(int(other)) for other in rng.choice(self._partners[index], 3)]
            rows = [row, *others]
            order = rng.permutation(4)  # the row's own image may be in any corner
            rows = [rows[int(position)] for position in order]
            image, mask = mosaic(
                [other["image"] for other in rows],
                [other["mask"] for other in rows],
                self.augmentation.config.mosaic_limit,
            )
            if any(other.get("label") == ANOMALOUS for other in rows):
                row["label"] = ANOMALOUS
        row["image"], row["mask"] = self.augmentation(image, mask, rng)
        return row if self.transform is None else self.transform(row)

    def _row(self, index: int) -> dict[str, Any]:
        row = dict(self.dataset[index])
        # the datasets of this package are checked when they are read, records of users are not
        if row.get("label") == NORMAL and row["mask"] is not None and (marked := int(load_mask(row["mask"]).sum())):
            raise ValueError(
                f"Image {row.get('image_id', index)!r} has the label 0 (normal), but its mask marks {marked} pixels."
                " Correct the label or the mask."
            )
        return row


def _products_of(dataset: Any) -> Sequence[str]:
    try:
        return list(dataset["product"])  # a column of `datasets`, read without decoding images
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise ValueError(
            "mosaic_prob > 0 needs the product of every image: pass products=[...], one name per row, or"
            f' a dataset with a column "product" ({type(dataset).__name__} has none).'
        ) from error


def _same_product(products: Sequence[str], count: int) -> list[np.ndarray]:
    """Return for every row the indices of the rows of its product; rows of one product share one array."""
    if len(products) != count:
        raise ValueError(f"products has {len(products)} names, the dataset {count} rows.")
    groups: dict[str, list[int]] = {}
    for index, product in enumerate(products):
        groups.setdefault(product, []).append(index)
    arrays = {product: np.array(members) for product, members in groups.items()}
    return [arrays[product] for product in products]


def _binary(mask: Image.Image) -> Image.Image:
    """Return the mask in mode L, with the values 0 and 255."""
    return Image.fromarray(load_mask(mask) * np.uint8(255))


def _resized_mask(mask: Image.Image, size: tuple[int, int]) -> Image.Image:
    return mask if mask.size == size else mask.resize(size, Image.Resampling.NEAREST)


_QUARTERS = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)


def _rotated(picture: Image.Image, degrees: float, resample: Image.Resampling) -> Image.Image:
    """Rotate about the center, keeping the size; the corners show the mirrored picture, without its border pixels."""
    width, height = picture.size
    turn = math.radians(degrees)
    cos, sin = abs(math.cos(turn)), abs(math.sin(turn))
    right = min(width - 1, math.ceil((width * cos + height * sin - width) / 2) + 2)
    down = min(height - 1, math.ceil((width * sin + height * cos - height) / 2) + 2)
    right, down = max(right, 0), max(down, 0)
    pixels = np.asarray(picture)
    padding = [(down, down), (right, right), (0, 0)][: pixels.ndim]
    padded = Image.fromarray(np.pad(pixels, padding, mode="reflect"))
    return padded.rotate(degrees, resample).crop((right, down, right + width, down + height))


def _rounded(pixels: np.ndarray) -> np.ndarray:
    """Round to whole levels, as if the steps passed 8-bit images to each other."""
    return np.clip(np.floor(pixels + np.float32(0.5)), 0, 255)


def _filtered(pixels: np.ndarray, kernel: ImageFilter.Filter) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels.astype(np.uint8)).filter(kernel), np.float32)


def _box_blur(pixels: np.ndarray, config: AugmentationConfig, rng: np.random.Generator) -> np.ndarray:
    return _filtered(pixels, ImageFilter.BoxBlur((config.box_blur_size - 1) / 2))


def _gaussian_blur(pixels: np.ndarray, config: AugmentationConfig, rng: np.random.Generator) -> np.ndarray:
    small, large = config.gaussian_blur_sizes
    size = small + 2 * int(rng.integers((large - small) // 2 + 1))
    return _filtered(pixels, ImageFilter.GaussianBlur(0.3 * ((size - 1) * 0.5 - 1) + 0.8))


def _color_jitter(pixels: np.ndarray, config: AugmentationConfig, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation and hue, in random order."""
    limit = config.jitter_limit
    factors = rng.uniform(1 - limit, 1 + limit, 3).astype(np.float32)
    shift = rng.uniform(-limit, limit)
    for step in rng.permutation(4):
        if step == 0:
            pixels = _rounded(pixels * factors[0])
        elif step == 1:
            mean = np.float32((pixels @ _LUMINANCE).mean())
            pixels = _rounded(mean + (pixels - mean) * factors[1])
        elif step == 2:
            gray = (pixels @ _LUMINANCE)[..., None]
            pixels = _rounded(gray + (pixels - gray) * factors[2])
        else:
            colors = np.asarray(Image.fromarray(pixels.astype(np.uint8)).convert("HSV")).copy()
            colors[..., 0] += np.uint8(round(shift * 256) % 256)  # hue is a circle: it may wrap
            picture = Image.frombytes("HSV", pixels.shape[1::-1], colors.tobytes())
            pixels = np.asarray(picture.convert("RGB"), np.float32)
    return pixels


_ONE_OF: tuple[Callable[[np.ndarray, AugmentationConfig, np.random.Generator], np.ndarray], ...] = (
    _box_blur,
    _color_jitter,
    _gaussian_blur,
)
