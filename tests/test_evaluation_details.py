"""Details of an evaluation: scores, curves, histograms and pictures of the worst images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

from tests.common import tiny_model
from tests.evaluation_run import run
from tests.methods.common import tiny_method
from tests.test_evaluation import maps_by_hand
from tests.training_run import make_records
from vcp_clip_hf import VCPCLIPImageProcessor
from vcp_clip_hf.evaluation import evaluate
from vcp_clip_hf.evaluation_references import ReferenceDraw
from vcp_clip_hf.evaluation_report import EvaluationProtocol
from vcp_clip_hf.metrics import RankedScores, auroc
from vcp_clip_hf.metrics.pixel_histograms import PixelHistograms


def read(folder: Path) -> tuple[dict, list[dict]]:
    lines = (folder / "images.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads((folder / "curves.json").read_text(encoding="utf-8"))["datasets"], list(map(json.loads, lines))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    return folder, run(details_dir=folder)


def test_every_image_has_its_score_and_pixel_ap(evaluated):
    folder, _ = evaluated
    images = sorted(read(folder)[1], key=lambda image: image["index"])
    assert [image["image_id"] for image in images] == [str(index) for index in range(13)]
    for image, (product, result, mask) in zip(images, maps_by_hand(), strict=True):
        assert (image["dataset"], image["product"], image["label"]) == ("squares", product, int(mask.any()))
        assert image["score"] == pytest.approx(result["score"], abs=1e-6)
        if mask.any():
            expected = average_precision_score(mask.ravel(), result["anomaly_map"].numpy().ravel())
            assert image["pixel_ap"] == pytest.approx(expected, abs=1e-4) and image["defect"] == "square"
        else:
            assert "pixel_ap" not in image


def test_areas_and_curves_are_those_of_the_report(evaluated):
    folder, report = evaluated
    datasets, images = read(folder)
    result = report.results["squares"]
    assert {name: each["values"] for name, each in datasets["squares"]["products"].items()} == result["per_product"]
    for product, each in datasets["squares"]["products"].items():
        of_product = [image for image in images if image["product"] == product]
        ranked = RankedScores.from_labels(*zip(*((i["score"], i["label"]) for i in of_product), strict=True))
        assert auroc(ranked) == result["per_product"][product]["image_auroc"]
        curve = each["curves"]["pixel_roc"]
        assert np.trapezoid(curve["y"], curve["x"]) == pytest.approx(each["values"]["pixel_auroc"], abs=2e-3)
        assert each["curves"]["pixel_pro"]["x"][-1] == datasets["squares"]["fpr_limit"] == 0.3


def test_the_worst_images_have_pictures(evaluated):
    folder, _ = evaluated
    images = read(folder)[1]
    files = [file for image in images for file in image["pictures"].values()]  # few images: all of them
    assert len(files) == len(set(files)) == len(list((folder / "pictures").iterdir()))
    for image in images:
        views = {"image", "map", "overlay"} | ({"truth"} if image["label"] else set())
        assert set(image["pictures"]) == views
        assert Image.open(folder / image["pictures"]["image"]).size == (48, 48)
    misses = [image for image in images if image["product"] == "product_1" and image["label"]]
    order = sorted(misses, key=lambda image: image["worst"]["miss"])
    assert order == sorted(misses, key=lambda image: image["score"])
    alarms = [image for image in images if image["product"] == "product_0" and not image["label"]]
    assert min(alarms, key=lambda image: image["worst"]["false_alarm"]) == max(alarms, key=lambda each: each["score"])


def test_only_ten_pictures_of_a_kind_are_kept(tmp_path):
    torch.manual_seed(0)
    model = tiny_model()
    records = make_records(28).map(lambda row: {"product": "one"})
    evaluate(model, VCPCLIPImageProcessor.for_model(model.config), {"x": records}, details_dir=tmp_path)
    images = read(tmp_path)[1]
    misses = sorted((i for i in images if i["label"]), key=lambda image: image["score"])
    assert ["miss" in image.get("worst", {}) for image in misses] == [True] * 10 + [False] * 4
    alarms = sorted((i for i in images if not i["label"]), key=lambda image: -image["score"])
    assert ["pictures" in image for image in alarms] == [True] * 10 + [False] * 4


def test_overlays_of_pictures_have_the_threshold_of_the_best_f1(evaluated):
    folder, report = evaluated
    image = next(each for each in read(folder)[1] if each["image_id"] == "1")
    threshold = report.results["squares"]["per_product"][image["product"]]["pixel_f1_threshold"]
    (_, result, _) = list(maps_by_hand())[1]
    shown = np.asarray(Image.open(folder / image["pictures"]["overlay"]), dtype=int)
    outlined = ((shown[..., 2] - shown[..., 0]) > 40).any()  # cyan
    inside = result["anomaly_map"].numpy() >= threshold
    assert outlined == bool(inside.any())


def test_histograms_have_the_pixels_of_the_images(evaluated):
    folder, report = evaluated
    _, images = read(folder)
    abnormal, normal, _, _ = PixelHistograms.load(folder / "pixel_histograms.npz").dense(range(13))
    counts = report.results["squares"]["counts"]
    for product in counts:
        chosen = [number for number, image in enumerate(images) if image["product"] == product]
        assert abnormal[chosen].sum() == counts[product]["anomalous_pixels"]
        assert (abnormal + normal)[chosen].sum() == counts[product]["pixels"]


def test_nothing_else_changes(evaluated, tmp_path):
    plain = run(sheets_dir=tmp_path / "sheets")
    assert plain.results == evaluated[1].results
    assert [path.name for path in tmp_path.iterdir()] == ["sheets"]


@pytest.mark.parametrize("name", ["authors", "native"])
def test_other_protocols(name, tmp_path):
    report = run(protocol=name, details_dir=tmp_path)
    datasets, images = read(tmp_path)
    assert datasets["squares"]["mode"] == ("streaming" if name == "native" else "exact") and len(images) == 13
    for product, each in datasets["squares"]["products"].items():
        assert each["values"] == report.results["squares"]["per_product"][product]
        assert len(each["curves"]) == 5


def test_draws_of_references_show_the_first(tmp_path):
    report = run(details_dir=tmp_path, references=ReferenceDraw(1, (3, 4)))
    datasets, images = read(tmp_path)
    assert "seed 3, the first of 2 draws" in datasets["squares"]["note"]
    left_out = datasets["squares"]["left_out"]
    assert len(images) == 10 and {each["product"] for each in left_out} == set(report.results["squares"]["counts"])
    assert {each["reason"] for each in left_out} == {"drawn as a reference of its product"}
    assert not {each["image_id"] for each in left_out} & {image["image_id"] for image in images}


def test_scores_that_depend_on_the_product_are_the_final_ones(tmp_path):
    torch.manual_seed(0)
    model = tiny_method("clip_ad")
    processor = VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=1.0)
    protocol = EvaluationProtocol(metrics=("pixel_ap", "image_auroc")).with_score("image_head")
    report = evaluate(model, processor, {"x": make_records(18)}, protocol, 4, details_dir=tmp_path)
    images = read(tmp_path)[1]
    for product, values in report.results["x"]["per_product"].items():
        rows = [(image["score"], image["label"]) for image in images if image["product"] == product]
        assert auroc(RankedScores.from_labels(*zip(*rows, strict=True))) == values["image_auroc"]


def test_images_judged_together(tmp_path):
    run("musc", details_dir=tmp_path)
    datasets, images = read(tmp_path)
    assert len(images) == 18 and len(datasets["squares"]["products"]) == 3


@pytest.mark.parametrize("count", ["one", "normal", "anomalous"])
def test_few_images(count, tmp_path):
    model = tiny_model()
    records = make_records(8)
    kept = {"one": [1], "normal": range(0, 8, 2), "anomalous": range(1, 8, 2)}[count]
    processor = VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=1.0)
    evaluate(model, processor, {"x": records.select(kept)}, details_dir=tmp_path)
    datasets, images = read(tmp_path)
    assert len(images) == len(kept) and all("pictures" in image for image in images)
    curves = {name for each in datasets["x"]["products"].values() for name in each["curves"]}
    assert curves == (set() if count == "normal" else {"pixel_roc", "pixel_precision_recall", "pixel_pro"})


def test_an_unmasked_image_counts_for_images_only(tmp_path):
    model = tiny_model()
    records = make_records(6).map(lambda row: {"mask": None, "product": "one"})
    processor = VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=1.0)
    evaluate(model, processor, {"x": records}, details_dir=tmp_path)
    datasets, images = read(tmp_path)
    assert set(datasets["x"]["products"]["one"]["curves"]) == {"image_roc", "image_precision_recall"}
    assert all("truth" not in image["pictures"] and "pixel_ap" not in image for image in images)
