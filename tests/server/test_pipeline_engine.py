"""A checkpoint as an engine answers as the pipeline does, also when requests of several recipes share a batch."""

import json

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

from tests.common import tiny_model_with_head
from tests.export_run import SMALL, checkpoint, picture, pictures, referenced_checkpoint, small_processor
from tests.server.engines import pipeline_engine, png, referenced_engine
from vcp_clip_hf import AnomalySegmentationPipeline
from vcp_clip_hf.server.pipeline_engine import PipelineEngine
from vcp_clip_hf.server.recipe import Recipe
from vcp_clip_hf.server.request import SegmentationRequest


NORMAL = [picture(50, 60, seed) for seed in range(90, 93)]
KEYS = tuple(f"{index:064x}" for index in range(3))


@pytest.fixture(scope="module")
def inspect():
    return pipeline("anomaly-segmentation", model=str(checkpoint()))


@pytest.fixture
def normal_files(tmp_path):
    """Files of references, named as a store names them."""
    for key, normal in zip(KEYS, NORMAL, strict=True):
        (tmp_path / key).write_bytes(png(normal))
    return tuple(tmp_path / key for key in KEYS)


@pytest.fixture
def roi_file(tmp_path):
    inside = np.zeros((60, 80), np.uint8)
    inside[10:50, 20:70] = 255
    (tmp_path / "roi").write_bytes(png(Image.fromarray(inside)))
    return tmp_path / "roi"


def assert_equal(result, expected, atol=0.0):
    assert list(result) == list(expected)
    np.testing.assert_allclose(result["anomaly_map"], expected["anomaly_map"], rtol=0, atol=atol)
    assert result["score"] == pytest.approx(expected["score"], rel=0, abs=atol)
    for name in expected.keys() - {"anomaly_map", "score", "mask", "heatmap", "regions"}:
        assert result[name] == expected[name]
    for name in {"mask", "heatmap"} & expected.keys() if not atol else ():
        assert (expected[name] is None) == (result[name] is None)
        if expected[name] is not None:
            np.testing.assert_array_equal(np.asarray(result[name]), np.asarray(expected[name]))
    if not atol:
        assert result.get("regions") == expected.get("regions")


def test_one_request_equals_a_call_of_the_pipeline_bit_by_bit(inspect, roi_file):
    engine, image = pipeline_engine(), picture(60, 80)
    threshold = float(np.median(inspect(image)["anomaly_map"]))
    settings = {"threshold": threshold, "min_area": 9, "fill_holes": True}
    for recipe, roi, extra in (
        ({}, None, {}),
        (settings, None, {"regions": True, "heatmap": True}),
        ({**settings, "image_threshold": 0.9, "score_mode": "top_k"}, roi_file, {"regions": True}),
        ({**settings, "score_mode": "max"}, roi_file, {}),
    ):
        request = SegmentationRequest(
            image, Recipe("part", **recipe), bool(extra.get("regions")), bool(extra.get("heatmap")), roi
        )
        given = {**recipe, **extra, **({} if roi is None else {"roi_mask": str(roi)})}
        (result,) = engine.segment([request])
        assert_equal(result, inspect(image, **given))


def test_references_equal_those_of_the_pipeline(normal_files):
    own = pipeline("anomaly-segmentation", model=str(checkpoint()))
    own.set_references([str(path) for path in normal_files])
    recipe, image = Recipe("part", references=KEYS), picture(60, 80)
    (result,) = pipeline_engine().segment([SegmentationRequest(image, recipe, references=normal_files)])
    assert_equal(result, own(image))
    lighter = Recipe("part", references=KEYS, reference_weight=0.25)
    (result,) = pipeline_engine().segment([SegmentationRequest(image, lighter, references=normal_files)])
    assert_equal(result, own(image, reference_weight=0.25))
    # back to the checkpoint's own, which are none here
    (result,) = pipeline_engine().segment([SegmentationRequest(image, Recipe("part"))])
    assert_equal(result, own(image, reference_weight=0))


def test_references_of_the_checkpoint_hold_for_recipes_without_their_own(normal_files):
    own = pipeline("anomaly-segmentation", model=str(referenced_checkpoint()))
    engine, image = referenced_engine(), picture(60, 80)
    assert engine.describe()["references"].startswith("References: 3 normal pictures")
    other = SegmentationRequest(image, Recipe("other", references=KEYS), references=normal_files)
    answers = engine.segment([other, SegmentationRequest(image, Recipe("part")), other])
    assert_equal(answers[1], own(image))
    (zero_shot,) = engine.segment([SegmentationRequest(image, Recipe("part", reference_weight=0))])
    assert_equal(zero_shot, own(image, reference_weight=0))
    assert (answers[0]["anomaly_map"] != answers[1]["anomaly_map"]).any()


def test_a_batch_of_several_recipes_equals_single_calls(inspect, normal_files, roi_file):
    recipes = [
        Recipe("a", threshold=0.4, min_area=20),
        Recipe("b", threshold=0.5, image_threshold=0.1, fill_holes=True),
        Recipe("c", score_mode="top_k", image_threshold=1.0),
        Recipe("d", references=KEYS, threshold=0.3),
        Recipe("e", threshold=0.45),
    ]
    more = [{}, {}, {}, {"references": normal_files}, {"roi": roi_file}]
    images = [*pictures()[:4], picture(60, 80, 5)]
    requests = [
        SegmentationRequest(image, recipe, **each) for image, recipe, each in zip(images, recipes, more, strict=True)
    ]
    alone = [pipeline_engine().segment([request])[0] for request in requests]
    together = pipeline_engine().segment(requests)
    for result, expected in zip(together, alone, strict=True):
        assert_equal(result, expected, atol=1e-6)


def test_requests_with_equal_settings_share_a_forward_pass(normal_files, monkeypatch):
    engine, sizes = PipelineEngine.open(checkpoint()), []
    forward = engine._pipeline.forward

    def counted(batch, **given):
        sizes.append(len(batch["image"]))
        return forward(batch, **given)

    monkeypatch.setattr(engine._pipeline, "forward", counted)
    thresholds = [Recipe("a", threshold=value / 10) for value in range(5)]
    requests = [SegmentationRequest(picture(60, 80, 3), recipe) for recipe in thresholds]
    with_memory = SegmentationRequest(picture(60, 80), Recipe("b", references=KEYS), references=normal_files)
    assert all(isinstance(each, dict) for each in engine.segment([requests[0], with_memory, *requests[1:]]))
    assert sizes == [5, 1]


def test_a_broken_request_fails_alone(roi_file, tmp_path):
    (tmp_path / "damaged").write_bytes(b"no image")
    good = SegmentationRequest(picture(60, 80), Recipe("part"))
    answers = pipeline_engine().segment(
        [
            good,
            SegmentationRequest(picture(48, 48), Recipe("part"), roi=roi_file),
            SegmentationRequest(picture(48, 48), Recipe("part"), with_regions=True),
            SegmentationRequest(picture(48, 48), Recipe("part", score_mode="image_head")),
            SegmentationRequest(
                picture(48, 48), Recipe("part", references=KEYS[:1]), references=(tmp_path / "damaged",)
            ),
            good,
        ]
    )
    (expected,) = pipeline_engine().segment([good])
    assert_equal(answers[0], expected, atol=1e-6)
    assert_equal(answers[5], expected, atol=1e-6)
    sentences = [str(each) for each in answers[1:5]]
    assert "roi_mask is (60, 80) (height, width), the image (48, 48)" in sentences[0]
    assert "Regions need a threshold" in sentences[1]
    assert "score_mode='image_head' is not possible: the model has no image head" in sentences[2]
    assert "not an image file that Pillow can read" in sentences[3]


def test_calibrated_thresholds_hold_for_their_settings_only(normal_files, tmp_path):
    folder = tmp_path / "calibrated"
    own = pipeline("anomaly-segmentation", model=str(checkpoint()))
    own.calibrate(NORMAL, false_alarm_rate=0.5)
    own.save_pretrained(folder)
    engine, image = PipelineEngine.open(folder), picture(60, 80)
    facts = engine.describe()
    assert facts["image_threshold"] is not None and json.loads(json.dumps(facts)) == facts
    plain = SegmentationRequest(image, Recipe("part"))
    other = SegmentationRequest(image, Recipe("part", references=KEYS), references=normal_files)
    by_hand = SegmentationRequest(image, Recipe("part", references=KEYS, threshold=0.3), references=normal_files)
    answers = engine.segment([plain, other, by_hand])
    assert [each["image_threshold"] for each in answers] == [facts["image_threshold"], None, 0.3]
    assert_equal(answers[0], own(image), atol=1e-6)


def test_an_image_head_is_a_further_score():
    model = tiny_model_with_head(**SMALL)
    own = AnomalySegmentationPipeline(model=model, image_processor=small_processor(model))
    expected = own(picture(60, 80), score_mode="image_head")
    engine = PipelineEngine(own)
    assert engine.describe()["score_modes"] == ["max", "top_k", "image_head"]
    (result,) = engine.segment([SegmentationRequest(picture(60, 80), Recipe("part", score_mode="image_head"))])
    assert_equal(result, expected)
    with pytest.raises(ValueError, match="cannot be restricted to a region of interest"):
        engine.fits(Recipe("part", score_mode="image_head", roi=KEYS[0]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"score_mode": "image_head"}, "has no image head. Use one of 'max', 'top_k'"),
        ({"reference_weight": 0.5}, "reference_weight=0.5 needs references: set normal images"),
        ({"image_threshold": 1.5}, r"image_threshold=1.5 must be a number in \[0, 1\], the scale of the score 'max'"),
    ],
)
def test_recipes_that_the_model_cannot_follow(fields, message):
    with pytest.raises(ValueError, match=message):
        pipeline_engine().fits(Recipe("part", **fields))
    pipeline_engine().fits(Recipe("part", reference_weight=0))


def test_a_memory_is_computed_once(normal_files, monkeypatch):
    engine, built = PipelineEngine.open(checkpoint()), []
    set_references = engine._pipeline.set_references

    def counted(images, **settings):
        built.extend([images] if isinstance(images, list) else [])
        return set_references(images, **settings)

    monkeypatch.setattr(engine._pipeline, "set_references", counted)
    engine.prepare(normal_files)
    request = SegmentationRequest(picture(60, 80), Recipe("part", references=KEYS), references=normal_files)
    for _ in range(3):
        engine.segment([request, SegmentationRequest(picture(60, 80), Recipe("other"))])
    assert len(built) == 1


def test_a_pipeline_with_defaults_is_refused():
    with pytest.raises(ValueError, match=r"defaults for its calls \(min_area, threshold\)"):
        PipelineEngine(pipeline("anomaly-segmentation", model=str(checkpoint()), threshold=0.5, min_area=3))
