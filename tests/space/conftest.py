"""A checkpoint, pictures and a visitor for the tests of the Space."""

import numpy as np
import pytest
from inspection import Inspector
from PIL import Image
from transformers import pipeline

from tests.common import tiny_model, tiny_tokenizer
from vcp_clip_hf import VCPCLIPImageProcessor


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model = tiny_model()
    model.save_pretrained(folder)
    VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=2.0).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def pipe(checkpoint):
    return pipeline("anomaly-segmentation", model=checkpoint)


@pytest.fixture
def inspector(pipe):
    return Inspector(pipe)


@pytest.fixture
def session(inspector):
    session = inspector.new_session()
    yield session
    session.close()


def picture(height: int = 60, width: int = 80, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height // 6 + 1, width // 6 + 1, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def files(tmp_path):
    """A folder with four pictures and a text file."""
    folder = tmp_path / "parts"
    folder.mkdir()
    for index in range(4):
        picture(seed=index).save(folder / f"part {index}.png")
    (folder / "notes.txt").write_text("not a picture")
    return folder


def count_forwards(pipe) -> list:
    calls = []
    pipe.model.register_forward_hook(lambda *_: calls.append(1))
    return calls
