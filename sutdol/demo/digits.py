"""The worlds of the classification demo, from scikit-learn's 1,797 handwritten digits (8 x 8, Kaynak 1995).

    clean      as they are, upscaled to 64 x 64
    rotated    turned by 90 degrees
    inverted   black and white exchanged, with a share of pure noise mixed in

Sources are split once: 600 to train, 300 for the clean test, the rest is streamed. Every streamed frame is a variation of
its source (brightness and sensor noise), so no two requests carry the same bytes unless one is meant as a repetition.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from sutdol import images
from sutdol.errors import SetupError

SIZE_PX = 64
TRAIN, TEST = 600, 300
NOISE_SHARE = 0.1
WORLDS = ("clean", "rotated", "inverted")


class Frame(msgspec.Struct, frozen=True):
    """One image of the stream: its file, the source it shows (-1: noise) and the right answer (None: there is none)."""

    file: str
    source: int
    label: str | None


@dataclass(frozen=True)
class Digits:
    """Source images (n, 64, 64) uint8 grey, their labels as text, and the split by source."""

    sources: NDArray[np.uint8]
    labels: list[str]
    train: list[int]
    test: list[int]
    stream: list[int]


def load(*, seed: int = 0) -> Digits:
    """The digits, upscaled and split.

    Raises:
        SetupError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise SetupError("the demo needs scikit-learn", hint="pip install 'sutdol[demo]'") from error
    raw = load_digits()
    sources = np.stack([_upscale(np.asarray(image)) for image in raw.images])
    order = [int(i) for i in np.random.default_rng(seed).permutation(len(sources))]
    return Digits(
        sources,
        [str(v) for v in raw.target],
        order[:TRAIN],
        order[TRAIN : TRAIN + TEST],
        order[TRAIN + TEST :],
    )


def world_image(grey: NDArray[np.uint8], world: str) -> NDArray[np.uint8]:
    """One source as it looks in `world`; (64, 64) uint8."""
    if world == "rotated":
        return np.ascontiguousarray(np.rot90(grey))
    return 255 - grey if world == "inverted" else grey


def write_worlds(digits: Digits, folder: Path, *, variants: int, seed: int = 1) -> dict[str, str | None]:
    """Write the stream's frames as PNG files, `folder/<world>/*.png` and `folder/<world>.json` (a list of Frame).

    Returns:
        What the labeler knows: pixel key of every frame to its class, None where no class is right.
    """
    rng = np.random.default_rng(seed)
    truth: dict[str, str | None] = {}
    for world in WORLDS:
        (folder / world).mkdir(parents=True, exist_ok=True)
        frames: list[Frame] = []
        for source in digits.stream:
            for variant in range(variants):
                grey = _vary(world_image(digits.sources[source], world), rng)
                frames.append(
                    _write(grey, folder, f"{world}/{source}-{variant}.png", source, digits.labels[source], truth)
                )
        if world == "inverted":
            for number in range(int(NOISE_SHARE * len(frames) / (1 - NOISE_SHARE))):
                noise = rng.integers(0, 256, (SIZE_PX, SIZE_PX)).astype(np.uint8)
                frames.append(_write(noise, folder, f"{world}/noise-{number}.png", -1, None, truth))
        (folder / f"{world}.json").write_bytes(msgspec.json.encode(frames))
    return truth


def png(grey: NDArray[np.uint8]) -> bytes:
    """A grey image as PNG bytes."""
    return images.encode_png(np.repeat(grey[:, :, None], 3, axis=2))


def _write(
    grey: NDArray[np.uint8], folder: Path, file: str, source: int, label: str | None, truth: dict[str, str | None]
) -> Frame:
    rgb = np.repeat(grey[:, :, None], 3, axis=2)
    (folder / file).write_bytes(images.encode_png(rgb))
    truth[images.pixel_key(rgb)] = label
    return Frame(file, source, label)


def _upscale(image: NDArray[np.floating]) -> NDArray[np.uint8]:
    big = cv2.resize(image.astype(np.float32) * (255 / 16), (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_CUBIC)
    return np.clip(big, 0, 255).astype(np.uint8)


def _vary(grey: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    noisy = grey.astype(np.float32) * rng.uniform(0.95, 1.05) + rng.normal(0, 3, grey.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)
