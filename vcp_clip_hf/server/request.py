"""The request for one image, as an engine gets it."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from .recipe import Recipe


__all__ = ["SegmentationRequest"]


@dataclass(frozen=True, eq=False)
class SegmentationRequest:
    """
    One image with its settings. `RecipeStore.request` makes it from the name of a recipe.

    Args:
        image (`PIL.Image.Image`): upright image, mode RGB, as `image_loading.load_image` returns it with the engine's
            `input_range`.
        recipe ([`Recipe`]): settings of the product.
        with_regions (`bool`, *optional*, defaults to `False`): whether the result has `regions`; needs a threshold.
        with_overlay (`bool`, *optional*, defaults to `False`): whether the result has `heatmap`.
        roi (`Path`, *optional*): file of the recipe's region of interest, named after its content.
        references (`tuple[Path, ...]`, *optional*): files of the recipe's references, named after their content.
    """

    image: Image.Image
    recipe: Recipe
    with_regions: bool = False
    with_overlay: bool = False
    roi: Path | None = None
    references: tuple[Path, ...] = ()
