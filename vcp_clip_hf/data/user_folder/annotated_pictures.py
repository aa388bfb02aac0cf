"""The layout "annotations": images in any folders, and the files of an annotation tool that describe them."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from transformers.utils import logging

from ..annotations.rasterize import ShapesMask
from ..annotations.selection import ShapeRules
from ..annotations.shapes import AnnotatedImage, AnnotationFile
from ..file_tree import FileTree
from ..listing import Layout, Listing
from ..records import ANOMALOUS, GOOD, NORMAL, UNKNOWN
from .config import AnomalyFolderConfig
from .folder_masks import FoundImage, is_mask_folder, is_split_folder, take_masks_beside
from .names import Names, fold


__all__ = ["ANNOTATIONS_TREE", "annotation_layout", "has_masks"]

logger = logging.get_logger(__name__)

ANNOTATIONS_TREE = """
<image>, and its annotations: a COCO file; labelme's <image's stem>.json; YOLO's labels/<image's stem>.txt with
data.yaml or classes.txt; or CVAT's annotations.xml (for images 1.1). Folders may be called train, test, good, bad, ...
"""


def annotation_layout(name: str, files: Sequence[AnnotationFile]) -> Layout:
    """
    Return the layout of a folder whose annotations were read.

    Args:
        name (`str`): format of the annotations.
        files (`Sequence[AnnotationFile]`): all files of this format.
    """
    return Layout(f"{name} annotations", ANNOTATIONS_TREE, lambda tree: True, partial(_collect, files))


def has_masks(tree: FileTree) -> bool:
    """Return whether a folder has masks as pictures: in folders of masks, or beside their images."""
    paths = list(tree.walk())
    return len(_pictures(paths)) < len(paths)


def _pictures(paths: Sequence[str]) -> list[str]:
    """Return the paths that are not masks."""
    images = [FoundImage(path, "") for path in paths if not any(map(is_mask_folder, path.split("/")[:-1]))]
    return [image.path for image in take_masks_beside(images)]


def _collect(files: Sequence[AnnotationFile], tree: FileTree, listing: Listing, config: AnomalyFolderConfig) -> None:
    """Add a record for each image, and a problem for each annotation that does not fit."""
    _Collector(tree, listing, config).collect(files)


class _Pictures:
    """The images of a folder, found by the names in annotations."""

    def __init__(self, tree: FileTree, outside: bool):
        self.tree, self.outside = tree, outside
        self.paths = _pictures(list(tree.walk()))
        self._known = set(self.paths)
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        for path in self.paths:
            self._by_name.setdefault(path.rpartition("/")[2], []).append(path)
            self._by_stem.setdefault(path.rpartition(".")[0].casefold(), []).append(path)

    def find(self, image: AnnotatedImage, source: str) -> list[str]:
        """
        Return the images that an annotation can refer to; exactly one is unambiguous.

        A stated path is relative to the annotation file, to a folder `images` beside it or beside its folder (with or
        without the name of the subset), to the dataset's folder, or to a folder above it. Otherwise, it is the end of
        the path of exactly one image, as in archives that put all images into a folder.
        """
        if image.stems:
            return next((found for stem in image.stems if (found := self._by_stem.get(stem.casefold()))), [])
        exact = self._exact(image, source)
        if exact is not None:
            return [exact]
        ending = "/" + image.name.removeprefix("./")
        return [path for path in self._by_name.get(image.name.rpartition("/")[2], ()) if ("/" + path).endswith(ending)]

    def _exact(self, image: AnnotatedImage, source: str) -> str | None:
        """Return the image at a path that is absolute or relative to one of the usual folders."""
        for place in self._places(image, source):
            found = self.tree.find(place, outside=self.outside)
            if found is not None and (found in self._known or os.path.isabs(found)):
                return found
        return None

    def _places(self, image: AnnotatedImage, source: str) -> Iterator[str]:
        name = image.name
        folder, _, file = source.rpartition("/")
        yield name if os.path.isabs(name) else os.path.join(self.tree.path(folder), name)
        if os.path.isabs(name) or ".." in name.split("/"):
            return
        # instances_train.json belongs to images/train/
        subset = image.subset or file.rpartition(".")[0].partition("_")[2]
        for beside in dict.fromkeys((folder, folder.rpartition("/")[0])):
            for below in ("images", f"images/{subset}"):
                yield os.path.join(self.tree.path(beside), below, name)
        above = self.tree.root
        for _ in range(name.count("/") + 1):
            yield os.path.join(above, name)
            above = os.path.dirname(above)


class _Collector:
    """Pairs annotations with images, and adds the records."""

    def __init__(self, tree: FileTree, listing: Listing, config: AnomalyFolderConfig):
        self.tree, self.listing, self.config = tree, listing, config
        self.names = Names(config.normal_names, config.anomalous_names)
        self.rules = ShapeRules(config.boxes_as_masks, config.line_width, frozenset(config.ignore_labels))
        self.product = config.product or tree.root.replace("\\", "/").rstrip("/").rpartition("/")[2] or "product"
        self.pictures = _Pictures(tree, config.outside_files)

    def collect(self, files: Sequence[AnnotationFile]) -> None:
        """Add records and problems of all files and images."""
        owners: dict[str, list[tuple[AnnotationFile, AnnotatedImage]]] = {}
        unread: set[str] = set()
        for file in files:
            self.listing.read_files.update(map(self.tree.path, (file.path, *file.also_read)))
            for problem in file.problems:
                self._problem(file.path, problem)
            if not file.images:
                unread.add(file.path.rpartition(".")[0].casefold())
            for image in file.images:
                path = self._picture_of(image, file)
                if path is not None:
                    owners.setdefault(path, []).append((file, image))
        outside = [path for path in owners if os.path.isabs(path)]
        bare = []
        for path in (*self.pictures.paths, *outside):
            if path in owners:
                self._add(path, owners[path])
            elif (
                path.rpartition(".")[0].casefold() not in unread
            ):  # otherwise, its unreadable annotation has been reported
                bare.append(path)
        self._add_bare(bare)

    def _problem(self, path: str, reason: str) -> None:
        self.listing.problem(path, reason, self.product)

    def _picture_of(self, image: AnnotatedImage, file: AnnotationFile) -> str | None:
        found = self.pictures.find(image, file.path)
        if len(found) == 1:
            return found[0]
        named = f"the image {image.name!r}" if not image.stems else "its image"
        if found:
            fix = "give the images different names" if image.stems else "write its path"
            self._problem(file.path, f"{named} can be any of {', '.join(found[:3])}; {fix}")
        else:
            where = " inside the folder" if not self.config.outside_files else ""
            expected = f" (expected {image.stems[0]}.png or another ending)" if image.stems else ""
            self._problem(
                file.path, f"{named} does not exist{where}{expected}; put it there, or delete its annotation"
            )
        return None

    def _add(self, path: str, owners: Sequence[tuple[AnnotationFile, AnnotatedImage]]) -> None:
        """Add the record of an annotated image."""
        if len(owners) > 1:
            sources = Counter(file.path for file, _ in owners)
            told = ", ".join(f"{source} ({count} times)" if count > 1 else source for source, count in sources.items())
            self._problem(path, f"annotated {len(owners)} times, in {told}; keep one of them")
            return
        ((file, image),) = owners
        shapes, reasons = self.rules.choose(image)
        reasons = [*image.problems, *reasons]
        reasons += self._contradictions(path, image, [shape.label for shape in shapes])
        if reasons:
            self._problem(path, f"{'; '.join(reasons)} (in {file.path})")
            return
        defects = sorted({fold(shape.label) or "anomaly" for shape in shapes})
        self.listing.add(
            self._split_of(path, file, image),
            path,
            self.product,
            ANOMALOUS if shapes else NORMAL,
            "+".join(defects) if shapes else GOOD,
            self._mask_of(file, image, shapes) if shapes else None,
        )

    def _mask_of(self, file: AnnotationFile, image: AnnotatedImage, shapes: Sequence) -> ShapesMask:
        paths = tuple(map(self.tree.path, (file.path, *file.also_read)))
        return ShapesMask(paths, tuple(shapes), image.size, image.in_fractions)

    def _contradictions(self, path: str, image: AnnotatedImage, shape_labels: Sequence[str]) -> list[str]:
        """Return the contradictions between folder, labels of the image, and shapes."""
        reasons = [
            f"a shape has the label {label!r}, which means normal; pass ignore_labels=[{label!r}] to leave it out"
            for label in dict.fromkeys(shape_labels)
            if self.names.label(label) == NORMAL
        ]
        for source, label in self._stated_labels(path, image).items():
            if label == NORMAL and shape_labels:
                count = f"{len(shape_labels)} shape{'' if len(shape_labels) == 1 else 's'}"
                reasons.append(
                    f"{source} means normal, and its annotation has {count}; delete what is wrong, or correct the"
                    f" {source.split()[0]}"
                )
            if label == ANOMALOUS and not shape_labels:
                reasons.append(
                    f"{source} means anomalous, and its annotation has no shape; outline the defect, or correct the"
                    f" {source.split()[0]}"
                )
        return reasons

    def _stated_labels(self, path: str, image: AnnotatedImage | None = None) -> Mapping[str, int]:
        """Return the labels that the innermost folder called good, bad, ... and the labels of the image state."""
        stated = {}
        for name in reversed(path.split("/")[:-1] if not os.path.isabs(path) else []):
            label = self.names.label(name)
            if label is not None:
                stated[f"folder {name!r}"] = label
                break
        for name in image.labels if image is not None else ():
            label = self.names.label(name)
            if label is not None:
                stated[f"label {name!r}"] = label
        return stated

    def _split_of(self, path: str, file: AnnotationFile | None = None, image: AnnotatedImage | None = None) -> str:
        """Return the split that a folder of the image or, failing that, the annotation file names; default "test"."""
        folders = [] if os.path.isabs(path) else path.split("/")[:-1]
        if file is not None:
            *above, name = file.path.split("/")
            folders += [*above, *re.split(r"[^a-z]+", name.rpartition(".")[0].casefold()), image.subset]
        return next((fold(name) for name in folders if is_split_folder(name)), "test")

    def _add_bare(self, paths: Sequence[str]) -> None:
        """Add images without an annotation."""
        labels = {"unknown": UNKNOWN, "normal": NORMAL, "error": None}
        untold = []
        for path in paths:
            (label, *_) = [*self._stated_labels(path).values(), None]
            if label == ANOMALOUS:
                self._problem(path, "in a folder of anomalous images, but without an annotation; outline the defect")
                continue
            if label is None:
                label = labels[self.config.unannotated]
                untold.append(path)
            if label is None:
                self._problem(path, 'without an annotation; add one, or pass unannotated="normal" or "unknown"')
            else:
                self.listing.add(self._split_of(path), path, self.product, label)
        if untold and self.config.unannotated == "unknown":
            logger.warning(
                "%d of %d images in %s have no annotation, and their label is unknown (the first is %s). Pass"
                ' unannotated="normal" if they show no defect.',
                len(untold),
                len(self.pictures.paths),
                self.tree.root,
                untold[0],
            )
