"""URLs with limits, against a real server; data URIs and base64."""

import base64
import http.server
import io
import threading
import time
import tracemalloc
import urllib.parse
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from tests.export_run import small_model, small_processor
from vcp_clip_hf.image_loading import load_image
from vcp_clip_hf.image_sources import download
from vcp_clip_hf.pipeline_anomaly_segmentation import AnomalySegmentationPipeline
from vcp_clip_hf.prediction import predict_files


def encoded() -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((30, 20), 60).convert("RGB").save(stream, "PNG")
    return stream.getvalue()


PNG = encoded()


class Handler(http.server.BaseHTTPRequestHandler):
    """A server with good and bad manners, chosen by the path."""

    requests: Counter = Counter()

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.requests[self.path] += 1
        try:
            getattr(self, self.path.strip("/").split("-")[0])()
        except OSError:  # the client has gone
            self.close_connection = True

    def send(self, length: int | None, **headers: str):
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def good(self):
        self.send(len(PNG))
        self.wfile.write(PNG)

    def page(self):
        self.send(13)
        self.wfile.write(b"<html></html>")

    def missing(self):
        self.send_error(404)

    def redirect(self):
        self.send_response(302)
        self.send_header("Location", "/good-redirected")
        self.end_headers()

    def file(self):
        self.send_response(302)
        self.send_header("Location", "ftp://127.0.0.1/image.png")
        self.end_headers()

    def loop(self):
        self.send_response(302)
        self.send_header("Location", f"{self.path}x")
        self.end_headers()

    def huge(self):
        self.send(6 * 10**9)
        self.wfile.write(PNG)

    def endless(self):
        self.send(None)
        while True:
            self.wfile.write(b"x" * 2**16)

    def drip(self):
        self.send(10**6)
        while True:
            self.wfile.write(b"x")
            time.sleep(0.05)

    def headers_that_drip(self):
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            self.wfile.write(b"X")
            time.sleep(0.05)

    def silent(self):
        time.sleep(5)

    def cut(self):
        self.send(len(PNG))
        self.wfile.write(PNG[: len(PNG) // 2])


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_pictures_are_fetched_once(server):
    expected = np.asarray(Image.open(io.BytesIO(PNG)))
    for path in ("good-1", "redirect-1"):
        np.testing.assert_array_equal(np.asarray(load_image(f"{server}/{path}")), expected)
        assert Handler.requests[f"/{path}"] == 1
    assert Handler.requests["/good-redirected"] == 1


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("page", "page: not an image file"),
        ("missing", "missing: could not be fetched.*404"),
        ("file", "file: could not be fetched.*ftp"),
        ("loop", "loop: could not be fetched"),
        ("cut", "cut: could not be fetched.*IncompleteRead"),
        ("huge", "huge: larger than max_download_bytes=268435456"),
    ],
)
def test_failures_name_the_address(server, path, message):
    with pytest.raises(ValueError, match=message):
        load_image(f"{server}/{path}")


def test_a_server_that_is_gone(server):
    with pytest.raises(ValueError, match="nothing: could not be fetched"):
        load_image("http://127.0.0.1:9/nothing")
    with pytest.raises(ValueError, match="could not be fetched"):
        load_image("http://[broken/x.png")


@pytest.mark.parametrize("path", ["drip", "headers_that_drip", "silent"])
def test_the_total_time_is_limited(server, path):
    started = time.monotonic()
    with pytest.raises(ValueError, match=rf"{path}: could not be fetched within 0.4 s"):
        load_image(f"{server}/{path}", timeout=0.4)
    assert time.monotonic() - started < 4


def test_the_size_is_limited(server):
    tracemalloc.start()
    with pytest.raises(ValueError, match="max_download_bytes=1000000 "):
        load_image(f"{server}/endless", max_download_bytes=10**6)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**7
    assert download(f"{server}/good-2", max_bytes=len(PNG)) == PNG
    with pytest.raises(ValueError, match="must be positive"):
        download(f"{server}/good-3", timeout=0)


def test_data_uris_and_base64():
    expected = np.asarray(Image.open(io.BytesIO(PNG)))
    text = base64.b64encode(PNG).decode()
    lines = base64.encodebytes(PNG).decode()
    quoted = urllib.parse.quote_from_bytes(PNG)
    for source in (
        f"data:image/png;base64,{text}",
        f"data:;base64,{urllib.parse.quote(text)}",
        f"data:image/png,{quoted}",
        text,
        text.rstrip("="),
        lines,
    ):
        np.testing.assert_array_equal(np.asarray(load_image(source)), expected)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("data:image/png;base64,@@SECRET@@", ValueError, "data URI .image/png, 32 characters.: damaged base64"),
        ("data:image/png;base64", ValueError, "no comma"),
        ("data:image/png;base64," + base64.b64encode(b"SECRET" * 99).decode(), ValueError, "not an image"),
        ("data:image/png;base64," + base64.b64encode(PNG[:200]).decode(), ValueError, "damaged or truncated"),
        (base64.b64encode(b"SECRET" * 999).decode(), ValueError, "7992 characters is base64, but not of an image"),
        ("SECRET/" * 999 + "!", ValueError, "neither a path nor base64"),
        ("images/part/of/a/folder/that/is/not/here/and/long/enough", FileNotFoundError, "No such image file: 'images"),
        ("part\0.png", FileNotFoundError, "No such image file"),
        ("", FileNotFoundError, "No such image file"),
    ],
)
def test_damaged_payloads_are_explained_and_never_printed(source, error, message):
    with pytest.raises(error, match=message) as caught:
        load_image(source)
    assert "SECRET" not in str(caught.value) and base64.b64encode(b"SECRET").decode() not in str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_runs_request_each_url_once(server, tmp_path, num_workers):
    model = small_model()
    pipe = AnomalySegmentationPipeline(model=model, image_processor=small_processor(model), device="cpu")
    urls = [f"{server}/good-{num_workers}-{index}" for index in range(3)]
    summary = predict_files(pipe, urls, tmp_path, num_workers=num_workers, progress=False)
    assert summary.predicted == 3
    assert [Handler.requests[url.removeprefix(server)] for url in urls] == [1, 1, 1]
