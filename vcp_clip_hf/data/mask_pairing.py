"""Pair masks with images by file name."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from .file_tree import FileTree, stem_of
from .listing import Listing


__all__ = ["mask_index", "masks_of_kind", "pair_masks", "report_unused_masks"]


def mask_index(paths: Iterable[str], suffixes: Sequence[str]) -> dict[str, list[str]]:
    """
    Group mask files by the stem of their image.

    Args:
        paths (`Iterable[str]`): mask files.
        suffixes (`Sequence[str]`): endings that may follow the image's stem, longest first: `("_mask", "")`.

    Returns:
        `dict[str, list[str]]`: image stem -> mask files. Files with none of the endings are left out.
    """
    index: dict[str, list[str]] = {}
    for path in paths:
        stem = stem_of(path)
        for suffix in suffixes:
            if stem.casefold().endswith(suffix.casefold()) and len(stem) > len(suffix):
                index.setdefault(stem[: len(stem) - len(suffix)], []).append(path)
                break
    return index


def masks_of_kind(tree: FileTree, folder: str, suffixes: Sequence[str]) -> dict[str, list[str]]:
    """Group the masks in a folder by the stem of their image. A folder named like the image holds several masks."""
    masks = mask_index(tree.files(folder), suffixes)
    for stem in tree.folders(folder):
        several = tree.files(f"{folder}/{stem}")
        if several:
            masks.setdefault(stem, []).extend(several)
    return masks


def pair_masks(
    listing: Listing, product: str, images: Sequence[str], masks: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield each image with its masks. Unpaired images and masks are problems of the listing."""
    unused = dict(masks)
    for image in images:
        own = unused.pop(stem_of(image), ())
        # several masks belong together only in a folder named like the image
        if len(own) > 1 and not all(mask.split("/")[-2] == stem_of(image) for mask in own):
            listing.problem(image, f"several masks: {', '.join(own)}", product)
        elif not own:
            listing.problem(image, "no mask", product)
        else:
            yield image, own
    report_unused_masks(listing, product, unused)


def report_unused_masks(listing: Listing, product: str, unused: Mapping[str, Sequence[str]]) -> None:
    """Report every mask that no image belongs to as a problem."""
    for masks in unused.values():
        for mask in masks:
            listing.problem(mask, "a mask without an image", product)
