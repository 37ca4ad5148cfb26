"""Our answers and labels <-> Label Studio's results. Pure.

    answer {"classes": [...], "boxes": [...]} -> results_of -> results of a pre-annotation (percent of the image)
    results of an annotation -> label_of -> types.Label (pixels of the normalised image)

Label Studio's API accepts unknown labels, unknown control names and rotated boxes without a word, so everything that comes
back is checked. Boxes that stick out are clipped to the image; a box of which nothing is left makes the annotation invalid,
because dropping it silently would turn a slip of the mouse into "nothing here".

Errors: InputError, in words for whoever reviews the annotation.
"""

from __future__ import annotations

import math
from typing import Any

from labeling_bridge.config import OBJECT, control
from sutdol.errors import InputError
from sutdol.types import Box, Label, Task

Result = dict[str, Any]
SMALLEST_BOX_PX = 0.5


def results_of(answer: dict[str, Any], task: Task, *, width_px: int, height_px: int) -> list[Result]:
    """The results of a pre-annotation; empty when the model found nothing.

    Args:
        answer: a prediction as it was logged: `classes` best first, `boxes` in pixels.
    """
    name = control(task)
    if task == "detect":
        return [
            box_result(f"p{i}", b["label"], (b["x1"], b["y1"], b["x2"], b["y2"]), width_px, height_px, b["confidence"])
            for i, b in enumerate(answer["boxes"])
        ]
    best = answer["classes"][:1] if task == "classify" else answer["classes"]
    if not best:
        return []
    result: Result = {"id": "p0", "from_name": name, "to_name": OBJECT, "type": "choices"}
    result["value"] = {"choices": [c["label"] for c in best]}
    result["score"] = min(float(c["confidence"]) for c in best)
    return [result]


def label_results(label: Label, task: Task, *, width_px: int, height_px: int) -> list[Result]:
    """The results of an annotation that says `label`, as a person would submit them."""
    if task == "detect":
        return [
            box_result(f"b{i}", b.label, (b.x1, b.y1, b.x2, b.y2), width_px, height_px, None)
            for i, b in enumerate(label.boxes)
        ]
    value = {"choices": list(label.classes)}
    return [{"id": "c0", "from_name": control(task), "to_name": OBJECT, "type": "choices", "value": value}]


def box_result(
    region: str,
    label: str,
    corners_px: tuple[float, float, float, float],
    width_px: int,
    height_px: int,
    confidence: float | None,
) -> Result:
    """One rectangle; `corners_px` are (x1, y1, x2, y2), Label Studio wants percent of the image's sides."""
    x1, y1, x2, y2 = corners_px
    result: Result = {
        "id": region,
        "from_name": control("detect"),
        "to_name": OBJECT,
        "type": "rectanglelabels",
        "original_width": width_px,
        "original_height": height_px,
        "image_rotation": 0,
        "value": {
            "x": x1 / width_px * 100,
            "y": y1 / height_px * 100,
            "width": (x2 - x1) / width_px * 100,
            "height": (y2 - y1) / height_px * 100,
            "rotation": 0,
            "rectanglelabels": [label],
        },
    }
    if confidence is not None:
        result["score"] = confidence
    return result


def label_of(results: list[Result], task: Task, classes: list[str], *, width_px: int, height_px: int) -> Label:
    """What an annotation says. No boxes on a detection task is a real answer: nothing to find here.

    Raises:
        InputError: nothing was chosen, or something that is not in the label config; names the region.
    """
    if task == "detect":
        return Label(boxes=[_box(r, classes, width_px, height_px) for r in results])
    chosen: list[str] = []
    for result in results:
        _check_region(result, task, "choices")
        chosen += _names(result, "choices", classes)
    chosen = list(dict.fromkeys(chosen))
    if task == "classify" and len(chosen) != 1:
        raise InputError(f"expected exactly one class, found {', '.join(chosen) or 'none'}")
    if not chosen:
        raise InputError("expected at least one class, found none")
    return Label(classes=chosen)


def _box(result: Result, classes: list[str], width_px: int, height_px: int) -> Box:
    _check_region(result, "detect", "rectanglelabels")
    names = _names(result, "rectanglelabels", classes)
    if len(names) != 1:
        raise InputError(f"box {_region(result)}: expected one class, found {', '.join(names) or 'none'}")
    shown = (result.get("original_width"), result.get("original_height"))
    if shown not in ((None, None), (width_px, height_px)):
        raise InputError(f"box {_region(result)}: drawn on an image of {shown}, ours is {width_px} x {height_px}")
    value = result["value"]
    try:
        x, y, width, height = (float(value[k]) for k in ("x", "y", "width", "height"))
        rotation = float(value.get("rotation") or 0)
    except (KeyError, TypeError, ValueError):
        raise InputError(f"box {_region(result)}: expected numbers x, y, width, height, found {value}") from None
    if not all(math.isfinite(v) for v in (x, y, width, height, rotation)):
        raise InputError(f"box {_region(result)}: expected finite numbers, found {value}")
    if rotation % 360:
        raise InputError(f"box {_region(result)}: expected an upright box, found one rotated by {rotation:g} degrees")
    x1, x2 = (min(max(v, 0.0), 100.0) / 100 * width_px for v in (x, x + width))
    y1, y2 = (min(max(v, 0.0), 100.0) / 100 * height_px for v in (y, y + height))
    if x2 - x1 < SMALLEST_BOX_PX or y2 - y1 < SMALLEST_BOX_PX:
        raise InputError(f"box {_region(result)}: nothing of it lies inside the image, or it has no area")
    return Box(names[0], x1, y1, x2, y2)


def _check_region(result: Result, task: Task, kind: str) -> None:
    if not isinstance(result, dict) or result.get("from_name") != control(task) or result.get("type") != kind:
        found = f"{result.get('from_name')!r} ({result.get('type')!r})" if isinstance(result, dict) else repr(result)
        raise InputError(f"expected answers of the control {control(task)!r} ({kind}), found {found}")
    if not isinstance(result.get("value"), dict):
        raise InputError(f"region {_region(result)}: expected a value, found {result.get('value')!r}")


def _names(result: Result, key: str, classes: list[str]) -> list[str]:
    names = result["value"].get(key, [])
    if not isinstance(names, list):
        raise InputError(f"region {_region(result)}: expected a list of classes, found {names!r}")
    for name in names:
        if name not in classes:
            raise InputError(f"region {_region(result)}: unknown class {name!r} (known: {', '.join(classes[:20])})")
    return names


def _region(result: Result) -> str:
    return repr(result.get("id", "?"))
