"""Recipes over HTTP: values, versions, regions of interest and references."""

import errno
import hashlib
import io
import os

import numpy as np
import pytest
from PIL import Image

from tests.server.serving import AUTHORIZED, PNG, TOKEN, picture, png, server_process, serving
from vcp_clip_hf.server.schemas import RecipeAnswer


UPLOAD = {**PNG, **AUTHORIZED}


@pytest.fixture
def client(tmp_path):
    with serving(tmp_path / "recipes", max_images=3, max_pixels=1_000_000) as client:
        yield client


def put(client, name="screws", match=None, **values):
    headers = AUTHORIZED if match is None else {**AUTHORIZED, "If-Match": match}
    return client.put(f"/v1/recipes/{name}", json=values, headers=headers)


def segment(client, name="screws", include=""):
    return client.post(f"/v1/segment?recipe={name}{include}", content=png(), headers=PNG)


def test_a_change_is_in_force_at_once_and_named_in_every_answer(client):
    answer = put(client, threshold=0.05, min_area=3)
    assert answer.status_code == 200 and answer.headers["etag"] == '"1"' and RecipeAnswer(**answer.json())
    assert segment(client).json()["threshold"] == 0.05
    # PUT replaces all values: what is not given goes back to the checkpoint's
    answer = put(client, threshold=0.9)
    assert answer.json() == {**answer.json(), "version": 2, "threshold": 0.9, "min_area": 0}
    assert segment(client).json()["recipe"] == {"name": "screws", "version": 2}
    assert client.get("/v1/recipes/screws").json() == answer.json()
    assert client.get("/v1/recipes/screws").headers["etag"] == '"2"'
    assert [each["threshold"] for each in client.get("/v1/recipes/screws/history").json()] == [0.05, 0.9]
    listed = client.get("/v1/recipes").json()
    assert listed["recipes"] == [{"name": "default", "version": 0}, {"name": "screws", "version": 2}]
    assert listed["model"]["score_modes"] == ["max", "top_k"]


def test_recipes_survive_a_restart(tmp_path):
    with serving(tmp_path) as client:
        stored = put(client, threshold=0.25).json()
    with serving(tmp_path) as client:
        assert client.get("/v1/recipes/screws").json() == stored


def test_a_change_is_refused_if_somebody_else_was_faster(client):
    assert put(client, match='"0"', threshold=0.1).status_code == 412  # there is no such recipe
    assert put(client, match="*", threshold=0.1).status_code == 412
    create = {**AUTHORIZED, "If-None-Match": "*"}
    assert client.put("/v1/recipes/screws", json={}, headers=create).status_code == 200
    assert client.put("/v1/recipes/screws", json={}, headers=create).status_code == 412
    assert put(client, match='"1"', threshold=0.1).headers["etag"] == '"2"'
    late = put(client, match='"1"', threshold=0.2)
    assert late.status_code == 412 and "has version 2 now" in late.json()["detail"]
    assert put(client, match='W/"2"', threshold=0.3).headers["etag"] == '"3"'
    assert put(client, match="*", threshold=0.3).status_code == 200
    assert put(client, match="abc", threshold=0.4).status_code == 412
    both = {**create, "If-Match": "*"}
    assert client.put("/v1/recipes/screws", json={}, headers=both).status_code == 422
    assert client.get("/v1/recipes/screws").json()["threshold"] == 0.3


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"threshold": 1.5}, "threshold"),
        ({"threshold": "0.5"}, "threshold"),
        ({"threshold": True}, "threshold"),
        ({"image_threshold": 1.5, "score_mode": "max"}, "image_threshold"),
        ({"score_mode": "image_head"}, "score_mode"),
        ({"score_mode": "maximum"}, "score_mode"),
        ({"min_area": -1}, "min_area"),
        ({"min_area": 1.5}, "min_area"),
        ({"reference_weight": 0.5}, "reference_weight"),
        ({"treshold": 0.5}, "treshold: Extra inputs"),
        ({"version": 7}, "version: Extra inputs"),
        ([], "body"),
    ],
)
def test_values_that_are_refused(client, values, place):
    answer = client.put("/v1/recipes/screws", json=values, headers=AUTHORIZED)
    assert answer.status_code == 422 and place in answer.json()["detail"], answer.text
    assert client.get("/v1/recipes/screws").status_code == 404


def test_numbers_that_are_not_json_are_refused(client):
    for text in (b'{"threshold": NaN}', b'{"threshold": Infinity}', b"{", b"[" * 10**5, b"\xff"):
        answer = client.put(
            "/v1/recipes/screws", content=text, headers={**AUTHORIZED, "Content-Type": "application/json"}
        )
        assert answer.status_code in (400, 422) and answer.json()["detail"]


@pytest.mark.parametrize("name", ["a b", ".hidden", "x" * 65, "ä", "..%2f..%2fescape", "%00"])
def test_names_that_are_refused(client, tmp_path, name):
    answer = client.put(f"/v1/recipes/{name}", json={}, headers=AUTHORIZED)
    assert answer.status_code in (404, 405, 422), answer.text
    assert client.get(f"/v1/recipes/{name}").status_code == 404
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipes"]


def test_deleting(client):
    put(client, threshold=0.1)
    wrong = client.delete("/v1/recipes/screws", headers={**AUTHORIZED, "If-Match": '"7"'})
    assert wrong.status_code == 412
    assert client.delete("/v1/recipes/screws", headers=AUTHORIZED).status_code == 204
    assert client.delete("/v1/recipes/screws", headers=AUTHORIZED).status_code == 404
    assert segment(client).status_code == 404
    # a version is never used twice
    assert put(client, threshold=0.2).json()["version"] == 3
    answer = client.delete("/v1/recipes/default", headers=AUTHORIZED)
    assert answer.status_code == 409 and "cannot be deleted" in answer.json()["detail"]


def test_a_region_of_interest(client):
    put(client, threshold=0.0001)
    roi = Image.new("L", (80, 60))
    roi.paste(255, (0, 0, 40, 60))
    answer = client.put("/v1/recipes/screws/roi", content=png(roi), headers=UPLOAD)
    assert answer.status_code == 200 and answer.json()["roi"] == hashlib.sha256(png(roi)).hexdigest()
    assert client.get(f"/v1/files/{answer.json()['roi']}").content == png(roi)
    mask = client.post("/v1/segment?recipe=screws&include=mask", content=png(), headers={**PNG, "Accept": "image/png"})
    inside = np.asarray(Image.open(io.BytesIO(mask.content))) > 0
    assert inside[:, :40].any() and not inside[:, 40:].any()
    # an image of another size is refused alone
    other = client.post("/v1/segment?recipe=screws", content=png(width=90), headers=PNG)
    assert other.status_code == 422 and "roi_mask is (60, 80)" in other.json()["detail"]
    # values are set without losing the region, and the region without losing the values
    assert put(client, threshold=0.0002).json()["roi"] is not None
    answer = client.delete("/v1/recipes/screws/roi", headers=AUTHORIZED)
    assert answer.json()["roi"] is None and answer.json()["threshold"] == 0.0002


def test_references_change_the_result(client):
    put(client)
    zero_shot = segment(client).json()["score"]
    files = [("image", (f"{seed}.png", png(seed=seed))) for seed in range(2)]
    answer = client.put("/v1/recipes/screws/references", files=files, headers=AUTHORIZED)
    assert answer.status_code == 200, answer.text
    assert answer.json()["references"] == [hashlib.sha256(png(seed=seed)).hexdigest() for seed in range(2)]
    compared = client.post("/v1/segment?recipe=screws", content=png(seed=5), headers=PNG).json()
    alone = client.post("/v1/segment", content=png(seed=5), headers=PNG).json()
    assert abs(compared["score"] - alone["score"]) > 1e-3
    put(client, reference_weight=0)
    assert segment(client).json()["score"] == pytest.approx(zero_shot, abs=1e-5)
    answer = client.delete("/v1/recipes/screws/references", headers=AUTHORIZED)
    assert answer.json()["references"] == []


@pytest.mark.parametrize("what", ["roi", "references"])
def test_pictures_that_are_refused(client, what):
    put(client)
    large = png(Image.new("L", (1001, 1000), 255))
    for content, status in ((b"broken", 422), (large, 413), (b"", 422), (png()[:-200], 422)):
        answer = client.put(f"/v1/recipes/screws/{what}", files={"image": content}, headers=AUTHORIZED)
        assert answer.status_code == status, answer.text
    assert client.get("/v1/recipes/screws").json()["version"] == 1
    black = client.put("/v1/recipes/screws/roi", content=png(Image.new("L", (8, 8))), headers=UPLOAD)
    assert black.status_code == 422 and "leaves nothing to inspect" in black.json()["detail"]
    many = client.put("/v1/recipes/screws/references", files=[("image", png())] * 4, headers=AUTHORIZED)
    assert many.status_code == 413


def test_what_is_not_there(client):
    assert client.get("/v1/recipes/unknown").status_code == 404
    assert client.get("/v1/recipes/unknown/history").status_code == 404
    for key in ("0" * 64, "x", "..%2f.lock", ".lock"):
        assert client.get(f"/v1/files/{key}").status_code == 404
    for what in ("roi", "references"):
        assert client.delete(f"/v1/recipes/unknown/{what}", headers=AUTHORIZED).status_code == 404


def test_a_disk_that_takes_nothing_more(tmp_path):
    """Simulate a full disk by the limit of the file size, which also holds for root."""
    limited = (
        "-c",
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        " resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000));"
        " from vcp_clip_hf.cli import main; main(['serve', *sys.argv[1:]])",
    )
    with server_process(tmp_path, program=limited) as server:
        json_type = {**AUTHORIZED, "Content-Type": "application/json"}
        assert server.ask("PUT", "/v1/recipes/a", b'{"threshold": 0.3}', json_type).status == 200
        noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
        answer = server.ask("PUT", "/v1/recipes/a/references", png(Image.fromarray(noise)), UPLOAD)
        assert answer.status == 507 and os.strerror(errno.EFBIG) in answer.json()["detail"]
        assert server.ask("GET", "/v1/recipes/a").json()["version"] == 1
        # the server goes on, and nothing is left over
        assert server.segment(png(picture(3)), "?recipe=a").json()["threshold"] == 0.3
        assert list((tmp_path / "recipes" / "files").iterdir()) == []
        assert server.ask("PUT", "/v1/recipes/a", b'{"threshold": 0.4}', json_type).json()["version"] == 2
        assert TOKEN not in server.log.read_text()
