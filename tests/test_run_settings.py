"""Settings of a run: what changes results is named, everything else is not."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.common import tiny_model, tiny_tokenizer
from vcp_clip_hf import Acceleration, AnomalySegmentationPipeline, VCPCLIPImageProcessor
from vcp_clip_hf.mutual_scoring import MutualScoring
from vcp_clip_hf.run_settings import RunSettings, model_fingerprint


def make_pipe(**options) -> AnomalySegmentationPipeline:
    torch.manual_seed(0)
    model = tiny_model()
    processor = VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=2.0, threshold=0.5)
    return AnomalySegmentationPipeline(
        model=model, image_processor=processor, tokenizer=tiny_tokenizer(), device="cpu", **options
    )


@pytest.fixture(scope="module")
def pipe():
    return make_pipe()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"threshold": 0.6}, "threshold"),
        ({"image_threshold": 0.6}, "image_threshold"),
        ({"smoothing_sigma": 3.0}, "smoothing_sigma"),
        ({"score_mode": "top_k"}, "score_mode"),
        ({"prompts": {"normal": "perfect", "abnormal": "flawed"}}, "prompt_input_ids"),
        ({"tile_size": 32}, "tile_size"),
        ({"tile_size": 32, "tile_overlap": 4}, "tile_overlap"),
        ({"tile_size": 32, "global_weight": 0.5}, "global_weight"),
        ({"min_area": 5}, "min_area"),
        ({"fill_holes": True}, "fill_holes"),
        ({"input_range": (0, 4095)}, "input_range"),
        ({"roi_mask": np.ones((4, 4), np.uint8)}, "roi_mask"),
        ({"roi_mask": Image.new("L", (4, 4), 255)}, "roi_mask"),
    ],
)
def test_each_setting_that_changes_results_is_named(pipe, tmp_path, options, name):
    before = RunSettings.of(pipe, {})
    before.write(tmp_path)
    now = RunSettings.of(pipe, options)
    assert name in [each.split(":")[0] for each in now.differences(RunSettings.read(tmp_path))]
    now.write(tmp_path)
    assert RunSettings.of(pipe, options).differences(RunSettings.read(tmp_path)) == []


def test_other_arguments_and_defaults_are_no_settings(pipe):
    before = RunSettings.of(pipe, {})
    same = {"threshold": 0.5, "min_area": 0, "timeout": 3.0, "regions": True, "tile_batch_size": 1}
    assert RunSettings.of(pipe, {**same, "tile_size": None}).differences(before) == []
    assert RunSettings.of(make_pipe(), {}).differences(before) == []


def test_float8_is_a_precision():
    pipe = make_pipe()
    before = RunSettings.of(pipe, {})
    pipe.accelerate = Acceleration(compile_pointwise=True)
    assert RunSettings.of(pipe, {}).differences(before) == []
    pipe.accelerate = Acceleration(float8=True)
    assert RunSettings.of(pipe, {}).differences(before) == ["dtype: float32 -> float8"]


def test_the_defaults_of_the_pipeline_count(pipe):
    differences = RunSettings.of(make_pipe(min_area=7), {}).differences(RunSettings.of(pipe, {}))
    assert differences == ["min_area: not set -> 7"]


def test_parts_of_a_setting_are_named():
    """The text of a whole group is cut before the part that differs."""
    pipe = make_pipe()
    before = RunSettings.of(pipe, {}).judged_together(MutualScoring(), [])
    now = RunSettings.of(pipe, {}).judged_together(MutualScoring(zero_shot_weight=0.5), [])
    assert now.differences(before) == ["together: zero_shot_weight: 0.0 -> 0.5"]
    subsets = RunSettings.of(pipe, {}).judged_together(MutualScoring(subset_size=10), []).differences(before)
    assert subsets == ["together: subset_size: not set -> 10"]


def test_references_are_no_settings_of_images_that_are_judged_together():
    pipe = make_pipe()
    before = RunSettings.of(pipe, {})
    pipe.set_references([Image.new("RGB", (48, 48))])
    assert RunSettings.of(pipe, {}).differences(before)
    together = RunSettings.of(pipe, {}).judged_together(MutualScoring(), [])
    assert together.differences(before.judged_together(MutualScoring(), [])) == []


def test_images_that_are_judged_together_are_squashed():
    pipe = make_pipe()
    pipe.image_processor = pipe.image_processor.with_resize_mode("keep_ratio")
    settings = RunSettings.of(pipe, {})
    assert settings.values["resize_mode"] == "keep_ratio"
    assert settings.judged_together(MutualScoring(), []).values["resize_mode"] == "squash"


def test_the_content_of_a_region_file_counts(pipe, tmp_path):
    path = tmp_path / "roi.png"
    Image.new("L", (4, 4), 255).save(path)
    before = RunSettings.of(pipe, {"roi_mask": str(path)})
    Image.new("L", (4, 4), 0).save(path)
    assert RunSettings.of(pipe, {"roi_mask": str(path)}).differences(before)


def test_the_fingerprint_follows_weights_and_configuration_not_the_place(tmp_path):
    torch.manual_seed(0)
    model = tiny_model()
    before = model_fingerprint(model)
    model.save_pretrained(tmp_path / "a")
    assert model_fingerprint(type(model).from_pretrained(tmp_path / "a")) == before
    learned, clip = (
        next(weight for name, weight in model.named_parameters() if name.startswith("clip.") == of_clip)
        for of_clip in (False, True)
    )
    for weight in (learned, clip):
        with torch.no_grad():
            weight.flatten()[0] += 1e-6
            assert model_fingerprint(model) != before
            weight.flatten()[0] -= 1e-6
            before = model_fingerprint(model)
    model.config.fusion_weight = 0.123
    assert model_fingerprint(model) != before


def test_a_damaged_file_of_settings_is_no_settings(tmp_path):
    assert RunSettings.read(tmp_path) is None
    for content in ("", "[]", "{}", '{"settings": 3}', '{"settings'):
        (tmp_path / "run.json").write_text(content)
        assert RunSettings.read(tmp_path) is None
