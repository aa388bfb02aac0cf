"""The reports of training and calibration in a real browser: complete, without requests, readable when narrow."""

import pytest

from tests.reports.test_calibration_report import calibrate, defects, make_pipe, normal, scores_of
from tests.reports.test_training_report import finished


__all__ = ["defects", "finished", "normal"]

pytestmark = pytest.mark.app


@pytest.fixture(scope="module")
def calibrated(normal, defects, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrated") / "record"
    calibrate(make_pipe(), folder, normal, [str(defects)])
    return folder


def assert_fits(browser, path):
    """Open a page and check its width, its drawings, its requests and its console."""
    browser.requests()
    browser.open(path)
    assert browser.run("document.documentElement.scrollWidth") <= browser.width
    shown = browser.run("[...document.querySelectorAll('.drawing svg')].map(e => e.getBoundingClientRect().height)")
    assert shown and min(shown) > 50
    assert browser.requests() == {path.as_uri()} and browser.complaints() == []


@pytest.mark.parametrize("width", ["wide_browser", "narrow_browser"])
def test_pages_fit_and_request_nothing(width, finished, calibrated, request):
    browser = request.getfixturevalue(width)
    for folder in (finished, calibrated):
        assert_fits(browser, folder / "report.html")


def test_numbers_of_a_chart_open_and_are_sorted(wide_browser, finished):
    wide_browser.open(finished / "report.html")
    for summary in wide_browser.find("details summary"):
        summary.click()
    column = "[...document.querySelectorAll('table.sortable tbody tr')].map(e => +e.children[1].dataset.value)"
    wide_browser.find("table.sortable thead button")[1].click()
    wide_browser.wait(lambda: wide_browser.run(column) == sorted(wide_browser.run(column)), "sorted rows")
    assert len(wide_browser.run(column)) == 2


def test_a_moved_threshold_recounts_false_alarms_and_misses(wide_browser, calibrated):
    wide_browser.open(calibrated / "report.html")
    normal_scores, defect_scores = scores_of(calibrated), scores_of(calibrated, 1)
    (number,) = wide_browser.find(".threshold input[type=number]")
    for value in (normal_scores[4], 0.0, 1.5):
        number.clear()
        number.send_keys(f"{value:.6f}")
        alarms = sum(score >= value - 1e-6 for score in normal_scores)
        missed = sum(score < value - 1e-6 for score in defect_scores)
        text = wide_browser.text(".recount")
        assert f"False alarms: {alarms} of {len(normal_scores)}" in text
        assert f"Missed: {missed} of {len(defect_scores)}" in text


def test_the_highest_normal_image_opens_with_its_map(wide_browser, calibrated):
    wide_browser.open(calibrated / "report.html")
    wide_browser.find(".tile")[0].click()
    viewer = wide_browser.wait(lambda: wide_browser.find("dialog[open]"), "viewer")[0]
    assert "Overlay" in viewer.text and "Map" in viewer.text and f"{scores_of(calibrated)[-1]:.4f}"[:5] in viewer.text
