"""All registered products and defects: which are seen in training, and which defect can occur on which product."""

from collections.abc import Sequence

from . import defects as _defects  # noqa: F401  registers the defects
from . import families as _families  # noqa: F401  registers the products
from .registry import DEFECTS, FAULTS, PRODUCTS, ProductFamily


__all__ = [
    "SEEN_DEFECTS",
    "SEEN_PRODUCTS",
    "UNSEEN_DEFECTS",
    "UNSEEN_PRODUCTS",
    "possible_defects",
    "product_family",
    "select_products",
]

SEEN_PRODUCTS: tuple[str, ...] = tuple(sorted(name for name, family in PRODUCTS.items() if family.seen))
UNSEEN_PRODUCTS: tuple[str, ...] = tuple(sorted(name for name, family in PRODUCTS.items() if not family.seen))
SEEN_DEFECTS: tuple[str, ...] = (*sorted(name for name, family in DEFECTS.items() if family.seen), *sorted(FAULTS))
UNSEEN_DEFECTS: tuple[str, ...] = tuple(sorted(name for name, family in DEFECTS.items() if not family.seen))


def product_family(name: str) -> ProductFamily:
    """
    Return a product family by name.

    Raises:
        ValueError: unknown name.
    """
    if name not in PRODUCTS:
        raise ValueError(f"Unknown product family {name!r}; expected one of {', '.join(sorted(PRODUCTS))}.")
    return PRODUCTS[name]


def select_products(products: str | Sequence[str]) -> tuple[str, ...]:
    """
    Return names of product families.

    Args:
        products (`str` or sequence of `str`): "seen", "unseen", "all", one name, or several names.

    Raises:
        ValueError: unknown names.
    """
    groups = {"seen": SEEN_PRODUCTS, "unseen": UNSEEN_PRODUCTS, "all": tuple(sorted(PRODUCTS))}
    if isinstance(products, str):
        products = groups.get(products, (products,))
    unknown = [name for name in products if name not in PRODUCTS]
    if unknown or not products:
        raise ValueError(
            f"Unknown product families {unknown}; expected 'seen', 'unseen', 'all' or some of"
            f" {', '.join(sorted(PRODUCTS))}."
        )
    return tuple(products)


def possible_defects(family: str, defects: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the names of the defects that this product can have, restricted to `defects` if given."""
    product = product_family(family)
    names = [name for name, defect in DEFECTS.items() if defect.suits(product)] + list(product.faults)
    return tuple(sorted(name for name in names if defects is None or name in defects))
