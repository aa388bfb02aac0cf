"""Product and defect families by name, and what each of them needs to know about the other."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .fields import Dice, Grid
from .scene import Scene


__all__ = ["DEFECTS", "FAULTS", "PRODUCTS", "DefectFamily", "Fault", "ProductFamily", "defect", "product"]


@dataclass(frozen=True)
class Fault:
    """
    A defect of construction, asked of the function that builds a product: a pin left out, a print beside its place.

    Args:
        name (`str`): one of the names in the product family's `faults`.
        dice (`Dice`): a stream of its own, so that everything else about the product stays the same.
        strength (`float`): 0..1, how gross.
    """

    name: str
    dice: Dice
    strength: float


@dataclass(frozen=True)
class ProductFamily:
    """
    A kind of product.

    Args:
        name (`str`): stable key; a family's pictures depend on it and on nothing about other families.
        products (`tuple[str, ...]`): what people call it; captions use them all, the first is the record's `product`.
        kind (`str`): "texture" (fills the picture) or "object".
        material (`str`): metal, plastic, ceramic, stone, wood, fabric, leather, paper, rubber, foam, glass, organic,
            carbon or electronic; decides which defects make sense.
        seen (`bool`): in the training split; otherwise in the test split.
        gray (`float`): share of pictures taken by a monochrome camera.
        faults (`dict[str, str]`): defects of construction it can have, and their words in captions.
        build: `(dice, grid, fault) -> Scene`. With a fault, everything that the fault does not touch is the same.
    """

    name: str
    products: tuple[str, ...]
    kind: str
    material: str
    seen: bool
    gray: float
    faults: dict[str, str]
    build: Callable[[Dice, Grid, Fault | None], Scene]

    @property
    def key(self) -> int:
        """A number that stands for the name in seeds."""
        return zlib.crc32(self.name.encode())


@dataclass(frozen=True)
class DefectFamily:
    """
    A kind of damage to a surface.

    Args:
        name (`str`): the record's `defect`.
        words (`tuple[str, ...]`): nouns for captions.
        adjectives (`tuple[str, ...]`): states for captions ("cracked").
        materials (`frozenset[str]` or None): where it makes sense; None everywhere.
        kinds (`tuple[str, ...]`): of products.
        seen (`bool`): may occur in the training split.
        thin (`bool`): lines and points, whose masks are not closed.
        weight (`float`): how often it is drawn, relative to others; what factories see daily comes more often.
        sizes (`tuple[float, float]`): smallest and largest radius or half length, in half image sides.
        apply: `(scene, dice, place, size, strength) -> region`: changes the scene and returns the opacity of the
            change, `(size, size)` float32.
    """

    name: str
    words: tuple[str, ...]
    adjectives: tuple[str, ...]
    materials: frozenset[str] | None
    kinds: tuple[str, ...]
    seen: bool
    thin: bool
    weight: float
    sizes: tuple[float, float]
    apply: Callable[[Scene, Dice, tuple[float, float], float, float], np.ndarray]

    def suits(self, family: ProductFamily) -> bool:
        """Whether this damage can happen to this product."""
        return family.kind in self.kinds and (self.materials is None or family.material in self.materials)


# defects of construction, with the states their captions use; which product can have which is the product's to say
FAULTS: dict[str, tuple[str, ...]] = {
    "missing_part": ("incomplete", "damaged"),
    "bent_part": ("bent", "deformed"),
    "misplaced_part": ("misplaced", "misaligned"),
    "broken_part": ("broken", "damaged"),
    "wrong_part": ("wrong", "mismatched"),
    "print_error": ("misprinted", "badly printed"),
}

PRODUCTS: dict[str, ProductFamily] = {}
DEFECTS: dict[str, DefectFamily] = {}


def product(
    name: str,
    products: tuple[str, ...],
    kind: str,
    material: str,
    seen: bool = True,
    gray: float = 0.25,
    faults: dict[str, str] | None = None,
):
    """Registers a function that builds a product; see [`ProductFamily`]."""
    faults = dict(faults or {})
    unknown = set(faults) - set(FAULTS)
    if unknown or name in PRODUCTS:
        raise ValueError(f"Product {name!r}: unknown faults {sorted(unknown)} or a name that is taken.")

    def register(build):
        PRODUCTS[name] = ProductFamily(name, products, kind, material, seen, gray, faults, build)
        return build

    return register


def defect(
    name: str,
    words: tuple[str, ...],
    adjectives: tuple[str, ...],
    sizes: tuple[float, float],
    materials: str | None = None,
    kinds: tuple[str, ...] = ("texture", "object"),
    seen: bool = True,
    thin: bool = False,
    weight: float = 1.0,
):
    """Registers a function that damages a scene; see [`DefectFamily`]. `materials`: words in one string."""
    if name in DEFECTS:
        raise ValueError(f"Defect {name!r} is registered twice.")

    def register(apply):
        suitable = None if materials is None else frozenset(materials.split())
        DEFECTS[name] = DefectFamily(name, words, adjectives, suitable, kinds, seen, thin, weight, sizes, apply)
        return apply

    return register
