"""Product and defect families, and the decorators that register them by name."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .fields import Dice, Grid
from .scene import Scene


__all__ = [
    "DEFECTS",
    "FAULTS",
    "PRODUCTS",
    "ApplyDefect",
    "BuildProduct",
    "DefectFamily",
    "Fault",
    "ProductFamily",
    "defect",
    "product",
]


@dataclass(frozen=True)
class Fault:
    """
    A construction fault requested from the function that builds a product: a missing pin, a misplaced print.

    Args:
        name (`str`): one of the names in the product family's `faults`.
        dice (`Dice`): a random stream of its own, so that the rest of the product stays the same.
        strength (`float`): severity, 0..1.
    """

    name: str
    dice: Dice
    strength: float


BuildProduct = Callable[[Dice, Grid, Fault | None], Scene]
ApplyDefect = Callable[[Scene, Dice, tuple[float, float], float, float], np.ndarray]


@dataclass(frozen=True)
class ProductFamily:
    """
    A kind of product.

    Args:
        name (`str`): stable key. The pictures of a family depend on its own name and function only.
        products (`tuple[str, ...]`): names in captions.
        kind (`str`): "texture" (fills the picture) or "object".
        material (`str`): metal, plastic, ceramic, stone, wood, fabric, leather, paper, rubber, foam, glass, organic,
            carbon or electronic; decides which defects make sense.
        seen (`bool`): whether the product is in the training split; otherwise it is in the test split.
        gray (`float`): share of pictures taken by a monochrome camera, 0..1.
        faults (`dict[str, str]`): names of possible construction faults, and the part each one concerns, for captions.
        build: function `(dice, grid, fault) -> Scene`. Everything that the fault does not touch stays the same.
    """

    name: str
    products: tuple[str, ...]
    kind: str
    material: str
    seen: bool
    gray: float
    faults: dict[str, str]
    build: BuildProduct

    @property
    def key(self) -> int:
        """Return a number that represents the name in seeds."""
        return zlib.crc32(self.name.encode())


@dataclass(frozen=True)
class DefectFamily:
    """
    A kind of damage to a surface.

    Args:
        name (`str`): stable key, the `defect` of records.
        words (`tuple[str, ...]`): nouns for captions.
        adjectives (`tuple[str, ...]`): states for captions ("cracked").
        materials (`frozenset[str]` or None): materials on which the defect makes sense; None for all.
        kinds (`tuple[str, ...]`): kinds of products on which the defect makes sense.
        seen (`bool`): whether the defect may occur in the training split.
        thin (`bool`): whether the defect consists of lines or points, whose masks are not closed.
        weight (`float`): relative frequency; defects that are common in factories have a higher weight.
        sizes (`tuple[float, float]`): smallest and largest radius or half length, in half image sides.
        apply: function `(scene, dice, place, size, strength) -> region` that changes the scene and returns the opacity
            of the change, `(size, size)` float32.
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
    apply: ApplyDefect

    def suits(self, family: ProductFamily) -> bool:
        """Return whether this damage can happen to this product."""
        return family.kind in self.kinds and (self.materials is None or family.material in self.materials)


# construction faults and the states in their captions; `ProductFamily.faults` says which product can have which fault
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
) -> Callable[[BuildProduct], BuildProduct]:
    """Register the decorated function as the builder of a product; see [`ProductFamily`] for the arguments."""
    faults = dict(faults or {})
    unknown = sorted(set(faults) - set(FAULTS))
    if unknown:
        raise ValueError(f"Product {name!r} has unknown faults {unknown}; expected some of {', '.join(FAULTS)}.")
    if name in PRODUCTS:
        raise ValueError(f"A product named {name!r} is already registered; choose another name.")

    def register(build: BuildProduct) -> BuildProduct:
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
) -> Callable[[ApplyDefect], ApplyDefect]:
    """
    Register the decorated function as a defect; see [`DefectFamily`] for the arguments. `materials` is one string of
    names separated by spaces.
    """
    if name in DEFECTS:
        raise ValueError(f"A defect named {name!r} is already registered; choose another name.")

    def register(apply: ApplyDefect) -> ApplyDefect:
        suitable = None if materials is None else frozenset(materials.split())
        DEFECTS[name] = DefectFamily(name, words, adjectives, suitable, kinds, seen, thin, weight, sizes, apply)
        return apply

    return register
