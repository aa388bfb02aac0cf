"""What an engine needs for one image."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from .recipe import Recipe


__all__ = ["SegmentationRequest"]


@dataclass(frozen=True, eq=False)
class SegmentationRequest:
    """
    One image, and what is done with it. `RecipeStore.request` makes it from the name of a recipe.

    Args:
        image (`PIL.Image.Image`): upright picture, mode RGB, as `image_loading.load_image` returns it when it is given
            the engine's `input_range`.
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
