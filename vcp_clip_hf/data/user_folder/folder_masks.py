"""Find the masks of images in a user's folder: beside the image, or in a folder of masks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..file_tree import FileTree, stem_of
from ..records import ANOMALOUS, GOOD, UNKNOWN
from .names import MASK_FOLDERS, MASK_SUFFIXES, SPLIT_NAMES, fold


__all__ = [
    "FoundImage",
    "MaskOwners",
    "is_mask_folder",
    "is_split_folder",
    "join",
    "mask_folders",
    "split_folders",
    "take_masks_beside",
    "walk_masks",
]


@dataclass
class FoundImage:
    """
    An image of the folder.

    Args:
        path (`str`): relative path.
        split (`str`), kind (`str`): names of the folders that it lies in; "" for none.
        label (`int`, *optional*), defect (`str`): label and defect as in [`AnomalyRecord`].
        masks (`list[str]`): relative paths of its masks, filled in later.
    """

    path: str
    split: str
    kind: str = ""
    label: int | None = UNKNOWN
    defect: str = GOOD
    masks: list[str] = field(default_factory=list)


def join(*parts: str) -> str:
    """Return a relative path; empty parts are left out."""
    return "/".join(part for part in parts if part)


def is_mask_folder(name: str) -> bool:
    """Return whether a folder of this name holds masks."""
    return fold(name) in MASK_FOLDERS


def is_split_folder(name: str) -> bool:
    """Return whether a folder of this name holds a split."""
    return fold(name) in SPLIT_NAMES


def split_folders(tree: FileTree, base: str) -> list[str]:
    """Return the names of the split folders directly inside."""
    return [name for name in tree.folders(base) if is_split_folder(name)]


def mask_folders(tree: FileTree, product: str) -> list[str]:
    """Return the paths of a product's mask folders: beside its kinds or splits, or inside its splits."""
    places = [product, *(join(product, split) for split in split_folders(tree, product))]
    return [join(place, name) for place in places for name in tree.folders(place) if is_mask_folder(name)]


def walk_masks(tree: FileTree, root: str) -> Iterator[tuple[list[str], str]]:
    """Yield the path of every mask inside a mask folder, after the names of the folders between them."""
    for path in tree.walk(root):
        yield path[len(root) :].strip("/").split("/")[:-1], path


def take_masks_beside(images: Sequence[FoundImage]) -> list[FoundImage]:
    """Return the images, less those that are the mask of another one (x.png, x_mask.png): it gets them as masks."""
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


class MaskOwners:
    """
    Finds the images that a mask may belong to.

    Args:
        images (`Sequence[FoundImage]`): all images of a product.
    """

    def __init__(self, images: Sequence[FoundImage]):
        self._by_stem: dict[str, list[FoundImage]] = {}
        for image in images:
            self._by_stem.setdefault(stem_of(image.path), []).append(image)
        self._groups = {fold(name) for image in images for name in (image.split, image.kind)}

    def find(self, folders: Sequence[str], mask_stem: str) -> list[FoundImage]:
        """
        Return the images that fit a mask; a mask that fits exactly one is unambiguous.

        If a stem occurs among normal and anomalous images, and only one of these is anomalous, that one is returned.

        Args:
            folders (`Sequence[str]`):
                Names of the folders around the mask, which restrict the choice: splits, kinds, or the stem of an
                image for a folder of several masks.
            mask_stem (`str`): stem of the mask.
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
