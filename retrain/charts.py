"""Small charts as inline SVG: no script, no font, no request. Colours follow the page (light and dark) by CSS classes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT, MARGIN = 320, 220, 34


def lines(curves: Sequence[tuple[str, Sequence[float], Sequence[float]]], *, x: str, y: str) -> str:
    """Curves of (name, xs, ys) in [0, 1] x [0, 1], named in a legend of at most eight."""
    parts = [_frame(x, y)]
    for i, (name, xs, ys) in enumerate(curves[:8]):
        points = " ".join(f"{_x(a):.1f},{_y(b):.1f}" for a, b in zip(xs, ys, strict=True))
        parts.append(f'<polyline class="line c{i}" points="{points}"><title>{escape(name)}</title></polyline>')
        parts.append(f'<text class="c{i} key" x="{WIDTH + 6}" y="{MARGIN + 14 * i}">{escape(name[:18])}</text>')
    return _svg(parts, WIDTH + 130, f"{y} over {x}")


def reliability(bins: Sequence[dict[str, object]]) -> str:
    """Accuracy of answers by their confidence, as bars with intervals; on the diagonal they tell the truth."""
    parts = [_frame("confidence", "accuracy")]
    parts.append(f'<line class="ideal" x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}"/>')
    for row in bins:
        accuracy = row["accuracy"]
        assert isinstance(accuracy, dict)
        if accuracy["value"] is None:
            continue
        low, high = float(str(row["low"])), float(str(row["high"]))
        value, (bottom, top) = float(accuracy["value"]), accuracy["interval"]
        left, right, middle = _x(low) + 1, _x(high) - 1, (_x(low) + _x(high)) / 2
        title = f"{low:.2f} to {high:.2f}: {value:.1%} of {accuracy['n']}"
        parts.append(
            f'<rect class="bar" x="{left:.1f}" y="{_y(value):.1f}" width="{right - left:.1f}" '
            f'height="{_y(0) - _y(value):.1f}"><title>{title}</title></rect>'
            f'<line class="whisker" x1="{middle:.1f}" y1="{_y(bottom):.1f}" x2="{middle:.1f}" y2="{_y(top):.1f}"/>'
        )
    return _svg(parts, WIDTH + 10, "reliability")


def matrix(labels: Sequence[str], rows: Sequence[Sequence[int]], *, most: int = 30) -> str:
    """A confusion matrix, each row shaded by its own share; of more than `most` labels only the numbers are kept elsewhere."""
    if not labels or len(labels) > most:
        return ""
    side, left, top = 26, 110, 90
    size = side * len(labels)
    parts = []
    for i, name in enumerate(labels):
        shown = escape((name or "background")[:16])
        parts.append(f'<text class="name" text-anchor="end" x="{left - 6}" y="{top + side * i + 17}">{shown}</text>')
        at = f"translate({left + side * i + 17},{top - 6}) rotate(-50)"
        parts.append(f'<text class="name" transform="{at}">{shown}</text>')
        total = sum(rows[i]) or 1
        for j, count in enumerate(rows[i]):
            kind = "right" if i == j else "wrong"
            title = f"{escape(name or 'background')} answered as {escape(labels[j] or 'background')}: {count}"
            x, y = left + side * j, top + side * i
            parts.append(
                f'<rect class="cell {kind}" style="fill-opacity:{count / total:.2f}" x="{x}" y="{y}" '
                f'width="{side - 1}" height="{side - 1}"><title>{title}</title></rect>'
            )
            if count:
                parts.append(f'<text class="count" text-anchor="middle" x="{x + side / 2}" y="{y + 17}">{count}</text>')
    return _svg(parts, left + size + 10, "confusion matrix", height=top + size + 10)


def _frame(x: str, y: str) -> str:
    ticks = []
    for value in (0.0, 0.5, 1.0):
        ticks.append(f'<line class="grid" x1="{_x(value)}" y1="{_y(0)}" x2="{_x(value)}" y2="{_y(1)}"/>')
        ticks.append(f'<line class="grid" x1="{_x(0)}" y1="{_y(value)}" x2="{_x(1)}" y2="{_y(value)}"/>')
        ticks.append(f'<text text-anchor="middle" x="{_x(value)}" y="{_y(0) + 14}">{value:g}</text>')
        ticks.append(f'<text text-anchor="end" x="{_x(0) - 4}" y="{_y(value) + 4}">{value:g}</text>')
    ticks.append(f'<text text-anchor="middle" x="{_x(0.5)}" y="{HEIGHT - 4}">{escape(x)}</text>')
    ticks.append(f'<text x="{_x(0) - 20}" y="14">{escape(y)}</text>')
    return "".join(ticks)


def _svg(parts: Sequence[str], width: float, title: str, *, height: float = HEIGHT) -> str:
    inner = "".join(parts)
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
        f'aria-label="{escape(title)}">{inner}</svg>'
    )


def _x(value: float) -> float:
    return MARGIN + value * (WIDTH - MARGIN - 8)


def _y(value: float) -> float:
    return HEIGHT - MARGIN - value * (HEIGHT - MARGIN - 26)
