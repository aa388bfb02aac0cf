"""What context and words contribute: exchanged contexts and words, and directions that are fitted to masks."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from examples.research import context_influence
from examples.research.context_influence import direction_cosines, exchanged, fitted
from tests.common import tiny_model, tiny_tokenizer
from vcp_clip_hf import VCPCLIPImageProcessor
from vcp_clip_hf.data.records import ANOMALOUS, FEATURES, NORMAL


SIDE = 48


def images(grounds: dict[str, int], count: int = 6) -> datasets.Dataset:
    """Return images of products on these gray grounds, every second one with a square that is 100 levels away."""
    random, rows = np.random.default_rng(0), []
    for product, ground in grounds.items():
        for index in range(count):
            pixels, mask = np.full((SIDE, SIDE), ground), np.zeros((SIDE, SIDE), np.uint8)
            if index % 2:
                top, left = random.integers(0, SIDE - 16, 2)
                mask[top : top + 16, left : left + 16] = 255
                pixels[mask > 0] += 100 if ground < 128 else -100
            pixels = (pixels + random.normal(0, 3, pixels.shape)).clip(0, 255).astype(np.uint8)
            rows.append(
                {
                    "image": Image.fromarray(pixels).convert("RGB"),
                    "mask": Image.fromarray(mask) if index % 2 else None,
                    "label": ANOMALOUS if index % 2 else NORMAL,
                    "product": product,
                    "defect": "square" if index % 2 else "good",
                    "image_id": f"{product}/{index}",
                }
            )
    return datasets.Dataset.from_list(rows, features=FEATURES)


def make() -> tuple:
    torch.manual_seed(0)
    model = tiny_model().eval()
    return model, VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=1.0)


def test_cosines_of_directions():
    assert direction_cosines(np.array([[0.0, 1.0]] * 3)) == (1.0, 1.0)
    mean, lowest = direction_cosines(np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert mean == lowest == pytest.approx(0.5**0.5)


def test_other_contexts_and_words():
    model, processor = make()
    given = images({"a": 40, "b": 200})
    found = exchanged(model, processor, tiny_tokenizer(), given)
    first, another, *_, swapped, unrelated = found.values()
    assert list(found)[:2] == ["own context", "context of another image"] and first["difference"] == 0
    assert another["difference"] > 0 and unrelated["difference"] > 0
    assert swapped["pixel_auroc"] == pytest.approx(1 - first["pixel_auroc"], abs=1e-3), "the maps are reversed"
    with torch.no_grad():
        for parameter in model.pre_vcp.parameters():
            parameter.zero_()  # a model that ignores the context
    found = exchanged(model, processor, tiny_tokenizer(), given)
    assert all(found[way]["difference"] < 1e-6 for way in list(found)[:4])


@pytest.mark.parametrize("grounds", [{"a": 40, "b": 60}, {"a": 40, "b": 200}], ids=["alike", "opposite"])
def test_fitted_directions_tell_whether_products_need_different_ones(grounds):
    model, processor = make()
    found = fitted(model, processor, images(grounds, count=40))
    assert found.keys() == grounds.keys()
    own, of_others = (np.mean([each[way] for each in found.values()]) for way in ("the product", "other products"))
    assert own > 0.9
    assert (of_others > 0.85) == (grounds["b"] < 128)


def test_one_product_has_no_others_and_products_without_damage_are_left_out():
    model, processor = make()
    assert fitted(model, processor, images({"a": 40}))["a"].keys() == {"text", "the product"}
    assert fitted(model, processor, images({"a": 40}, count=2)) == {}


def test_the_program(tmp_path, monkeypatch, capsys):
    model, processor = make()
    for part in (model, processor, tiny_tokenizer()):
        part.save_pretrained(tmp_path)
    monkeypatch.setattr(context_influence, "load_sets", lambda names, _: {names[0]: images({"a": 40, "b": 200})})
    context_influence.main(["--model", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "synthetic, 12 images" in shown
    for row in ("pre_vcp", "post_vcp", "own context", "no context", "unrelated words", "text", "the product"):
        assert f"\n| {row} |" in shown
