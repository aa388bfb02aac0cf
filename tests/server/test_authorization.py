"""The token: where it is read from, and which requests it opens."""

import pytest

from tests.server.serving import AUTHORIZED, PNG, TOKEN, png, serving
from vcp_clip_hf.server.authorization import TOKEN_VARIABLE, read_token


def test_a_file_goes_before_the_environment(tmp_path):
    (tmp_path / "token").write_text(f"  {TOKEN}\n")
    assert read_token(tmp_path / "token", {TOKEN_VARIABLE: "another-token-of-the-environment"}) == TOKEN
    assert read_token(None, {TOKEN_VARIABLE: TOKEN}) == TOKEN
    assert read_token(None, {TOKEN_VARIABLE: ""}) is None and read_token(None, {}) is None


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "has 0 characters; expected 16 or more"),
        ("short", "has 5 characters"),
        ("two words of a token", "one word of ASCII"),
        ("tökens-that-are-long", "one word of ASCII"),
    ],
)
def test_tokens_that_are_refused(tmp_path, content, sentence):
    (tmp_path / "token").write_text(content)
    with pytest.raises(ValueError, match=sentence) as error:
        read_token(tmp_path / "token", {})
    assert not content or content not in str(error.value)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_token(tmp_path / "token", {TOKEN_VARIABLE: TOKEN})


CHANGES = (
    ("PUT", "/v1/recipes/a"),
    ("DELETE", "/v1/recipes/a"),
    ("PUT", "/v1/recipes/a/roi"),
    ("DELETE", "/v1/recipes/a/roi"),
    ("PUT", "/v1/recipes/a/references"),
    ("DELETE", "/v1/recipes/a/references"),
)


def test_every_change_needs_the_token(tmp_path):
    with serving(tmp_path) as client:
        described = client.get("/openapi.json").json()["paths"]
        protected = {
            (method.upper(), path.replace("{name}", "a"))
            for path, operations in described.items()
            for method, operation in operations.items()
            if operation.get("security")
        }
        assert protected == set(CHANGES)
        for method, path in CHANGES:
            for headers in ({}, {"Authorization": "Basic eDp5"}, {"Authorization": f"Bearer {TOKEN}x"}):
                answer = client.request(method, path, content=png(), headers={**PNG, **headers})
                assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
                assert TOKEN not in answer.text
        assert client.get("/v1/recipes").json()["recipes"] == [{"name": "default", "version": 0}]
        assert client.put("/v1/recipes/a", json={}, headers=AUTHORIZED).status_code == 200
        # nothing else needs one
        assert client.post("/v1/segment", content=png(), headers=PNG).status_code == 200


def test_without_a_token_nothing_can_be_changed(tmp_path):
    with serving(tmp_path, token=None) as client:
        for method, path in CHANGES:
            answer = client.request(method, path, content=png(), headers={**PNG, **AUTHORIZED})
            assert answer.status_code == 403 and "started without a token" in answer.json()["detail"]
