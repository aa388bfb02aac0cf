"""Run the tests offline, with fixed seeds and without progress bars."""

import os
from collections import Counter


# before transformers and huggingface_hub read them
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import datasets
import pytest
import torch
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from vcp_clip_hf import image_opening


# the models are tiny: a second thread only waits for the first
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    set_seed(333)
    # Research scripts that tests call in this process make transformers quieter
    transformers_logging.set_verbosity_warning()


@pytest.fixture(autouse=True)
def _datasets_cache(tmp_path_factory, monkeypatch):
    """Keep the cache of `datasets` in pytest's temporary folder, so that no table of an earlier version is read."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets_cache")
    datasets.disable_progress_bars()


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """Return the list that warnings about files are added to."""
    messages = []
    monkeypatch.setattr(image_opening, "_warned", Counter())
    monkeypatch.setattr(image_opening, "_warned_files", set())
    monkeypatch.setattr(image_opening.logger, "warning", lambda text, *words: messages.append(text % words))
    return messages
