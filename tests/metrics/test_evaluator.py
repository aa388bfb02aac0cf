import json
import math
import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tests.common import FIXTURES
from tests.metrics import brute_force
from vcp_clip_hf.metrics import IMAGE_METRICS, PIXEL_METRICS, AnomalySegmentationEvaluator


MODES = ("exact", "streaming")


def three_products() -> tuple[np.ndarray, np.ndarray, list[str]]:
    parts = [brute_force.example(kind, seed) for seed, kind in enumerate(("random", "tied", "skewed"))]
    maps, masks = (np.concatenate(column) for column in zip(*parts, strict=True))
    return maps, masks, [name for name in ("bottle", "cable", "tile") for _ in range(4)]


def fed(maps, masks, products="all", batch_size: int = 3, **options) -> AnomalySegmentationEvaluator:
    evaluator = AnomalySegmentationEvaluator(**options)
    for start in range(0, len(maps), batch_size):
        rows = slice(start, start + batch_size)
        evaluator.add(maps[rows], masks[rows], products if isinstance(products, str) else products[rows])
    return evaluator


def assert_same(result, expected, tolerance: float = 0.0) -> None:
    """Compare results, with NaN equal to NaN."""
    if isinstance(expected, dict):
        assert result.keys() == expected.keys()
        for key in expected:
            assert_same(result[key], expected[key], tolerance)
    elif isinstance(expected, (list, tuple)):
        for one, other in zip(result, expected, strict=True):
            assert_same(one, other, tolerance)
    else:
        if isinstance(expected, float):
            expected = pytest.approx(expected, abs=tolerance, rel=0, nan_ok=True)
        assert result == expected


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["metrics_a", "metrics_ties"])
def test_equal_to_the_golden_values(name, mode):
    tensors = load_file(FIXTURES / name / "maps.safetensors")
    expected = json.loads((FIXTURES / name / "expected.json").read_text())
    names = {
        "pixel_f1_threshold": "best_threshold",
        "pixel_iou": "iou_at_best_threshold_strict",
        "pixel_pro_200": "pixel_pro_200_steps",
        "pixel_pro": "pixel_pro_exact",
    }
    result = fed(tensors["maps"], tensors["masks"], mode=mode).compute()
    for metric, value in result["per_product"]["all"].items():
        if metric == "image_f1_threshold":
            continue
        golden = expected[names.get(metric, metric)]
        if mode == "exact":
            assert value == pytest.approx(golden, abs=1e-6), metric
        else:
            lower, upper = result["bounds"]["per_product"]["all"][metric]
            assert lower - 1e-8 <= golden <= upper + 1e-8, metric  # the authors add 1e-8 to a denominator of F1
            assert abs(value - golden) <= max(upper - lower, 1e-8) and upper - lower < 1e-3, metric


def test_products_are_separate_and_their_mean_is_unweighted():
    maps, masks, products = three_products()
    result = fed(maps, masks, products).compute()
    assert list(result["per_product"]) == ["bottle", "cable", "tile"]
    for name, values in result["per_product"].items():
        rows = np.array(products) == name
        expected = brute_force.pixel_metrics(maps[rows], masks[rows])
        scores, labels = maps[rows].max(axis=(1, 2)), masks[rows].any(axis=(1, 2))
        expected["image_auroc"] = brute_force.auroc(scores, labels)
        expected["image_ap"] = brute_force.average_precision(scores, labels)
        expected["image_f1_max"], expected["image_f1_threshold"] = brute_force.f1_max(scores, labels)
        assert values == pytest.approx(expected, abs=1e-12, rel=0)
    for metric, value in result["mean"].items():
        assert value == pytest.approx(np.mean([values[metric] for values in result["per_product"].values()]))
    assert set(result["mean"]) == {*PIXEL_METRICS, *IMAGE_METRICS} - {"pixel_f1_threshold", "image_f1_threshold"}
    assert result["reasons"] == {}


@pytest.mark.parametrize("mode", MODES)
def test_results_are_plain_numbers_in_range(mode):
    maps, masks, products = three_products()
    result = fed(maps, masks, products, mode=mode).compute()
    assert json.loads(json.dumps(result))["counts"]["cable"] == {
        "images": 4,
        "anomalous_images": 3,
        "unmasked_images": 0,
        "pixels": 4 * 20 * 20,
        "anomalous_pixels": int(masks[4:8].sum()),
        "regions": len(brute_force.regions(masks[4:8])),
    }
    for values in (result["mean"], *result["per_product"].values()):
        assert all(type(value) is float and 0 <= value <= 1 for value in values.values())
    assert result["settings"]["mode"] == mode


@pytest.mark.parametrize("mode", MODES)
def test_batches_and_order_do_not_matter(mode):
    maps, masks, products = three_products()
    expected = fed(maps, masks, products, batch_size=12, mode=mode).compute()
    order = np.random.default_rng(0).permutation(len(maps))
    for rows, batch_size in ((range(12), 1), (order, 5)):
        evaluator = fed(maps[rows], masks[rows], [products[i] for i in rows], batch_size, mode=mode)
        assert_same(evaluator.compute(), expected, 1e-13)


@pytest.mark.parametrize("mode", MODES)
def test_two_merged_halves_equal_the_whole(mode):
    maps, masks, products = three_products()
    whole = fed(maps, masks, products, mode=mode).compute()
    rows = np.arange(12) % 5 < 2
    halves = []
    for part in (rows, ~rows):
        names = [name for name, chosen in zip(products, part, strict=True) if chosen]
        halves.append(fed(maps[part], masks[part], names, mode=mode))
    before = halves[1].compute()
    merged = halves[0].merge(halves[1])
    assert merged is halves[0]
    assert_same(merged.compute(), whole, 1e-13)
    assert_same(halves[1].compute(), before)  # the other one is not changed


@pytest.mark.parametrize("mode", MODES)
def test_evaluators_of_different_products_are_merged(mode):
    maps, masks, products = three_products()
    whole = fed(maps, masks, products, mode=mode).compute()
    merged = AnomalySegmentationEvaluator(mode=mode)
    for start in (4, 8, 0):
        merged.merge(fed(maps[start : start + 4], masks[start : start + 4], products[start], mode=mode))
    assert_same(merged.compute(), whole, 1e-13)


@pytest.mark.parametrize("carry", ["npz", "pickle"])
@pytest.mark.parametrize("mode", MODES)
def test_states_survive_serialization(mode, carry, tmp_path):
    maps, masks, products = three_products()
    evaluator = AnomalySegmentationEvaluator(mode=mode, fpr_limit=0.1, metrics=("pixel_pro", "pixel_ap", "image_ap"))
    evaluator.add(maps, masks, products, image_ids=[f"{i:03}" for i in range(12)])
    state = evaluator.state_dict()
    assert all(isinstance(value, (np.ndarray, np.generic)) and value.dtype != object for value in state.values())
    if carry == "npz":
        np.savez(tmp_path / "state.npz", **state)
        with np.load(tmp_path / "state.npz", allow_pickle=False) as file:
            restored = AnomalySegmentationEvaluator.from_state_dict(file)
    else:
        restored = AnomalySegmentationEvaluator.from_state_dict(pickle.loads(pickle.dumps(state)))
    assert_same(restored.compute(), evaluator.compute())
    with pytest.raises(ValueError, match="would count twice"):
        restored.merge(evaluator)


@pytest.mark.parametrize("mode", MODES)
def test_later_images_do_not_change_a_state(mode):
    maps, masks = brute_force.example("random", images=6)
    evaluator = fed(maps[:4], masks[:4], mode=mode)
    expected, state = evaluator.compute(), evaluator.state_dict()
    for _ in range(3):
        evaluator.add(maps[4:], masks[4:])
    evaluator.compute()
    assert_same(AnomalySegmentationEvaluator.from_state_dict(state).compute(), expected, 1e-13)


def test_states_of_another_version_are_refused():
    state = fed(*brute_force.example("random")).state_dict()
    with pytest.raises(ValueError, match="version 99"):
        AnomalySegmentationEvaluator.from_state_dict({**state, "version": np.int64(99)})


def _share(rank: int, world_size: int, folder) -> None:
    maps, masks, products = three_products()
    rows = list(range(rank, len(maps), world_size))
    evaluator = AnomalySegmentationEvaluator(mode="streaming")
    evaluator.add(maps[rows], masks[rows], [products[i] for i in rows], image_ids=[str(i) for i in rows])
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/join", rank=rank, world_size=world_size)
    states = [None] * world_size
    torch.distributed.all_gather_object(states, evaluator.state_dict())
    total = AnomalySegmentationEvaluator.from_state_dict(states[0])
    for state in states[1:]:
        total.merge(AnomalySegmentationEvaluator.from_state_dict(state))
    (folder / f"{rank}.json").write_text(json.dumps(total.compute()))
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    torch.multiprocessing.start_processes(_share, args=(2, tmp_path), nprocs=2, start_method="fork")
    maps, masks, products = three_products()
    whole = json.loads(json.dumps(fed(maps, masks, products, mode="streaming").compute()))
    for rank in range(2):
        assert_same(json.loads((tmp_path / f"{rank}.json").read_text()), whole, 1e-13)


@pytest.mark.parametrize(
    "options",
    [{"fpr_limit": 0.2}, {"metrics": ["pixel_ap"]}, {"mode": "streaming"}],
)
def test_evaluators_with_other_settings_do_not_merge(options):
    with pytest.raises(ValueError, match="different settings"):
        AnomalySegmentationEvaluator().merge(AnomalySegmentationEvaluator(**options))
    streaming = AnomalySegmentationEvaluator(mode="streaming")
    for other in ({"mantissa_bits": 10}, {"score_range": (0, 2)}):
        with pytest.raises(ValueError, match="different settings"):
            streaming.merge(AnomalySegmentationEvaluator(mode="streaming", **other))


def test_streaming_needs_the_same_memory_for_any_number_of_images():
    generator = np.random.default_rng(0)
    kept = {}
    for mode in MODES:
        evaluator = AnomalySegmentationEvaluator(PIXEL_METRICS, mode=mode, mantissa_bits=6)
        tracemalloc.start()
        for images in (2, 20):
            while evaluator.num_images < images:
                maps = generator.random((2, 64, 64), dtype=np.float32)
                evaluator.add(maps, maps > 0.99)
            del maps
            kept[mode, images] = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    growth = 18 * 64 * 64 * 4
    assert kept["exact", 20] - kept["exact", 2] > 0.9 * growth
    assert kept["streaming", 20] - kept["streaming", 2] < 0.05 * growth
    assert kept["streaming", 20] < 29 * evaluator.grid.num_bins + 20_000


def test_images_can_be_added_after_computing():
    maps, masks = brute_force.example("random")
    for mode in MODES:
        evaluator = fed(maps[:2], masks[:2], mode=mode)
        first = evaluator.compute()
        assert_same(evaluator.compute(), first)
        evaluator.add(maps[2:], masks[2:])
        assert_same(evaluator.compute(), fed(maps, masks, mode=mode).compute(), 1e-13)
        assert evaluator.num_images == 4
        evaluator.reset()
        assert evaluator.num_images == 0


@pytest.mark.parametrize("mode", MODES)
def test_maps_need_not_be_float32(mode):
    maps, masks = brute_force.example("half_precision")
    expected = fed(maps, masks, mode=mode).compute()
    for dtype in (torch.float16, torch.float64):
        assert_same(
            fed(torch.from_numpy(maps).to(dtype), torch.from_numpy(masks), mode=mode).compute(), expected, 1e-13
        )
    mixed = AnomalySegmentationEvaluator(mode=mode)
    mixed.add(maps[:2].astype(np.float64), masks[:2])
    mixed.add(maps[2:], masks[2:])
    assert_same(mixed.compute(), expected, 1e-13)


def test_image_scores_and_labels_can_be_given():
    maps, masks = brute_force.example("random")
    evaluator = AnomalySegmentationEvaluator(IMAGE_METRICS)
    evaluator.add(maps, masks, image_scores=[5.0, 2.0, 3.0, 4.0])
    # The normal image has the highest of four scores
    assert evaluator.compute()["per_product"]["all"] == {
        "image_auroc": 0.0,
        "image_ap": pytest.approx((1 / 2 + 2 / 3 + 3 / 4) / 3),
        "image_f1_max": pytest.approx(6 / 7),
        "image_f1_threshold": 2.0,
    }
    evaluator = AnomalySegmentationEvaluator(IMAGE_METRICS)
    evaluator.add(maps, None, image_scores=torch.tensor([0.1, 0.9, 0.2, 0.3]), labels=[0, 1, 0, 0])
    assert evaluator.compute()["mean"]["image_auroc"] == 1.0


@pytest.mark.parametrize("mode", MODES)
def test_images_without_a_mask(mode):
    maps, masks = brute_force.example("random", images=5)
    evaluator = AnomalySegmentationEvaluator(mode=mode)
    evaluator.add(maps, [None, None, *masks[2:]], labels=[0, 1, 1, 1, 1])
    result = evaluator.compute()
    # All pixels of the first are normal; of the second, only the image score is known
    rows = [0, 2, 3, 4]
    expected = fed(maps[rows], masks[rows], mode=mode).compute()
    assert_same(
        {name: result["per_product"]["all"][name] for name in PIXEL_METRICS},
        {name: expected["per_product"]["all"][name] for name in PIXEL_METRICS},
        1e-13,
    )
    assert result["counts"]["all"]["unmasked_images"] == 1
    merged = AnomalySegmentationEvaluator(mode=mode).merge(evaluator).merge(evaluator)
    assert merged.compute()["counts"]["all"]["unmasked_images"] == 2
    assert result["counts"]["all"]["anomalous_images"] == 4
    assert result["per_product"]["all"]["image_auroc"] == pytest.approx(
        brute_force.auroc(maps.max(axis=(1, 2)), np.array([False, True, True, True, True]))
    )
    with pytest.raises(ValueError, match=r"image 0 of the batch .*it has no mask; pass `labels`"):
        evaluator.add(maps, [None, *masks[1:]])


def test_an_anomalous_image_may_have_an_empty_mask():
    maps, masks = brute_force.example("random")
    evaluator = AnomalySegmentationEvaluator()
    evaluator.add(maps, masks, labels=[1, 1, 1, 1])
    result = evaluator.compute()
    assert result["counts"]["all"]["anomalous_images"] == 4
    assert math.isnan(result["mean"]["image_auroc"])
    assert result["per_product"]["all"]["pixel_auroc"] == pytest.approx(
        brute_force.auroc(maps.ravel(), masks.ravel()), abs=1e-12
    )


def test_only_requested_metrics_are_computed():
    maps, masks = brute_force.example("random")
    result = fed(maps, masks, metrics=["image_ap", "pixel_pro"]).compute()
    assert list(result["mean"]) == ["pixel_pro", "image_ap"]
    result = fed(maps, masks, metrics="image_ap").compute()
    assert list(result["per_product"]["all"]) == ["image_ap"]
    assert "pixels" not in result["counts"]["all"]


@pytest.mark.parametrize("mode", MODES)
def test_undefined_metrics_are_nan_with_a_reason(mode):
    maps, masks = brute_force.example("random")
    nothing = np.zeros_like(masks)
    everything = np.ones_like(masks)
    evaluator = AnomalySegmentationEvaluator(mode=mode)
    evaluator.add(maps, masks, "fine")
    evaluator.add(maps, nothing, "all good")
    evaluator.add(maps, everything, "all bad")
    evaluator.add(maps[1:], masks[1:], "no normal images")
    evaluator.add(np.full_like(maps, 0.5), masks, "constant")
    evaluator.add(maps[1:2], masks[1:2], "one image")
    evaluator.add(maps, [None] * 4, "no masks", labels=[0, 1, 1, 1])
    result = evaluator.compute()
    reasons = result["reasons"]

    for product, values in result["per_product"].items():
        undefined = {name for name, value in values.items() if math.isnan(value)}
        assert undefined == set(reasons.get(product, {})), product
        assert all(0 <= value <= 1 for name, value in values.items() if name not in undefined)

    assert "fine" not in reasons
    everything_undefined = {*PIXEL_METRICS, *IMAGE_METRICS}
    assert set(reasons["all good"]) == set(reasons["all bad"]) == everything_undefined
    assert {reasons["all good"][name] for name in PIXEL_METRICS} == {"no abnormal pixels"}
    assert {reasons["all good"][name] for name in IMAGE_METRICS} == {"no abnormal images"}
    assert {reasons["all bad"][name] for name in PIXEL_METRICS} == {"no normal pixels"}
    assert reasons["no normal images"] == dict.fromkeys(IMAGE_METRICS, "no normal images")
    assert reasons["one image"] == dict.fromkeys(IMAGE_METRICS, "no normal images")
    assert set(reasons["constant"]) == {"pixel_pro_200"}
    constant = result["per_product"]["constant"]
    assert (constant["pixel_auroc"], constant["image_auroc"], constant["pixel_iou"]) == (0.5, 0.5, 0.0)
    assert constant["pixel_pro"] == pytest.approx(0.15)
    unmasked = "no abnormal pixels; anomalous images without a mask: 3"
    assert reasons["no masks"] == dict.fromkeys(PIXEL_METRICS, unmasked)

    assert all(math.isnan(value) for value in result["mean"].values())
    assert reasons["mean"]["pixel_auroc"].startswith("undefined for 3 of 7 products: all bad (no normal pixels)")


def test_means_may_leave_out_undefined_products():
    maps, masks = brute_force.example("random")
    evaluator = AnomalySegmentationEvaluator(skip_undefined=True)
    evaluator.add(maps, masks, "fine")
    evaluator.add(maps, np.zeros_like(masks), "all good")
    result = evaluator.compute()
    fine = result["per_product"]["fine"]
    assert result["mean"] == {name: fine[name] for name in result["mean"]}
    assert "1 of 2 products: all good (no abnormal pixels)" in result["reasons"]["mean"]["pixel_ap"]

    evaluator.reset()
    evaluator.add(maps, np.zeros_like(masks), "all good")
    assert all(math.isnan(value) for value in evaluator.compute()["mean"].values())


@pytest.mark.parametrize("mode", MODES)
def test_bad_images_are_named_and_none_is_added(mode):
    maps, masks = brute_force.example("random", images=8)
    evaluator = fed(maps[:4], masks[:4], "cable", mode=mode)
    before = evaluator.compute()
    bad = maps[4:].copy()
    bad[1, 0, :3] = np.nan
    bad[3, 0, 0] = np.inf
    with pytest.raises(ValueError) as caught:
        evaluator.add(bad, masks[4:], "cable", image_ids=["000", "001", "002", "003"])
    message = str(caught.value)
    assert "2 of 4 images cannot be evaluated, none was added" in message
    assert "image '001' (product 'cable'): the anomaly map has 3 of 400 pixels that are NaN" in message
    assert "image '003'" in message
    for arguments, match in (
        ((maps[4:], masks[4:] * np.uint8(255)), "values from 0 to 255, expected 0 and 1; pass `mask > 0`"),
        ((maps[4:], masks[4:, :10]), "resize"),
        ((maps[4:], masks[4:7]), "4 maps came with 3 masks"),
        ((maps[4:], masks[4:], ["cable"] * 3), "4 maps came with 3 products"),
        ((maps[4:], masks[4:], ["cable", "cable", 3, "cable"]), "image 2 .*must be a string, got int"),
        ((maps[4:], masks[4:], "cable", [1.0, 2.0]), "4 maps came with 2 image_scores"),
        ((maps[4:], masks[4:], "cable", [1.0, 2.0, np.nan, 0.0]), "image_scores has 1 values"),
        ((maps[4:], masks[4:], "cable", None, [1, 0, 1, 1]), "image 1 .*the label is 0, normal, but the mask marks"),
        ((maps[4:], masks[4:], "cable", None, None, ["a", "b", "a", "c"]), "image 'a' .*added before"),
    ):
        with pytest.raises(ValueError, match=match):
            evaluator.add(*arguments)
    assert_same(evaluator.compute(), before)


def test_many_problems_are_counted():
    maps, masks = brute_force.example("random", images=20, side=5)
    with pytest.raises(ValueError, match=r"20 of 20 images .*image 4 .*and 15 more") as caught:
        AnomalySegmentationEvaluator().add(maps * np.nan, masks)
    assert "image 5 of" not in str(caught.value)


def test_an_image_counts_once():
    maps, masks = brute_force.example("random")
    evaluator = AnomalySegmentationEvaluator()
    evaluator.add(maps[:2], masks[:2], "cable", image_ids=["000", "001"])
    evaluator.add(maps[:2], masks[:2], "bottle", image_ids=["000", "001"])  # ids are unique per product
    with pytest.raises(ValueError, match=r"image '001' \(product 'cable'\): it has been added before"):
        evaluator.add(maps[1:3], masks[1:3], "cable", image_ids=["001", "002"])
    assert evaluator.num_images == 4
    other = AnomalySegmentationEvaluator()
    other.add(maps[:1], masks[:1], "cable", image_ids=["000"])
    third = AnomalySegmentationEvaluator().merge(other)
    with pytest.raises(ValueError, match="cable/000"):
        third.merge(other)
    with pytest.raises(ValueError, match=r"1 images are in both evaluators.*cable/000.*even_batches=False"):
        evaluator.merge(other)


def test_streaming_refuses_maps_out_of_range():
    maps, masks = brute_force.example("random")
    evaluator = AnomalySegmentationEvaluator(mode="streaming")
    with pytest.raises(ValueError, match=r"outside score_range=\(0, 1\)"):
        evaluator.add(maps * 3, masks)
    wide = fed(maps * 4, masks, mode="streaming", score_range=(0, 4)).compute()
    expected = fed(maps, masks, mode="streaming").compute()
    del wide["per_product"]["all"]["pixel_f1_threshold"], wide["per_product"]["all"]["image_f1_threshold"]
    assert_same(wide["mean"], expected["mean"], 1e-12)


def test_an_evaluator_without_images_is_refused():
    for mode in MODES:
        evaluator = AnomalySegmentationEvaluator(mode=mode)
        evaluator.add([], [])
        with pytest.raises(ValueError, match="nothing to evaluate"):
            evaluator.compute()
        assert AnomalySegmentationEvaluator.from_state_dict(evaluator.state_dict()).num_images == 0


@pytest.mark.parametrize(
    "options, match",
    [
        ({"metrics": ["pixel_aurok"]}, "pixel_aurok"),
        ({"metrics": []}, "unknown: none"),
        ({"mode": "fast"}, "'exact' or 'streaming'"),
        ({"fpr_limit": 0}, "fpr_limit=0"),
        ({"score_range": (1, 0)}, "low < high"),
        ({"mantissa_bits": 30}, "mantissa_bits=30"),
    ],
)
def test_options_are_checked(options, match):
    with pytest.raises(ValueError, match=match):
        AnomalySegmentationEvaluator(**options)
