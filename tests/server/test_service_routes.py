"""Health, metrics and documentation, for those who run a server."""

import threading
import time

import pytest
from fastapi.testclient import TestClient

from tests.server.serving import AUTHORIZED, PNG, embedded_engine, png, serving
from vcp_clip_hf.server.app import create_app
from vcp_clip_hf.server.recipes import RecipeStore
from vcp_clip_hf.server.settings import ServerSettings


def test_a_server_is_not_ready_while_it_loads_or_stops(tmp_path):
    go_on, engine = threading.Event(), embedded_engine()

    def open_parts():
        go_on.wait(30)
        return engine, RecipeStore(tmp_path, engine)

    with TestClient(create_app(open_parts, ServerSettings(token=AUTHORIZED["Authorization"][7:]))) as client:
        assert client.get("/health/live").json() == {"status": "live"}
        for answer in (
            client.get("/health/ready"),
            client.post("/v1/segment", content=png(), headers=PNG),
            client.get("/v1/recipes"),
            client.put("/v1/recipes/a", json={}, headers=AUTHORIZED),
        ):
            assert answer.status_code == 503 and answer.json()["detail"] == "The model is loading."
            assert int(answer.headers["retry-after"]) >= 1
        assert client.get("/metrics").status_code == client.get("/docs").status_code == 200
        go_on.set()
        end = time.monotonic() + 30
        while client.get("/health/ready").status_code == 503:
            assert time.monotonic() < end
        assert client.get("/health/ready").json()["model"]["format"] == "checkpoint"
        client.app.state.server.draining = True
        assert client.get("/health/ready").status_code == 503
        # what still arrives is answered
        assert client.post("/v1/segment", content=png(), headers=PNG).status_code == 200


def test_a_model_that_cannot_be_loaded_stops_the_server():
    def open_parts():
        raise ValueError("no such model")

    stopped = threading.Event()
    app = create_app(open_parts, ServerSettings())
    app.state.server.on_failure = stopped.set
    with TestClient(app) as client:
        assert stopped.wait(10)
        assert client.get("/health/ready").status_code == 503
    assert str(app.state.server.failure) == "no such model"


def test_the_documentation_needs_no_network(tmp_path):
    with serving(tmp_path) as client:
        page = client.get("/docs")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert client.get("/redoc").status_code == client.get("/docs/oauth2-redirect").status_code == 404
        openapi = client.get("/openapi.json").json()
        assert openapi["paths"]["/v1/segment"]["post"]["requestBody"]["content"]["image/png"]


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/health/live"), ("GET", "/v1/segment"), ("PATCH", "/v1/recipes/a")]
)
def test_other_methods_are_refused(tmp_path, method, path):
    with serving(tmp_path) as client:
        answer = client.request(method, path)
        assert answer.status_code == 405 and "does not accept this method" in answer.json()["detail"]
        assert answer.headers["allow"] and method not in answer.headers["allow"].split(", ")
