"""How a dataset is laid out on disk ([`Layout`]), and what one folder with that layout holds ([`Listing`])."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .file_tree import FileTree
from .layout_errors import LayoutProblem
from .masks import MaskSource
from .records import ANOMALOUS, GOOD, LABEL_NAMES, NORMAL, UNKNOWN, AnomalyRecord


__all__ = ["Layout", "Listing"]


@dataclass(frozen=True)
class Layout:
    """
    One way in which a dataset is laid out on disk.

    Args:
        name (`str`): name of the layout: "official", "standard", ...
        expected (`str`): small drawing of the tree, for error messages.
        matches (`Callable[[FileTree], bool]`):
            Function that returns whether a folder is the root of this layout, from a few names.
        collect (`Callable[[FileTree, Listing, AnomalyDatasetConfig], None]`):
            Function that adds all records to the listing; the third argument is the builder's configuration.
    """

    name: str
    expected: str
    matches: Callable[[FileTree], bool]
    collect: Callable[[FileTree, "Listing", Any], None]


@dataclass
class Listing:
    """
    Content of a dataset's folder: records by split, files that do not fit, and files that are left out because of
    known errors of the dataset.

    Args:
        tree (`FileTree`): root of the dataset.
        layout (`Layout`): layout of the root.
        only (`frozenset[str]`, *optional*): requested products; None requests all.
        splits (`dict[str, list[AnomalyRecord]]`): records, in the order of the listing.
        problems (`list[LayoutProblem]`): errors of this copy.
        known_gaps (`list[LayoutProblem]`): errors and duplicates that every copy of the dataset has.
        read_files (`set[str]`):
            Absolute paths of further files that the records depend on: annotations, split tables.
        products (`dict[str, None]`): all products found, in the order of the listing.
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
        """Return whether this product was requested. Records of other products are dropped; a layout that checks this
        first need not list them."""
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
        """Add a record. `image` is relative to the root; the default `image_id` is `image` without its extension."""
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
        """Record a file or folder that cannot be used, with the reason."""
        if self.wants(product):
            self.problems.append(LayoutProblem(path, reason, product))

    def gap(self, path: str, reason: str, product: str = "") -> None:
        """Record a file that is left out on purpose, with the reason."""
        if self.wants(product):
            self.known_gaps.append(LayoutProblem(path, reason, product))

    def text(self, relative: str) -> str:
        """Return the content of a text file, and note that the records depend on it."""
        self.read_files.add(self.tree.path(relative))
        return self.tree.text(relative)

    def has_read(self, relative: str) -> bool:
        """Return whether the records depend on this text file."""
        return self.tree.path(relative) in self.read_files

    def check_ids(self) -> None:
        """Keep the first image of each id; report the others (001.png beside 001.jpg) as problems."""
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
        """Return the absolute paths of all files that the records come from."""
        paths = set(self.read_files)
        for records in self.splits.values():
            for record in records:
                paths.add(record.image)
                if record.mask is not None:
                    paths.update(record.mask.files)
        return paths

    def summary(self) -> str:
        """Describe what was found, in a few lines."""
        lines = [f'{self.tree.root}: layout "{self.layout.name}"']
        for split, records in self.splits.items():
            lines.append(f"  {split}: {_describe_records(records)}")
            by_product: dict[str, list[AnomalyRecord]] = {}
            for record in records:
                by_product.setdefault(record.product, []).append(record)
            if len(by_product) > 1:
                lines += [f"    {product}: {_describe_records(some)}" for product, some in by_product.items()]
        for title, some in (("does not fit", self.problems), ("left out, known of this dataset", self.known_gaps)):
            if some:
                reasons = Counter(problem.reason for problem in some)
                shown = [f"{count} x {reason}" for reason, count in reasons.most_common(4)]
                lines.append(f"  {title}: {len(some)} ({'; '.join(shown)}{'; ...' if len(reasons) > 4 else ''})")
        return "\n".join(lines)


def _describe_records(records: Sequence[AnomalyRecord]) -> str:
    names = {NORMAL: LABEL_NAMES[NORMAL], ANOMALOUS: LABEL_NAMES[ANOMALOUS], UNKNOWN: "unknown"}
    names[None] = "labeled by their masks"
    labels = Counter(record.label for record in records)
    parts = [f"{labels[label]} {name}" for label, name in names.items() if labels[label]]
    masks = sum(record.mask is not None for record in records)
    defects = sorted({record.defect for record in records if record.label == ANOMALOUS})
    text = f"{len(records)} {'image' if len(records) == 1 else 'images'} ({', '.join(parts)}), {masks} with masks"
    if defects:
        text += f", defects: {', '.join(defects[:8])}{', ...' if len(defects) > 8 else ''}"
    return text
