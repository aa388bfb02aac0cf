"""Reports in a real browser (Chromium, headless): what moves, what keys do, and that nothing is requested."""

import json
import re
import shutil

import pytest

from tests.reports.conftest import HOSTILE
from vcp_clip_hf.prediction import read_predictions
from vcp_clip_hf.reports.page import write_page
from vcp_clip_hf.reports.parts import Gallery, Picture, Section, Table, View
from vcp_clip_hf.reports.report import write_report
from vcp_clip_hf.reports.thumbnails import placeholder


pytestmark = pytest.mark.app


@pytest.fixture(scope="session")
def page(run):
    return write_report([run], run / "report.html")


@pytest.fixture
def browser(wide_browser, page):
    wide_browser.open(page)
    yield wide_browser
    assert wide_browser.complaints() == []


def titles(browser) -> list[str]:
    return browser.run("[...document.querySelectorAll('.tile .title:first-child')].map(e => e.textContent)")


def badges(browser) -> list[str]:
    return browser.run("[...document.querySelectorAll('.tile .badge')].map(e => e.textContent)")


def test_nothing_is_requested_and_every_picture_is_shown(browser, page):
    browser.requests()
    browser.open(page)
    loaded = "[...document.querySelectorAll('.tile img')].map(e => e.complete && e.naturalWidth > 0)"
    browser.wait(lambda: browser.run(loaded) == [True] * 6, "pictures")
    assert browser.requests() == {page.as_uri()}
    assert HOSTILE in titles(browser)


def test_a_moved_threshold_recounts_the_verdicts(browser, run):
    records = [record for record in read_predictions(run) if "error" not in record]
    flagged = sum(record["label"] == "anomalous" for record in records)
    assert f"Anomalous: {flagged} of 6 images" in browser.text(".recount")
    assert badges(browser).count("anomalous") == flagged

    slider, number = browser.find(".threshold input")
    before = browser.run("document.querySelector('[id$=threshold-line]').getBoundingClientRect().x")
    slider.send_keys("\ue012" * 3)  # to the left, with the keyboard
    value = float(number.get_attribute("value"))
    assert value < records[0]["image_threshold"]
    assert browser.run("document.querySelector('[id$=threshold-line]').getBoundingClientRect().x") < before
    for value in (0.0, sorted(record["score"] for record in records)[1], 2.0):
        number.clear()
        number.send_keys(str(value))
        expected = sum(record["score"] >= value for record in records)
        assert f"Anomalous: {expected} of 6 images" in browser.text(".recount") and "moved from" in browser.text(
            ".recount"
        )
        assert badges(browser).count("anomalous") == expected and badges(browser).count("failed") == 1
    browser.find(".threshold button")[0].click()
    assert browser.text(".recount").startswith("Verdicts of the run") and badges(browser).count("anomalous") == flagged


def test_the_line_follows_the_pointer(browser):
    from selenium.webdriver import ActionChains

    drawing = browser.find(".drawing")[0]
    browser.run("document.querySelector('.drawing').scrollIntoView({block: 'center', behavior: 'instant'})")
    right = drawing.size["width"] // 2 - 30
    ActionChains(browser.driver).move_to_element(drawing).click_and_hold().move_by_offset(right, 0).release().perform()
    box = browser.run("document.querySelector('[id$=threshold-line]').getBoundingClientRect().x")
    assert abs(box - (drawing.rect["x"] + drawing.size["width"] / 2 + right)) < 3
    assert "Anomalous: 0 of 6 images" in browser.text(".recount")


def test_filters_search_and_order(browser):
    everything = titles(browser)
    assert len(everything) == 7 and everything[-1] == "broken.png"
    for choice, number in (("Anomalous", 3), ("Normal", 3), ("Failed", 1), ("All", 7)):
        browser.choose("Show", choice)
        assert len(titles(browser)) == number
        assert browser.text(".count") == f"{number} of 7 images"
    browser.choose("Folder", "left")
    assert sorted(titles(browser)) == ["part 0.png", "part 1.png", "part 2.png"]
    browser.choose("Folder", "All")
    browser.choose("Sort by", "Lowest score first")
    assert titles(browser)[:-1] == everything[-2::-1]
    browser.choose("Sort by", "Name")
    assert titles(browser)[-3:] == ["part 0.png", "part 1.png", "part 2.png"]
    browser.find("input[type=search]")[0].send_keys("SCRIPT")
    assert titles(browser) == [HOSTILE]


def test_tiles_show_the_chosen_view(browser):
    first = "document.querySelector('.tile img').src"
    sources = set()
    for view in ("Image", "Overlay", "Map", "Mask"):
        browser.choose("Tiles show", view)
        sources.add(browser.run(first))
    assert len(sources) == 4


def test_a_click_opens_the_viewer_and_the_keyboard_moves_it(browser):
    from selenium.webdriver import Keys

    order = titles(browser)
    browser.find(".tile")[1].click()
    picture = "document.querySelector('.stage img').src"
    assert browser.text("#viewer-title") == order[1]
    pressed = lambda: browser.text('.views [aria-pressed="true"]')  # noqa: E731
    assert pressed() == "Overlay"
    seen = {browser.run(picture)}
    for view in ("Map", "Mask", "Image"):
        browser.press(Keys.ARROW_DOWN)
        assert pressed() == view
        seen.add(browser.run(picture))
    assert len(seen) == 4
    browser.find(".views button")[1].click()
    assert pressed() == "Overlay"
    browser.press(Keys.ARROW_RIGHT)
    assert browser.text("#viewer-title") == order[2]
    browser.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert browser.text("#viewer-title") == order[0], "it ends at the first image"
    links = [each.get_attribute("href") for each in browser.find(".viewer .links a")]
    assert len(links) == 4 and all(link.startswith("file:///") for link in links)
    browser.press(Keys.ESCAPE)
    assert not browser.find("dialog[open]")
    assert browser.run("document.activeElement.querySelector('.title').textContent") == order[0]
    browser.press(Keys.ARROW_RIGHT)
    assert browser.run("document.activeElement.querySelector('.title').textContent") == order[1]
    browser.press(Keys.ENTER)
    assert browser.text("#viewer-title") == order[1]
    browser.press(Keys.ESCAPE)


def test_the_viewer_shows_the_sentence_of_a_failure(browser):
    browser.find(".tile")[-1].click()
    assert "not an image file that Pillow can read" in browser.text(".stage")
    browser.find("button[aria-label='Close']")[0].click()
    assert not browser.find("dialog[open]")


def test_every_control_has_a_name_and_can_be_reached(browser):
    from selenium.webdriver import Keys

    name = (
        "(e => e.getAttribute('aria-label') || (e.labels && e.labels.length ? e.labels[0] : e).innerText.trim())"
        "(document.activeElement)"
    )
    reached = []
    for _ in range(60):
        browser.press(Keys.TAB)
        if browser.run("document.activeElement === document.body"):
            break
        reached.append(browser.run(name))
        assert reached[-1], browser.run("document.activeElement.outerHTML")[:200]
        assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid", reached[-1]
    for label in (
        "Skip",
        "Overview",
        "Folder",
        "Image threshold",
        "Reset",
        "Numbers of",
        "Show",
        "Search",
        "part 0.png",
    ):
        assert any(each.startswith(label) for each in reached), (label, reached)


def test_a_narrow_page_fits(narrow_browser, page):
    narrow_browser.open(page)
    assert narrow_browser.run("document.documentElement.scrollWidth") <= 390
    narrow_browser.find(".tile")[0].click()
    assert narrow_browser.run("document.documentElement.scrollWidth") <= 390
    stage = narrow_browser.run("document.querySelector('.stage img').getBoundingClientRect().height")
    assert stage > 150 and narrow_browser.complaints() == []


def test_printed_pages_have_all_thumbnails_and_no_controls(browser):
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        for css in ("nav", ".controls", ".threshold input", ".threshold button"):
            assert not any(each.is_displayed() for each in browser.find(css)), css
        assert len([each for each in browser.find(".tile img") if each.is_displayed()]) == 6
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_tables_are_sorted_by_value(wide_browser, tmp_path):
    rows = [["b", 10], ["a", 9], ["c", None], ["d", 0.5]]
    table = Table(["Name", "Number"], rows, sortable=True)
    wide_browser.open(write_page(tmp_path / "page.html", "x", "", [Section("x", "", [table])]))
    cells = "[...document.querySelectorAll('tbody th')].map(e => e.textContent).join('')"
    name, number = wide_browser.find("thead button")
    number.click()
    assert wide_browser.run(cells) == "dabc"
    number.click()
    assert wide_browser.run(cells) == "badc", "cells without a value stay last"
    assert [each.get_attribute("aria-sort") for each in wide_browser.find("thead th")] == [None, "descending"]
    name.click()
    assert wide_browser.run(cells) == "abcd"


def test_many_pictures_are_made_when_they_come_into_view(wide_browser, tmp_path):
    uri = placeholder("x", 100)
    pictures = [Picture(f"{number}.png", [View("Image", uri)], number / 3000) for number in range(3000)]
    wide_browser.open(write_page(tmp_path / "page.html", "x", "", [Section("x", "", [Gallery(pictures)])]))
    made = "document.querySelectorAll('.tile').length"
    assert wide_browser.run(made) < 200
    before = wide_browser.run(made)
    wide_browser.run("window.scrollTo({top: document.body.scrollHeight, behavior: 'instant'})")
    wide_browser.wait(lambda: wide_browser.run(made) > before, "further tiles")
    wide_browser.choose("Sort by", "Highest score first")
    assert titles(wide_browser)[0] == "2999.png"
    wide_browser.run("window.dispatchEvent(new Event('beforeprint'))")
    assert wide_browser.run(made) == 3000
    assert wide_browser.complaints() == []


def test_only_the_pages_own_script_runs(wide_browser, page, tmp_path):
    """A page into which someone has put a script and an address: the policy stops both."""
    text = page.read_text()
    evil = "<script>window.broken = true</script><img src='https://example.com/x.png' onerror='window.broken = true'>"
    (tmp_path / "evil.html").write_text(text.replace("<main", f"{evil}<main"))
    wide_browser.open(tmp_path / "evil.html")
    assert wide_browser.run("window.broken") is None
    complaints = wide_browser.complaints()
    assert len(complaints) >= 3 and all("Content Security Policy" in each for each in complaints)


def test_verdicts_of_a_run_with_min_area_stay(wide_browser, run, tmp_path):
    """An image that min_area made normal is not made anomalous by a lower threshold."""
    copied = shutil.copytree(run, tmp_path / "copied")
    records = [record for record in read_predictions(copied) if "error" not in record]
    highest = max(records, key=lambda record: record["score"])
    highest["label"] = "normal"
    (copied / "predictions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    wide_browser.open(write_report([copied], copied / "report.html"))
    number = wide_browser.find(".threshold input")[1]
    number.clear()
    number.send_keys("0")
    assert "Anomalous: 5 of 6 images" in wide_browser.text(".recount")
    assert badges(wide_browser)[0] == "normal" and re.fullmatch("normal|anomalous", badges(wide_browser)[1])


def test_folders_are_chosen_by_their_exact_names(wide_browser, tmp_path):
    folders = ["", "All", "a  b", "line\nend"]
    pictures = [Picture(f"{number}.png", (), 0.5, "normal", product=each) for number, each in enumerate(folders)]
    gallery = Gallery(pictures, product_title="Folder")
    wide_browser.open(write_page(tmp_path / "a.html", "Test", "", [Section("Pictures", "", [gallery])]))
    assert wide_browser.run("[...document.querySelectorAll('select')[1].options].map(e => e.textContent)")[:2] == [
        "All",
        "(no folder)",
    ]
    for number, folder in enumerate(sorted(folders)):
        script = f"(s => {{s.selectedIndex = {number + 1}; s.dispatchEvent(new Event('change'))}})"
        wide_browser.run(f"{script}(document.querySelectorAll('select')[1])")
        assert titles(wide_browser) == [f"{folders.index(folder)}.png"]


def test_up_and_down_stay_in_a_single_row(browser):
    browser.find("input[type=search]")[0].send_keys("part")
    focused = "[...document.querySelectorAll('.tile')].indexOf(document.activeElement)"
    for place, keys in ((0, "\ue015"), (1, "\ue015"), (1, "\ue013")):
        browser.run(f"document.querySelectorAll('.tile')[{place}].focus()")
        browser.press(keys)
        assert browser.run(focused) == place


def test_a_huge_threshold_keeps_the_line_in_the_chart(browser):
    number = browser.find(".threshold input[type=number]")[0]
    number.clear()
    number.send_keys("1e300")
    assert "Anomalous: 0 of 6 images" in browser.text(".recount")
    line, drawing = (
        browser.run(f"document.querySelector('{css}').getBoundingClientRect().right")
        for css in ("[id$=threshold-line]", ".drawing svg")
    )
    assert line <= drawing
