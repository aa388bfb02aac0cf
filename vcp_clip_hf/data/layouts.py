"""How a dataset lies on the disk: what to look for, and how to list it without opening an image."""

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .file_tree import FileTree, candidate_roots, stem_of
from .layout_errors import DatasetLayoutError, LayoutProblem
from .masks import MaskFiles, MaskSource
from .records import ANOMALOUS, GOOD, LABEL_NAMES, NORMAL, UNKNOWN, AnomalyRecord


__all__ = [
    "Layout",
    "Listing",
    "collect_product_folders",
    "find_layout",
    "mask_index",
    "nearest",
    "official_folders",
    "standard_layout",
]


@dataclass(frozen=True)
class Layout:
    """
    One way in which a dataset is laid out.

    Args:
        name (`str`): "official", "standard", ...
        expected (`str`): a small picture of the tree, for messages.
        matches (`Callable[[FileTree], bool]`): whether a folder is the root of this layout; looks at few names.
        collect (`Callable[[FileTree, Listing, Any], None]`):
            Lists all records; gets the builder's configuration as the third argument.
    """

    name: str
    expected: str
    matches: Callable[[FileTree], bool]
    collect: Callable


@dataclass
class Listing:
    """
    What a folder holds: records by split, what does not fit, and what is left out because the dataset is known to be
    wrong there.

    Args:
        tree (`FileTree`): the root.
        layout (`Layout`): the layout found there.
        only (`frozenset[str]`, *optional*): the products asked for; None: all.
        splits (`dict[str, list[AnomalyRecord]]`): records, in the order of the listing.
        problems (`list[LayoutProblem]`): errors of the tree.
        known_gaps (`list[LayoutProblem]`): known errors and duplicates of the dataset, no fault of this copy.
        read_files (`set[str]`): further files (absolute) the records depend on: annotations, split tables.
        products (`dict[str, None]`): all products there are, in the order of the listing.
    """

    tree: FileTree
    layout: Layout
    only: frozenset[str] | None = None
    splits: dict[str, list[AnomalyRecord]] = field(default_factory=dict)
    problems: list[LayoutProblem] = field(default_factory=list)
    known_gaps: list[LayoutProblem] = field(default_factory=list)
    read_files: set[str] = field(default_factory=set)
    products: dict[str, None] = field(default_factory=dict)

    def wants(self, product: str) -> bool:
        """Whether this product was asked for. What belongs to others is dropped; asking first saves listing it."""
        if product:
            self.products.setdefault(product)
        return not product or self.only is None or product in self.only

    def add(
        self,
        split: str,
        image: str,
        product: str,
        label: int | None = NORMAL,
        defect: str = GOOD,
        mask: MaskSource | None = None,
        image_id: str | None = None,
        empty_mask_known: bool = False,
    ) -> None:
        """A record. `image` is relative to the root; without an `image_id` it is `image` less its extension."""
        if not self.wants(product):
            return
        self.splits.setdefault(split, []).append(
            AnomalyRecord(
                image=self.tree.path(image),
                product=product,
                image_id=image.rpartition(".")[0] if image_id is None else image_id,
                label=label,
                defect="unknown" if label == UNKNOWN and defect == GOOD else defect,
                mask=mask,
                empty_mask_known=empty_mask_known,
            )
        )

    def problem(self, path: str, reason: str, product: str = "") -> None:
        """Something that does not fit."""
        if self.wants(product):
            self.problems.append(LayoutProblem(path, reason, product))

    def gap(self, path: str, reason: str, product: str = "") -> None:
        """Something left out on purpose."""
        if self.wants(product):
            self.known_gaps.append(LayoutProblem(path, reason, product))

    def text(self, relative: str) -> str:
        """Content of a text file that the records depend on."""
        self.read_files.add(self.tree.path(relative))
        return self.tree.text(relative)

    def has_read(self, relative: str) -> bool:
        """Whether the records depend on this text file."""
        return self.tree.path(relative) in self.read_files

    def check_ids(self) -> None:
        """Two images of one id are a problem (001.png beside 001.jpg)."""
        seen: dict[str, AnomalyRecord] = {}
        for split, records in self.splits.items():
            kept = []
            for record in records:
                other = seen.setdefault(record.image_id, record)
                if other is record:
                    kept.append(record)
                else:
                    reason = f"two images of this name: {other.image} and {record.image}"
                    self.problem(record.image_id, reason, record.product)
            self.splits[split] = kept

    def files(self) -> set[str]:
        """Absolute paths of all files that the records come from."""
        paths = set(self.read_files)
        for records in self.splits.values():
            for record in records:
                paths.add(record.image)
                if record.mask is not None:
                    paths.update(record.mask.files)
        return paths

    def summary(self) -> str:
        """What was found, in a few lines."""
        lines = [f'{self.tree.root}: layout "{self.layout.name}"']
        for split, records in self.splits.items():
            lines.append(f"  {split}: {_counted(records)}")
            by_product: dict[str, list[AnomalyRecord]] = {}
            for record in records:
                by_product.setdefault(record.product, []).append(record)
            if len(by_product) > 1:
                lines += [f"    {product}: {_counted(some)}" for product, some in by_product.items()]
        for name, some in (("does not fit", self.problems), ("left out, as known of this dataset", self.known_gaps)):
            if some:
                reasons = Counter(problem.reason for problem in some)
                shown = [f"{count} x {reason}" for reason, count in reasons.most_common(4)]
                lines.append(f"  {name}: {len(some)} ({'; '.join(shown)}{'; ...' if len(reasons) > 4 else ''})")
        return "\n".join(lines)


def _counted(records: Sequence[AnomalyRecord]) -> str:
    names = {NORMAL: LABEL_NAMES[NORMAL], ANOMALOUS: LABEL_NAMES[ANOMALOUS], UNKNOWN: "unknown"}
    names[None] = "labelled by their masks"
    labels = Counter(record.label for record in records)
    parts = [f"{labels[label]} {name}" for label, name in names.items() if labels[label]]
    masks = sum(record.mask is not None for record in records)
    defects = sorted({record.defect for record in records if record.label == ANOMALOUS})
    text = f"{len(records)} images ({', '.join(parts)}), {masks} with masks"
    if defects:
        text += f", defects: {', '.join(defects[:8])}{', ...' if len(defects) > 8 else ''}"
    return text


def find_layout(
    where: str,
    data_dir: str,
    layouts: Sequence[Layout],
    wanted: str | None = None,
    products: Sequence[str] = (),
) -> Listing:
    """
    The root and the layout of a dataset: in `data_dir`, or one or two folders below it (an archive's own top folder).

    Args:
        where (`str`): the dataset's name, for messages.
        data_dir (`str`): where to look.
        layouts (`Sequence[Layout]`): tried in this order in every folder.
        wanted (`str`, *optional*): look for this layout only.
        products (`Sequence[str]`, *optional*): known names, to notice when the folder is only one of them.

    Returns:
        `Listing`, still empty.

    Raises:
        DatasetLayoutError: nothing found, or several.
    """
    if wanted is not None:
        names = [layout.name for layout in layouts]
        if wanted not in names:
            raise ValueError(f"{where} has no layout {wanted!r}; {nearest(wanted, names)}")
        layouts = [layout for layout in layouts if layout.name == wanted]
    expected = "\nor\n".join(layout.expected.strip("\n") for layout in layouts)
    tree = FileTree(data_dir)
    if not tree.exists():
        raise DatasetLayoutError(
            f"{where} in {tree.root}", [LayoutProblem(tree.root, "no such folder")], expected, "Check data_dir."
        )
    for roots in candidate_roots(data_dir):
        found = []
        for candidate in map(FileTree, roots):
            layout = next((layout for layout in layouts if layout.matches(candidate)), None)
            if layout is not None:
                found.append(Listing(candidate, layout))
        if len(found) == 1:
            return found[0]
        if found:
            raise DatasetLayoutError(
                f"{where} in {data_dir}",
                [LayoutProblem(one.tree.root, f'layout "{one.layout.name}"') for one in found],
                "one copy of the dataset",
                "Several folders look like it: pass one of them as data_dir.",
            )
    inside = tree.folders()
    shown = ", ".join(inside[:8]) + (", ..." if len(inside) > 8 else "") if inside else "no folders"
    fix = "Pass the folder that holds the unpacked download as data_dir."
    name = tree.root.replace("\\", "/").rpartition("/")[2]
    if name in products:
        fix = f"This looks like the one product {name!r}: pass the folder above it, and products=[{name!r}]."
    raise DatasetLayoutError(
        f"{where} in {data_dir}",
        [LayoutProblem(str(data_dir), f"none of the known layouts is here or two folders below; found {shown}")],
        expected,
        fix,
    )


def nearest(name: str, names: Sequence[str]) -> str:
    """`did you mean "bottle"? Known: ...` for error messages."""
    folded = {other.casefold(): other for other in names}
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    start = f"did you mean {folded[close[0]]!r}? " if close else ""
    return f"{start}Known: {', '.join(names)}."


def mask_index(paths: Iterable[str], suffixes: Sequence[str]) -> dict[str, list[str]]:
    """
    Masks by the stem of their image.

    Args:
        paths (`Iterable[str]`): mask files.
        suffixes (`Sequence[str]`): what may stand behind the image's stem, longest first: `("_mask", "")`.
    """
    index: dict[str, list[str]] = {}
    for path in paths:
        stem = stem_of(path)
        for suffix in suffixes:
            if stem.casefold().endswith(suffix.casefold()) and len(stem) > len(suffix):
                index.setdefault(stem[: len(stem) - len(suffix)], []).append(path)
                break
    return index


def collect_product_folders(
    tree: FileTree,
    listing: Listing,
    products: Sequence[str],
    splits: Mapping[str, str],
    mask_folder: str = "ground_truth",
    mask_suffixes: Sequence[str] = ("_mask",),
    above: int = 0,
    normal_names: Sequence[str] = (GOOD,),
    defect_of: Callable[[str, str], str] | None = None,
    required_splits: Sequence[str] = ("test",),
) -> None:
    """
    The layout that MVTec AD made common: `product/split/kind/image`, `product/ground_truth/kind/mask`. Masks pair
    with images by stem, in any format.

    Args:
        tree (`FileTree`), listing (`Listing`): from where, into what.
        products (`Sequence[str]`): folders; one that is missing is a problem.
        splits (`Mapping[str, str]`): split name -> folder inside the product.
        mask_folder (`str`): where masks are, inside the product; may be inside a split's folder.
        mask_suffixes (`Sequence[str]`): see `mask_index`.
        above (`int`): see `MaskFiles`. A folder `stem/` of several masks is united.
        normal_names (`Sequence[str]`): kinds that are normal.
        defect_of (`Callable[[str, str], str]`, *optional*): (kind, stem) -> defect; the kind itself by default.
        required_splits (`Sequence[str]`): splits every product must have.
    """
    normal_names = {name.casefold() for name in normal_names}
    for product in products:
        if not listing.wants(product):
            continue
        if not tree.has_folder(product):
            listing.problem(product, "no such folder", product)
            continue
        mask_kinds = set(tree.folders(f"{product}/{mask_folder}"))
        for split, split_folder in splits.items():
            folder = f"{product}/{split_folder}"
            kinds = [kind for kind in tree.folders(folder) if f"{split_folder}/{kind}" != mask_folder]
            mask_kinds = {kind for kind in mask_kinds if kind.casefold() not in map(str.casefold, kinds)}
            found = False
            for kind in kinds:
                images = tree.files(f"{folder}/{kind}")
                found = found or bool(images)
                if kind.casefold() in normal_names:
                    for image in images:
                        listing.add(split, image, product)
                    continue
                kind_masks = f"{product}/{mask_folder}/{kind}"
                masks = _masks_of(tree, kind_masks, mask_suffixes)
                if images and not masks:
                    listing.problem(kind_masks, f"no masks for the {len(images)} images of {folder}/{kind}", product)
                    continue
                for image, own in _paired(listing, product, images, masks):
                    listing.add(
                        split,
                        image,
                        product,
                        ANOMALOUS,
                        defect_of(kind, stem_of(image)) if defect_of else kind,
                        MaskFiles(tuple(map(tree.path, own)), above),
                    )
            if not found and split in required_splits:
                listing.problem(folder, "no images" if tree.has_folder(folder) else "no such folder", product)
        for kind in sorted(mask_kinds):
            if kind.casefold() not in normal_names:
                listing.problem(f"{product}/{mask_folder}/{kind}", "masks without a folder of images", product)


def _masks_of(tree: FileTree, folder: str, suffixes: Sequence[str]) -> dict[str, list[str]]:
    """Image stem -> its masks; a folder named like the image holds several."""
    masks = mask_index(tree.files(folder), suffixes)
    for stem in tree.folders(folder):
        several = tree.files(f"{folder}/{stem}")
        if several:
            masks.setdefault(stem, []).extend(several)
    return masks


def _paired(
    listing: Listing, product: str, images: Sequence[str], masks: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, Sequence[str]]]:
    """Images with their masks; what does not pair is a problem."""
    unused = dict(masks)
    for image in images:
        own = unused.pop(stem_of(image), ())
        # several masks are meant to be several only in a folder of the image's name
        if len(own) > 1 and not all(mask.split("/")[-2] == stem_of(image) for mask in own):
            listing.problem(image, f"several masks: {', '.join(own)}", product)
        elif not own:
            listing.problem(image, "no mask", product)
        else:
            yield image, own
    for some in unused.values():
        for mask in some:
            listing.problem(mask, "a mask without an image", product)


def official_folders(products: Sequence[str]) -> Callable[[FileTree], bool]:
    """Tells a tree of `product/test/kind` from the standard layout, whose one kind is called "anomaly"."""

    def matches(tree: FileTree) -> bool:
        there = [product for product in products if tree.has_folder(f"{product}/test")]
        return bool(there) and not any(tree.has_folder(f"{product}/test/anomaly") for product in there)

    return matches


_STANDARD_TREE = """
<product>/train/good/<image>
<product>/test/good/<image>
<product>/test/anomaly/<image>
<product>/ground_truth/anomaly/<image's stem>.png
"""


def standard_layout(above: int = 0, defect_of: Callable[[str, str], str] | None = None) -> Layout:
    """
    The layout into which the authors of VCP-CLIP brought all their datasets, cropped and re-annotated ones included.
    The products are the folders that are there.
    """

    def products(tree: FileTree) -> list[str]:
        return [name for name in tree.folders() if tree.has_folder(f"{name}/test/anomaly")]

    def collect(tree: FileTree, listing: Listing, config) -> None:
        collect_product_folders(
            tree,
            listing,
            products(tree),
            splits={"train": "train", "test": "test"},
            mask_suffixes=("_mask", ""),
            above=above,
            defect_of=defect_of,
        )

    return Layout("standard", _STANDARD_TREE, lambda tree: bool(products(tree)), collect)
