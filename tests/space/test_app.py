"""The page of the Space: how it is built, and a visit in a real browser (Chromium, headless)."""

import base64
import json
import os
import re
import shlex
import shutil
import time
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from transformers import pipeline

from tests.space.conftest import count_forwards, picture


# Fixtures import Gradio: without it, this file is still collected, and deselected (see pyproject.toml)
pytestmark = pytest.mark.app


@pytest.fixture(scope="module")
def page():
    import app

    return app


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_model_is_loaded_once_and_the_queue_is_bounded(page, checkpoint, monkeypatch):
    loaded = []
    monkeypatch.setattr(page, "pipeline", lambda *args, **kwargs: loaded.append(1) or pipeline(*args, **kwargs))
    app = page.build_app(checkpoint)
    assert loaded == [1]
    assert app._queue.max_size == 32 and not app.api_open and not app.analytics_enabled
    limits = {call.concurrency_id: call.concurrency_limit for call in app.fns.values() if call.queue}
    assert limits["model"] == 1 and limits["map"] == 2
    with pytest.raises(OSError, match="'nowhere/at-all' could not be loaded"):
        page.build_app("nowhere/at-all")
    with pytest.raises(SystemExit, match="1"):
        page.main(["--model", "nowhere/at-all"])


def test_nothing_is_fetched_and_nothing_is_shared_unless_asked(page, monkeypatch):
    options = page.launch_options()
    assert options["share"] is False and options["server_name"] is None
    assert not options["theme"]._stylesheets, "fonts of the system"
    launched = {}
    monkeypatch.setattr(page, "build_app", lambda *args: launched.update(model=args) or Launch(launched))
    monkeypatch.setenv("VCP_CLIP_MODEL", "someone/checkpoint")
    page.main([])
    assert launched["model"] == ("someone/checkpoint", None, "auto"), "how a Space says which"
    monkeypatch.delenv("VCP_CLIP_MODEL")
    page.main([])
    assert launched["model"] == (page.EMBEDDED_CHECKPOINT, None, "auto")
    page.main(["--model", "folder", "--host", "0.0.0.0", "--port", "8000", "--share", "--device", "cpu"])
    assert launched["model"] == ("folder", "cpu", "auto")
    assert (launched["server_name"], launched["server_port"], launched["share"]) == ("0.0.0.0", 8000, True)


class Launch:
    def __init__(self, seen: dict):
        self.seen = seen

    def launch(self, **options):
        self.seen.update(options)


def test_examples_are_generated(page, tmp_path):
    pairs = page.example_images(tmp_path)
    assert len(pairs) == len(page.EXAMPLES)
    assert {Image.open(path).size for path, _ in pairs} == {(384, 384)}


# --- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(page, checkpoint):
    pipe = pipeline("anomaly-segmentation", model=checkpoint)
    calls = count_forwards(pipe)
    app = page.build_app(pipe)
    _, url, _ = app.launch(**page.launch_options("127.0.0.1"), prevent_thread_lock=True, quiet=True)
    yield url, calls
    app.close()


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["1280", "390"])
def browser(request, server, tmp_path):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.fail("Chromium and its driver are needed; on Debian: apt-get install chromium chromium-driver")
    width, height = request.param
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.add_argument(f"--window-size={width},{height}")
    if width < 500:  # a window cannot be this narrow
        metrics = {"width": width, "height": height, "pixelRatio": 1.0}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "downloads")})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    browser = Browser(webdriver.Chrome(options=options, service=Service(driver)), width)
    browser.driver.get(server[0])
    browser.wait_for("#answer", "Choose a picture")
    yield browser
    browser.driver.quit()


class Browser:
    """The actions of a visitor."""

    def __init__(self, driver, width: int):
        self.driver, self.width = driver, width

    def find(self, css: str) -> list:
        return self.driver.find_elements("css selector", css)

    def shown(self, css: str) -> list:
        """Return elements of the open tab; file inputs themselves are never displayed."""
        script = "return arguments[0].closest('[role=tabpanel]')?.offsetParent !== null"
        return [element for element in self.find(css) if self.driver.execute_script(script, element)]

    def wait(self, condition, what: str):
        end = time.monotonic() + 60
        while time.monotonic() < end:
            value = condition()
            if value:
                return value
            time.sleep(0.1)
        pytest.fail(f"timeout while waiting for {what}")

    def wait_for(self, css: str, words: str) -> str:
        def text():
            return next((each.text for each in self.find(css) if words in each.text), None)

        return self.wait(text, f"{words!r} in {css}")

    def press(self, label: str, role: str | None = None) -> None:
        def button():
            found = [each for each in self.find("button") if each.text == label and each.is_displayed()]
            return next((each for each in found if each.get_attribute("role") == role), None)

        self.wait(button, f"the button {label!r}").click()

    def run(self, script: str):
        return self.driver.execute_script(f"return {script}")

    def screenshot(self, name: str) -> None:
        """Save a screenshot in the folder APP_SCREENSHOTS, if it is set."""
        folder = os.environ.get("APP_SCREENSHOTS")
        if folder:
            page = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / f"{name}-{self.width}.png").write_bytes(base64.b64decode(page["data"]))

    def assert_fits(self, name: str) -> None:
        assert self.run("document.documentElement.scrollWidth") <= self.width, f"{name} is wider than the window"
        self.screenshot(name)

    def requests(self) -> set[str]:
        events = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        return {each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"}


def test_a_visit(browser, server, files, tmp_path):
    url, calls = server
    browser.assert_fits("empty")
    # 1. upload; before, an example
    browser.find("#examples .gallery-item")[0].click()
    browser.wait_for("#answer", "perforated_sheet.png")
    before = len(calls)
    browser.find("button[aria-label='Remove Image']")[0].click()
    browser.wait_for("#answer", "Choose a picture")
    browser.shown("input[type=file]")[0].send_keys(str(files / "part 0.png"))
    browser.wait_for("#answer", "part 0.png: score")
    assert len(calls) == before + 1
    browser.wait(lambda: len(browser.find("#slider img")) == 2, "both pictures")
    assert "no threshold is known" in browser.find("#answer")[0].text

    # 2. the threshold, with the keyboard; and no forward pass
    level = browser.find("#threshold input[type=range]")[0]
    level.send_keys("\ue012" * 100)  # to the left
    browser.wait_for("#answer", "anomalous")
    browser.wait_for("#regions", "Score")
    assert float(level.get_attribute("value")) == pytest.approx(0.4)
    assert len(calls) == before + 1
    browser.assert_fits("picture")

    # 3. many, and a download
    browser.press("Batch", "tab")
    browser.shown("input[type=file]")[0].send_keys("\n".join(str(path) for path in sorted(files.glob("*.png"))))
    browser.wait_for(".file-preview", "part 3")
    browser.press("Segment all")
    browser.wait_for("#batch-answer", "4 segmented, 0 failed")
    browser.wait(lambda: len(browser.shown("#gallery img")) == 4, "the gallery")
    browser.assert_fits("batch")
    browser.press("Download results (zip)")
    archive = tmp_path / "downloads" / "vcp-clip-results.zip"
    browser.wait(archive.is_file, "the download")
    with zipfile.ZipFile(archive) as content:
        assert content.testzip() is None and "predictions.csv" in content.namelist()

    # 4. calibration from a folder
    browser.press("Calibrate", "tab")
    folder = [each for each in browser.shown("input[type=file]") if each.get_attribute("webkitdirectory") == "true"]
    folder[0].send_keys(str(files))
    browser.wait_for(".file-preview", "part 3")
    browser.press("Calibrate")
    text = browser.wait_for("#calibration-answer", "from 4 normal images")
    browser.assert_fits("calibration")

    # 5. words
    browser.press("Words", "tab")
    browser.find("#normal-words textarea")[0].send_keys("flawless")
    browser.press("Use these words")
    browser.wait_for("#words-answer", "both states")
    browser.find("#abnormal-words textarea")[0].send_keys("cracked")
    browser.press("Use these words")
    browser.wait_for("#words-answer", "calibrate again")
    browser.assert_fits("words")

    # 6. all of it arrived at the picture, and nothing came from elsewhere
    browser.press("Picture", "tab")
    threshold = float(re.search(r"Threshold ([\d.]+)", text).group(1))
    browser.wait_for("#answer", f"threshold {threshold:.3f}")
    assert float(level.get_attribute("value")) == pytest.approx(threshold, abs=1e-3)
    foreign = {each for each in browser.requests() if not each.startswith((url, "data:", "blob:"))}
    assert not foreign


def test_the_same_over_http_is_copied(browser, server, tmp_path):
    url, _ = server
    name = "it's; $(x) @1.png"
    picture().save(tmp_path / name)
    browser.shown("input[type=file]")[0].send_keys(str(tmp_path / name))
    browser.wait_for("#answer", f"{name}: score")
    assert not any(each.is_displayed() for each in browser.find("#request-commands")), "closed at first"
    browser.find("#http > button")[0].click()
    browser.wait_for("#start-commands", "vcp-clip serve --model ./checkpoint")
    field = shlex.quote(f'image=@"{name}"')
    browser.wait_for("#request-commands", field)
    assert "PUT" not in browser.find("#request-commands")[0].text, "the checkpoint has no thresholds"

    browser.find("#threshold input[type=range]")[0].send_keys("\ue012" * 100)  # to the left
    browser.wait_for("#request-commands", '{"threshold": 0.4, "image_threshold": 0.4, "min_area": 0}')
    area = browser.find("#min-area input")[0]
    area.send_keys("\ue0037")  # in the place of 0
    browser.wait_for("#request-commands", '"min_area": 7}')
    browser.assert_fits("http")

    permissions = {"origin": url.rstrip("/"), "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    browser.driver.execute_cdp_cmd("Browser.grantPermissions", permissions)
    (copy,) = browser.find("#request-commands button")
    assert copy.get_attribute("aria-label") or copy.get_attribute("title")
    copy.click()
    browser.wait(lambda: "PUT" in browser.run("navigator.clipboard.readText()"), "the copy")
    put, post, overlay = browser.run("navigator.clipboard.readText()").split(" &&\n")
    assert "/v1/recipes/demo-page" in put and field in post and field in overlay
    assert post.endswith("/v1/segment?recipe=demo-page&include=regions'")


def test_a_broken_file_is_a_message(browser, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    browser.shown("input[type=file]")[0].send_keys(str(tmp_path / "broken.png"))
    browser.wait_for("#answer", "broken.png: not an image file")
    browser.assert_fits("broken")


def test_the_keyboard_reaches_everything_and_everything_has_a_name(browser, files):
    from selenium.webdriver import ActionChains, Keys

    browser.shown("input[type=file]")[0].send_keys(str(files / "part 0.png"))
    browser.wait_for("#answer", "part 0.png")
    browser.wait(lambda: browser.find("#slider [role=slider]"), "the handle")
    name = (
        "(e => e.getAttribute('aria-label') || (e.labels && e.labels[0] || e).innerText.trim()"
        " || e.title || [...e.querySelectorAll('button')].map(b => b.ariaLabel).join()"
        " || [...e.querySelectorAll('img')].map(i => i.alt).join())(document.activeElement)"
    )
    browser.run("document.activeElement.blur()")
    reached = []
    for _ in range(40):
        ActionChains(browser.driver).send_keys(Keys.TAB).perform()
        if browser.run("document.activeElement === document.body"):
            break
        reached.append(browser.run(name))
        assert reached[-1], f"no name: {browser.run('document.activeElement.outerHTML')[:300]}, after {reached}"
    expected = ("Picture", "Batch", "Calibrate", "Words", "Upload file", "Spring, good", "From where on the heat map")
    for label in (*expected, "range slider for Threshold", "Smallest region", "Download"):
        assert any(each.startswith(label) for each in reached), (label, reached)

    handle = browser.find("#slider [role=slider]")[0]
    before = int(handle.get_attribute("aria-valuenow"))
    handle.send_keys(Keys.ARROW_LEFT * 4)
    assert int(handle.get_attribute("aria-valuenow")) < before
    clip = browser.find("#slider img")[1].get_attribute("style")
    assert float(re.search(r"0px 0px 0px ([\d.]+)%", clip).group(1)) < 45
    assert browser.find("#answer")[0].get_attribute("role") == "status"
