"""The interface as OpenAPI describes it: requests made from the description, against a real server."""

import hypothesis
import pytest
import schemathesis
from hypothesis import strategies
from schemathesis import checks

from tests.server.serving import AUTHORIZED, TOKEN, png, server_process
from vcp_clip_hf.server.app import create_app
from vcp_clip_hf.server.settings import ServerSettings


# Images, and bytes that are not an image
FILES = strategies.one_of(
    strategies.builds(png, seed=strategies.integers(0, 20), width=strategies.integers(4, 200)),
    strategies.binary(max_size=300),
)
for kind in ("image/png", "image/jpeg", "application/octet-stream"):
    schemathesis.openapi.media_type(kind, FILES)

API = schemathesis.openapi.from_dict(create_app(lambda: None, ServerSettings(token=TOKEN)).openapi())
# OpenAPI cannot express that bytes are an image: random bytes are valid by the description, and are refused
UNDECIDABLE = [checks.positive_data_acceptance]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with server_process(tmp_path_factory.mktemp("api"), settings={"max_pixels": 10**6}) as server:
        yield server
        assert server.process.poll() is None
        assert "Traceback" not in server.log.read_text()


def check(case, server) -> None:
    case.call_and_validate(
        base_url=f"http://127.0.0.1:{server.port}", headers=AUTHORIZED, excluded_checks=UNDECIDABLE, timeout=20
    )


@API.parametrize()
@hypothesis.settings(max_examples=3, derandomize=True, deadline=None, database=None)
def test_a_few_requests_to_each_route(case, server):
    check(case, server)


@pytest.mark.slow
@API.parametrize()
@hypothesis.settings(max_examples=100, derandomize=True, deadline=None, database=None)
def test_many_requests_to_each_route(case, server):
    check(case, server)


def test_the_description_has_examples_and_every_failure():
    openapi = API.raw_schema
    for path, operations in openapi["paths"].items():
        for operation in operations.values():
            assert operation["summary"] and operation["responses"].get("default") is None
            if path.startswith("/v1"):
                assert {"500", "503"} <= set(operation["responses"])
    assert openapi["components"]["schemas"]["RecipeValues"]["examples"]
    assert openapi["components"]["schemas"]["Problem"]["properties"]["detail"]["examples"]
