"""An image with its answer drawn in, small enough to look at thousands of them."""

from __future__ import annotations

import io
import re
import zipfile
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sutdol.images import Rgb, encode_jpeg
from sutdol.types import Prediction

if TYPE_CHECKING:
    from serving.batch.work import Line

LONGEST_PX = 1280
_COLOURS = ((74, 116, 184), (194, 106, 45), (43, 138, 107), (163, 74, 143), (138, 122, 31), (179, 57, 47))


def draw(rgb: Rgb, prediction: Prediction, size_hw: tuple[int, int]) -> bytes:
    """A JPEG of at most LONGEST_PX a side; names that OpenCV's letters lack are drawn as question marks."""
    small = fit(rgb)
    canvas = np.ascontiguousarray(small.copy() if small is rgb else small)
    across, down = canvas.shape[1] / size_hw[1], canvas.shape[0] / size_hw[0]
    thick = max(1, round(max(canvas.shape[:2]) / 400))
    for box in prediction.boxes:
        colour = _COLOURS[sum(box.label.encode()) % len(_COLOURS)]
        low, high = (round(box.x1 * across), round(box.y1 * down)), (round(box.x2 * across), round(box.y2 * down))
        cv2.rectangle(canvas, low, high, colour, thick)
        _write(canvas, f"{box.label} {box.confidence or 0:.2f}", low[0], max(low[1] - 4, 12), colour)
    if prediction.classes:
        best = prediction.classes[0]
        _write(canvas, f"{best.label} {best.confidence:.2f}", 6, 18, _COLOURS[best.index % len(_COLOURS)])
    return encode_jpeg(np.asarray(canvas, np.uint8), quality=85)


def fit(rgb: Rgb) -> Rgb:
    """The image at LONGEST_PX at most; itself when it is small enough."""
    scale = min(1.0, LONGEST_PX / max(rgb.shape[:2]))
    if scale == 1.0:
        return rgb
    shape = (max(round(rgb.shape[1] * scale), 1), max(round(rgb.shape[0] * scale), 1))
    return np.asarray(cv2.resize(rgb, shape, interpolation=cv2.INTER_AREA), np.uint8)


def packed(drawn: list[tuple[Line, bytes]]) -> bytes:
    """The pictures of one chunk as a zip without compression: JPEGs do not shrink."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for line, data in drawn:
            archive.writestr(f"{line.index:07d}-{_plain(line.name)}.jpg", data)
    return buffer.getvalue()


def _write(canvas: NDArray[Any], text: str, x: int, y: int, colour: tuple[int, int, int]) -> None:
    size = max(0.45, max(canvas.shape[:2]) / 1600)
    shown = text.encode("ascii", "replace").decode()
    cv2.putText(canvas, shown, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), 3, cv2.LINE_AA)
    cv2.putText(canvas, shown, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)


def _plain(name: str) -> str:
    """The last part of a name, with nothing in it that means something to a file system."""
    return re.sub(r"[^\w.=-]+", "_", name.replace("\\", "/").rsplit("/", 1)[-1])[-80:]
