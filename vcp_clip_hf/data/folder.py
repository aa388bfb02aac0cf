"""Anybody's folder of images, with or without labels and masks."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers.utils import logging

from .base import AnomalyDatasetBuilder, AnomalyDatasetConfig
from .file_tree import FileTree, folder_and_file
from .folder_layouts import FOLDER_LAYOUTS, fits_kinds
from .folder_names import Names
from .layout_errors import DatasetLayoutError, LayoutProblem
from .layouts import Listing, nearest


__all__ = ["AnomalyFolder", "AnomalyFolderConfig"]

logger = logging.get_logger(__name__)


@dataclass(eq=False)
class AnomalyFolderConfig(AnomalyDatasetConfig):
    """
    Args:
        layout (`str`, *optional*): one of the layouts of [`AnomalyFolder`]; detected by default.
        metadata (`str`, *optional*):
            A CSV or JSONL file inside the folder. Without it, `metadata.csv` or `metadata.jsonl`, if there is one.
        product (`str`, *optional*, defaults to the folder's name): the product, where nothing names one.
        normal_names (`Sequence[str]`, *optional*): further names of folders and labels that mean normal.
        anomalous_names (`Sequence[str]`, *optional*): further names of folders and labels that mean anomalous.
        mask_above (`int`, *optional*):
            Mask values above it are abnormal. Without it, a mask must not have more than two values, 0 and another.
        masks_required (`bool`, *optional*, defaults to `False`): whether an anomalous image must have a mask.
    """

    metadata: str | None = None
    product: str | None = None
    normal_names: Sequence[str] = ()
    anomalous_names: Sequence[str] = ()
    mask_above: int | None = None
    masks_required: bool = False

    def __post_init__(self):
        super().__post_init__()
        for name in ("normal_names", "anomalous_names"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"{name}={getattr(self, name)!r} must be a list of names.")


class AnomalyFolder(AnomalyDatasetBuilder):
    """
    Images of your own. One of these layouts, told from the names in the folder:

    - "metadata": a table (CSV or JSONL) with a column for the image and any of mask, label, product, defect, split;
      a file called `metadata.csv` or `metadata.jsonl` goes before all other layouts.
    - "products": `product/{train,test,...}/<kind>/image`, masks in `product/ground_truth/<kind>/`; the products' level
      may be missing.
    - "kinds": `<kind>/image`, or `product/<kind>/image`; masks in a folder such as `masks` or `ground_truth`.
    - "flat": images only; their labels are -1, or what their masks tell.

    `<kind>` is a word for normal ("good", "ok", "normal", ...), one for anomalous ("bad", "ko", "defect", ...), or the
    name of a defect. Masks are optional; they pair with images by stem, with or without "_mask" and the like behind
    it, in any format, also beside their image. What was found is logged and told by `describe()`. Where a folder can
    be read in several ways, an error lists them, and `layout` chooses.

    Args:
        data_dir (`str`): the folder, or a metadata file in it.
        options: the fields of [`AnomalyFolderConfig`].

    ```python
    >>> from vcp_clip_hf.data.folder import AnomalyFolder

    >>> builder = AnomalyFolder(data_dir="photos/gaskets")
    >>> print(builder.describe())
    ```
    """

    TITLE = "AnomalyFolder"
    DESCRIPTION = "Images from a folder."
    BUILDER_CONFIG_CLASS = AnomalyFolderConfig
    LAYOUTS = FOLDER_LAYOUTS
    SPLITS = "as folders or table name them; test where nothing does"
    LICENSE = "yours"

    def __init__(self, data_dir: str | None = None, **options):
        data_dir, table = (data_dir, None) if data_dir is None else folder_and_file(data_dir)
        if table is not None:
            options.setdefault("metadata", table)
        super().__init__(data_dir=data_dir, **options)

    def _find(self, config: AnomalyFolderConfig) -> Listing:
        tree = FileTree(config.data_dir)
        where = f"{self.TITLE} in {tree.root}"
        if not tree.exists():
            raise DatasetLayoutError(where, [LayoutProblem(tree.root, "no such folder")], fix="Check data_dir.")
        layouts = {layout.name: layout for layout in self.LAYOUTS}
        wanted = config.layout or ("metadata" if config.metadata else None)
        if wanted is not None:
            if wanted not in layouts:
                raise ValueError(f"{self.TITLE} has no layout {wanted!r}; {nearest(wanted, list(layouts))}")
            return Listing(tree, layouts[wanted])

        names = Names(config.normal_names, config.anomalous_names)
        found = [
            layout
            for layout in self.LAYOUTS
            if (fits_kinds(tree, names) if layout.name == "kinds" else layout.matches(tree))
        ]
        if found and found[0].name == "metadata":
            found = found[:1]  # somebody wrote down what is what
        if len(found) == 1:
            return Listing(tree, found[0])
        if found:
            raise DatasetLayoutError(
                where,
                [LayoutProblem(f'"{layout.name}"', "this layout fits") for layout in found],
                "one layout",
                f"Say which it is: {' or '.join(f'layout={layout.name!r}' for layout in found)}.",
            )
        inside = ", ".join(tree.folders()[:8]) or "none"
        raise DatasetLayoutError(
            where,
            [LayoutProblem(tree.root, f"no layout fits: {len(tree.files())} images, and the folders {inside}")],
            "\n".join(f'"{name}":\n{layout.expected.strip()}' for name, layout in layouts.items()),
            'Rename the folders, or say how to read them: layout="kinds" with normal_names=[...], layout="flat", ...',
        )

    def _list(self, config: AnomalyFolderConfig) -> Listing:
        listing = super()._list(config)
        if not (config.layout or config.metadata):  # a layout nobody asked for is said aloud
            tables = [name for name in listing.tree.files(suffixes=(".csv", ".jsonl")) if not listing.has_read(name)]
            others = f"\n  not read: {', '.join(tables)} (metadata=... would)" if tables else ""
            logger.warning("%s in %s%s", self.TITLE, listing.summary(), others)
        return listing
