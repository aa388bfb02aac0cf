"""COCO files: ids, run lengths with holes, areas; as COCO's rules say, and as pycocotools reads them."""

import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vcp_clip_hf.coco_format import coco_content, compressed_counts, run_lengths, write_coco
from vcp_clip_hf.regions import find_regions


def decompressed(text: str) -> list[int]:
    """Return the run lengths of COCO's compressed form, as its format describes it."""
    counts, value, shift = [], 0, 0
    for code in (ord(character) - 48 for character in text):
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    return counts


def decoded(segmentation: dict) -> np.ndarray:
    """Return the mask of a segmentation."""
    height, width = segmentation["size"]
    counts = decompressed(segmentation["counts"])
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return values.reshape(width, height).T


def written(tmp_path, masks: list[np.ndarray]) -> dict:
    records = [
        {
            "image": f"{number}.png",
            "height": mask.shape[0],
            "width": mask.shape[1],
            "regions": find_regions(mask, mask.astype(np.float32)),
        }
        for number, mask in enumerate(masks)
    ]
    records.insert(1, {"image": "broken.png", "error": "cannot be read"})
    write_coco(records, tmp_path / "coco.json")
    return json.loads((tmp_path / "coco.json").read_text())


def masks_of_every_kind() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    ring = np.zeros((9, 12), bool)
    ring[1:8, 2:11] = True
    ring[3:6, 4:8] = False
    ring[4, 5] = True  # an island in the hole is a region of its own
    noise = [generator.random((20, 31)) > limit for limit in (0.2, 0.5, 0.9)]
    return [ring, np.zeros((4, 5), bool), np.ones((5, 3), bool), np.eye(6, dtype=bool), np.ones((1, 1), bool), *noise]


def test_ids_begin_at_1_and_are_unique(tmp_path):
    coco = written(tmp_path, masks_of_every_kind())
    assert [image["id"] for image in coco["images"]] == list(range(1, 9))
    assert "broken.png" not in [image["file_name"] for image in coco["images"]]
    assert [each["id"] for each in coco["annotations"]] == list(range(1, len(coco["annotations"]) + 1))
    assert {each["image_id"] for each in coco["annotations"]} == {1, 3, 4, 5, 6, 7, 8}
    assert coco["categories"] == [{"id": 1, "name": "anomaly"}]
    assert all(each["iscrowd"] == 0 and each["category_id"] == 1 for each in coco["annotations"])


def test_segmentations_are_the_masks_with_their_holes(tmp_path):
    masks = masks_of_every_kind()
    coco = written(tmp_path, masks)
    for number, mask in enumerate(masks, start=1):
        total = np.zeros(mask.shape, int)
        for annotation in (each for each in coco["annotations"] if each["image_id"] == number):
            found = decoded(annotation["segmentation"])
            ys, xs = np.nonzero(found)
            box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            assert annotation["area"] == found.sum() and annotation["bbox"] == box
            total += found
        np.testing.assert_array_equal(total, mask.astype(int))


def test_pycocotools_reads_masks_scores_and_results(tmp_path):
    masks = masks_of_every_kind()
    coco = written(tmp_path, masks)
    reference = COCO(str(tmp_path / "coco.json"))
    # With a bbox, loadRes takes a result for a box
    fields = ("image_id", "category_id", "segmentation", "score")
    results = reference.loadRes([{name: each[name] for name in fields} for each in coco["annotations"]])
    for number, mask in enumerate(masks, start=1):
        for dataset in (reference, results):
            total = np.zeros(mask.shape, int)
            for annotation in dataset.loadAnns(dataset.getAnnIds(imgIds=[number])):
                total += dataset.annToMask(annotation)
                assert annotation["area"] == dataset.annToMask(annotation).sum() and annotation["score"] == 1
            np.testing.assert_array_equal(total, mask.astype(int))
    evaluation = COCOeval(reference, results, "segm")
    evaluation.params.maxDets = [1000]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, -1]
    assert np.all(precision == 1), "each region is matched with itself"


def test_names_of_regions_are_categories(tmp_path):
    mask = np.eye(6, dtype=bool)[::2]
    regions = find_regions(mask, mask.astype(np.float32))
    for region, name in zip(regions, ("scratch", "hole", "scratch"), strict=True):
        region["name"] = name
    coco = coco_content([{"image": "a.png", "height": 3, "width": 6, "regions": regions}])
    assert coco["categories"] == [{"id": 1, "name": "hole"}, {"id": 2, "name": "scratch"}]
    assert [annotation["category_id"] for annotation in coco["annotations"]] == [2, 1, 2]


def test_polygons_are_beside_the_masks(tmp_path):
    (outer, island) = written(tmp_path, masks_of_every_kind()[:1])["annotations"]
    assert outer["polygons"] == [[2, 1, 11, 1, 11, 8, 2, 8]] and outer["holes"] == [[4, 6, 8, 6, 8, 3, 4, 3]]
    assert outer["area"] == 7 * 9 - 3 * 4 and island["area"] == 1 and not island["holes"]


def test_run_lengths_join_columns():
    square = [[[1, 0], [3, 0], [3, 4], [1, 4]]]
    assert run_lengths(square, 4, 5) == [4, 8, 8], "two full columns are one run"
    assert run_lengths([[[0, 0], [5, 0], [5, 4], [0, 4]]], 4, 5) == [0, 20]


@pytest.mark.parametrize(
    ("counts", "text"),
    # from pycocotools 2.0.11: mask.frPyObjects({"size": ..., "counts": counts}, ...)["counts"]
    [
        ([0, 20], "0d0"),
        ([4, 8, 8], "488"),
        ([5, 1, 33, 2, 1000, 16, 3], "51Q11Wn0>kPO"),
        ([31, 32, 15, 16, 17, 100000, 1, 48, 15, 200000], "o0P1?@2`dQ3@`\\nL>`XS6"),
        ([7], "7"),
    ],
)
def test_compressed_counts_are_those_of_pycocotools(counts, text):
    assert compressed_counts(counts) == text and decompressed(text) == counts


def test_records_of_earlier_versions_are_refused(tmp_path):
    region = {
        "score": 0.9,
        "area": 1,
        "box": {"xmin": 0, "ymin": 0, "xmax": 1, "ymax": 1},
        "polygon": [[0, 0], [1, 0]],
    }
    with pytest.raises(ValueError, match=r"'a\.png' were written by an earlier version.* --overwrite"):
        write_coco([{"image": "a.png", "height": 2, "width": 2, "regions": [region]}], tmp_path / "coco.json")
    assert not (tmp_path / "coco.json").exists()
