"""Images over HTTP: every form of a request, every form of an answer, and what is refused."""

import base64
import functools
import http.server
import io
import threading

import numpy as np
import pytest
from PIL import Image

from tests.server.serving import AUTHORIZED, PNG, picture, png, serving
from vcp_clip_hf import AnomalySegmentationPipeline
from vcp_clip_hf.checkpoint_folder import load_parts
from vcp_clip_hf.server.schemas import BatchAnswer, Segmented
from vcp_clip_hf.version import EMBEDDED_CHECKPOINT, __version__


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("recipes"), max_images=4, max_pixels=1_000_000) as client:
        client.put("/v1/recipes/sensitive", json={"threshold": 0.05}, headers=AUTHORIZED)
        client.put("/v1/recipes/scored", json={"score_mode": "top_k"}, headers=AUTHORIZED)
        yield client


@pytest.fixture(scope="module")
def expected():
    parts = load_parts(EMBEDDED_CHECKPOINT)
    pipe = AnomalySegmentationPipeline(model=parts.model, image_processor=parts.image_processor, device="cpu")
    return pipe(picture(), threshold=0.05, regions=True, heatmap=True)


def opened(content: str | bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content) if isinstance(content, str) else content)))


def test_the_answer_is_the_result_of_the_pipeline(client, expected):
    answer = client.post(
        "/v1/segment?recipe=sensitive&include=map,mask,overlay,regions", content=png(), headers=PNG
    ).json()
    assert Segmented(**answer)
    assert answer["score"] == pytest.approx(expected["score"], abs=1e-6)
    assert (answer["label"], answer["height"], answer["width"]) == (expected["label"], 60, 80)
    assert answer["threshold"] == 0.05
    assert np.abs(opened(answer["map"]) / 65535 - expected["anomaly_map"]).max() < 1e-5
    assert (opened(answer["mask"]) == np.asarray(expected["mask"])).mean() > 0.999
    assert opened(answer["overlay"]).shape == (60, 80, 3)
    assert [region["box"] for region in answer["regions"]] == [region["box"] for region in expected["regions"]]
    assert answer["recipe"] == {"name": "sensitive", "version": 1} and answer["package_version"] == __version__
    assert len(answer["model"]["fingerprint"]) == 64


def test_parts_are_sent_on_request_only(client):
    answer = client.post("/v1/segment", content=png(), headers=PNG).json()
    assert not set(answer) & {"map", "mask", "overlay", "regions"}
    assert answer["recipe"] == {"name": "default", "version": 0}
    answer = client.post("/v1/segment?include=regions,regions", content=png(), headers=PNG).json()
    assert isinstance(answer["regions"], list) and "map" not in answer


def bodies(content: bytes) -> dict[str, dict]:
    text = base64.b64encode(content).decode()
    return {
        "raw": {"content": content, "headers": PNG},
        "octets": {"content": content, "headers": {"Content-Type": "application/octet-stream"}},
        "form": {"files": {"image": ("part.png", content)}},
        "another field": {"files": {"file": ("part.png", content, "image/png")}},
        "base64": {"json": {"image": text, "name": "part.png"}},
        "lines of base64": {"json": {"image": "\n".join(text[i : i + 76] for i in range(0, len(text), 76))}},
        "data URI": {"json": {"image": f"data:image/png;base64,{text}"}},
    }


@pytest.mark.parametrize("kind", bodies(b""))
def test_every_form_of_a_body_gives_the_same_answer(client, kind):
    answer = client.post("/v1/segment", **bodies(png())[kind])
    assert answer.status_code == 200, answer.text
    assert answer.json()["score"] == client.post("/v1/segment", content=png(), headers=PNG).json()["score"]
    assert answer.json()["name"] == ("part.png" if kind in ("form", "another field", "base64") else None)


@pytest.mark.parametrize("part", ["map", "mask", "overlay"])
def test_a_picture_is_the_answer_if_the_client_accepts_png(client, part):
    answer = client.post(
        f"/v1/segment?recipe=sensitive&include={part}", content=png(), headers={**PNG, "Accept": "image/png"}
    )
    assert answer.headers["content-type"] == "image/png"
    told = client.post(f"/v1/segment?recipe=sensitive&include={part}", content=png(), headers=PNG).json()
    assert base64.b64decode(told[part]) == answer.content
    assert float(answer.headers["x-score"]) == pytest.approx(told["score"], abs=1e-6)
    assert answer.headers["x-label"] == told["label"]
    assert (answer.headers["x-recipe"], answer.headers["x-recipe-version"]) == ("sensitive", "1")
    assert answer.headers["x-model-fingerprint"] == told["model"]["fingerprint"]
    assert answer.headers["x-package-version"] == __version__


@pytest.mark.parametrize("include", ["", "?include=regions", "?include=map,mask"])
def test_a_picture_must_be_named(client, include):
    answer = client.post(f"/v1/segment{include}", content=png(), headers={**PNG, "Accept": "image/png"})
    assert answer.status_code == 406 and "must name one of map, mask, overlay" in answer.json()["detail"]


def test_a_client_that_accepts_everything_gets_json(client):
    for accept in ("*/*", "application/json", "text/html, image/png, */*;q=0.8"):
        answer = client.post("/v1/segment?include=map", content=png(), headers={**PNG, "Accept": accept})
        assert answer.json()["map"]


LONG = base64.b64encode(b"x" * 3000).decode()
JSON_TYPE = {"Content-Type": "application/json"}
FORM_TYPE = {"Content-Type": "multipart/form-data; boundary=x"}
# what curl --data-binary sends without -H
CURL_TYPE = {"Content-Type": "application/x-www-form-urlencoded"}
REFUSED = {
    "broken": (422, "not an image file", {"content": b"broken", "headers": PNG}),
    "empty": (422, "empty (0 bytes)", {"content": b"", "headers": PNG}),
    "truncated": (422, "truncated", {"content": png()[:-200], "headers": PNG}),
    "curl without a type": (415, "Content-Type: image/png", {"content": b"x", "headers": CURL_TYPE}),
    "no type": (415, "not known", {"content": b"x"}),
    "compressed": (415, "gzip' is not supported", {"content": b"x", "headers": {**PNG, "Content-Encoding": "gzip"}}),
    "pixels": (413, "exceed max_pixels", {"content": png(Image.new("L", (1001, 1000))), "headers": PNG}),
    "two images": (413, "2 images; expected at most 1", {"files": [("image", png()), ("image", png())]}),
    "a field": (422, "'recipe' is not a file", {"files": {"image": png()}, "data": {"recipe": "a"}}),
    "no file": (422, "has no file", {"content": b"--x--\r\n", "headers": FORM_TYPE}),
    "no boundary": (400, "boundary", {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}),
    "not JSON": (422, "the body: Invalid JSON", {"content": b"{", "headers": JSON_TYPE}),
    "deep JSON": (422, "the body: Invalid JSON", {"content": b"[" * 10**5, "headers": JSON_TYPE}),
    "unknown field": (422, "picture: Extra inputs", {"json": {"picture": "x"}}),
    "nothing": (422, "needs either `image` (base64) or `url`", {"json": {}}),
    "both": (422, "needs either `image` (base64) or `url`", {"json": {"image": "x", "url": "http://127.0.0.1/"}}),
    "not base64": (422, "(3 characters) is not base64", {"json": {"image": "%%%"}}),
    "not ASCII": (422, "is not base64", {"json": {"image": "ä" * 40}}),
    "base64 of text": (422, "not an image file", {"json": {"image": LONG}}),
    "a path": (422, "is not base64", {"json": {"image": "/etc/passwd-"}}),
    "a URL": (403, "without --allow-urls", {"json": {"url": "http://127.0.0.1:1/a.png"}}),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(client, kind):
    status, sentence, options = REFUSED[kind]
    answer = client.post("/v1/segment", **options)
    assert answer.status_code == status and sentence in answer.json()["detail"], answer.text


@pytest.mark.parametrize(
    ("query", "status", "sentence"),
    [
        ("?include=maps", 422, "include"),
        ("?include=", 422, "include"),
        ("?inclde=map", 422, "inclde: Extra inputs"),
        ("?recipe=unknown", 404, "There is no recipe 'unknown'; known are default"),
        ("?recipe=../../etc", 404, "There is no recipe"),
        ("?recipe=scored&include=mask", 422, "A mask needs a threshold"),
        ("?recipe=scored&include=regions", 422, "Regions need a threshold"),
    ],
)
def test_queries_that_are_refused(client, query, status, sentence):
    answer = client.post(f"/v1/segment{query}", content=png(), headers=PNG)
    assert answer.status_code == status and sentence in answer.json()["detail"], answer.text


def test_a_broken_image_does_not_fail_the_others(client):
    large = png(Image.new("L", (1001, 1000)))
    files = [("image", (f"{number}.png", content)) for number, content in enumerate((png(), b"broken", large, png()))]
    answer = client.post("/v1/segment/batch?include=mask&recipe=sensitive", files=files)
    assert answer.status_code == 200 and BatchAnswer(**answer.json())
    first, broken, too_large, last = answer.json()["results"]
    assert first["mask"] and {**first, "name": "3.png"} == pytest.approx(last, abs=1e-5)
    assert broken == {
        "name": "1.png",
        "error": "the image bytes: not an image file that Pillow can read.",
        "status": 422,
    }
    assert too_large["status"] == 413 and answer.json()["recipe"] == {"name": "sensitive", "version": 1}


def test_a_batch_in_json(client):
    images = [{"image": base64.b64encode(png(seed=seed)).decode(), "name": str(seed)} for seed in range(3)]
    answer = client.post("/v1/segment/batch", json={"images": [*images, {"url": "http://127.0.0.1/"}]}).json()
    assert [each["name"] for each in answer["results"]] == ["0", "1", "2", None]
    assert answer["results"][3]["status"] == 403
    alone = [client.post("/v1/segment", json=image).json()["score"] for image in images]
    assert [each["score"] for each in answer["results"][:3]] == pytest.approx(alone, abs=1e-5)


def test_batches_that_are_refused(client):
    for options, status in (
        ({"files": [("image", png())] * 5}, 413),
        ({"json": {"images": []}}, 422),
        ({"json": {"images": [{"image": "x"}] * 5}}, 413),
        ({"json": []}, 422),
    ):
        assert client.post("/v1/segment/batch", **options).status_code == status


def test_urls_if_they_are_allowed(tmp_path):
    (tmp_path / "part.png").write_bytes(png())
    (tmp_path / "large.png").write_bytes(b"x" * 200_000)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    files = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=files.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{files.server_port}"
    with serving(tmp_path / "recipes", allow_urls=True, max_body_bytes=100_000) as client:
        answer = client.post("/v1/segment", json={"url": f"{base}/part.png"})
        assert answer.status_code == 200
        for url, sentence in (
            (f"{base}/missing.png", "404"),
            (f"{base}/large.png", "larger than max_download_bytes"),
            ("file:///etc/passwd", "must begin with http"),
            ("HTTP://127.0.0.1/", "must begin with http"),
        ):
            answer = client.post("/v1/segment", json={"url": url})
            assert answer.status_code == 422 and sentence in answer.json()["detail"], answer.text
    files.shutdown()
    files.server_close()
