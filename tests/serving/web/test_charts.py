"""Charts: numbers in, well-formed SVG and the same numbers as a table out."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from serving.web.charts import Series, histogram, lines, share_bar


def parsed(markup: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<div>{markup}</div>")


@pytest.mark.parametrize(
    "values",
    [[], [0.5], [0.1, None, 0.9], [3.0, 2.0, 40_000.0], [-1.0, 1.0], [7.0, 7.0]],
    ids=["empty", "one", "gap", "large", "negative", "flat"],
)
def test_lines_stay_inside_the_picture(values: list[float | None]) -> None:
    """Whatever was measured."""
    figure = parsed(lines("loss", range(len(values)), [Series("train", values)], x_name="epoch", table_name="table"))
    for polyline in figure.iter("polyline"):
        for point in (polyline.get("points") or "").split():
            x, y = (float(v) for v in point.split(","))
            assert 0 <= x <= 600
            assert 0 <= y <= 200
    assert len(list(figure.iter("tr"))) == len(values) + 1


def test_names_cannot_break_out() -> None:
    """Class names are people's own words."""
    figure = lines("<b>", [1.0], [Series('"><script>', [1.0])], x_name="&", table_name="t")
    assert "<script>" not in figure
    parsed(figure)


def test_a_histogram_has_one_bar_a_bin_and_a_line_a_mark() -> None:
    """And the same counts in its table."""
    figure = parsed(histogram("c", [1, 0, 5], [0.0, 0.25, 0.5, 1.0], x_name="x", table_name="t", marks=[0.4]))
    assert len(list(figure.iter("rect"))) == 3
    assert [td.text for td in figure.iter("td")][1::2] == ["1", "0", "5"]
    assert len([line for line in figure.iter("line") if line.get("class") == "mark"]) == 1


def test_lengths_that_do_not_fit_are_a_mistake_of_the_caller() -> None:
    """Silently cut series would be wrong charts."""
    with pytest.raises(ValueError, match="expected 2 values, found 1"):
        lines("x", [1.0, 2.0], [Series("a", [1.0])], x_name="x", table_name="t")
    with pytest.raises(ValueError, match="expected 3 edges"):
        histogram("x", [1, 2], [0.0, 1.0], x_name="x", table_name="t")


def test_shares_fill_the_bar() -> None:
    """Nothing of nothing is nothing."""
    assert share_bar([("a", 0)]) == ""
    widths = [float(r.get("width") or 0) for r in parsed(share_bar([("a", 1), ("b", 3)])).iter("rect")]
    assert widths == [25.0, 75.0]
