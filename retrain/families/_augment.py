"""Augmentation by name, the same words in every family:

    hflip, vflip    chance that an image is mirrored            rotate_deg   largest turn to either side
    brightness      largest change, as a share                  crop         largest zoom into the image, as a share
    mosaic          chance that four images become one (detection only)

By default: mirrored half of the time, turned by at most 15 degrees, 20 % brighter or darker; no vflip, crop or mosaic. A
mirrored digit, letter or arrow is another thing, so where class names look like those, mirrors are off. Small turns stay
on: a 6 turned by 15 degrees is still a 6; it takes half a turn to make a 9 of it.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sutdol.images import Rgb
from sutdol.types import Box

if TYPE_CHECKING:
    import torch

NAMES = ("hflip", "vflip", "rotate_deg", "brightness", "crop", "mosaic")
DIRECTIONS = re.compile(
    r"\b(left|right|up|down|north|south|east|west|arrow|turn|clockwise|counterclockwise|zero|one|two|three|four|five|six|"
    r"seven|eight|nine|digit|letter|number|text|sign)\b|왼쪽|오른쪽|좌회전|우회전|좌측|우측|위쪽|아래쪽|화살표|숫자|글자|표지",
    re.IGNORECASE,
)


def directional(classes: list[str]) -> bool:
    """Whether a mirrored image would belong to another class, as far as the names tell: digits, letters, directions.

    >>> directional(["0", "1"]), directional(["cat", "dog"]), directional(["turn_left", "stop"]), directional(["A"])
    (True, False, True, True)
    """
    return any(
        re.fullmatch(r"[0-9]+|[A-Za-z]|[ㄱ-ㅎ]", name.strip()) or DIRECTIONS.search(re.sub(r"[_\-]", " ", name))
        for name in classes
    )


def augmentation_defaults(classes: list[str]) -> dict[str, Any]:
    """The defaults of the names that classification knows; see the top of this file."""
    mirrored = 0.0 if directional(classes) else 0.5
    return {"hflip": mirrored, "vflip": 0.0, "rotate_deg": 15.0, "brightness": 0.2, "crop": 0.0}


def augment(batch: torch.Tensor, params: dict[str, Any], generator: torch.Generator) -> torch.Tensor:
    """Mirrors, shifts, turns and zooms, then brightness, contrast and a little noise; (n, 3, s, s) in [0, 1]."""
    import torch

    def uniform(*shape: int) -> torch.Tensor:
        return (torch.rand(*shape, generator=generator) * 2 - 1).to(batch.device)

    n = len(batch)
    angle = uniform(n) * math.radians(float(params["rotate_deg"]))
    zoom = 1 + uniform(n) * float(params["scale"])
    shift = uniform(n, 2) * 2 * float(params["shift"])
    if params["crop"]:
        zoom = zoom * (1 - (uniform(n) + 1) / 2 * float(params["crop"]))
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    theta = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    for row, name in enumerate(("hflip", "vflip")):
        if params[name]:
            mirrored = torch.rand(n, generator=generator).to(batch.device) < float(params[name])
            theta[mirrored, :, row] *= -1
    grid = torch.nn.functional.affine_grid(theta, list(batch.shape), align_corners=False)
    moved = torch.nn.functional.grid_sample(batch, grid, padding_mode="border", align_corners=False)
    contrast = 1 + uniform(n, 1, 1, 1) * float(params["brightness"])
    bright = uniform(n, 1, 1, 1) * float(params["brightness"])
    noise = torch.randn(moved.shape, generator=generator).to(batch.device) * float(params["noise"])
    return ((moved - 0.5) * contrast + 0.5 + bright + noise).clamp(0, 1)


def augment_boxes(
    rgb: Rgb, boxes: list[Box], params: dict[str, Any], rng: np.random.Generator
) -> tuple[Rgb, list[Box]]:
    """The same for one image with boxes. A turned box becomes the upright one around it; boxes of which less than a third
    is left inside go."""
    height, width = rgb.shape[:2]
    angle = rng.uniform(-1, 1) * float(params["rotate_deg"])
    zoom = 1 / (1 - rng.uniform(0, 1) * float(params["crop"]))
    room = (1 - 1 / zoom) / 2 * zoom
    matrix = np.asarray(cv2.getRotationMatrix2D((width / 2, height / 2), angle, zoom), np.float64)
    matrix[:, 2] += rng.uniform(-room, room, 2) * (width, height)
    if rng.random() < float(params["hflip"]):
        matrix = _mirror(matrix, 0, width)
    if rng.random() < float(params["vflip"]):
        matrix = _mirror(matrix, 1, height)
    moved = cv2.warpAffine(rgb, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=(114, 114, 114))
    factor = 1 + rng.uniform(-1, 1) * float(params["brightness"])
    bright = np.clip(moved.astype(np.float32) * factor, 0, 255).astype(np.uint8)
    return bright, [kept for box in boxes if (kept := _moved(box, matrix, width, height)) is not None]


def mosaic(images: list[tuple[Rgb, list[Box]]], rng: np.random.Generator) -> tuple[Rgb, list[Box]]:
    """Four images of one size around a random middle, each cut to its quarter."""
    height, width = images[0][0].shape[:2]
    cx, cy = int(rng.uniform(0.3, 0.7) * width), int(rng.uniform(0.3, 0.7) * height)
    out = np.full((height, width, 3), 114, np.uint8)
    boxes: list[Box] = []
    for place, (rgb, found) in enumerate(images):
        x1, x2 = (0, cx) if place % 2 == 0 else (cx, width)
        y1, y2 = (0, cy) if place < 2 else (cy, height)
        out[y1:y2, x1:x2] = rgb[y1:y2, x1:x2]
        boxes += [kept for box in found if (kept := _cut(box, box, (x1, y1, x2, y2))) is not None]
    return out, boxes


def draw_boxes(rgb: Rgb, boxes: list[Box]) -> Rgb:
    """A copy with every box, for people to look at."""
    out = rgb.copy()
    for box in boxes:
        corners = [round(v) for v in (box.x1, box.y1, box.x2, box.y2)]
        cv2.rectangle(out, (corners[0], corners[1]), (corners[2], corners[3]), (255, 220, 0), 1)
    return out


def _mirror(matrix: NDArray[np.float64], axis: int, size: int) -> NDArray[np.float64]:
    mirrored = matrix.copy()
    mirrored[axis] *= -1
    mirrored[axis, 2] += size
    return mirrored


def _moved(box: Box, matrix: NDArray[np.float64], width: int, height: int) -> Box | None:
    corners = np.array([(x, y, 1) for x in (box.x1, box.x2) for y in (box.y1, box.y2)]) @ matrix.T
    x1, y1, x2, y2 = (float(v) for v in (*corners.min(axis=0), *corners.max(axis=0)))
    whole = Box(box.label, x1, y1, x2, y2)
    return _cut(whole, whole, (0, 0, width, height))


def _cut(box: Box, whole: Box, inside: tuple[int, int, int, int]) -> Box | None:
    x1, x2 = (min(max(v, inside[0]), inside[2]) for v in (box.x1, box.x2))
    y1, y2 = (min(max(v, inside[1]), inside[3]) for v in (box.y1, box.y2))
    left = (x2 - x1) * (y2 - y1) / ((whole.x2 - whole.x1) * (whole.y2 - whole.y1))
    return Box(box.label, x1, y1, x2, y2) if x2 - x1 > 1 and y2 - y1 > 1 and left >= 1 / 3 else None
