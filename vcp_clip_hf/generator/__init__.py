"""
Procedural photographs of industrial products, with exact defect masks.

The package needs NumPy and Pillow, except for `stream` (a `torch` dataset), and imports nothing else of `vcp_clip_hf`.
From the ground up:

- `fields`: coordinates, random draws and noise;
- `shapes`: outlines, strokes and lettering;
- `scene`, `light`, `camera`: a relief with color and gloss, its lighting, and the photograph of it;
- `materials`: surfaces of metal, wood, fabric, ...;
- `registry`: the decorators `product` and `defect`, and the tables `PRODUCTS` and `DEFECTS` that they fill;
- `staging`: backgrounds, poses, edges, screws and prints that many products share;
- `families/`: the products; `defects/`: the damage to their surfaces;
- `catalog`: selections of products and defects;
- `render`: one picture with its mask; `captions`: its description; `stream`: an endless dataset of pictures.
"""

from .catalog import (
    SEEN_DEFECTS,
    SEEN_PRODUCTS,
    UNSEEN_DEFECTS,
    UNSEEN_PRODUCTS,
    possible_defects,
    select_products,
)
from .registry import DEFECTS, FAULTS, PRODUCTS, DefectFamily, Fault, ProductFamily, defect, product
from .render import SyntheticSample, render_sample


__all__ = [
    "DEFECTS",
    "FAULTS",
    "PRODUCTS",
    "SEEN_DEFECTS",
    "SEEN_PRODUCTS",
    "UNSEEN_DEFECTS",
    "UNSEEN_PRODUCTS",
    "DefectFamily",
    "Fault",
    "ProductFamily",
    "SyntheticSample",
    "defect",
    "possible_defects",
    "product",
    "render_sample",
    "select_products",
]
