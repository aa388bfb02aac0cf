"""Knowledge of SAA+ about a product: captions of defects and of the object, and limits of their number and size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .prompt_ensemble import PRODUCT_SLOT, read_prompts


__all__ = ["ProductKnowledge", "find_knowledge"]

_FIELDS = ("prompts", "object_phrase", "num_objects", "max_masks", "max_area_fraction")


@dataclass(frozen=True)
class ProductKnowledge:
    """
    Knowledge of SAA+ about a product. The defaults are the authors' values for textures; they serve for products
    without values of the authors.

    Args:
        captions (sequence of `(caption, word)`): captions of defects; boxes whose phrase contains the word are left
            out, because they show the product.
        object_phrase (`str`): caption that finds the product.
        num_objects (`int`): number of objects in an image.
        max_masks (`int`): number of masks that make the map.
        max_area_fraction (`float`): largest area of a box of a defect, as a fraction of that of the object.

    Raises:
        ValueError: a value is out of range.
    """

    captions: Sequence[tuple[str, str]]
    object_phrase: str
    num_objects: int = 1
    max_masks: int = 5
    max_area_fraction: float = 0.9

    def __post_init__(self):
        if self.num_objects < 1 or self.max_masks < 1 or self.max_area_fraction <= 0:
            raise ValueError(
                f"num_objects={self.num_objects} and max_masks={self.max_masks} must be at least 1, and"
                f" max_area_fraction={self.max_area_fraction} more than 0."
            )


def find_knowledge(product: str, further: Mapping[str, Mapping[str, Any]] | None = None) -> ProductKnowledge:
    """
    Return the values for a product: the authors' for products of MVTec-AD, VisA, KSDD2 and MTD, else the defaults.

    Args:
        product (`str`): name of the product, with blanks or underscores.
        further (`Mapping`, *optional*): name -> values of products that are added or replaced, with the keys of
            `prompts/saa.json`; missing keys have their defaults.

    Raises:
        ValueError: an unknown key, or a value out of range.
    """
    facts, key = read_prompts("saa"), _key(product)
    own = {_key(name): values for name, values in (further or {}).items()}
    known = own.get(key, facts["products"].get(key))
    # The authors' captions contain their names of products, such as "metal_nut"
    name = key if key in facts["products"] and key not in own else product.strip()
    values = dict(known or {})
    unknown = set(values) - set(_FIELDS)
    if unknown:
        raise ValueError(f"The product {product!r} has the keys {sorted(unknown)}; known are {', '.join(_FIELDS)}.")
    general = [(template.replace(PRODUCT_SLOT, name), name) for template in facts["general"]]
    specific = [tuple(each) for each in values.pop("prompts", [])]
    return ProductKnowledge((*general, *specific), values.pop("object_phrase", f"{name},"), **values)


def _key(product: str) -> str:
    return product.strip().lower().replace(" ", "_").replace("-", "_")
