"""Evaluation: metrics of the maps, tables in every format, several processes, the paper's numbers."""

import csv
import html
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from markdown_it import MarkdownIt
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from tests.common import tiny_model, tiny_model_with_head
from tests.evaluation_run import run
from tests.processes import run_two_ranks
from tests.training_run import make_records
from vcp_clip_hf import VCPCLIPImageProcessor
from vcp_clip_hf.evaluation import evaluate
from vcp_clip_hf.evaluation_report import PROTOCOLS, EvaluationProtocol, EvaluationReport, paper_results


ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def report():
    return run()


def maps_by_hand(native: bool = False):
    torch.manual_seed(0)
    model = tiny_model()
    processor = VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=1.0)
    for record in make_records(13):
        image = record["image"]
        with torch.no_grad():
            outputs = model(**processor(image, return_tensors="pt"))
        size = [(image.height, image.width)] if native else None
        (result,) = processor.post_process_anomaly_segmentation(outputs, size)
        mask = np.zeros((48, 48), int) if record["mask"] is None else (np.asarray(record["mask"]) > 0).astype(int)
        yield record["product"], result, mask


def test_the_numbers_are_the_metrics_of_the_maps(report):
    result = report.results["squares"]
    rows = list(maps_by_hand())
    values = []
    for product in ("product_0", "product_1", "product_2"):
        maps = np.concatenate([each["anomaly_map"].numpy().ravel() for name, each, _ in rows if name == product])
        masks = np.concatenate([mask.ravel() for name, _, mask in rows if name == product])
        scores = [each["score"] for name, each, _ in rows if name == product]
        labels = [mask.any() for name, _, mask in rows if name == product]
        expected = (roc_auc_score(masks, maps), average_precision_score(masks, maps), roc_auc_score(labels, scores))
        ours = result["per_product"][product]
        assert (ours["pixel_auroc"], ours["pixel_ap"], ours["image_auroc"]) == pytest.approx(expected, abs=1e-4)
        values.append(expected[0])
    assert result["mean"]["pixel_auroc"] == pytest.approx(np.mean(values), abs=1e-4)
    assert sum(counts["images"] for counts in result["counts"].values()) == 13


def test_the_plain_model_gives_the_same_numbers(report):
    plain = run(accelerate=False).results["squares"]["per_product"]
    for name, values in report.results["squares"]["per_product"].items():
        assert plain[name] == pytest.approx(values, abs=1e-5)


def test_inputs_of_several_shapes_in_a_batch_do_not_change_the_numbers():
    torch.manual_seed(0)
    model = tiny_model()
    processor = VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=1.0, resize_mode="keep_ratio")
    records = []
    for index, record in enumerate(make_records(8)):
        size = [(60, 80), (48, 48), (33, 120)][index % 3]
        mask = None if record["mask"] is None else record["mask"].resize(size, Image.Resampling.NEAREST)
        records.append({**record, "image": record["image"].resize(size), "mask": mask})
    for protocol in ("default", "native"):
        one, four = (evaluate(model, processor, {"x": records}, protocol, batch_size=count) for count in (1, 4))
        assert len({processor(each["image"], return_tensors="pt").pixel_values.shape for each in records}) == 3
        for name, values in one.results["x"]["per_product"].items():
            assert four.results["x"]["per_product"][name] == pytest.approx(values, abs=1e-5)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol(name):
    report = run(protocol=name)
    metrics = report.results["squares"]["mean"]
    assert set(PROTOCOLS[name].metrics) <= set(metrics) and all(0 <= value <= 1 for value in metrics.values())
    assert PROTOCOLS[name].description in report.to_markdown()
    if name == "authors":
        assert "PRO (200 steps)" in report.to_markdown() and "pixel_pro" not in metrics


def test_the_score_of_the_image_head():
    torch.manual_seed(0)
    model = tiny_model_with_head()
    processor, records = VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=1.0), make_records(8)
    protocol = EvaluationProtocol(metrics=("image_auroc",)).with_score("image_head")
    report = evaluate(model, processor, {"squares": records.map(lambda row: {"product": "one"})}, protocol)
    with torch.no_grad():
        scores = model(**processor(list(records["image"]), return_tensors="pt")).image_scores
    expected = roc_auc_score(records["label"], scores.numpy())
    assert report.results["squares"]["mean"]["image_auroc"] == pytest.approx(expected)
    assert "image score 'image_head'" in report.to_markdown()
    with pytest.raises(ValueError, match=r"outputs\.image_scores is None"):
        evaluate(tiny_model(), processor, {"squares": records}, protocol)


def test_native_size_uses_the_masks_as_they_are():
    torch.manual_seed(0)
    model = tiny_model()
    processor = VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=1.0)
    records = make_records(4).map(
        lambda row: {
            "image": row["image"].resize((96, 60)),
            "mask": None if row["mask"] is None else row["mask"].resize((96, 60), Image.Resampling.NEAREST),
        }
    )
    report = evaluate(model, processor, {"wide": records}, EvaluationProtocol(native_size=True))
    assert sum(counts["pixels"] for counts in report.results["wide"]["counts"].values()) == 4 * 96 * 60


def test_tables_in_every_format(report, tmp_path):
    text = report.to_text()
    assert "squares" in text and "product_1" in text and "AUROC" in text
    rows = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert [row["product"] for row in rows] == ["product_0", "product_1", "product_2", "mean"]
    assert float(rows[-1]["pixel_ap"]) == pytest.approx(100 * report.results["squares"]["mean"]["pixel_ap"])
    report.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "results.csv", "results.md"}
    again = EvaluationReport.from_dict(json.loads((tmp_path / "results.json").read_text()))
    assert again.to_markdown() == report.to_markdown() and again.settings == report.settings
    assert report.settings["versions"]["torch"] == torch.__version__ and report.settings["processes"] == 1


def test_the_papers_numbers_are_quoted_in_brackets(report):
    assert not report.with_paper() and "paper" not in report.to_markdown()
    theirs = EvaluationReport(
        {"mvtec_ad": {**report.results["squares"], "per_product": {"pill": report.results["squares"]["mean"]}}},
        PROTOCOLS["authors"],
    )
    counts = {"pill": {"images": 13}}
    for values in (theirs.results["mvtec_ad"]["mean"], theirs.results["mvtec_ad"]["per_product"]["pill"]):
        values.setdefault("pixel_pro_200", 0.5)
        values.setdefault("pixel_f1_max", 0.5)
    theirs.results["mvtec_ad"]["counts"] = counts
    quoted = theirs.with_paper()
    assert quoted["mvtec_ad", "mean"] == {"pixel_auroc": 92.0, "pixel_pro_200": 87.3, "pixel_ap": 49.4}
    assert quoted["mvtec_ad", "pill"] == {"pixel_auroc": 90.1, "pixel_pro_200": 94.9, "pixel_ap": 34.3}
    assert "(92.0)" in theirs.to_markdown() and "measured by its authors" in theirs.to_markdown()


def test_the_papers_table_is_complete():
    paper = paper_results()
    assert len(paper["datasets"]) == 10 and all(len(methods) == 7 for methods in paper["datasets"].values())
    assert len(paper["products"]["mvtec_ad"]) == 15 and len(paper["products"]["visa"]) == 12
    for dataset, products in paper["products"].items():
        for metric in ("auroc", "pro", "ap"):
            mean = np.mean([methods["VCP-CLIP"][metric] for methods in products.values()])
            assert mean == pytest.approx(paper["datasets"][dataset]["VCP-CLIP"][metric], abs=0.1)


def test_names_from_users_data_stay_text():
    names = [
        "<script>alert(1)</script>",
        "a|b",
        "[x](javascript:alert(1))",
        "two\nlines",
        "`x`",
        "# y",
        "not UTF-8 \udcff",
    ]
    values = dict.fromkeys(PROTOCOLS["default"].metrics, 0.5)
    result = {
        "mean": values,
        "per_product": dict.fromkeys(names, values),
        "counts": {name: {"images": 3} for name in names},
        "reasons": {name: {"pixel_ap": f"no pixel of {name} is abnormal"} for name in names},
    }
    markdown = EvaluationReport({"<b>|": result}, PROTOCOLS["default"]).to_markdown()
    rendered = MarkdownIt("commonmark").enable("table").render(markdown)
    assert set(re.findall(r"</?(\w+)", rendered)) == {"table", "thead", "tbody", "tr", "th", "td", "p", "strong"}
    cells = [html.unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", rendered)]
    shown = [" ".join(name.replace("\udcff", "?").split()) for name in names]
    assert cells[: 2 * len(names)] == [each for name in shown for each in ("<b>|", name)]
    assert rendered.count("<tr>") == len(names) + 2
    text = EvaluationReport({"x": result}, PROTOCOLS["default"]).to_text()
    assert len(text.splitlines()) == len(names) + 2 and text.encode()


def test_results_of_products_with_any_name_are_saved(tmp_path):
    values = dict.fromkeys(PROTOCOLS["default"].metrics, 0.5)
    products = ["=1+1", "not UTF-8 \udcff", "two\nlines"]
    result = {
        "mean": values,
        "per_product": dict.fromkeys(products, values),
        "counts": {name: {"images": 3} for name in products},
        "reasons": {},
    }
    EvaluationReport({"x": result}, PROTOCOLS["default"]).save(tmp_path)
    with open(tmp_path / "results.csv", encoding="utf-8", newline="") as file:
        assert [row["product"] for row in csv.DictReader(file)] == ["'=1+1", "not UTF-8 \\udcff", "two\nlines", "mean"]
    assert list(json.loads((tmp_path / "results.json").read_text())["results"]["x"]["per_product"]) == products


def test_one_sheet_for_each_product(tmp_path):
    run(sheets_dir=tmp_path, images_per_sheet=2)
    sheets = sorted((tmp_path / "squares").iterdir())
    assert [path.name for path in sheets] == ["product_0.png", "product_1.png", "product_2.png"]
    picture = Image.open(sheets[0])
    assert picture.width > 4 * 256 and picture.height > 2 * 256


def test_undefined_metrics_are_reported(report):
    torch.manual_seed(0)
    model = tiny_model()
    processor = VCPCLIPImageProcessor.for_model(model.config)
    good = make_records(6).filter(lambda row: row["label"] == 0)
    found = evaluate(model, processor, {"good": good})
    assert math.isnan(found.results["good"]["mean"]["pixel_ap"])
    assert "Undefined: good / product_0 / pixel_ap" in found.to_markdown() and "-" in found.to_text()
    assert found.to_dict()["results"]["good"]["mean"]["pixel_ap"] is None
    json.dumps(found.to_dict(), allow_nan=False)


def test_errors_explain_the_mistake(report):
    model = tiny_model()
    processor = VCPCLIPImageProcessor.for_model(model.config)
    with pytest.raises(ValueError, match="Unknown protocol 'paper'; known are default"):
        evaluate(model, processor, {"x": make_records(2)}, "paper")
    with pytest.raises(ValueError, match="'x' is empty"):
        evaluate(model, processor, {"x": make_records(2).select([])})
    unknown = make_records(2).map(lambda row: {"label": -1})
    with pytest.raises(ValueError, match="no label"):
        evaluate(model, processor, {"x": unknown})


def test_the_model_keeps_its_mode():
    model = tiny_model().train()
    evaluate(model, VCPCLIPImageProcessor.for_model(model.config), {"x": make_records(4)})
    assert model.training and not model.clip.training


def test_two_processes_equal_one(report, tmp_path):
    run_two_ranks("-m", "tests.evaluation_run", tmp_path)
    assert len(list((tmp_path / "sheets" / "squares").iterdir())) == 3
    theirs = EvaluationReport.from_dict(json.loads((tmp_path / "results.json").read_text()))
    assert theirs.results["squares"]["counts"] == report.results["squares"]["counts"]
    for name, values in report.results["squares"]["per_product"].items():
        assert theirs.results["squares"]["per_product"][name] == pytest.approx(values, abs=1e-5)
    one, two = tmp_path / "one", tmp_path / "details"
    run(details_dir=one)
    ours, theirs = (
        sorted(map(json.loads, (folder / "images.jsonl").read_text().splitlines()), key=lambda each: each["index"])
        for folder in (one, two)
    )
    assert [(each["image_id"], each["worst"]) for each in ours] == [
        (each["image_id"], each["worst"]) for each in theirs
    ]
    assert [each["score"] for each in ours] == pytest.approx([each["score"] for each in theirs], abs=1e-6)
    assert len(list((one / "pictures").iterdir())) == len(list((two / "pictures").iterdir()))
