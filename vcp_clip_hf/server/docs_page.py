"""The documentation of the HTTP interface: one HTML page without scripts, made from the OpenAPI description."""

from collections.abc import Mapping
from html import escape
from typing import Any


__all__ = ["docs_page"]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; }
h2 { border-top: 1px solid #d0d7de; padding-top: 1rem; font-size: 1.1rem; }
code, pre { font-family: ui-monospace, monospace; background: #f3f5f7; border-radius: 4px; padding: 0.1rem 0.3rem; }
pre { padding: 0.6rem; overflow-x: auto; } table { border-collapse: collapse; }
td, th { border: 1px solid #d0d7de; padding: 0.2rem 0.6rem; text-align: left; vertical-align: top; }
"""


def docs_page(openapi: Mapping[str, Any]) -> str:
    """
    Return the page.

    Args:
        openapi (`Mapping`): OpenAPI description of the server.
    """
    info = openapi["info"]
    routes = [
        _route(method, path, operation)
        for path, operations in openapi["paths"].items()
        for method, operation in operations.items()
    ]
    title = escape(f"{info['title']} {info['version']}")
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f"</head><body><h1>{title}</h1><p>{escape(info.get('description', ''))}</p>"
        '<p>OpenAPI description: <a href="openapi.json">openapi.json</a>.</p>'
        f"{''.join(routes)}</body></html>"
    )


def _route(method: str, path: str, operation: Mapping[str, Any]) -> str:
    text = "".join(f"<p>{escape(part)}</p>" for part in operation.get("description", "").split("\n\n"))
    curl = escape(_curl(method.upper(), path, operation))
    return (
        f"<h2><code>{method.upper()} {escape(path)}</code> {escape(operation.get('summary', ''))}</h2>{text}"
        f"<pre>{curl}</pre>{_parameters(operation)}{_answers(operation)}"
    )


def _curl(method: str, path: str, operation: Mapping[str, Any]) -> str:
    words = ["curl"]
    kinds = operation.get("requestBody", {}).get("content", {})
    if method not in ("GET", "POST"):
        words += ["-X", method]
    if operation.get("security"):
        words += ["-H", '"Authorization: Bearer $VCP_CLIP_TOKEN"']
    if "image/png" in kinds:
        words += ["-H", "'Content-Type: image/png'", "--data-binary", "@part.png"]
    elif "multipart/form-data" in kinds:
        words += ["-F", "image=@one.png", "-F", "image=@two.png"]
    elif "application/json" in kinds:
        words += ["-H", "'Content-Type: application/json'", "-d", "'{\"threshold\": 0.55}'"]
    return " ".join([*words, f"http://127.0.0.1:8000{path}"])


def _parameters(operation: Mapping[str, Any]) -> str:
    rows = [
        f"<tr><td><code>{escape(each['name'])}</code></td><td>{each['in']}</td>"
        f"<td>{escape(each.get('description') or each['schema'].get('description') or '')}</td></tr>"
        for each in operation.get("parameters", ())
    ]
    return f"<table><tr><th>parameter</th><th>in</th><th></th></tr>{''.join(rows)}</table>" if rows else ""


def _answers(operation: Mapping[str, Any]) -> str:
    items = [
        f"<li>{escape(status)}: {escape(each['description'])}</li>" for status, each in operation["responses"].items()
    ]
    return f"<ul>{''.join(items)}</ul>"
