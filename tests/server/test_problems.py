"""Answers to requests that fail, expected or not."""

import re

from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from starlette.responses import StreamingResponse

from vcp_clip_hf.server.problems import HideErrors, answer_problems, describe_errors, problems


def broken_app() -> FastAPI:
    app = FastAPI()
    answer_problems(app)
    app.add_middleware(HideErrors)

    @app.get("/broken")
    def broken():
        raise RuntimeError("a secret of /home/somebody")

    @app.get("/broken-later")
    def broken_later():
        def parts():
            yield b"begin"
            raise RuntimeError("a secret")

        return StreamingResponse(parts())

    @app.get("/refused")
    def refused():
        raise HTTPException(409, "No.", headers={"X-Reason": "because"})

    @app.get("/number/{number}")
    def number(number: int, limit: int = 3):
        return number

    return app


def test_an_unexpected_error_has_an_id_that_is_in_the_log(caplog):
    answer = TestClient(broken_app()).get("/broken")
    assert answer.status_code == 500 and set(answer.json()) == {"detail", "id"}
    assert "secret" not in answer.text and "Traceback" not in answer.text
    assert answer.json()["id"] in answer.json()["detail"]
    (record,) = caplog.records
    assert answer.json()["id"] in record.getMessage() and "a secret of /home/somebody" in caplog.text


def test_an_error_after_the_begin_of_an_answer_is_only_logged(caplog):
    answer = TestClient(broken_app()).get("/broken-later")
    assert answer.content == b"begin"
    assert re.search(r"Error [0-9a-f]{12} in GET '/broken-later'", caplog.text)


def test_line_breaks_in_a_path_do_not_forge_lines_of_the_log(caplog):
    app = broken_app()

    @app.get("/path/{name:path}")
    def fail(name: str):
        raise RuntimeError

    TestClient(app).get("/path/a%0DERROR forged")
    assert r"/path/a\rERROR forged" in caplog.text


def test_expected_errors_are_sentences():
    client = TestClient(broken_app())
    answer = client.get("/refused")
    assert (answer.status_code, answer.json()) == (409, {"detail": "No."}) and answer.headers["x-reason"] == "because"
    answer = client.get("/number/one?limit=two")
    assert answer.status_code == 422 and re.match(
        r"number: Input should be .*\. limit: Input", answer.json()["detail"]
    )
    assert client.get("/unknown").json() == {"detail": "There is no such route; /docs lists all of them."}
    answer = client.post("/refused")
    assert answer.status_code == 405 and "does not accept this method" in answer.json()["detail"]


def test_many_errors_are_not_all_listed():
    errors = [{"loc": ("body", f"field{number}"), "msg": "is wrong"} for number in range(8)]
    text = describe_errors(errors, "the body")
    assert text.startswith("field0: is wrong. field1") and text.endswith("field4: is wrong. 3 more values are wrong.")
    assert describe_errors([{"loc": (), "msg": "is wrong"}], "the body") == "the body: is wrong."


def test_every_route_documents_unexpected_errors():
    assert list(problems(404, 422)) == [404, 422, 500]
