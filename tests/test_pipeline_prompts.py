"""Prompts of a call of the pipeline."""

import pytest
from transformers import pipeline

from tests.pipeline_run import assert_same, picture, save_checkpoint
from vcp_clip_hf import AnomalySegmentationPipeline


def test_prompts(tmp_path):
    inspect = pipeline("anomaly-segmentation", model=str(save_checkpoint(tmp_path)))
    image = picture(60, 80)
    plain = inspect(image)
    same = inspect(image, prompts={"normal": "good", "abnormal": "damaged"})
    assert_same(same, plain)
    words = inspect(image, prompts={"normal": "perfect", "abnormal": "flawed"})
    templates = inspect(image, prompts={"normal": ["a photo of a perfect {}"], "abnormal": ["a photo of a flawed {}"]})
    assert_same(words, templates)
    assert abs(words["anomaly_map"] - plain["anomaly_map"]).max() > 1e-4
    with pytest.raises(ValueError, match='keys "normal" and "abnormal"'):
        inspect(image, prompts={"good": "x"})
    with pytest.raises(ValueError, match="same number"):
        inspect(image, prompts={"normal": ["a", "b"], "abnormal": "c"})
    same = [("damaged", "damaged"), (["bad", "good"], ["good", "bad"]), ("fine", "a photo of a fine {}")]
    for normal, abnormal in same:
        with pytest.raises(ValueError, match=r"every pixel would get 0\.5"):
            inspect(image, prompts={"normal": normal, "abnormal": abnormal})
    for empty in ("", " ", [], ["good", ""], [3]):
        with pytest.raises(ValueError, match=r"normal prompts .* at least one and none of them empty"):
            inspect(image, prompts={"normal": empty, "abnormal": "bad"})
    bare = AnomalySegmentationPipeline(model=inspect.model, image_processor=inspect.image_processor)
    with pytest.raises(ValueError, match="tokenizer"):
        bare(image, prompts={"normal": "a", "abnormal": "b"})
