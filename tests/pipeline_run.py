"""Pictures, and a pipeline with a small random model, shared by the tests of the pipeline."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.common import tiny_model, tiny_model_with_head, tiny_tokenizer
from vcp_clip_hf import AnomalySegmentationPipeline, VCPCLIPImageProcessor


SIZES = [(60, 80), (48, 48), (33, 120), (100, 40), (70, 70)]


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height // 6 + 1, width // 6 + 1, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def save_checkpoint(folder: Path) -> Path:
    torch.manual_seed(333)
    model = tiny_model()
    model.save_pretrained(folder)
    VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=2.0).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def pipeline_with_head() -> AnomalySegmentationPipeline:
    """Make a pipeline whose model has an image head."""
    model = tiny_model_with_head()
    processor = VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=2.0)
    return AnomalySegmentationPipeline(model=model, image_processor=processor, device="cpu")


def assert_same(result, expected, atol=1e-5):
    assert result["score"] == pytest.approx(expected["score"], abs=atol)
    np.testing.assert_allclose(result["anomaly_map"], expected["anomaly_map"], atol=atol)
    assert result["label"] == expected["label"]
