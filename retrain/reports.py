"""An evaluation as files that can be mailed: JSON for machines, one HTML page for people, a zip with everything.

    Evaluated + items (+ the version it is compared with) -> store under `evaluations/{id}/`

    report.json      analysis.analyse, and analysis.compare without its items
    report.html      the same for people: self-contained, inline SVG, no script, prints well
    items.jsonl      the outcome of every item, with `truth_boxes` for the viewer
    comparison.jsonl one line per item: what both said (only when there are two)
    report.zip       all of these, and per_class.csv, confusion.csv

Written before the row that names them is committed; a second attempt writes the same again under another id.
"""

from __future__ import annotations

import csv
import io
import time
import zipfile
from collections.abc import Sequence
from html import escape
from typing import Any

import msgspec

from retrain import analysis, charts
from retrain.evaluate import Evaluated
from sutdol.stores import Store
from sutdol.tables import DatasetItem

Numbers = dict[str, Any]
_COLOURS = ("#4a74b8", "#c26a2d", "#2b8a6b", "#a34a8f", "#8a7a1f", "#5b5bd6", "#b3392f", "#4d8fa8")
_STYLE = """
:root{color-scheme:light dark;--ink:#1c1c1e;--soft:#6b6b70;--rule:#d9d9de;--paper:#fff;--good:#2b7a4b;--bad:#b3392f;
--bar:#4a74b8}
@media(prefers-color-scheme:dark){:root{--ink:#ececf0;--soft:#a0a0a8;--rule:#3a3a40;--paper:#17171a;--good:#5fbf86;
--bad:#e5766b;--bar:#7ba2e0}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:60rem;margin:2rem auto;
padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse;display:block;overflow-x:auto}
td,th{padding:.2rem .7rem;border-bottom:1px solid var(--rule);text-align:right}
td:first-child,th:first-child{text-align:left}
.soft{color:var(--soft)}.good{color:var(--good)}.bad{color:var(--bad)}svg{max-width:100%;height:auto}
svg text{font:11px system-ui,sans-serif;fill:var(--ink)}.grid{stroke:var(--rule)}.line{fill:none;stroke-width:1.6}
.bar{fill:var(--bar);opacity:.65}.whisker{stroke:var(--ink)}.ideal{stroke:var(--soft);stroke-dasharray:4 3}
.right{fill:var(--good)}.wrong{fill:var(--bad)}.cell{stroke:var(--rule)}
""" + "".join(f".c{i}{{stroke:{c}}}svg .key.c{i}{{stroke:none;fill:{c}}}" for i, c in enumerate(_COLOURS))


def write(
    store: Store,
    key: str,
    evaluated: Evaluated,
    items: Sequence[DatasetItem],
    *,
    title: str,
    against: tuple[str, Evaluated] | None = None,
) -> Numbers:
    """Write every file of one evaluation under `evaluations/{key}/`; the analysis.

    Args:
        title: of the page, "cells version 4".
        against: name and evaluation of the version that it is compared with, on the same items.
    """
    found = analysis.analyse(evaluated, items)
    compared = analysis.compare(evaluated, against[1], items) if against else None
    shown = {"title": title, "made_at": time.time(), "analysis": found}
    if compared is not None and against is not None:
        shown["against"] = against[0]
        shown["comparison"] = {k: v for k, v in compared.items() if k != "items"}
    lines = msgspec.json.Encoder()
    files = {
        "report.json": msgspec.json.encode(shown),
        "report.html": to_html(shown).encode(),
        "items.jsonl": lines.encode_lines(_viewed(evaluated, items)),
    }
    if compared is not None:
        files["comparison.jsonl"] = lines.encode_lines(compared["items"])
    files["report.zip"] = to_zip(files, found)
    for name, data in files.items():
        store.put(f"evaluations/{key}/{name}", data)
    return found


def to_zip(files: dict[str, bytes], found: Numbers) -> bytes:
    """All files, and the tables as CSV for spreadsheets (UTF-8 with a mark, so that Excel reads it right)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        rows = [["class", "items", "precision", "low", "high", "recall", "low", "high", "f1", "ap50"]]
        for row in found["per_class"]:
            numbers: list[Any] = [row["name"], row["n"]]
            for name in ("precision", "recall"):
                numbers += [row[name]["value"], *(row[name]["interval"] or [None, None])]
            rows.append([*numbers, row["f1"], row.get("ap50", {}).get("value")])
        archive.writestr("per_class.csv", _csv(rows))
        labels = [name or "background" for name in found["confusion"]["labels"]]
        matrix = [[name, *row] for name, row in zip(labels, found["confusion"]["matrix"], strict=True)]
        archive.writestr("confusion.csv", _csv([["truth \\ answer", *labels], *matrix]))
    return buffer.getvalue()


def to_html(shown: Numbers) -> str:
    """One page that needs nothing else."""
    found, comparison = shown["analysis"], shown.get("comparison")
    title = escape(shown["title"])
    at = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(shown["made_at"]))
    parts = [f"<h1>{title}</h1><p class=soft>{found['n']} items, judged {at}. Ranges are 95 % intervals.</p>"]
    parts.append(_table(["", "value", "from", "to", "of"], [_number(k, v) for k, v in found["headline"].items()]))
    if comparison is not None:
        parts.append(_compared(escape(shown["against"]), comparison))
    parts.append("<h2>Classes</h2>" + _classes(found))
    chart = charts.matrix(found["confusion"]["labels"], found["confusion"]["matrix"])
    if chart:
        parts.append("<h2>Confusion</h2><p class=soft>Rows are the truth, columns the answer.</p>" + chart)
    if found["most_confused"]:
        rows = [
            [escape(p["truth"] or "nothing there"), escape(p["predicted"] or "missed"), p["count"],
             f"{p['share_of_truth']:.1%}"]
            for p in found["most_confused"]
        ]  # fmt: skip
        parts.append("<h2>Most confused</h2>" + _table(["truth", "answer", "count", "of the truth"], rows))
    curves = [(name, c["recall"], c["precision"]) for name, c in found["curves"].items() if c["positives"]]
    if curves:
        parts.append("<h2>Precision and recall</h2>" + charts.lines(curves, x="recall", y="precision"))
    ece = found["reliability"]["ece"]
    told = f"Expected calibration error {ece:.3f}." if ece is not None else ""
    parts.append(f"<h2>Confidence</h2><p class=soft>{told}</p>" + charts.reliability(found["reliability"]["bins"]))
    for name, rows in found["slices"].items():
        parts.append(f"<h2>By {escape(name.replace('_', ' '))}</h2>" + _slice(rows))
    body = "\n".join(parts)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width,initial-scale=1"><title>{title}</title><style>{_STYLE}</style></head>'
        f"<body>{body}</body></html>"
    )


def _compared(against: str, comparison: Numbers) -> str:
    low, high = comparison["interval"]
    rows = []
    for name, ours in comparison["headline"]["candidate"].items():
        theirs = comparison["headline"]["champion"][name]
        rows.append([escape(name), _plain(ours["value"]), _plain(theirs["value"])])
    words = (
        f"On the same items {comparison['fixed']} are right only here and {comparison['broken']} only there, "
        f"{comparison['both_right']} in both, {comparison['both_wrong']} in neither: difference "
        f"{comparison['difference'] * 100:+.1f} points [{low * 100:+.1f}, {high * 100:+.1f}]."
    )
    return f"<h2>Against {against}</h2><p>{words}</p>" + _table(["", "this version", against], rows)


def _classes(found: Numbers) -> str:
    detector = found["task"] == "detect"
    head = ["class", "items", "precision", "recall", "F1", *(["AP50", "AP50-95"] if detector else [])]
    rows = []
    for row in found["per_class"]:
        cells = [escape(row["name"]), row["n"], _with_range(row["precision"]), _with_range(row["recall"])]
        cells.append(_plain(row["f1"]))
        if detector:
            cells += [_with_range(row["ap50"]), _plain(row["ap50_95"]["value"])]
        rows.append(cells)
    return _table(head, rows)


def _slice(rows: Sequence[Numbers]) -> str:
    names = [n for n in ("accuracy", "map50", "recall") if any(n in row for row in rows)]
    shown = [[escape(row["name"]), row["n"], *(_with_range(row[n]) for n in names)] for row in rows]
    return _table(["", "items", *names], shown)


def _viewed(evaluated: Evaluated, items: Sequence[DatasetItem]) -> list[Numbers]:
    """The outcomes for a viewer: without the full ranking, with the true boxes."""
    rows = []
    for outcome, item in zip(evaluated.items, items, strict=True):
        row: Numbers = msgspec.to_builtins(msgspec.structs.replace(outcome, detections=[]))
        del row["detections"]
        rows.append(row | {"truth_boxes": item.value.get("boxes", []), "source": item.source, "arm": item.arm})
    return rows


def _table(head: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _number(name: str, value: Numbers) -> list[object]:
    low, high = value.get("interval") or (None, None)
    of = f"{value['k']} of {value['n']}" if "k" in value else ""
    return [escape(name), _plain(value["value"]), _plain(low), _plain(high), of]


def _with_range(value: Numbers) -> str:
    if value["value"] is None:
        return "-"
    low, high = value.get("interval") or (None, None)
    return _plain(value["value"]) + (
        f" <span class=soft>[{_plain(low)}, {_plain(high)}]</span>" if low is not None else ""
    )


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _csv(rows: Sequence[Sequence[object]]) -> str:
    out = io.StringIO()
    out.write("\ufeff")
    csv.writer(out).writerows([[_harmless(cell) for cell in row] for row in rows])
    return out.getvalue()


def _harmless(cell: object) -> object:
    """A class called `=1+1` must not be a formula in somebody's spreadsheet."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in "=+-@\t\r" and cell else cell
