"""Rendered pictures: reproducible, with exact masks, and not too easy."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.processes import run_program
from vcp_clip_hf.generator import (
    DEFECTS,
    PRODUCTS,
    SyntheticSample,
    render_sample,
)
from vcp_clip_hf.generator.fields import Dice, Grid, gaussian_blur


SAMPLES = [("ball_screw", 3, "pitting"), ("gear", 1, "missing_part"), ("woven_fabric", 2, "auto"), ("pill", 0, None)]


def digest(samples: Iterable[SyntheticSample]) -> str:
    """Return a hash of images, masks and names."""
    state = hashlib.sha256()
    for sample in samples:
        state.update(sample.image.tobytes())
        state.update(b"-" if sample.mask is None else sample.mask.tobytes())
        state.update(sample.image_id.encode())
    return state.hexdigest()


def render_all(order: Sequence[tuple] = SAMPLES) -> dict[tuple, SyntheticSample]:
    """Return a picture for each of (family, index, defect), rendered in this order."""
    return {spec: render_sample(spec[0], 11, spec[1], 64, spec[2]) for spec in order}


@lru_cache
def pairs() -> list:
    """Return an anomalous picture of every family, each with its normal counterpart."""
    return [render_sample(family, 5, 2, 128, "auto", pair=True) for family in PRODUCTS]


def dilated(mask: np.ndarray, steps: int) -> np.ndarray:
    """Return a mask grown by this number of pixels."""
    for _ in range(steps):
        grown = mask.copy()
        grown[1:] |= mask[:-1]
        grown[:-1] |= mask[1:]
        grown[:, 1:] |= mask[:, :-1]
        grown[:, :-1] |= mask[:, 1:]
        mask = grown
    return mask


def test_same_seed_same_bytes_in_any_order():
    first, second = render_all(), render_all(SAMPLES[::-1])
    assert digest(first[spec] for spec in SAMPLES) == digest(second[spec] for spec in SAMPLES)


def test_same_bytes_in_another_process():
    code = "from tests.generator.test_render import *; print(digest(render_all().values()))"
    done = run_program("-c", code)
    assert done.stdout.strip() == digest(render_all().values()), done.stderr


def test_pictures_are_those_of_earlier_versions():
    """
    The embedded checkpoint was trained on these pictures. Tolerances leave room for processors that round differently.
    """
    reference = json.loads((Path(__file__).parent.parent / "fixtures" / "generated_pictures.json").read_text())
    assert set(reference) <= set(PRODUCTS)
    for family, expected in reference.items():
        for kind, defects in (("normal", None), ("anomalous", [expected["defect"]])):
            sample = render_sample(family, 12, 0, 64, defects and "auto", defects)
            thumbnail = np.asarray(sample.image.convert("L").resize((4, 4), Image.Resampling.BOX), int)
            assert np.abs(thumbnail.ravel() - expected[kind]).max() <= 3, f"{family}, {kind}"
        assert (np.asarray(sample.mask) > 0).sum() == pytest.approx(expected["mask_pixels"], rel=0.05, abs=5), family


def test_seed_index_and_family_change_the_picture():
    base = render_sample("washer", 1, 1, 64, None).image.tobytes()
    assert render_sample("washer", 2, 1, 64, None).image.tobytes() != base
    assert render_sample("washer", 1, 2, 64, None).image.tobytes() != base
    assert render_sample("nut", 1, 1, 64, None).image.tobytes() != base


def test_numpy_global_seed_has_no_effect():
    np.random.seed(0)
    first = render_sample("leather", 1, 1, 64).image.tobytes()
    np.random.seed(1)
    assert render_sample("leather", 1, 1, 64).image.tobytes() == first


@pytest.mark.parametrize("size", [48, 101])
@pytest.mark.parametrize("family", sorted(PRODUCTS))
def test_every_family_renders_normal_and_anomalous_pictures(family, size):
    good, bad = render_sample(family, 1, 0, size, None), render_sample(family, 1, 0, size, "auto")
    assert good.image.mode == bad.image.mode == "RGB" and good.image.size == bad.image.size == (size, size)
    assert good.mask is None and good.defect == "good" and good.label == 0
    assert bad.mask.mode == "L" and bad.mask.size == (size, size) and bad.label == 1
    assert set(np.unique(np.asarray(bad.mask))) == {0, 255}
    assert np.asarray(good.image).std() > 2  # not a plain color
    assert good.material == bad.material == PRODUCTS[family].material


@pytest.mark.parametrize("defect", sorted(DEFECTS))
def test_every_defect_renders_on_a_texture_and_an_object(defect):
    for kind in ("texture", "object"):
        families = [name for name, family in PRODUCTS.items() if family.kind == kind and DEFECTS[defect].suits(family)]
        assert families, f"{defect} fits no {kind}"
        sample = render_sample(families[len(defect) % len(families)], 9, 4, 80, defect)
        assert sample.defect == defect and sample.defect_part is None
        assert 0.0003 < (np.asarray(sample.mask) > 0).mean() < 0.31


@pytest.mark.parametrize("family", sorted(name for name, family in PRODUCTS.items() if family.faults))
def test_every_construction_fault_renders(family):
    for fault, part in PRODUCTS[family].faults.items():
        sample = render_sample(family, 3, 1, 80, fault)
        assert sample.defect == fault and sample.defect_part == part
        assert 0.0003 < (np.asarray(sample.mask) > 0).mean() < 0.35


def test_masks_mark_what_changed():
    leaks, missed = [], []
    for sample in pairs():
        clean, flawed = (np.asarray(image, np.float32) for image in (sample.normal, sample.image))
        difference = np.abs(flawed - clean).max(axis=2)
        mask = np.asarray(sample.mask) > 0
        # JPEG artifacts reach a few pixels beyond the mask; a strong difference farther away is an unmarked defect
        strong = max(24.0, 0.5 * float(np.percentile(difference[mask], 90)))
        leaks.append(float((difference > strong)[~dilated(mask, 4)].mean()))
        missed.append(float((gaussian_blur(difference, 1.0)[mask] < 2).mean()))
        assert difference[mask].mean() > 3 * difference[~dilated(mask, 4)].mean(), sample.image_id
    assert np.mean(leaks) < 0.002 and max(leaks) < 0.03, (np.mean(leaks), max(leaks))
    assert np.mean(missed) < 0.05 and np.quantile(missed, 0.9) < 0.25, (np.mean(missed), max(missed))


def test_defects_stay_on_the_product():
    family = PRODUCTS["washer"]
    checked = 0
    for index in range(12):
        sample = render_sample("washer", 6, index, 96, "stain", pair=True)
        difference = np.abs(np.asarray(sample.image, np.float32) - np.asarray(sample.normal, np.float32)).max(axis=2)
        support = family.build(Dice((6, family.key, index), 0), Grid(96), None).support
        mask = np.asarray(sample.mask) > 0
        if (support[mask] > 0).mean() > 0.98:
            checked += 1
        assert difference[mask].max() > 5
    assert checked >= 9  # pictures with a camera window show the product elsewhere than `support` does


def test_pairs_share_everything_but_the_defect():
    sample = render_sample("carbon_block", 8, 3, 96, "crack", pair=True)
    assert sample.normal.tobytes() == render_sample("carbon_block", 8, 3, 96, None).image.tobytes()
    assert render_sample("carbon_block", 8, 3, 96, "crack").normal is None


def test_sizes_of_defects_range_from_tiny_to_large():
    areas = np.array([(np.asarray(sample.mask) > 0).mean() for sample in pairs()])
    assert np.quantile(areas, 0.25) < 0.01 and np.quantile(areas, 0.9) > 0.03
    assert areas.min() >= 0.0003 and areas.max() <= 0.35


def test_local_contrast_alone_does_not_find_the_defects():
    scores = []
    for sample in pairs():
        gray = np.asarray(sample.image.convert("L"), np.float32)
        mask = (np.asarray(sample.mask) > 0).ravel()
        contrast = gaussian_blur(np.abs(gray - gaussian_blur(gray, 3.0)), 0.7).ravel()
        ranks = np.empty(contrast.size)
        ranks[np.argsort(contrast, kind="stable")] = np.arange(1, contrast.size + 1)
        positives = int(mask.sum())
        above = ranks[mask].sum() - positives * (positives + 1) / 2
        scores.append(above / (positives * (mask.size - positives)))
    assert 0.6 < np.mean(scores) < 0.85, np.mean(scores)


def test_auto_selects_among_the_requested_defects():
    names = {
        render_sample("rolled_steel", 1, index, 48, "auto", ["scratch", "inclusion"]).defect for index in range(8)
    }
    assert names == {"scratch", "inclusion"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("wahser", 0, 0), "Unknown product family 'wahser'"),
        (("washer", 0, 0, 16), "size=16"),
        (("washer", -1, 0), "seed=-1"),
        (("washer", 0, 0, 64, "scrach"), r"Unknown defects \['scrach'\]"),
        (
            ("washer", 0, 0, 64, "loose_thread"),
            r"'washer' cannot have any of the requested defects \['loose_thread'\]",
        ),
        (("washer", 0, 0, 64, "auto", ["loose_thread"]), "possible are abrasion"),
    ],
)
def test_errors_name_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        render_sample(*arguments)
