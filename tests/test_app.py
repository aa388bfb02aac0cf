"""The web page: what it does without a browser, and the page in a real one (Chromium, headless)."""

import base64
import csv
import io
import json
import os
import re
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

from tests.common import tiny_model, tiny_tokenizer
from vcp_clip_hf import VCPCLIPImageProcessor


# gradio is imported by the fixtures: without it, this file is still collected (and left out, see pyproject.toml)
pytestmark = pytest.mark.app


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model = tiny_model()
    model.save_pretrained(folder)
    VCPCLIPImageProcessor.for_model(model.config, smoothing_sigma=2.0).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def page():
    from examples.space import app

    return app


@pytest.fixture
def pipe(checkpoint):
    return pipeline("anomaly-segmentation", model=checkpoint)


@pytest.fixture
def inspector(page, pipe):
    return page.Inspector(pipe)


@pytest.fixture
def session(inspector):
    session = inspector.new_session()
    yield session
    session.close()


def picture(height: int = 60, width: int = 80, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height // 6 + 1, width // 6 + 1, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def files(tmp_path):
    """Pictures, and what else lies in a folder."""
    folder = tmp_path / "parts"
    folder.mkdir()
    for index in range(4):
        picture(seed=index).save(folder / f"part {index}.png")
    (folder / "notes.txt").write_text("not a picture")
    return folder


def count_forwards(pipe) -> list:
    calls = []
    pipe.model.register_forward_hook(lambda *_: calls.append(1))
    return calls


# --- one picture ----------------------------------------------------------------------------------------------------


def test_the_threshold_is_read_from_the_kept_map(inspector, pipe, session, files):
    calls = count_forwards(pipe)
    path = str(files / "part 0.png")
    inspector.segment(session, path)
    assert len(calls) == 1
    level = float(np.quantile(session.segmented.anomaly_map, 0.8))
    for threshold, min_area in ((level, 0), (level, 40), (0.0, 0), (1.0, 0)):
        same, text, (original, marked), scale, regions = inspector.set_threshold(session, threshold, min_area)
        assert same is session and len(calls) == 1, "no second forward pass"
        result = inspector.read(session)
        expected = pipe(path, threshold=threshold, min_area=min_area, regions=True, heatmap=True)
        calls.pop()
        assert result["regions"] == expected["regions"] and result["label"] == expected["label"]
        np.testing.assert_array_equal(np.asarray(result["mask"]), np.asarray(expected["mask"]))
        np.testing.assert_array_equal(result["anomaly_map"], expected["anomaly_map"])
        assert f"part 0.png: {expected['label']}." in text and f"{expected['score']:.3f}" in text
        assert regions.count("<tr>") == len(expected["regions"]) + bool(expected["regions"])
        assert original.size == marked.size == (80, 60) and scale.height == 60 and scale.width > 80


def test_without_a_threshold_there_is_no_verdict(inspector, session, files):
    _, text, pictures, scale, regions = inspector.segment(session, str(files / "part 1.png"))
    assert "No verdict" in text and not regions and pictures is not None and scale is not None
    assert "anomalous" not in text and "normal" not in text
    _, text, _, _, regions = inspector.set_threshold(session, 0.0, 0)
    assert "anomalous" in text and regions
    # the picture is taken away
    _, text, *rest = inspector.segment(session, None)
    assert "Choose a picture" in text and rest == [None, None, ""]


def test_the_checkpoints_thresholds_are_where_it_starts(page, pipe, files):
    pipe.image_processor.threshold = pipe.image_processor.image_threshold = 0.01
    inspector = page.Inspector(pipe)
    _, text, *_ = inspector.segment(inspector.new_session(), str(files / "part 1.png"))
    assert "anomalous" in text and "threshold 0.010" in text


def test_scores_of_another_scale_keep_their_own_threshold(page, pipe, files):
    pipe.image_processor.score_mode = "top_k"
    inspector = page.Inspector(pipe)
    session = inspector.new_session()
    inspector.segment(session, str(files / "part 1.png"))
    _, text, *_, regions = inspector.set_threshold(session, 0.0, 0)
    assert "No verdict" in text and regions, "the map has a threshold, the score has none"
    _, text, _ = inspector.calibrate(session, [str(path) for path in files.glob("*.png")], 0.5)
    assert "by eye" in text and session.threshold == 0.0
    _, text, *_ = inspector.view(session)
    assert f"threshold {session.processor.image_threshold:.3f}" in text


def test_files_are_read_as_the_package_reads_them(inspector, pipe, session, tmp_path):
    deep = np.asarray(picture().convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(tmp_path / "turned.jpg", exif=exif)
    for name, size in (("deep.png", (80, 60)), ("turned.jpg", (60, 80))):
        inspector.segment(session, str(tmp_path / name))
        assert session.segmented.image.size == size
        np.testing.assert_array_equal(session.segmented.anomaly_map, pipe(str(tmp_path / name))["anomaly_map"])


def test_mistakes_become_messages_that_show_no_folder(page, inspector, session, tmp_path, monkeypatch):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    picture().save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:300])
    picture().save(tmp_path / "<b>large.png")
    monkeypatch.setattr(page, "MAX_MEGAPIXELS", 0.004)
    for name, words in (
        ("broken.png", "not an image file"),
        ("<b>large.png", "&lt;b&gt;large.png: the image has 0 megapixels; this page takes up to 0.004"),
        ("gone.png", "not an image file"),
    ):
        _, text, *rest = inspector.segment(session, str(tmp_path / name))
        assert words in text and 'class="message error"' in text and str(tmp_path) not in text
        assert rest == [None, None, ""] and session.segmented is None
    monkeypatch.setattr(page, "MAX_MEGAPIXELS", 1)
    assert "damaged or truncated" in inspector.segment(session, str(tmp_path / "cut.png"))[1]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "far too large" in inspector.segment(session, str(tmp_path / "<b>large.png"))[1]


# --- many pictures --------------------------------------------------------------------------------------------------


def test_a_batch_can_be_downloaded(inspector, pipe, session, files):
    (files / "broken.png").write_bytes(b"no picture")
    paths = [str(path) for path in sorted(files.iterdir())]
    session.threshold = float(pipe(str(files / "part 0.png"))["score"])
    steps = []
    _, text, table, pictures, archive = inspector.segment_batch(session, paths, lambda step, desc: steps.append(step))
    assert "4 segmented, 1 failed" in text and steps == [(0, 4)]
    assert "broken.png: not an image file" in table and len(pictures) == 4
    assert str(files) not in text + table
    with zipfile.ZipFile(archive) as content:
        names = set(content.namelist())
        lines = content.read("predictions.jsonl").decode()
        rows = list(csv.DictReader(io.StringIO(content.read("predictions.csv").decode())))
        values = np.asarray(Image.open(io.BytesIO(content.read("maps/part 0.png"))))
    assert {"maps/part 1.png", "masks/part 1.png", "overlays/part 1.jpg"} <= names
    assert str(files) not in lines
    records = {record["image"]: record for record in map(json.loads, lines.splitlines())}
    assert (
        set(records) == {row["image"] for row in rows} == {"broken.png", *(f"part {index}.png" for index in range(4))}
    )
    expected = pipe(str(files / "part 0.png"), threshold=session.threshold, regions=True)
    assert records["part 0.png"]["score"] == pytest.approx(expected["score"], abs=1e-5)
    assert records["part 0.png"]["label"] == "anomalous" and "regions" in records["part 0.png"]
    np.testing.assert_allclose(values / 65535, expected["anomaly_map"], atol=2e-5)
    # the next one takes its place
    *_, second = inspector.segment_batch(session, paths[:2])
    assert not Path(archive).exists() and Path(second).is_file()
    session.close()
    assert not Path(second).exists()


def test_a_batch_has_limits(page, inspector, session, files, monkeypatch):
    for paths in (None, [], [str(files / "notes.txt")]):
        _, text, *rest = inspector.segment_batch(session, paths)
        assert "No images" in text and rest == ["", [], None]
    monkeypatch.setattr(page, "MAX_FILES", 3)
    _, text, *rest = inspector.segment_batch(session, [str(path) for path in files.iterdir()])
    assert "4 images; this page takes up to 3" in text and rest == ["", [], None]
    (files / "broken.png").write_bytes(b"no picture")
    _, text, table, pictures, archive = inspector.segment_batch(session, [str(files / "broken.png")])
    assert "0 segmented, 1 failed" in text and "broken.png" in table and not pictures and archive


# --- calibration and words ------------------------------------------------------------------------------------------


def test_calibration_is_the_pipelines_and_stays_with_the_visitor(inspector, pipe, session, files, checkpoint):
    other = inspector.new_session()
    paths = [str(path) for path in sorted(files.iterdir())]
    _, text, config = inspector.calibrate(session, paths, 0.5)
    reference = pipeline("anomaly-segmentation", model=checkpoint)
    calibration = reference.calibrate([path for path in paths if path.endswith(".png")], false_alarm_rate=0.5)
    assert session.threshold == pytest.approx(calibration.threshold) and calibration.describe() in text
    saved = VCPCLIPImageProcessor.from_pretrained(Path(config).parent)
    assert saved.threshold == session.threshold and saved.calibration["image"]["num_images"] == 4
    assert pipe.image_processor.threshold is None and other.processor.threshold is other.threshold is None
    # a rate that so few cannot promise
    _, text, _ = inspector.calibrate(session, paths, 0.01)
    assert "cannot be guaranteed" in text and "warning" in text


def test_a_calibration_that_fails_changes_nothing(inspector, session, files):
    inspector.calibrate(session, [str(files / "part 0.png")], 0.5)
    before = session.threshold, session.processor
    (files / "broken.png").write_bytes(b"no picture")
    for paths, words in (([], "No images"), ([str(path) for path in files.iterdir()], "broken.png: not an image")):
        _, text, config = inspector.calibrate(session, paths, 0.5)
        assert words in text and str(files) not in text and config is None
        assert (session.threshold, session.processor) == before


def test_words_are_the_pipelines_prompts(inspector, pipe, session, files):
    path = str(files / "part 0.png")
    inspector.segment(session, path)
    own = session.segmented.anomaly_map
    _, text = inspector.set_words(session, "flawless\n a photo of a clean {} \n", "cracked\nworn")
    assert 'class="message normal"' in text
    prompts = {"normal": ["flawless", "a photo of a clean {}"], "abnormal": ["cracked", "worn"]}
    assert session.prompts == prompts
    np.testing.assert_array_equal(session.segmented.anomaly_map, pipe(path, prompts=prompts)["anomaly_map"])
    assert np.abs(session.segmented.anomaly_map - own).max() > 1e-4
    # mistakes leave the words as they are
    for normal, abnormal, words in (
        ("a", "b\nc", "same number"),
        ("a", "", "both states"),
        ("{} {}", "b", "exactly one"),
    ):
        _, text = inspector.set_words(session, normal, abnormal)
        assert words in text and "error" in text and session.prompts == prompts
    session.threshold = 0.5
    _, text = inspector.set_words(session, "", "")
    assert session.prompts is None and "calibrate again" in text
    np.testing.assert_array_equal(session.segmented.anomaly_map, own)


def test_words_need_a_tokenizer(inspector, pipe, session):
    _, text = inspector.set_words(session, "good", "bad")
    assert "error" not in text, "without a picture they are tried on an empty one"
    pipe.tokenizer = None
    session.prompts = None
    _, text = inspector.set_words(session, "good", "bad")
    assert "tokenizer" in text and "error" in text and session.prompts is None


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
    if width < 500:  # windows cannot be so narrow
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
    """What a visitor does."""

    def __init__(self, driver, width: int):
        self.driver, self.width = driver, width

    def find(self, css: str) -> list:
        return self.driver.find_elements("css selector", css)

    def shown(self, css: str) -> list:
        """Elements of the tab that is open; file inputs themselves are never displayed."""
        script = "return arguments[0].closest('[role=tabpanel]')?.offsetParent !== null"
        return [element for element in self.find(css) if self.driver.execute_script(script, element)]

    def wait(self, condition, what: str):
        end = time.monotonic() + 60
        while time.monotonic() < end:
            value = condition()
            if value:
                return value
            time.sleep(0.1)
        pytest.fail(f"waited in vain for {what}")

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
        """Kept where APP_SCREENSHOTS says, to be looked at."""
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
    wanted = ("Picture", "Batch", "Calibrate", "Words", "Upload file", "Spring, good", "From where on the heat map")
    for label in (*wanted, "range slider for Threshold", "Smallest region", "Download"):
        assert any(each.startswith(label) for each in reached), (label, reached)

    handle = browser.find("#slider [role=slider]")[0]
    before = int(handle.get_attribute("aria-valuenow"))
    handle.send_keys(Keys.ARROW_LEFT * 4)
    assert int(handle.get_attribute("aria-valuenow")) < before
    clip = browser.find("#slider img")[1].get_attribute("style")
    assert float(re.search(r"0px 0px 0px ([\d.]+)%", clip).group(1)) < 45
    assert browser.find("#answer")[0].get_attribute("role") == "status"
