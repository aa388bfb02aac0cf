"""Reports of evaluations in a real browser (Chromium, headless): sorting, thresholds, pictures, narrow pages."""

import json

import pytest

from tests.reports.conftest import HOSTILE
from tests.reports.evaluations import evaluation
from tests.training_run import make_records
from vcp_clip_hf.reports.report import write_report


pytestmark = pytest.mark.app


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluations")
    names = {"product_0": HOSTILE, "product_1": "bolt", "product_2": "nut"}
    for seed in (0, 1):
        evaluation(root / f"run{seed}", seed, make_records(18).map(lambda row: {"product": names[row["product"]]}))
    return [root / "run0", root / "run1"]


@pytest.fixture(scope="module")
def page(folders):
    return write_report(folders[:1], folders[0] / "report.html")


@pytest.fixture
def browser(wide_browser, page):
    wide_browser.complaints()
    wide_browser.open(page)
    yield wide_browser
    assert wide_browser.complaints() == []


def column(browser, number: int) -> list[str]:
    script = "[...document.querySelectorAll('#section-1 tbody tr')].map(row => row.children[%d].textContent.trim())"
    return browser.run(script % number)


def test_the_table_is_sorted_by_a_click(browser, folders):
    result = json.loads((folders[0] / "results.json").read_text())["results"]["squares"]
    values = [values["pixel_ap"] for values in (*result["per_product"].values(), result["mean"])]
    assert column(browser, 4) == [f"{100 * value:.1f}" for value in values]
    button = browser.find("#section-1 thead button")[4]
    button.click()
    first = column(browser, 4)
    button.click()
    shown = [f"{100 * value:.1f}" for value in sorted(values)]
    assert sorted((first, column(browser, 4))) == sorted((shown, shown[::-1]))
    assert HOSTILE in column(browser, 0)


def test_the_threshold_recounts_false_alarms_and_misses(browser, folders):
    images = [json.loads(line) for line in (folders[0] / "details" / "images.jsonl").read_text().splitlines()]
    images = [image for image in images if image["product"] == HOSTILE]
    number = browser.find("#section-2 .threshold input")[1]
    assert "At the threshold of the best F1" in browser.text("#section-2 .recount")
    limit = sorted(image["score"] for image in images)[2]
    number.clear()
    number.send_keys(f"{limit:.6f}")
    alarms = sum(image["score"] >= limit - 1e-6 for image in images if not image["label"])
    missed = sum(image["score"] < limit - 1e-6 for image in images if image["label"])
    text = browser.text("#section-2 .recount")
    assert f"False alarms: {alarms} of 3" in text and f"Missed: {missed} of 3" in text


def test_pictures_are_shown_and_opened(browser):
    loaded = "[...document.querySelectorAll('#section-2 .tile img')].map(e => e.complete && e.naturalWidth > 0)"
    browser.run("document.querySelector('#section-2 .tile').scrollIntoView({behavior: 'instant'})")
    browser.wait(lambda: browser.run(loaded) and all(browser.run(loaded)), "pictures")
    browser.find("#section-2 .tile")[0].click()
    browser.wait(lambda: browser.run("document.querySelector('dialog').open"), "viewer")
    text = browser.text("dialog")
    assert "Pixel AP of the image" in text and "anomalous" in text and "Ground truth" in text


def test_a_comparison_opens_without_errors(wide_browser, folders, tmp_path):
    path = write_report(folders, tmp_path / "both.html")
    wide_browser.requests()
    wide_browser.open(path)
    loaded = wide_browser.run("[...document.querySelectorAll('.grid img')].map(e => e.complete && e.naturalWidth > 0)")
    assert len(loaded) == 72 and all(loaded)
    assert wide_browser.requests() == {path.as_uri()} and wide_browser.complaints() == []


@pytest.mark.parametrize("several", [False, True])
def test_narrow_pages_do_not_scroll_sideways(narrow_browser, folders, page, several, tmp_path):
    narrow_browser.open(write_report(folders, tmp_path / "both.html") if several else page)
    assert narrow_browser.run("document.documentElement.scrollWidth <= window.innerWidth")
    assert narrow_browser.complaints() == []
