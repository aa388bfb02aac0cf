"""The cache of `datasets` lies in pytest's temporary folder."""

import datasets
import pytest


@pytest.fixture(autouse=True)
def _datasets_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets_cache")
    datasets.disable_progress_bars()
