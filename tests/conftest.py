"""Offline, seeded, quiet."""

import os


# before transformers and huggingface_hub read them
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import pytest
import torch
from transformers import set_seed


# the models are tiny: a second thread only waits for the first
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    set_seed(333)
