"""Products to choose settings of references on: crops of photographs, and rendered products on a production line."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from vcp_clip_hf.data.painted_anomalies import add_anomaly
from vcp_clip_hf.generator import possible_defects, render_sample, select_products


__all__ = ["Product", "crops_of", "photographed", "rendered"]

_SIDE = 256  # of rendered pictures; the camera shows 224 pixels of them
_MARGIN = 40  # of mirrored pixels around a rendered picture


class Product(NamedTuple):
    """Normal pictures of a product, and test pictures with their masks (`None`: normal)."""

    name: str
    references: list[Image.Image]
    tested: list[Image.Image]
    masks: list[Image.Image | None]


def crops_of(photo: Image.Image, count: int, dice: random.Random) -> list[Image.Image]:
    """Return random square crops of a photograph, half as long as its shorter side."""
    side = max(1, min(photo.size) // 2)
    corners = [(dice.randrange(photo.width - side + 1), dice.randrange(photo.height - side + 1)) for _ in range(count)]
    return [photo.crop((left, top, left + side, top + side)) for left, top in corners]


def photographed(photos: list[Path], num_references: int, num_tested: int) -> Iterator[Product]:
    """Yield a product for each photograph: random crops of it. Every other test picture gets a painted anomaly."""
    for number, path in enumerate(photos):
        photo = Image.open(path).convert("RGB")
        crops = crops_of(photo, num_references + num_tested, random.Random(number))
        references, tested = crops[:num_references], crops[num_references:]
        masks: list[Image.Image | None] = [None] * num_tested
        for index in range(1, num_tested, 2):
            tested[index], masks[index], _ = add_anomaly(tested[index], [number, index])
        yield Product(path.name, references, tested, masks)


def rendered(count: int, num_references: int, num_tested: int) -> Iterator[Product]:
    """Yield products of families that no checkpoint is trained on: one object before a camera, as on a line."""
    for number, family in enumerate(select_products("unseen")[:count]):
        generator, key = np.random.default_rng(number), {"seed": 5, "index": 900_000 + number, "size": _SIDE}
        normal = render_sample(family, **key, defect=None).image
        references = [_as_on_a_line(normal, None, generator)[0] for _ in range(num_references)]
        pairs = [_as_on_a_line(normal, None, generator) for _ in range(num_tested // 2)]
        for defect in generator.permutation(possible_defects(family)):
            if len(pairs) == num_tested:
                break
            try:
                sample = render_sample(family, **key, defect=str(defect))
            except RuntimeError:  # no attempt at this defect is visible
                continue
            pairs.append(_as_on_a_line(sample.image, sample.mask, generator))
        yield Product(family, references, [each for each, _ in pairs], [mask for _, mask in pairs])


def _as_on_a_line(
    picture: Image.Image, mask: Image.Image | None, generator: np.random.Generator
) -> tuple[Image.Image, Image.Image | None]:
    """Move, turn and zoom a picture and its mask a little, and change light and noise of the picture."""
    angle, zoom = generator.uniform(-4, 4), generator.uniform(0.96, 1.04)
    shift = tuple(int(each) for each in generator.uniform(-8, 8, 2).round())
    center = _MARGIN + _SIDE / 2
    reach = _SIDE * 0.47 * zoom
    box = (center - reach, center - reach, center + reach, center + reach)

    def moved(image: Image.Image, mode: str, method: Image.Resampling) -> Image.Image:
        values = np.asarray(image)
        wide = np.pad(values, [(_MARGIN, _MARGIN)] * 2 + [(0, 0)] * (values.ndim - 2), mode=mode)
        return Image.fromarray(wide).rotate(angle, method, translate=shift).resize((224, 224), method, box)

    values = np.asarray(moved(picture.convert("RGB"), "reflect", Image.Resampling.BICUBIC), dtype=np.float64)
    values = values * generator.uniform(0.92, 1.08) + generator.uniform(-10, 10)
    ramp = generator.uniform(-8, 8) * np.linspace(-1, 1, 224)
    values += (ramp[:, None] if generator.random() < 0.5 else ramp[None, :])[..., None]
    values += generator.normal(0, generator.uniform(1, 4), (224, 224, 1))
    found = None if mask is None else moved(mask.convert("L"), "constant", Image.Resampling.NEAREST)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8)), found
