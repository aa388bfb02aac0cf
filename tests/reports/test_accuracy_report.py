"""The report of an evaluation: the evaluator's numbers, curves, pictures of mistakes, what was left out."""

import json
import re

import numpy as np
import pytest

from tests.reports.conftest import HOSTILE, Page
from tests.reports.evaluations import evaluation
from tests.training_run import make_records
from vcp_clip_hf.evaluation_references import ReferenceDraw
from vcp_clip_hf.evaluation_report import shown_value
from vcp_clip_hf.reports.accuracy_report import report_evaluation
from vcp_clip_hf.reports.parts import Beside, Chart, Gallery, KeyNumbers, Section, Table, Text
from vcp_clip_hf.reports.read_run import find_run
from vcp_clip_hf.reports.report import write_report


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluation")
    names = {"product_0": HOSTILE}
    evaluation(path, records=make_records(24).map(lambda row: {"product": names.get(row["product"], row["product"])}))
    return path


@pytest.fixture(scope="module")
def evaluated(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))["results"]["squares"]


def sections_of(folder) -> list[Section]:
    return report_evaluation(find_run(folder), folder / "report.html")[2]


@pytest.fixture(scope="module")
def sections(folder):
    return sections_of(folder)


def parts(sections, kind) -> list:
    """Return all parts of a kind, also those side by side."""
    found = []
    for section in sections:
        for part in section.parts:
            found += [each for each in (part.parts if isinstance(part, Beside) else [part]) if isinstance(each, kind)]
    return found


def texts(sections) -> str:
    return "\n".join([part.text for part in parts(sections, Text)] + [section.explanation for section in sections])


def test_the_numbers_are_those_of_the_tables(sections, folder, evaluated):
    (table,) = parts(sections[:1], Table)
    assert list(table.columns) == ["product", "images", "AUROC", "PRO", "AP", "image AUROC", "image AP"]
    shown = {row[0]: row for row in table.rows}
    markdown = (folder / "results.md").read_text(encoding="utf-8")
    for product, name in ((HOSTILE, HOSTILE), ("product_1", "product_1"), ("mean", "mean of 3 products")):
        values = evaluated["mean"] if product == "mean" else evaluated["per_product"][product]
        cells = shown[name][2:]
        metrics = ("pixel_auroc", "pixel_pro", "pixel_ap", "image_auroc", "image_ap")
        assert [cell.value for cell in cells] == [100 * values[metric] for metric in metrics]
        assert [cell.text for cell in cells] == [f"{100 * values[metric]:.1f}" for metric in metrics]
    (row,) = [line for line in markdown.splitlines() if "product_1" in line]
    assert re.findall(r"\d+\.\d", row) == [cell.text for cell in shown["product_1"][2:]]
    (numbers,) = parts(sections[:1], KeyNumbers)
    assert numbers.pairs[0] == (f"{100 * evaluated['mean']['pixel_auroc']:.1f}", "AUROC")


def test_the_areas_beside_the_curves_are_the_evaluators(sections, evaluated):
    for section in sections[1:4]:
        values, product = evaluated["per_product"][section.title], section.title
        roc, recall, pro, scores = parts([section], Chart)
        pixel, image = (f"{100 * values[f'{level}_auroc']:.1f}" for level in ("pixel", "image"))
        assert roc.alt == f"ROC: pixels, AUROC {pixel}; images, AUROC {image}", product
        assert f"AP {100 * values['pixel_ap']:.1f}" in recall.alt and f"PRO {100 * values['pixel_pro']:.1f}" in pro.alt
        assert "Limit: 0.3." in pro.caption
        assert list(scores.threshold.groups) == ["normal", "anomalous"]


def test_the_best_threshold_reaches_the_f1_of_the_caption(sections):
    for chart in parts(sections, Chart):
        if chart.threshold is None:
            continue
        limit, groups = chart.threshold.value, chart.threshold.groups
        found, alarms = (sum(score >= limit for score in groups[name]) for name in ("anomalous", "normal"))
        f1 = 2 * found / (found + alarms + len(groups["anomalous"]))
        assert f"best F1 ({100 * f1:.1f})" in chart.caption


def test_galleries_show_the_worst_images_with_their_views(sections):
    (section,) = [each for each in sections if each.title == "product_1"]
    misses, alarms, localized = parts([section], Gallery)
    assert misses.caption.startswith("Misses: the 4 anomalous images with the lowest scores")
    scores = [picture.score for picture in misses.pictures]
    assert scores == sorted(scores) and {picture.truth for picture in misses.pictures} == {"anomalous"}
    scores = [picture.score for picture in alarms.pictures]
    assert scores == sorted(scores, reverse=True) and {picture.truth for picture in alarms.pictures} == {"normal"}
    views = [view.name for view in misses.pictures[0].views]
    assert views == ["Image", "Ground truth", "Map", "Overlay"] and misses.first_view == "Ground truth"
    assert ("Kind", "square") in misses.pictures[0].facts
    values = [float(dict(picture.facts)["Pixel AP of the image"]) for picture in localized.pictures]
    assert values == sorted(values)


def test_the_page_keeps_names_as_text(folder):
    path = write_report([folder], folder / "report.html")
    page = Page(path)
    assert HOSTILE in page.text and not page.all("script", src="x")
    assert sum(tag == "script" for tag, _ in page.elements) == page.source.count("<script")
    assert {each["class"] for each in page.all("table")} == {"sortable"}


def test_figures_are_files(tmp_path):
    evaluation(tmp_path, records=make_records(8).map(lambda row: {"product": "../a b"}))
    write_report([tmp_path], tmp_path / "report.html", tmp_path / "figures")
    stems = {path.name.rpartition("-")[0] for path in (tmp_path / "figures").iterdir()}
    kinds = ("precision_recall", "pro", "roc", "scores")
    assert stems == {"qualitative-grid", *(f"squares-_a_b-{kind}" for kind in kinds)}


def test_the_papers_numbers_are_beside_ours(tmp_path):
    records = make_records(12).map(lambda row: {"product": "pill" if row["product"] == "product_0" else "screw"})
    evaluation(tmp_path, records=records, dataset="mvtec_ad")
    sections = sections_of(tmp_path)
    (table,) = parts(sections[:1], Table)
    assert "AUROC, paper" in table.columns and "PRO, paper" not in table.columns  # another PRO than the paper's
    place = table.columns.index("AUROC, paper")
    assert [row[place].text for row in table.rows] == ["90.1", "98.5", "92.0"]
    assert "measured by its authors on their data" in texts(sections)


def test_draws_of_references(tmp_path):
    report = evaluation(tmp_path, references=ReferenceDraw(1, (0, 1)))
    sections = sections_of(tmp_path)
    (row,) = [each for each in report.rows() if each["product"] == "product_2"]
    (table,) = parts(sections[:1], Table)
    assert [cell.text for cell in table.rows[2][2:]] == [shown_value(row, name) for name in report.metrics]
    assert "±" in table.rows[2][2].text
    assert "seed 0, the first of 2 draws" in texts(sections) and "With 1 reference of each product" in texts(sections)
    (left_out,) = parts([each for each in sections if each.title == "Left out"], Table)
    assert {row[3] for row in left_out.rows} == {"drawn as a reference of its product"} and len(left_out.rows) == 3


def test_streaming_metrics_say_how_exact_they_are(tmp_path):
    evaluation(tmp_path, protocol="native")
    assert re.search(r"exact values are at most [\d.e-]+ points away", texts(sections_of(tmp_path)))


@pytest.mark.parametrize("kept", [[1], range(0, 8, 2), range(1, 8, 2)])
def test_few_images(kept, tmp_path):
    evaluation(tmp_path, records=make_records(8).select(kept).map(lambda row: {"product": "one"}))
    sections = sections_of(tmp_path)
    write_report([tmp_path], tmp_path / "report.html")
    charts = parts(sections, Chart)
    assert charts[-1].threshold is None and "there is no best threshold" in charts[-1].caption
    (left_out,) = parts([each for each in sections if each.title == "Left out"], Table)
    assert any("undefined" in row[-1] for row in left_out.rows)
    if kept[0] == 0:
        assert "no abnormal" in texts(sections)


def test_without_details_the_tables_remain(tmp_path):
    evaluation(tmp_path, details=False)
    sections = sections_of(tmp_path)
    assert [section.title for section in sections] == ["Results", "Left out", "Settings"]
    assert "vcp-clip evaluate --report writes them" in texts(sections)
    assert "Nothing was left out." in texts(sections)


def test_details_of_another_evaluation_are_not_shown(tmp_path):
    evaluation(tmp_path)
    evaluation(tmp_path, seed=5, details=False)
    assert "belongs to another evaluation" in texts(sections_of(tmp_path))


def test_damaged_files_are_named(tmp_path):
    evaluation(tmp_path)
    (tmp_path / "details" / "images.jsonl").write_text("{broken\n")
    with pytest.raises(ValueError, match=r"details are damaged|details.* are damaged .*Evaluate again with --report"):
        sections_of(tmp_path)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ValueError, match=r"results\.json is not a file of results"):
        sections_of(tmp_path)


def test_lost_and_foreign_pictures_are_placeholders(folder, tmp_path):
    evaluation(tmp_path)
    pictures = sorted((tmp_path / "details" / "pictures").iterdir())
    pictures[0].unlink()
    lines = (tmp_path / "details" / "images.jsonl").read_text().splitlines()
    images = [json.loads(line) for line in lines]
    secret = tmp_path / "secret.webp"
    secret.write_bytes(b"RIFF0000WEBPsecret")
    images[0]["pictures"]["image"] = "../../secret.webp"
    (tmp_path / "details" / "images.jsonl").write_text("".join(f"{json.dumps(image)}\n" for image in images))
    views = [
        view.thumbnail
        for gallery in parts(sections_of(tmp_path), Gallery)
        for each in gallery.pictures
        for view in each.views
    ]
    assert all(view.startswith("data:image/webp;base64,") for view in views)
    assert not any("c2VjcmV0" in view for view in views)  # base64 of "secret"


def test_settings_are_complete(sections):
    section = sections[-1]
    pairs = dict(section.parts[0].pairs)
    assert pairs["smoothing_sigma"] == "1.0" and pairs["protocol: mode"] == "exact" and "versions: torch" in pairs
    assert np.isfinite(float(pairs["seconds_per_image"]))
