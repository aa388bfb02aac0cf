"""All published datasets, on small generated copies of their downloads."""

import numpy as np
import pytest
from PIL import Image

from vcp_clip_hf.data import FEATURES, DatasetLayoutError, dataset_builder

from .helpers import check_row, counts, prepared, rows_of
from .trees import MARKED, TREES, save_labelme, save_mask


every_tree = pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.name)


def build(tree, data_dir, tmp_path, **options):
    return dataset_builder(tree.dataset, data_dir, cache_dir=tmp_path / "cache", **{**tree.options, **options})


@every_tree
def test_the_whole_download_is_read_and_nothing_else(tree, tmp_path):
    root = tmp_path / "root"
    tree.write(root)
    builder = build(tree, root, tmp_path)
    assert builder.layout == tree.layout and f'layout "{tree.layout}"' in builder.describe()
    splits = prepared(builder)

    assert {name: counts(split) for name, split in splits.items()} == tree.labels
    assert len(builder.left_out) == tree.left_out
    found = {}
    for split in splits.values():
        assert split.features == FEATURES
        for row in split:
            check_row(row)
            found[row["image_id"]] = row
    assert len(found) == sum(map(sum, tree.labels.values()))  # ids are unique in the dataset

    example = found[tree.image_id or tree.image.rpartition(".")[0]]
    assert example["defect"] == tree.defect
    with Image.open(root / tree.image) as image:
        assert np.array_equal(np.asarray(example["image"]), np.asarray(image.convert("RGB")))
    for row in found.values():
        if row["label"] == 1:
            assert np.array_equal(np.asarray(row["mask"]) > 0, MARKED)


@every_tree
def test_the_top_folder_of_the_archive_may_still_be_there(tree, tmp_path):
    tree.write(tmp_path / "root" / "Dataset v1")
    (tmp_path / "root" / "__MACOSX" / "Dataset v1").mkdir(parents=True)
    builder = build(tree, tmp_path / "root", tmp_path)
    tree.write(tmp_path / "bare")
    bare = build(tree, tmp_path / "bare", tmp_path)
    for name, records in builder._listing.splits.items():
        ids = [record.image_id for record in records]
        assert ids == [record.image_id for record in bare._listing.splits[name]]


@every_tree
def test_streaming_gives_the_same_rows(tree, tmp_path):
    tree.write(tmp_path / "root")
    builder = build(tree, tmp_path / "root", tmp_path)
    for name, split in prepared(builder).items():
        assert rows_of(builder.as_streaming_dataset(name)) == rows_of(split)


def remove_mask(tree, root):
    path = root / tree.mask
    if path.is_dir():
        for part in path.iterdir():
            part.unlink()
        path.rmdir()
    else:
        path.unlink()


def shrink_mask(tree, root):
    path = root / tree.mask
    if path.suffix == ".json":
        save_labelme(path, "", size=(30, 20))
    elif path.suffix == ".seg":
        path.write_text("width 3\nheight 2\ndata\n1 0 0 2\n")
    elif path.suffix == ".mat":
        from scipy.io import savemat

        savemat(path, {"groundTruth": {"Segmentation": np.full((2, 3), 2, np.uint8)}})
    else:
        for part in path.iterdir() if path.is_dir() else [path]:
            save_mask(part, value=1, marked=np.ones((20, 30), bool), mode="L")


def garble_mask(tree, root):
    path = root / tree.mask
    for part in path.iterdir() if path.is_dir() else [path]:
        part.write_bytes(b"not a mask")


def truncate_image(tree, root):
    content = (root / tree.image).read_bytes()
    (root / tree.image).write_bytes(content[: len(content) * 2 // 3])


def garble_image(tree, root):
    (root / tree.image).write_bytes(b"")


# the code that reads the standard layout is the same for all datasets
BREAKABLE = [tree for tree in TREES if tree.layout != "standard" or tree.dataset == "mvtec_ad"]
BREAKS = {
    "mask removed": (remove_mask, ""),
    "mask of another size": (shrink_mask, "the mask has"),
    "mask not readable": (garble_mask, ""),
    "image truncated": (truncate_image, "damaged or truncated"),
    "image not readable": (garble_image, "not an image file"),
}
# boxes have no image size, and a few images of that download lack their annotation
NO_ERROR = {("gc10_det", "mask of another size"), ("gc10_det", "mask removed")}
BROKEN = [(tree, kind) for tree in BREAKABLE for kind in BREAKS if (tree.dataset, kind) not in NO_ERROR]


@pytest.mark.parametrize("tree, kind", BROKEN, ids=[f"{tree.name}-{kind}" for tree, kind in BROKEN])
def test_a_broken_file_is_reported_and_can_be_skipped(tree, kind, tmp_path):
    root = tmp_path / "root"
    tree.write(root)
    how, message = BREAKS[kind]
    how(tree, root)
    with pytest.raises(DatasetLayoutError) as caught:
        prepared(build(tree, root, tmp_path))
    assert message in str(caught.value)
    assert "Expected:" in str(caught.value) and 'on_error="skip"' in str(caught.value)

    builder = build(tree, root, tmp_path, on_error="skip")
    splits = prepared(builder)
    total = sum(map(sum, tree.labels.values()))
    assert total - 2 <= sum(len(split) for split in splits.values()) < total
    assert len(builder.left_out) > tree.left_out
    for split in splits.values():
        for row in split:
            check_row(row)


OWN_BREAKS = [(tree, kind) for tree in TREES for kind in tree.breaks]


@pytest.mark.parametrize("tree, kind", OWN_BREAKS, ids=[f"{tree.name}-{kind}" for tree, kind in OWN_BREAKS])
def test_a_broken_tree_is_reported(tree, kind, tmp_path):
    root = tmp_path / "root"
    tree.write(root)
    how, message = tree.breaks[kind]
    how(root)
    with pytest.raises(DatasetLayoutError) as caught:
        prepared(build(tree, root, tmp_path))
    assert message in str(caught.value)
