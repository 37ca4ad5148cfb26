"""Charts as SVG text with a table behind each: numbers in, markup out. Pure.

No styles inside: colours and strokes come from the style sheet by class, so charts follow light and dark, and a strict
Content-Security-Policy holds. Every function returns a figure: the picture (hidden from screen readers) and, folded away
under it, the same numbers as a table.

Errors: ValueError for series of different lengths: the caller's mistake, never the user's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 600, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 12, 26


@dataclass(frozen=True)
class Series:
    """One named line; `values` may hold None where nothing was measured."""

    name: str
    values: Sequence[float | None]


def lines(title: str, x: Sequence[float], series: Sequence[Series], *, x_name: str, table_name: str) -> Markup:
    """Lines over a common x; at most six series are told apart by colour and dash.

    Args:
        x: ascending positions of the points, shared by all series.
        x_name: what x is, with its unit.
        table_name: what the fold with the numbers is called.
    """
    for one in series:
        if len(one.values) != len(x):
            raise ValueError(f"series {one.name!r}: expected {len(x)} values, found {len(one.values)}")
    known = [v for one in series for v in one.values if v is not None]
    low, high = _range(known)
    left, right = (float(x[0]), float(x[-1])) if x else (0.0, 1.0)
    parts = [_axes(low, high, left, right, x_name)]
    for i, one in enumerate(series):
        points = [
            f"{_x(a, left, right):.1f},{_y(v, low, high):.1f}"
            for a, v in zip(x, one.values, strict=True)
            if v is not None
        ]
        parts.append(f'<polyline class="line s{i % 6}" points="{" ".join(points)}"/>')
        if len(points) == 1:
            cx, cy = points[0].split(",")
            parts.append(f'<circle class="dot s{i % 6}" cx="{cx}" cy="{cy}" r="3"/>')
    legend = "".join(f'<li class="s{i % 6}">{escape(one.name)}</li>' for i, one in enumerate(series))
    rows = [[_number(a), *(_number(one.values[k]) for one in series)] for k, a in enumerate(x)]
    table = _table([x_name, *(one.name for one in series)], rows)
    return _figure(title, "".join(parts), f'<ul class="legend">{legend}</ul>', table, table_name)


def histogram(
    title: str,
    counts: Sequence[int],
    edges: Sequence[float],
    *,
    x_name: str,
    table_name: str,
    marks: Sequence[float] = (),
) -> Markup:
    """Bars of `counts` between `edges` (one more than counts); `marks` are thresholds drawn as lines."""
    if len(edges) != len(counts) + 1:
        raise ValueError(f"histogram: expected {len(counts) + 1} edges, found {len(edges)}")
    high = float(max([*counts, 1]))
    left, right = float(edges[0]), float(edges[-1])
    parts = [_axes(0.0, high, left, right, x_name)]
    for count, a, b in zip(counts, edges, edges[1:], strict=False):
        x0, x1, y = _x(a, left, right), _x(b, left, right), _y(count, 0.0, high)
        parts.append(
            f'<rect class="bar" x="{x0 + 0.5:.1f}" y="{y:.1f}" width="{max(x1 - x0 - 1, 0.5):.1f}" '
            f'height="{HEIGHT - _BOTTOM - y:.1f}"/>'
        )
    for mark in marks:
        at = _x(mark, left, right)
        parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>')
    rows = [[f"{_number(a)} – {_number(b)}", str(n)] for n, a, b in zip(counts, edges, edges[1:], strict=False)]
    return _figure(title, "".join(parts), "", _table([x_name, "n"], rows), table_name)


def curves(
    title: str,
    lines_of: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    *,
    x_name: str,
    y_name: str,
    table_name: str,
    diagonal: bool = False,
    mark: float | None = None,
) -> Markup:
    """Lines in the unit square, each over an x of its own, at most six told apart; the table has every point.

    Args:
        lines_of: (name, x, y) of each, in [0, 1]; steps where x repeats.
        diagonal: draw where x equals y, as calibration is read.
        mark: an x that is drawn as a line.
    """
    parts = [_axes(0.0, 1.0, 0.0, 1.0, x_name)]
    if diagonal:
        parts.append(
            f'<line class="diagonal" x1="{_x(0, 0, 1):.1f}" y1="{_y(0, 0, 1):.1f}" '
            f'x2="{_x(1, 0, 1):.1f}" y2="{_y(1, 0, 1):.1f}"/>'
        )
    rows = []
    for i, (name, x, y) in enumerate(lines_of):
        if len(x) != len(y):
            raise ValueError(f"curve {name!r}: expected {len(x)} values, found {len(y)}")
        points = [f"{_x(a, 0, 1):.1f},{_y(b, 0, 1):.1f}" for a, b in zip(x, y, strict=True)]
        parts.append(f'<polyline class="line s{i % 6}" points="{" ".join(points)}"/>')
        if len(points) <= 20:
            spots = (point.split(",") for point in points)
            parts += [f'<circle class="dot s{i % 6}" cx="{cx}" cy="{cy}" r="3"/>' for cx, cy in spots]
        rows += [[name, _number(a), _number(b)] for a, b in zip(x, y, strict=True)]
    if mark is not None:
        at = _x(mark, 0, 1)
        parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>')
    legend = "".join(f'<li class="s{i % 6}">{escape(name)}</li>' for i, (name, _, _) in enumerate(lines_of))
    table = _table(["", x_name, y_name], rows)
    return _figure(title, "".join(parts), f'<ul class="legend">{legend}</ul>', table, table_name)


def interval(value: float, low: float, high: float) -> Markup:
    """A dot with its interval on a scale from 0 to 1; its numbers stand beside it in the text."""
    at, left, right = (100 * min(max(v, 0.0), 1.0) for v in (value, low, high))
    return Markup(
        '<svg class="interval" viewBox="-3 0 106 10" aria-hidden="true"><line class="grid" x1="0" x2="100" y1="5" y2="5"/>'
        f'<line class="span" x1="{left:.1f}" x2="{right:.1f}" y1="5" y2="5"/>'
        f'<circle class="dot s0" cx="{at:.1f}" cy="5" r="3"/></svg>'
    )


def share_bar(parts: Sequence[tuple[str, int]]) -> Markup:
    """One bar divided in proportion; its numbers stand in the text beside it, so it is hidden from screen readers."""
    total = sum(n for _, n in parts)
    if not total:
        return Markup()
    at, drawn = 0.0, []
    for i, (_, n) in enumerate(parts):
        width = 100 * n / total
        drawn.append(f'<rect class="part s{i % 6}" x="{at:.2f}" y="0" width="{width:.2f}" height="6"/>')
        at += width
    body = "".join(drawn)
    return Markup(f'<svg class="share" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">{body}</svg>')


def meter(share: float) -> Markup:
    """A short bar filled to `share` in [0, 1]; its number stands beside it in the text."""
    width = 100 * min(max(share, 0.0), 1.0)
    return Markup(
        '<svg class="meter" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="rest" width="100" height="6"/><rect class="part s0" width="{width:.1f}" height="6"/></svg>'
    )


def _figure(title: str, body: str, legend: str, table: str, table_name: str) -> Markup:
    return Markup(
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{body}</svg>'
        f"{legend}<details><summary>{escape(table_name)}</summary>{table}</details></figure>"
    )


def _axes(low: float, high: float, left: float, right: float, x_name: str) -> str:
    parts = []
    for k in range(5):
        value = low + (high - low) * k / 4
        y = _y(value, low, high)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>')
    bottom = HEIGHT - 8
    parts.append(f'<text class="tick" x="{_LEFT}" y="{bottom}">{_number(left)}</text>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle:.0f}" y="{bottom}" text-anchor="middle">{escape(x_name)}</text>')
    parts.append(f'<text class="tick" x="{WIDTH - _RIGHT}" y="{bottom}" text-anchor="end">{_number(right)}</text>')
    return "".join(parts)


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    table = f'<table class="data"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="wide" tabindex="0">{table}</div>'


def _range(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    if low >= 0.0 and high <= 1.0:
        return (0.0, 1.0) if low < 0.5 else (min(low, 0.9) // 0.1 * 0.1, 1.0)
    low = min(low, 0.0)
    return low, high if high > low else low + 1.0


def _x(value: float, left: float, right: float) -> float:
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * ((value - left) / (right - left) if right > left else 0.5)


def _y(value: float, low: float, high: float) -> float:
    return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (value - low) / (high - low)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
