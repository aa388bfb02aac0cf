"""Find the root and the layout of a dataset."""

from collections.abc import Sequence

from .did_you_mean import did_you_mean
from .file_tree import FileTree, candidate_roots
from .layout_errors import DatasetLayoutError, LayoutProblem
from .listing import Layout, Listing


__all__ = ["find_layout"]


def find_layout(
    title: str,
    data_dir: str,
    layouts: Sequence[Layout],
    requested: str | None = None,
    products: Sequence[str] = (),
) -> Listing:
    """
    Find the root and the layout of a dataset in `data_dir`, or one or two folders below it (an archive often has a
    top folder of its own).

    Args:
        title (`str`): title of the dataset, for messages.
        data_dir (`str`): folder to search.
        layouts (`Sequence[Layout]`): layouts, tried in this order in every folder.
        requested (`str`, *optional*): name of the only layout to search for.
        products (`Sequence[str]`, *optional*): names of the products, to notice a folder that holds only one of them.

    Returns:
        `Listing`: root and layout, without records.

    Raises:
        ValueError: the requested layout does not exist.
        DatasetLayoutError: no folder has one of the layouts, or several have.
    """
    if requested is not None:
        names = [layout.name for layout in layouts]
        if requested not in names:
            raise ValueError(f"{title} has no layout {requested!r}; {did_you_mean(requested, names)}")
        layouts = [layout for layout in layouts if layout.name == requested]
    expected = "\nor\n".join(layout.expected.strip("\n") for layout in layouts)
    tree = FileTree(data_dir)
    if not tree.exists():
        raise DatasetLayoutError(
            f"{title} in {tree.root}", [LayoutProblem(tree.root, "no such folder")], expected, "Check data_dir."
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
                f"{title} in {data_dir}",
                [LayoutProblem(one.tree.root, f'layout "{one.layout.name}"') for one in found],
                "one copy of the dataset",
                "Several folders look like it: pass one of them as data_dir.",
            )
    raise _nothing_found(title, data_dir, tree, expected, products)


def _nothing_found(
    title: str, data_dir: str, tree: FileTree, expected: str, products: Sequence[str]
) -> DatasetLayoutError:
    folders = tree.folders()
    shown = ", ".join(folders[:8]) + (", ..." if len(folders) > 8 else "") if folders else "no folders"
    fix = "Pass the folder that holds the unpacked download as data_dir."
    name = tree.root.replace("\\", "/").rpartition("/")[2]
    if name in products:
        fix = (
            f"This looks like the folder of one product, {name!r}: pass the folder above it, and products=[{name!r}]."
        )
    reason = f"none of the known layouts is here or two folders below; found {shown}"
    return DatasetLayoutError(f"{title} in {data_dir}", [LayoutProblem(str(data_dir), reason)], expected, fix)
