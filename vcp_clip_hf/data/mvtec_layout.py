"""The layout that MVTec AD made common: `product/split/kind/image`, masks in `product/ground_truth/kind/`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .config import AnomalyDatasetConfig
from .file_tree import FileTree, stem_of
from .listing import Layout, Listing
from .mask_pairing import masks_of_kind, pair_masks
from .masks import MaskFiles
from .records import ANOMALOUS, GOOD


__all__ = ["MVTecFolders", "standard_layout"]


@dataclass(frozen=True)
class MVTecFolders:
    """
    The facts in which datasets with this layout differ. Masks pair with images by stem, in any image format; a folder
    named like the image holds several masks, which are united.

    Args:
        splits (`Mapping[str, str]`, *optional*): folder of each split, inside the product.
        optional_splits (`Sequence[str]`, *optional*): splits that a product may lack; other splits must exist.
        mask_folder (`str`, *optional*): folder of the masks, inside the product; may be inside the folder of a split.
        mask_suffixes (`Sequence[str]`, *optional*): endings of mask names, see [`mask_index`].
        above (`int`, *optional*): mask values above it are abnormal, see [`MaskFiles`].
        normal_names (`Sequence[str]`, *optional*): kinds that are normal.
        defect_of (`Callable[[str, str], str]`, *optional*):
            Function from kind and image stem to the defect's name; by default the kind.
    """

    splits: Mapping[str, str] = field(default_factory=lambda: {"train": "train", "test": "test"})
    optional_splits: Sequence[str] = ()
    mask_folder: str = "ground_truth"
    mask_suffixes: Sequence[str] = ("_mask",)
    above: int = 0
    normal_names: Sequence[str] = (GOOD,)
    defect_of: Callable[[str, str], str] | None = None

    def layout(
        self,
        name: str,
        expected: str,
        products: Sequence[str],
        matches: Callable[[FileTree], bool] | None = None,
    ) -> Layout:
        """
        Return the layout of a dataset whose products are known.

        Args:
            name (`str`), expected (`str`): see [`Layout`].
            products (`Sequence[str]`): names of the products.
            matches (`Callable[[FileTree], bool]`, *optional*):
                Function that recognizes the layout, see [`Layout`]; by default `official_folders(products)`.
        """

        def collect(tree: FileTree, listing: Listing, config: AnomalyDatasetConfig) -> None:
            self.collect(tree, listing, products)

        return Layout(name, expected, matches or official_folders(products), collect)

    def collect(self, tree: FileTree, listing: Listing, products: Sequence[str]) -> None:
        """Add the records of these products; a product without a folder is a problem."""
        for product in products:
            if not listing.wants(product):
                continue
            if tree.has_folder(product):
                self._collect_product(tree, listing, product)
            else:
                listing.problem(product, "no such folder", product)

    def _collect_product(self, tree: FileTree, listing: Listing, product: str) -> None:
        kinds_without_images = set(tree.folders(f"{product}/{self.mask_folder}"))
        for split, split_folder in self.splits.items():
            folder = f"{product}/{split_folder}"
            kinds = [kind for kind in tree.folders(folder) if f"{split_folder}/{kind}" != self.mask_folder]
            with_images = {kind.casefold() for kind in kinds}
            kinds_without_images = {kind for kind in kinds_without_images if kind.casefold() not in with_images}
            counts = [self._collect_kind(tree, listing, product, split, folder, kind) for kind in kinds]
            if not any(counts) and split not in self.optional_splits:
                listing.problem(folder, "no images" if tree.has_folder(folder) else "no such folder", product)
        for kind in sorted(kinds_without_images):
            if not self._is_normal(kind):
                listing.problem(f"{product}/{self.mask_folder}/{kind}", "masks without a folder of images", product)

    def _collect_kind(self, tree: FileTree, listing: Listing, product: str, split: str, folder: str, kind: str) -> int:
        """Add the images of one kind; return their number, including those that do not fit."""
        images = tree.files(f"{folder}/{kind}")
        if self._is_normal(kind):
            for image in images:
                listing.add(split, image, product)
            return len(images)
        mask_folder = f"{product}/{self.mask_folder}/{kind}"
        masks = masks_of_kind(tree, mask_folder, self.mask_suffixes)
        if images and not masks:
            listing.problem(mask_folder, f"no masks for the {len(images)} images of {folder}/{kind}", product)
            return len(images)
        for image, own in pair_masks(listing, product, images, masks):
            defect = self.defect_of(kind, stem_of(image)) if self.defect_of else kind
            mask = MaskFiles(tuple(map(tree.path, own)), self.above)
            listing.add(split, image, product, ANOMALOUS, defect, mask)
        return len(images)

    def _is_normal(self, kind: str) -> bool:
        return kind.casefold() in map(str.casefold, self.normal_names)


def official_folders(products: Sequence[str]) -> Callable[[FileTree], bool]:
    """Return a function that recognizes `product/test/kind`, unless a kind is "anomaly" as in the standard layout."""

    def matches(tree: FileTree) -> bool:
        found = [product for product in products if tree.has_folder(f"{product}/test")]
        return bool(found) and not any(tree.has_folder(f"{product}/test/anomaly") for product in found)

    return matches


_STANDARD_TREE = """
<product>/train/good/<image>
<product>/test/good/<image>
<product>/test/anomaly/<image>
<product>/ground_truth/anomaly/<image's stem>.png
"""


def standard_layout(above: int = 0, defect_of: Callable[[str, str], str] | None = None) -> Layout:
    """
    Return the layout that the authors of VCP-CLIP gave all their datasets, including cropped and re-annotated ones.
    Its products are the folders that have `test/anomaly`.

    Args:
        above (`int`, *optional*), defect_of (`Callable[[str, str], str]`, *optional*): see [`MVTecFolders`].
    """
    folders = MVTecFolders(optional_splits=("train",), mask_suffixes=("_mask", ""), above=above, defect_of=defect_of)

    def products(tree: FileTree) -> list[str]:
        return [name for name in tree.folders() if tree.has_folder(f"{name}/test/anomaly")]

    def collect(tree: FileTree, listing: Listing, config: AnomalyDatasetConfig) -> None:
        folders.collect(tree, listing, products(tree))

    return Layout("standard", _STANDARD_TREE, lambda tree: bool(products(tree)), collect)
