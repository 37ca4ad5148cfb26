"""Images that no digit classifier knows: noise, blanks, inverted digits, patches of photos, blood cells. All (n, 64, 64, 3)."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

from tests.benchmarks.learning.nets import Rgb

SIDE_PX = 64


def noise(n: int, rng: np.random.Generator) -> Rgb:
    """Half of it grey, half of it coloured."""
    grey = rng.integers(0, 256, (n // 2, SIDE_PX, SIDE_PX, 1), np.uint8).repeat(3, axis=3)
    return np.concatenate([grey, rng.integers(0, 256, (n - n // 2, SIDE_PX, SIDE_PX, 3), np.uint8)])


def blank(n: int) -> Rgb:
    """One grey each, from black to white."""
    return np.linspace(0, 255, n).astype(np.uint8)[:, None, None, None] * np.ones((1, SIDE_PX, SIDE_PX, 3), np.uint8)


def photo_patches(n: int, rng: np.random.Generator) -> Rgb:
    """Squares of 64 pixels from scikit-learn's two photographs."""
    from sklearn.datasets import load_sample_images

    photos = load_sample_images().images
    out = np.empty((n, SIDE_PX, SIDE_PX, 3), np.uint8)
    for i in range(n):
        photo = photos[int(rng.integers(len(photos)))]
        y, x = (int(rng.integers(side - SIDE_PX)) for side in photo.shape[:2])
        out[i] = photo[y : y + SIDE_PX, x : x + SIDE_PX]
    return out


def blood_cells(n: int) -> Rgb | None:
    """Photographs of blood cells, shrunk; None where the data set is not at hand."""
    folder = Path(os.environ.get("SUTDOL_TEST_DATA", "/nonexistent")) / "bccd" / "BCCD" / "JPEGImages"
    files = sorted(folder.glob("*.jpg"))[:n]
    if not files:
        return None
    size = (SIDE_PX, SIDE_PX)
    return np.stack([cv2.resize(cv2.imread(str(f))[:, :, ::-1], size, interpolation=cv2.INTER_AREA) for f in files])
