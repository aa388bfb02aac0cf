"""Every method through the pipeline: names, calibration, tiles, references, saving."""

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

from tests.common import ROUNDING, tiny_model
from tests.methods.common import ALONE, LOADED, tiny_method
from vcp_clip_hf import AnomalySegmentationPipeline
from vcp_clip_hf.checkpoint_folder import complete_parts, load_parts, save_parts
from vcp_clip_hf.image_processing_vcp_clip import VCPCLIPImageProcessor
from vcp_clip_hf.methods import METHODS


FEW_SHOT = [name for name, model in METHODS.items() if model.supports_references]
NAMED = [name for name, model in METHODS.items() if model.uses_product_names]


def pictures(count, seed=0):
    random = np.random.default_rng(seed)
    return [Image.fromarray(random.integers(0, 255, (60, 80, 3), dtype=np.uint8)) for _ in range(count)]


def tiny_pipeline(model_type, **options) -> AnomalySegmentationPipeline:
    model = tiny_method(model_type)
    return pipeline(
        "anomaly-segmentation",
        model=model,
        image_processor=VCPCLIPImageProcessor.for_model(model.config),
        tokenizer=model.tokenizer,
        **options,
    )


@pytest.mark.parametrize("model_type", LOADED)
def test_a_saved_folder_segments_the_same(model_type, tmp_path):
    model = tiny_method(model_type)
    save_parts(tmp_path, complete_parts(model, tokenizer=model.tokenizer))
    parts, (picture,) = load_parts(tmp_path), pictures(1)
    assert type(parts.model) is type(model) and model.config.title in (tmp_path / "README.md").read_text()
    from_folder = pipeline("anomaly-segmentation", model=str(tmp_path))
    results = [inspect(picture, product_name="nut") for inspect in (tiny_of(model), from_folder)]
    assert results[0]["score"] == pytest.approx(results[1]["score"], abs=1e-6)
    np.testing.assert_allclose(results[0]["anomaly_map"], results[1]["anomaly_map"], **ROUNDING)
    assert results[0]["anomaly_map"].shape == (60, 80)


def tiny_of(model):
    processor = VCPCLIPImageProcessor.for_model(model.config)
    return pipeline("anomaly-segmentation", model=model, image_processor=processor, tokenizer=model.tokenizer)


@pytest.mark.parametrize("model_type", ALONE)
def test_calibration_holds_for_its_product(model_type):
    inspect, images = tiny_pipeline(model_type), pictures(5)
    inspect.calibrate(images, product_name="nut", false_alarm_rate=0.2)
    assert inspect.image_processor.calibration["settings"]["score_mode"] == inspect.image_processor.score_mode
    assert inspect(images[0], product_name="nut")["label"] is not None
    if model_type in NAMED:
        assert inspect(images[0], product_name="bolt")["label"] is None


@pytest.mark.parametrize("model_type", ALONE)
def test_tiles_are_segmented_by_themselves(model_type):
    inspect, (picture,) = tiny_pipeline(model_type, product_name="nut"), pictures(1)
    tiled = inspect(picture, tile_size=80)
    whole = inspect(picture.crop((0, 0, 60, 60)))
    one_tile = inspect(picture.crop((0, 0, 60, 60)), tile_size=60)
    assert tiled["anomaly_map"].shape == (60, 80)
    np.testing.assert_allclose(one_tile["anomaly_map"], whole["anomaly_map"], atol=1e-5)


@pytest.mark.parametrize("model_type", LOADED)
def test_pictures_are_judged_together(model_type):
    results = tiny_pipeline(model_type).segment_together(pictures(5), progress=False, zero_shot_weight=0.5)
    assert len(results) == 5


@pytest.mark.parametrize("model_type", FEW_SHOT)
def test_references_are_used_as_published_and_saved(model_type, tmp_path):
    inspect, (picture, *normal) = tiny_pipeline(model_type, product_name="nut"), pictures(4)
    zero_shot = inspect(picture)
    memory = inspect.set_references(normal)
    with_references = inspect(picture, output_branch_maps=True)
    banks = memory.banks
    expected = inspect.model(
        inspect.image_processor(picture, return_tensors="pt").pixel_values, "nut", references=banks
    )
    assert with_references["score"] == pytest.approx(expected.image_scores.item(), abs=1e-6)
    assert with_references["score"] != zero_shot["score"]
    assert inspect(picture, reference_weight=0)["score"] == zero_shot["score"]
    inspect.save_pretrained(tmp_path)
    again = pipeline("anomaly-segmentation", model=str(tmp_path))
    assert again(picture, product_name="nut")["score"] == pytest.approx(with_references["score"], abs=1e-6)


@pytest.mark.parametrize("model_type", FEW_SHOT)
def test_references_calibrate_against_each_other(model_type):
    inspect, normal = tiny_pipeline(model_type, product_name="nut"), pictures(4)
    inspect.set_references(normal)
    calibration = inspect.calibrate(normal, false_alarm_rate=0.25)
    assert calibration.leave_one_out and calibration.num_images == 4


@pytest.mark.parametrize("setting", [{"weight": 0.3}, {"layers": [1]}, {"neighborhood": 3}])
def test_settings_that_a_method_does_not_have_are_refused(setting):
    inspect = tiny_pipeline("april_gan")
    with pytest.raises(ValueError, match="has no meaning for AprilGANModel"):
        inspect.set_references(pictures(1), **setting)


def test_weights_between_zero_and_one_are_refused():
    inspect = tiny_pipeline("april_gan")
    inspect.set_references(pictures(1))
    with pytest.raises(ValueError, match=r"reference_weight=0\.3 has no meaning"):
        inspect(pictures(1)[0], reference_weight=0.3)


def test_methods_without_a_few_shot_mode_refuse_reference_images():
    with pytest.raises(ValueError, match="no few-shot mode"):
        tiny_pipeline("anovl").set_references(pictures(1))


def test_each_model_refuses_text_of_the_other_kind():
    (picture,) = pictures(1)
    with pytest.raises(ValueError, match="prompts of its own"):
        tiny_pipeline("april_gan")(picture, prompts={"normal": "good", "abnormal": "bad"})
    model = tiny_model()
    inspect = pipeline(
        "anomaly-segmentation", model=model, image_processor=VCPCLIPImageProcessor.for_model(model.config)
    )
    with pytest.raises(ValueError, match="VCPCLIPModel needs no name"):
        inspect(picture, product_name="nut")


def test_code_of_methods_does_not_travel(tmp_path):
    inspect = tiny_pipeline("april_gan")
    with pytest.raises(ValueError, match="import vcp_clip_hf"):
        inspect.save_pretrained(tmp_path, include_code=True)
