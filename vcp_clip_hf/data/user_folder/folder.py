"""The dataset builder for folders of the user's own images, with or without labels and masks."""

from collections import Counter
from typing import Any

from transformers.utils import logging

from ...image_files import find_images, suffix_of
from ..annotations.find import find_annotations
from ..base import AnomalyDatasetBuilder
from ..did_you_mean import did_you_mean
from ..file_tree import FileTree, folder_and_file
from ..layout_errors import DatasetLayoutError, LayoutProblem
from ..listing import Listing
from .annotated_pictures import ANNOTATIONS_TREE, annotation_layout, has_masks
from .config import AnomalyFolderConfig
from .layouts import FOLDER_LAYOUTS, fits_kinds
from .names import Names


__all__ = ["AnomalyFolder"]

logger = logging.get_logger(__name__)


class AnomalyFolder(AnomalyDatasetBuilder):
    """
    Dataset of the user's own images. The folder has one of these layouts, which the names in it tell:

    - "metadata": a table (CSV or JSONL) with a column for the image and any of mask, label, product, defect, split.
      A file named `metadata.csv` or `metadata.jsonl` goes before all other layouts.
    - "products": `product/{train,test,...}/<kind>/image`, masks in `product/ground_truth/<kind>/`; the level of
      products may be missing.
    - "kinds": `<kind>/image`, or `product/<kind>/image`; masks in a folder such as `masks` or `ground_truth`.
    - "flat": images only; their labels are -1, or follow from their masks.
    - "annotations": images in any folders, with files of COCO, labelme, YOLO or CVAT that outline their defects. An
      image that is annotated without a shape is normal. See `docs/correcting_and_retraining.md`.

    `<kind>` is a word for normal ("good", "ok", "normal", ...), a word for anomalous ("bad", "ko", "defect", ...), or
    the name of a defect. Masks are optional; a mask has the stem of its image, optionally followed by "_mask" or the
    like, in any image format, and may lie beside its image. What was found is logged and returned by `describe()`. If
    several layouts fit, an error lists them, and `layout` chooses.

    Which files are images, and what happens to hidden and linked ones, is the rule of [`vcp_clip_hf.image_files`].

    Args:
        data_dir (`str`): folder, or a metadata file in it.
        options: fields of [`AnomalyFolderConfig`].

    ```python
    >>> from vcp_clip_hf.data import AnomalyFolder

    >>> builder = AnomalyFolder(data_dir="photos/gaskets")
    >>> print(builder.describe())
    ```
    """

    TITLE = "AnomalyFolder"
    DESCRIPTION = "Images from a folder."
    BUILDER_CONFIG_CLASS = AnomalyFolderConfig
    LAYOUTS = FOLDER_LAYOUTS
    SPLITS = "as folders or table name them; test for images without a split"
    LICENSE = "yours"

    def __init__(self, data_dir: str | None = None, **options: Any):
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
        requested = config.layout or ("metadata" if config.metadata else None)
        if config.annotations and requested in (None, "annotations"):
            return self._annotated(tree, where, config.annotations)
        if requested == "annotations":
            return self._annotated(tree, where)
        if requested is not None:
            if config.annotations:
                raise ValueError(f"layout {requested!r} reads no annotations; leave out annotations or the layout.")
            if requested not in layouts:
                raise ValueError(f"{self.TITLE} has no layout {requested!r}; {did_you_mean(requested, list(layouts))}")
            return Listing(tree, layouts[requested])

        names = Names(config.normal_names, config.anomalous_names)
        found = [
            layout
            for layout in self.LAYOUTS
            if (fits_kinds(tree, names) if layout.name == "kinds" else layout.matches(tree))
        ]
        if found and found[0].name == "metadata":
            return Listing(tree, found[0])  # a table states explicitly what the images are
        annotated = self._annotated(tree, where, required=False)
        if annotated is not None:
            return annotated
        if len(found) == 1:
            return Listing(tree, found[0])
        if found:
            raise DatasetLayoutError(
                where,
                [LayoutProblem(f'"{layout.name}"', "this layout fits") for layout in found],
                "one layout",
                f"Choose one of them: {' or '.join(f'layout={layout.name!r}' for layout in found)}.",
            )
        folders = ", ".join(tree.folders()[:8]) or "none"
        _, left_out = find_images(tree.root)
        reason = f"no layout fits: {len(tree.files())} images, and the folders {folders}"
        raise DatasetLayoutError(
            where,
            [LayoutProblem(tree.root, reason + (f"; {left_out}" if left_out else ""))],
            "\n".join(f'"{name}":\n{layout.expected.strip()}' for name, layout in layouts.items()),
            'Rename the folders, or say how to read them: layout="kinds" with normal_names=[...], layout="flat", ...',
        )

    def _annotated(self, tree: FileTree, where: str, only: str | None = None, required: bool = True) -> Listing | None:
        """Return the listing of a folder with annotations of one format; None if it has none and none are required."""
        found = find_annotations(tree, only)
        choices = [f"annotations={name!r}" for name in found]
        if found and only is None and not required and has_masks(tree):
            choices.append("layout='kinds' (or the other layout that the masks are in)")
        if len(choices) > 1:
            problems = [
                LayoutProblem(files[0].path, f"annotations of {name}, {len(files)} file{'s' * (len(files) > 1)}")
                for name, files in found.items()
            ]
            if len(choices) > len(found):
                problems.append(LayoutProblem(tree.root, "masks as image files"))
            raise DatasetLayoutError(
                where, problems, "one kind of ground truth", f"Choose one of them: {' or '.join(choices)}."
            )
        if found:
            ((name, files),) = found.items()
            return Listing(tree, annotation_layout(name, files))
        if required:
            raise DatasetLayoutError(
                where,
                [LayoutProblem(tree.root, f"no annotations of {only or 'COCO, labelme, YOLO or CVAT'}")],
                ANNOTATIONS_TREE,
                "Copy the annotation files into the folder.",
            )
        return None

    def _list(self, config: AnomalyFolderConfig) -> Listing:
        listing = super()._list(config)
        if not (
            config.layout or config.metadata or config.annotations
        ):  # the user should know which layout was detected
            tables = [name for name in listing.tree.files(suffixes=(".csv", ".jsonl")) if not listing.has_read(name)]
            others = f"\n  not read: {', '.join(tables)} (metadata=... would read it)" if tables else ""
            logger.warning("%s in %s%s", self.TITLE, listing.summary(), others)
        _, left_out = find_images(listing.tree.root)
        left_out.endings -= Counter(map(suffix_of, listing.read_files))
        if left_out:
            level = logging.WARNING if left_out.has_pictures else logging.INFO
            logger.log(level, "%s in %s: %s", self.TITLE, listing.tree.root, left_out)
        return listing
