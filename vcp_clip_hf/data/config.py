"""The options that all datasets share."""

import dataclasses
from collections.abc import Sequence

import datasets


__all__ = ["AnomalyDatasetConfig"]


@dataclasses.dataclass(eq=False)
class AnomalyDatasetConfig(datasets.BuilderConfig):
    """
    Options of a dataset. Datasets with further options derive from it.

    Args:
        products (`Sequence[str]`, *optional*):
            Names of the products to read; by default all, or the one product that this configuration is for.
        layout (`str`, *optional*): name of the layout; detected by default.
        on_error (`"raise"` or `"skip"`, *optional*, defaults to `"raise"`):
            Whether files that do not fit raise one error that lists them all, or are left out and reported.
        input_range (`tuple[float, float]`, *optional*):
            Values that become black and white in image files of more than 8 bits, see
            [`vcp_clip_hf.image_loading.load_image`].
    """

    name: str = "all"
    products: Sequence[str] | None = None
    layout: str | None = None
    on_error: str = "raise"
    input_range: tuple[float, float] | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f'on_error={self.on_error!r} must be "raise" or "skip".')
        if isinstance(self.products, str):
            raise ValueError(f"products={self.products!r} must be a list of names.")
