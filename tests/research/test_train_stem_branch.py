"""The training of the stem branch: stored features, resumed storing, and what a training changes."""

import json

import numpy as np
import pytest
import torch

from examples.research import train_stem_branch
from examples.research.defect_pictures import defect_pictures
from examples.research.train_stem_branch import fit_stem_branch, store_stem_features
from tests.common import tiny_model_with_stem_branch
from vcp_clip_hf import VCPCLIPImageProcessor


COUNT, SIZE = 20, 48


@pytest.fixture(scope="module")
def pictures():
    return defect_pictures("test", COUNT, SIZE, 3, ["washer", "leather"])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return tiny_model_with_stem_branch()


@pytest.fixture
def processor(model):
    return VCPCLIPImageProcessor.for_model(model.config)


@torch.no_grad()
def test_the_stored_features_give_the_models_map(pictures, model, processor, tmp_path):
    store_stem_features(model, processor, pictures, tmp_path)
    arrays = {path.stem: np.load(path) for path in tmp_path.glob("*.npy")}
    assert {name: array.shape for name, array in arrays.items()} == {
        "stem_features": (COUNT, 36, 176),
        "stem_cells": (COUNT, 36, 224),
        "text_embeds": (COUNT, 2, 32),
        "labels": (COUNT, SIZE, SIZE),
    }
    for index in (0, COUNT - 1):
        row = pictures[index]
        outputs = model(**processor(row["image"], return_tensors="pt"), output_hidden_states=["stem"])
        *of_stem, text = (
            torch.from_numpy(arrays[name][index])[None].float()
            for name in ("stem_features", "stem_cells", "text_embeds")
        )
        expected = model.stem_branch(outputs.stem_features, outputs.stem_cells, (6, 6), outputs.text_embeds)
        torch.testing.assert_close(model.stem_branch(*of_stem, (6, 6), text), expected, atol=0.05, rtol=0)
        mask = np.zeros((SIZE, SIZE), bool) if row["mask"] is None else np.asarray(row["mask"]) > 0
        assert np.array_equal(arrays["labels"][index], mask)


def test_storing_goes_on_where_it_stopped(pictures, model, processor, tmp_path, monkeypatch):
    monkeypatch.setattr(train_stem_branch, "_PICTURES_AT_A_TIME", 4)
    monkeypatch.setattr(train_stem_branch, "_BATCHES_BETWEEN_RECORDS", 2)
    store_stem_features(model, processor, pictures, tmp_path / "whole")
    forward, calls = model.forward, []

    def stop_at_the_fifth(*arguments, **options):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return forward(*arguments, **options)

    monkeypatch.setattr(model, "forward", stop_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        store_stem_features(model, processor, pictures, tmp_path / "parts")
    # the first call learns the shapes; of the three batches done, two are recorded
    assert json.loads((tmp_path / "parts" / "features.json").read_text())["done"] == 8
    store_stem_features(model, processor, pictures, tmp_path / "parts")
    assert len(calls) == 5 + 1 + 3
    for path in (tmp_path / "whole").glob("*.npy"):
        assert np.array_equal(np.load(path), np.load(tmp_path / "parts" / path.name)), path.name
    store_stem_features(model, processor, pictures, tmp_path / "parts")
    assert len(calls) == 5 + 1 + 3 + 1, "nothing is left to do"
    # other pictures, and those of another model, replace them; a record of former ones does not outlive their values
    store_stem_features(model, processor, pictures.select(range(8)), tmp_path / "parts")
    assert len(np.load(tmp_path / "parts" / "labels.npy")) == 8
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        calls += 2 * [1]
        store_stem_features(model, processor, pictures, tmp_path / "parts")
    assert not (tmp_path / "parts" / "features.json").exists()
    with torch.no_grad():
        model.prompt_norm.weight.add_(0.1)
    store_stem_features(model, processor, pictures, tmp_path / "whole")
    assert not np.array_equal(*(np.load(tmp_path / name / "text_embeds.npy")[:1] for name in ("whole", "parts")))


@pytest.mark.slow
def test_a_training_changes_the_branch_alone_lowers_the_loss_and_can_be_repeated(pictures, model, processor, tmp_path):
    store_stem_features(model, processor, pictures, tmp_path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    early = fit_stem_branch(model, tmp_path, seed=0, steps=10)
    once = {name: value.clone() for name, value in model.state_dict().items()}
    changed = {name for name, value in once.items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith("stem_branch.")}
    model.load_state_dict(before)
    fit_stem_branch(model, tmp_path, seed=0, steps=10)
    assert all(torch.equal(value, once[name]) for name, value in model.state_dict().items())
    model.load_state_dict(before)
    assert fit_stem_branch(model, tmp_path, seed=0, steps=150) < 0.7 * early
