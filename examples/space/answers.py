"""Answers of the page as HTML."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any


__all__ = [
    "NO_THRESHOLD",
    "OTHER_PRODUCTS",
    "SHOWN_REGIONS",
    "batch_table",
    "message",
    "region_table",
    "verdict",
    "without_folders",
]

NO_THRESHOLD = "No verdict: no threshold is known. Calibrate on good parts, or move the slider."
OTHER_PRODUCTS = "This threshold was measured on other products: calibrate on good parts of yours, or move the slider."
SHOWN_REGIONS = 50


def message(text: object, kind: str = "", paths: Sequence[str] = ()) -> str:
    """Return a message for the visitor; kinds: normal, anomalous, warning, error."""
    lead = {"error": "<strong>This failed.</strong> "}.get(kind, "")
    return f'<div class="message {kind}">{lead}{html.escape(without_folders(text, paths))}</div>'


def verdict(name: str, result: dict[str, Any], remark: str = "") -> str:
    """Return label, score and threshold of one picture, and a remark on the threshold."""
    name, score = html.escape(name), f"score {result['score']:.3f}"
    if result["label"] is None:
        return f'<div class="message warning"><strong>{name}: {score}.</strong> {NO_THRESHOLD}</div>'
    count = len(result["regions"]) if "regions" in result else 0
    regions = {0: "no region", 1: "1 region"}.get(count, f"{count} regions")
    return (
        f'<div class="message {result["label"]}"><strong>{name}: {result["label"]}.</strong> {score.capitalize()},'
        f" threshold {result['image_threshold']:.3f}, {regions}. {remark}</div>"
    )


def region_table(result: dict[str, Any]) -> str:
    """Return score, area and box of the regions, highest score first."""
    regions = result.get("regions")
    if not regions:
        return ""
    rows = []
    for number, region in enumerate(regions[:SHOWN_REGIONS], start=1):
        box = region["box"]
        size = f"{box['xmax'] - box['xmin']} x {box['ymax'] - box['ymin']}"
        rows.append((number, f"{region['score']:.3f}", region["area"], f"{box['xmin']}, {box['ymin']}", size))
    more = f", the first {SHOWN_REGIONS}" if len(regions) > SHOWN_REGIONS else ""
    return _table(f"Regions, in pixels{more}", ("#", "Score", "Area", "Left, top", "Size"), rows)


def batch_table(records: Sequence[dict[str, Any]]) -> str:
    """Return a table with one line per picture."""
    rows = [
        (record["image"], "", record["error"])
        if "error" in record
        else (record["image"], f"{record['score']:.3f}", record["label"] or "no verdict")
        for record in records
    ]
    return _table("Results", ("Picture", "Score", "Verdict"), rows, words=(0, 2))


def _table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[object]], words: Sequence[int] = ()) -> str:
    """Return a table that scrolls in its own box, with the keyboard too; `words` are the columns with text."""
    kinds = [' class="text"' if number in words else "" for number in range(len(columns))]
    head = "".join(
        f'<th scope="col"{kind}>{html.escape(column)}</th>' for kind, column in zip(kinds, columns, strict=True)
    )
    body = ""
    for row in rows:
        cells = (f"<td{kind}>{html.escape(str(cell))}</td>" for kind, cell in zip(kinds, row, strict=True))
        body += f"<tr>{''.join(cells)}</tr>"
    label = html.escape(caption)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table><caption>{label}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def without_folders(text: object, paths: Sequence[str]) -> str:
    """Return a message with file names instead of paths of the server."""
    text = str(text)
    for path in paths:
        text = text.replace(str(path), Path(path).name)
    return text
