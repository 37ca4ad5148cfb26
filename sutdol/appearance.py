"""How an image looks, in four small values that are logged with every prediction: what drift is measured on.

    tensor (3, h, w) float32 as the model sees it, InputSpec -> Appearance (brightness, sharpness, colour, fingerprint)

Measured on the model's own input, so two cameras of different size can be compared and a change that the resizing swallows
does not count. About ROWS rows are read: 20 to 100 us. No database, no model.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from sutdol.runtime import Float32
from sutdol.types import InputSpec

ROWS = 64
"""Rows (with their lower neighbours) that are read, roughly."""
_HASH_WH = (9, 8)


@dataclass(frozen=True, slots=True)
class Appearance:
    """Values of one image, on the scale of pixels in [0, 1].

    Attributes:
        brightness: mean of all channels, in [0, 1].
        sharpness: mean absolute difference of neighbouring pixels in green; blur lowers it, noise raises it.
        colour: mean red minus mean blue, in [-1, 1]; 0 for grey images.
        fingerprint: 64 bits in hex (difference hash of the green channel): equal for the same picture encoded again.
    """

    brightness: float
    sharpness: float
    colour: float
    fingerprint: str


def appearance(tensor: Float32, spec: InputSpec) -> Appearance:
    """Measure one input tensor (3, h, w), as `Predictor.prepare` makes it.

    >>> grey = appearance(np.full((3, 4, 4), 0.5, np.float32), InputSpec((4, 4)))
    >>> grey.brightness, grey.sharpness, grey.colour, grey.fingerprint
    (0.5, 0.0, 0.0, '0000000000000000')
    """
    _, height, width = tensor.shape
    step = max(1, height // ROWS)
    red, green, blue = (
        cv2.mean(channel)[0] * s + o  # type: ignore[index]  # four numbers, whatever the stub says
        for channel, s, o in zip(tensor[:, ::step], spec.std, spec.mean, strict=True)
    )
    rows = tensor[1, : max(height - 1, 1) : step]
    below = tensor[1, 1::step] if height > 1 else rows
    across = cv2.norm(rows[:, 1:], rows[:, :-1], cv2.NORM_L1) / max(len(rows) * (width - 1), 1) if width > 1 else 0.0
    down = cv2.norm(below[: len(rows)], rows, cv2.NORM_L1) / (len(rows) * width)
    return Appearance(
        brightness=(red + green + blue) / 3,
        sharpness=(across + down) / 2 * spec.std[1],
        colour=red - blue,
        fingerprint=_difference_hash(tensor[1]),
    )


def _difference_hash(green: Float32) -> str:
    """Whether each of 8 x 8 patches is darker than its right neighbour; patches are means, so noise hardly matters."""
    height, width = green.shape
    thinned = np.ascontiguousarray(green[:: max(1, height // ROWS), :: max(1, width // ROWS)])
    patches = cv2.resize(thinned, _HASH_WH, interpolation=cv2.INTER_AREA)
    return np.packbits(patches[:, :-1] + 1e-4 < patches[:, 1:]).tobytes().hex()
