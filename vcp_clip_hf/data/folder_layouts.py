"""The ways in which people lay out folders of images, and where they keep the masks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from .file_tree import FileTree, stem_of
from .folder_names import MASK_FOLDERS, MASK_SUFFIXES, SPLIT_NAMES, Names, fold
from .layouts import Layout, Listing
from .masks import MaskFiles
from .metadata_table import collect_table, metadata_file
from .records import ANOMALOUS, GOOD, NORMAL, UNKNOWN


__all__ = ["FOLDER_LAYOUTS", "fits_kinds"]


@dataclass
class _Image:
    """An image found, before its masks are."""

    path: str
    split: str
    kind: str = ""
    label: int | None = UNKNOWN
    defect: str = GOOD
    masks: list[str] = field(default_factory=list)


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def _is_mask_folder(name: str) -> bool:
    return fold(name) in MASK_FOLDERS


def _split_folders(tree: FileTree, base: str) -> list[str]:
    return [name for name in tree.folders(base) if fold(name) in SPLIT_NAMES]


def _kinds(tree: FileTree, base: str) -> list[str]:
    """Folders of images that are neither masks nor splits."""
    return [
        name
        for name in tree.folders(base)
        if not _is_mask_folder(name) and fold(name) not in SPLIT_NAMES and tree.files(_join(base, name))
    ]


def _has_splits(tree: FileTree, base: str) -> bool:
    return any(_kinds(tree, _join(base, split)) for split in _split_folders(tree, base))


def _has_kinds(names: Names) -> Callable[[FileTree, str], bool]:
    """Tells a folder of kinds by at least one that is known to mean normal or anomalous."""
    return lambda tree, base: any(names.label(kind) is not None for kind in _kinds(tree, base))


def fits_kinds(tree: FileTree, names: Names) -> bool:
    """Whether a folder, or one of its folders, has kinds that these names know."""
    return bool(_products(tree, _has_kinds(names)))


def _products(tree: FileTree, has) -> list[str]:
    """Folders below the root that are laid out so; the root itself is ""."""
    if has(tree, ""):
        return [""]
    return [
        name
        for name in tree.folders()
        if not _is_mask_folder(name) and fold(name) not in SPLIT_NAMES and has(tree, name)
    ]


def _collect_splits(tree: FileTree, listing: Listing, config) -> None:
    names = Names(config.normal_names, config.anomalous_names)
    used: set[str] = set()
    for product in _products(tree, _has_splits) or [""]:
        images = []
        for split in _split_folders(tree, product):
            folder = _join(product, split)
            for kind in _kinds(tree, folder):
                label = names.label(kind)
                if label is None and fold(split).startswith("train") and not _masks_for(tree, product, split, kind):
                    used.update(_report_unclear(tree, listing, config, product, _join(folder, kind)))
                    continue
                # where a test set names its kinds, one that does not mean normal is a defect
                label = ANOMALOUS if label is None else label
                images += _images_of(tree, _join(folder, kind), fold(split), kind, label)
        used |= _add(tree, listing, config, product, images)
    _report_unused(tree, listing, used)


def _collect_kinds(tree: FileTree, listing: Listing, config) -> None:
    names = Names(config.normal_names, config.anomalous_names)
    used: set[str] = set()
    for product in _products(tree, _has_kinds(names)) or [""]:
        kinds = {kind: names.label(kind) for kind in _kinds(tree, product)}
        images = []
        for kind, label in kinds.items():
            if label is None and NORMAL not in kinds.values():
                used.update(_report_unclear(tree, listing, config, product, _join(product, kind)))
                continue
            images += _images_of(tree, _join(product, kind), "test", kind, ANOMALOUS if label is None else label)
        used |= _add(tree, listing, config, product, images)
    _report_unused(tree, listing, used)


def _collect_flat(tree: FileTree, listing: Listing, config) -> None:
    paths = [path for path in tree.walk() if not any(map(_is_mask_folder, path.split("/")[:-1]))]
    images = _with_masks_beside([_Image(path, "test") for path in paths])
    _add(tree, listing, config, "", images)


def _name_of(config, tree: FileTree, product: str) -> str:
    return product or config.product or tree.root.replace("\\", "/").rstrip("/").rpartition("/")[2] or "product"


def _report_unused(tree: FileTree, listing: Listing, used: set[str]) -> None:
    """Images that the layout has no place for are told, folder by folder."""
    unused: dict[str, int] = {}
    for path in tree.walk():
        if path not in used:
            folder = path.rpartition("/")[0]
            unused[folder] = unused.get(folder, 0) + 1
    for folder, count in unused.items():
        listing.problem(
            folder or tree.root, f'{count} images that the layout "{listing.layout.name}" has no place for'
        )


def _report_unclear(tree: FileTree, listing: Listing, config, product: str, folder: str) -> list[str]:
    images = tree.files(folder)
    name = folder.rpartition("/")[2]
    listing.problem(
        folder,
        f"{len(images)} images, normal or a defect? Pass normal_names=[{name!r}] or anomalous_names=[{name!r}]",
        _name_of(config, tree, product),
    )
    return images


def _images_of(tree: FileTree, folder: str, split: str, kind: str, label: int) -> list[_Image]:
    defect = GOOD if label == NORMAL else fold(kind)
    found = [_Image(path, split, kind, label, defect) for path in tree.files(folder)]
    return _with_masks_beside(found)


def _with_masks_beside(images: Sequence[_Image]) -> list[_Image]:
    """Takes masks that lie beside their images (x.png, x_mask.png) out of the images."""
    by_stem = {image.path.rpartition(".")[0]: image for image in images}
    kept = []
    for image in images:
        stem = image.path.rpartition(".")[0]
        suffix = next((suffix for suffix in MASK_SUFFIXES if stem.casefold().endswith(suffix)), None)
        owner = by_stem.get(stem[: len(stem) - len(suffix)]) if suffix else None
        if owner is None:
            kept.append(image)
        else:
            owner.masks.append(image.path)
    return kept


def _mask_roots(tree: FileTree, product: str) -> list[str]:
    """Mask folders of a product: beside its kinds or splits, or inside its splits."""
    places = [product, *(_join(product, split) for split in _split_folders(tree, product))]
    return [_join(place, name) for place in places for name in tree.folders(place) if _is_mask_folder(name)]


def _masks_for(tree: FileTree, product: str, split: str, kind: str) -> bool:
    return any(
        tree.has_folder(_join(root, middle, kind)) for root in _mask_roots(tree, product) for middle in ("", split)
    )


def _walk_masks(tree: FileTree, root: str) -> Iterator[tuple[list[str], str]]:
    for path in tree.walk(root):
        yield path[len(root) :].strip("/").split("/")[:-1], path


def _add(tree: FileTree, listing: Listing, config, product: str, images: list[_Image]) -> set[str]:
    """Pairs the masks of a product's mask folders with its images, and adds the records. -> all files seen"""
    name = _name_of(config, tree, product)
    used: set[str] = set()
    owners_of = _Owners(images)
    for root in _mask_roots(tree, product):
        inside = [split for split in _split_folders(tree, product) if root.startswith(_join(product, split) + "/")]
        for folders, mask in _walk_masks(tree, root):
            used.add(mask)
            owners = owners_of.find([*inside, *folders], stem_of(mask))
            if len(owners) == 1:
                owners[0].masks.append(mask)
            elif owners:
                listing.problem(mask, f"fits several images: {', '.join(owner.path for owner in owners[:3])}", name)
            else:
                listing.problem(mask, "a mask without an image", name)
    for image in images:
        used.update((image.path, *image.masks))
        if len(image.masks) > 1 and not all(mask.split("/")[-2] == stem_of(image.path) for mask in image.masks):
            listing.problem(image.path, f"several masks: {', '.join(image.masks)}", name)
        elif config.masks_required and image.label == ANOMALOUS and not image.masks:
            listing.problem(image.path, "no mask", name)
        else:
            label = None if image.label == UNKNOWN and image.masks else image.label
            mask = MaskFiles(tuple(map(tree.path, image.masks)), config.mask_above) if image.masks else None
            defect = "anomaly" if label is None else image.defect
            listing.add(image.split, image.path, name, label, defect, mask)
    return used


class _Owners:
    """Finds the images that a mask may belong to."""

    def __init__(self, images: Sequence[_Image]):
        self._by_stem: dict[str, list[_Image]] = {}
        for image in images:
            self._by_stem.setdefault(stem_of(image.path), []).append(image)
        self._groups = {fold(name) for image in images for name in (image.split, image.kind)}

    def find(self, folders: Sequence[str], mask_stem: str) -> list[_Image]:
        """
        Folders around the mask narrow the choice: splits, kinds, or an image's stem, for a folder of several masks.
        Where a stem occurs among normal and anomalous images, the anomalous one is meant.
        """
        groups = {fold(folder) for folder in folders if fold(folder) in self._groups}
        others = [folder for folder in folders if fold(folder) not in self._groups]
        if others:
            stems = others if len(others) == 1 else []
        else:
            folded = mask_stem.casefold()
            stems = [mask_stem, *(mask_stem[: -len(suffix)] for suffix in MASK_SUFFIXES if folded.endswith(suffix))]
        for stem in stems:
            owners = [
                image for image in self._by_stem.get(stem, ()) if groups <= {fold(image.split), fold(image.kind)}
            ]
            if owners:
                anomalous = [image for image in owners if image.label == ANOMALOUS]
                return anomalous if len(anomalous) == 1 else owners
        return []


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


def _is_flat(tree: FileTree) -> bool:
    return bool(tree.files()) and not any(tree.files(name) for name in tree.folders() if not _is_mask_folder(name))


FOLDER_LAYOUTS = (
    Layout("metadata", _METADATA_TREE, lambda tree: metadata_file(tree) is not None, collect_table),
    Layout("products", _SPLITS_TREE, lambda tree: bool(_products(tree, _has_splits)), _collect_splits),
    Layout("kinds", _KINDS_TREE, lambda tree: fits_kinds(tree, Names()), _collect_kinds),
    Layout("flat", _FLAT_TREE, _is_flat, _collect_flat),
)
