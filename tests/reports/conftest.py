"""Runs to report, parsed pages, and a browser."""

import json
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.common import tiny_model, tiny_tokenizer
from vcp_clip_hf import AnomalySegmentationPipeline, VCPCLIPImageProcessor
from vcp_clip_hf.prediction import predict_files


HOSTILE = "<script>alert(1)<&'\" $x$ #1%.png"


def make_pipe(**settings) -> AnomalySegmentationPipeline:
    torch.manual_seed(0)
    model = tiny_model()
    processor = VCPCLIPImageProcessor.for_model(model.config, **{"smoothing_sigma": 2.0, **settings})
    return AnomalySegmentationPipeline(
        model=model, image_processor=processor, tokenizer=tiny_tokenizer(), device="cpu"
    )


def save_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize((80, 64), Image.Resampling.NEAREST).save(path)


def predict(images: Path, output: Path, settings=(), **options) -> Path:
    """Run predict over a folder and return the output folder."""
    predict_files(make_pipe(**dict(settings)), [images], output, progress=False, **options)
    return output


def median_score(images: Path, output: Path) -> float:
    """Return a threshold that divides the scores in two halves."""
    lines = (predict(images, output) / "predictions.jsonl").read_text().splitlines()
    scores = sorted(json.loads(line)["score"] for line in lines if "error" not in line)
    middle = len(scores) // 2
    return (scores[middle - 1] + scores[middle]) / 2


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """A folder with six images in two folders, one of them with a hostile name, and a broken file."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(3):
        save_image(folder / "left" / f"part {number}.png", number)
    for number, name in enumerate(("bolt.png", "nut.png", HOSTILE)):
        save_image(folder / "right" / name, 10 + number)
    (folder / "right" / "broken.png").write_bytes(b"not a picture")
    return folder


@pytest.fixture(scope="session")
def run(images, tmp_path_factory) -> Path:
    """A finished run of predict with thresholds, masks and overlays."""
    threshold = median_score(images, tmp_path_factory.mktemp("scores"))
    settings = {"threshold": threshold, "image_threshold": threshold}
    return predict(images, tmp_path_factory.mktemp("run"), settings, regions=True)


class Page(HTMLParser):
    """The elements, attributes and text of a page, as an HTML parser sees them."""

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text, self.data, self._within = "", [], ""
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._within = tag
        if tag == "script":
            self.data.append("")

    def handle_endtag(self, tag):
        self._within = ""

    def handle_data(self, data):
        if self._within == "script":
            self.data[-1] += data
        elif self._within != "style":
            self.text += data

    def all(self, tag: str, **attributes: str) -> list[dict[str, str]]:
        return [found for name, found in self.elements if name == tag and attributes.items() <= found.items()]

    def json(self, **attributes: str) -> list:
        """Return the contents of inert script elements with these attributes."""
        scripts = self.all("script")
        return [
            json.loads(text)
            for found, text in zip(scripts, self.data, strict=True)
            if found.get("type") == "application/json" and attributes.items() <= found.items()
        ]


class Browser:
    """A visitor of a report."""

    def __init__(self, width: int, height: int):
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        driver = shutil.which("chromedriver")
        if binary is None or driver is None:
            pytest.fail("Chromium and its driver are needed; on Debian: apt-get install chromium chromium-driver")
        options = webdriver.ChromeOptions()
        options.binary_location = binary
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
            options.add_argument(argument)
        options.add_argument(f"--window-size={width},{height}")
        options.add_argument("--force-prefers-reduced-motion")  # scrolling ends before the next step
        if width < 500:  # a window cannot be this narrow
            metrics = {"width": width, "height": height, "pixelRatio": 1.0}
            options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        self.driver, self.width = webdriver.Chrome(options=options, service=Service(driver)), width

    def open(self, path: Path) -> None:
        self.driver.get(path.as_uri())

    def find(self, css: str) -> list:
        return self.driver.find_elements("css selector", css)

    def text(self, css: str) -> str:
        return self.find(css)[0].text

    def run(self, script: str):
        return self.driver.execute_script(f"return {script}")

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def choose(self, label: str, option: str) -> None:
        """Choose an option of the select element in a label."""
        from selenium.webdriver.support.select import Select

        (found,) = [each for each in self.find(".controls label") if each.text.startswith(label)]
        Select(found.find_element("css selector", "select")).select_by_visible_text(option)

    def wait(self, condition, what: str):
        end = time.monotonic() + 20
        while time.monotonic() < end:
            value = condition()
            if value:
                return value
            time.sleep(0.05)
        pytest.fail(f"timeout while waiting for {what}")

    def complaints(self) -> list[str]:
        """Return the messages of the console, including violations of the Content-Security-Policy."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> set[str]:
        """Return the addresses that the page requested, without data URIs."""
        events = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        sent = (each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent")
        return {url for url in sent if not url.startswith("data:")}


@pytest.fixture(scope="session")
def wide_browser():
    browser = Browser(1280, 900)
    yield browser
    browser.driver.quit()


@pytest.fixture(scope="session")
def narrow_browser():
    browser = Browser(390, 844)
    yield browser
    browser.driver.quit()
