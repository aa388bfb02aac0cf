"""The page that describes the interface: complete, and closed."""

import re
from html.parser import HTMLParser

from vcp_clip_hf.server.app import create_app
from vcp_clip_hf.server.docs_page import docs_page
from vcp_clip_hf.server.settings import ServerSettings


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.addresses = set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for name, value in attrs if name in ("href", "src", "srcset", "action", "style")]


def test_every_route_is_described_and_nothing_is_loaded():
    openapi = create_app(None, ServerSettings()).openapi()
    page = docs_page(openapi)
    for path, operations in openapi["paths"].items():
        for method, operation in operations.items():
            assert f"<code>{method.upper()} {path}</code> {operation['summary']}" in page
    links = Links()
    links.feed(page)
    assert links.addresses == ["openapi.json"]
    assert not links.tags & {"script", "link", "img", "iframe", "object", "embed"}
    assert "@import" not in page and "url(" not in page
    assert "-H &quot;Authorization: Bearer $VCP_CLIP_TOKEN&quot;" in page
    assert not re.search(r"<script|javascript:", page)


def test_texts_are_escaped():
    operation = {"summary": "<b>", "description": "<i>", "responses": {"200": {"description": "<u>"}}}
    page = docs_page({"info": {"title": "<a>", "version": "1"}, "paths": {"/<p>": {"get": operation}}})
    for letter in "abpiu":
        assert f"&lt;{letter}&gt;" in page
    assert "<i>" not in page and "<u>" not in page
