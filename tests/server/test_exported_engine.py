"""An exported folder as an engine: the results of the runtime, and no torch in the process."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.export_run import exported, picture, pictures
from tests.server.engines import exported_engine, png
from tests.server.test_pipeline_engine import assert_equal
from vcp_clip_hf.exported_segmenter import ExportedSegmenter
from vcp_clip_hf.server.exported_engine import ExportedEngine
from vcp_clip_hf.server.recipe import Recipe
from vcp_clip_hf.server.request import SegmentationRequest


KEY = "0" * 64


@pytest.fixture(scope="module")
def segmenter():
    return ExportedSegmenter(exported().folder, num_threads=1)


@pytest.fixture
def roi_file(tmp_path):
    inside = np.zeros((60, 80), np.uint8)
    inside[10:50, 20:70] = 255
    (tmp_path / "roi").write_bytes(png(Image.fromarray(inside)))
    return tmp_path / "roi"


def test_one_request_equals_a_call_of_the_runtime_bit_by_bit(segmenter, roi_file):
    image = picture(60, 80)
    threshold = float(np.median(segmenter(image)["anomaly_map"]))
    settings = {"threshold": threshold, "min_area": 9, "fill_holes": True}
    for recipe, roi, extra in (
        ({}, None, {}),
        (settings, None, {"regions": True, "heatmap": True}),
        ({**settings, "image_threshold": 0.9}, roi_file, {"regions": True}),
    ):
        request = SegmentationRequest(
            image, Recipe("part", **recipe), bool(extra.get("regions")), bool(extra.get("heatmap")), roi
        )
        given = {**recipe, **extra, **({} if roi is None else {"roi_mask": str(roi)})}
        (result,) = exported_engine().segment([request])
        assert_equal(result, segmenter(image, **given))


def test_a_batch_equals_single_calls_and_a_broken_request_fails_alone(roi_file):
    requests = [SegmentationRequest(image, Recipe("part", threshold=0.4)) for image in pictures()]
    broken = SegmentationRequest(picture(48, 48), Recipe("part"), roi=roi_file)
    alone = [exported_engine().segment([request])[0] for request in requests]
    together = exported_engine().segment([requests[0], broken, *requests[1:]])
    assert "roi_mask is (60, 80) (height, width), the image (48, 48)" in str(together.pop(1))
    for result, expected in zip(together, alone, strict=True):
        assert_equal(result, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"score_mode": "top_k"}, "score_mode='top_k' is not possible: 'max' is built into the exported graph"),
        ({"references": (KEY,)}, "references cannot be changed: references are built into the exported graph"),
        ({"reference_weight": 0.5}, "reference_weight cannot be changed"),
        ({"image_threshold": 1.5}, r"image_threshold=1.5 must be a number in \[0, 1\], the scale of the score 'max'"),
    ],
)
def test_recipes_that_the_graph_cannot_follow(fields, message):
    with pytest.raises(ValueError, match=message):
        exported_engine().fits(Recipe("part", **fields))
    request = SegmentationRequest(picture(48, 48), Recipe("part", **fields))
    assert isinstance(exported_engine().segment([request])[0], ValueError)
    exported_engine().fits(Recipe("part", roi=KEY, threshold=0.5, score_mode="max", min_area=3))
    with pytest.raises(ValueError, match="takes no references"):
        exported_engine().prepare(["image"])


def test_the_description_names_graph_and_references(tmp_path):
    facts = exported_engine().describe()
    assert (facts["format"], facts["size"], facts["score_modes"]) == ("onnx", [48, 48], ["max"])
    assert facts["references"] is None and facts["takes_references"] is False
    assert len(facts["fingerprint"]) == 64 and json.loads(json.dumps(facts)) == facts
    folder = shutil.copytree(exported().folder, tmp_path / "copy")
    export = json.loads((folder / "export.json").read_text())
    (folder / "export.json").write_text(json.dumps({**export, "references": {"description": "3 normal pictures"}}))
    other = ExportedEngine(ExportedSegmenter(folder, num_threads=1)).describe()
    assert other == {**facts, "references": "3 normal pictures"}
    with open(folder / "model.onnx", "ab") as graph:
        graph.write(b"\x82\x01\x00")  # an empty field of the format: another file, the same network
    assert ExportedEngine(ExportedSegmenter(folder, num_threads=1)).describe()["fingerprint"] != facts["fingerprint"]


def test_the_server_of_an_export_loads_neither_torch_nor_transformers(tmp_path):
    program = """
import sys
import vcp_clip_hf.cli
from PIL import Image
from vcp_clip_hf.server.batching import BatchingQueue
from vcp_clip_hf.server.engine import open_engine
from vcp_clip_hf.server.recipes import RecipeStore

engine = open_engine(sys.argv[1], num_threads=1)
store = RecipeStore(sys.argv[2], engine)
store.put("part", {"threshold": 0.5})
result = BatchingQueue(engine).submit_blocking(store.request(Image.new("RGB", (60, 50)), "part", True, True))
assert result["anomaly_map"].shape == (50, 60) and result["threshold"] == 0.5
heavy = {"torch", "transformers", "datasets", "huggingface_hub"} & sys.modules.keys()
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(exported().folder), str(tmp_path)],
        env={**os.environ, "VCP_CLIP_IMPORT_ON_USE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
