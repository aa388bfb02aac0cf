"""The layouts of folders of the user's own images."""

from collections.abc import Callable

from ..file_tree import FileTree, stem_of
from ..listing import Layout, Listing
from ..masks import MaskFiles
from ..records import ANOMALOUS, GOOD, NORMAL, UNKNOWN
from .annotated_pictures import ANNOTATIONS_TREE
from .config import AnomalyFolderConfig
from .folder_masks import (
    FoundImage,
    MaskOwners,
    is_mask_folder,
    is_split_folder,
    join,
    mask_folders,
    split_folders,
    take_masks_beside,
    walk_masks,
)
from .metadata_table import collect_table, metadata_file
from .names import Names, fold


__all__ = ["FOLDER_LAYOUTS", "fits_kinds"]


def _kinds(tree: FileTree, base: str) -> list[str]:
    """Return the names of folders with images that are neither masks nor splits."""
    return [
        name
        for name in tree.folders(base)
        if not is_mask_folder(name) and not is_split_folder(name) and tree.files(join(base, name))
    ]


def _has_splits(tree: FileTree, base: str) -> bool:
    return any(_kinds(tree, join(base, split)) for split in split_folders(tree, base))


def _has_kinds(names: Names) -> Callable[[FileTree, str], bool]:
    """Return a function that recognizes a folder of kinds: at least one is known to mean normal or anomalous."""
    return lambda tree, base: any(names.label(kind) is not None for kind in _kinds(tree, base))


def fits_kinds(tree: FileTree, names: Names) -> bool:
    """Return whether the root, or a folder in it, has kinds that these names know."""
    return bool(_products(tree, _has_kinds(names)))


def _products(tree: FileTree, fits: Callable[[FileTree, str], bool]) -> list[str]:
    """Return the folders that have the layout: "" for the root itself, otherwise folders in it."""
    if fits(tree, ""):
        return [""]
    return [
        name for name in tree.folders() if not is_mask_folder(name) and not is_split_folder(name) and fits(tree, name)
    ]


class _Collector:
    """Adds the images of a folder to a listing, and remembers which files it has used."""

    def __init__(self, tree: FileTree, listing: Listing, config: AnomalyFolderConfig):
        self.tree, self.listing, self.config = tree, listing, config
        self.names = Names(config.normal_names, config.anomalous_names)
        self.used: set[str] = set()

    def collect_splits(self) -> None:
        """Add the images of `[product/]split/kind/image`."""
        for product in _products(self.tree, _has_splits) or [""]:
            images = []
            for split in split_folders(self.tree, product):
                for kind in _kinds(self.tree, join(product, split)):
                    images += self._kind_of_split(product, split, kind)
            self._add(product, images)
        self._report_unused()

    def _kind_of_split(self, product: str, split: str, kind: str) -> list[FoundImage]:
        folder = join(product, split, kind)
        label = self.names.label(kind)
        if label is None and fold(split).startswith("train") and not self._has_masks(product, split, kind):
            self._report_unclear(product, folder)
            return []
        # a test set names its kinds: one that does not mean normal is a defect
        return self._images_of(folder, fold(split), kind, ANOMALOUS if label is None else label)

    def collect_kinds(self) -> None:
        """Add the images of `[product/]kind/image`."""
        for product in _products(self.tree, _has_kinds(self.names)) or [""]:
            labels = {kind: self.names.label(kind) for kind in _kinds(self.tree, product)}
            images = []
            for kind, label in labels.items():
                if label is None and NORMAL not in labels.values():
                    self._report_unclear(product, join(product, kind))
                else:
                    label = ANOMALOUS if label is None else label
                    images += self._images_of(join(product, kind), "test", kind, label)
            self._add(product, images)
        self._report_unused()

    def collect_flat(self) -> None:
        """Add all images, at any depth, except those in mask folders."""
        paths = [path for path in self.tree.walk() if not any(map(is_mask_folder, path.split("/")[:-1]))]
        self._add("", take_masks_beside([FoundImage(path, "test") for path in paths]))

    def _images_of(self, folder: str, split: str, kind: str, label: int) -> list[FoundImage]:
        defect = GOOD if label == NORMAL else fold(kind)
        found = [FoundImage(path, split, kind, label, defect) for path in self.tree.files(folder)]
        return take_masks_beside(found)

    def _has_masks(self, product: str, split: str, kind: str) -> bool:
        folders = [join(root, middle, kind) for root in mask_folders(self.tree, product) for middle in ("", split)]
        return any(map(self.tree.has_folder, folders))

    def _product_name(self, product: str) -> str:
        folder_name = self.tree.root.replace("\\", "/").rstrip("/").rpartition("/")[2]
        return product or self.config.product or folder_name or "product"

    def _add(self, product: str, images: list[FoundImage]) -> None:
        """Pair the masks in a product's mask folders with its images, and add the records."""
        name = self._product_name(product)
        self._pair_masks(product, images, name)
        for image in images:
            self.used.update((image.path, *image.masks))
            if len(image.masks) > 1 and not all(mask.split("/")[-2] == stem_of(image.path) for mask in image.masks):
                self.listing.problem(image.path, f"several masks: {', '.join(image.masks)}", name)
            elif self.config.masks_required and image.label == ANOMALOUS and not image.masks:
                self.listing.problem(image.path, "no mask", name)
            else:
                label = None if image.label == UNKNOWN and image.masks else image.label
                files = tuple(map(self.tree.path, image.masks))
                mask = MaskFiles(files, self.config.mask_above) if files else None
                defect = "anomaly" if label is None else image.defect
                self.listing.add(image.split, image.path, name, label, defect, mask)

    def _pair_masks(self, product: str, images: list[FoundImage], name: str) -> None:
        owners_of = MaskOwners(images)
        for root in mask_folders(self.tree, product):
            splits = split_folders(self.tree, product)
            around = [split for split in splits if root.startswith(join(product, split) + "/")]
            for folders, mask in walk_masks(self.tree, root):
                self.used.add(mask)
                owners = owners_of.find([*around, *folders], stem_of(mask))
                if len(owners) == 1:
                    owners[0].masks.append(mask)
                elif owners:
                    paths = ", ".join(owner.path for owner in owners[:3])
                    self.listing.problem(mask, f"fits several images: {paths}", name)
                else:
                    self.listing.problem(mask, "a mask without an image", name)

    def _report_unclear(self, product: str, folder: str) -> None:
        images = self.tree.files(folder)
        name = folder.rpartition("/")[2]
        self.listing.problem(
            folder,
            f"{len(images)} images, normal or a defect? Pass normal_names=[{name!r}] or anomalous_names=[{name!r}]",
            self._product_name(product),
        )
        self.used.update(images)

    def _report_unused(self) -> None:
        """Report images that do not fit the layout, folder by folder."""
        unused: dict[str, int] = {}
        for path in self.tree.walk():
            if path not in self.used:
                folder = path.rpartition("/")[0]
                unused[folder] = unused.get(folder, 0) + 1
        for folder, count in unused.items():
            self.listing.problem(
                folder or self.tree.root,
                f'{count} images that do not fit the layout "{self.listing.layout.name}"',
            )


def _collect_with(method: Callable[[_Collector], None]) -> Callable[[FileTree, Listing, AnomalyFolderConfig], None]:
    return lambda tree, listing, config: method(_Collector(tree, listing, config))


def _is_flat(tree: FileTree) -> bool:
    return bool(tree.files()) and not any(tree.files(name) for name in tree.folders() if not is_mask_folder(name))


_SPLITS_TREE = """
[<product>/]{train,validation,test}/<kind>/<image>
[<product>/]ground_truth/<kind>/<image's stem>[_mask].<any>   (optional)
"""
_KINDS_TREE = """
[<product>/]<kind>/<image>   with a kind such as good, ok, normal, bad, ko, defect
[<product>/]masks/[<kind>/]<image's stem>[_mask].<any>   (optional)
"""
_FLAT_TREE = """
<image>
masks/<image's stem>[_mask].<any>   (optional)
"""
_METADATA_TREE = """
metadata.csv or metadata.jsonl, with a column image (or file_name) and any of mask, label, product, defect, split
"""

FOLDER_LAYOUTS = (
    Layout("metadata", _METADATA_TREE, lambda tree: metadata_file(tree) is not None, collect_table),
    Layout(
        "products",
        _SPLITS_TREE,
        lambda tree: bool(_products(tree, _has_splits)),
        _collect_with(_Collector.collect_splits),
    ),
    Layout("kinds", _KINDS_TREE, lambda tree: fits_kinds(tree, Names()), _collect_with(_Collector.collect_kinds)),
    Layout("flat", _FLAT_TREE, _is_flat, _collect_with(_Collector.collect_flat)),
    # Which annotations a folder has is known after they were read: `annotation_layout` then replaces this
    Layout("annotations", ANNOTATIONS_TREE, lambda tree: False, lambda tree, listing, config: None),
)
