"""The four values that drift is measured on, against pictures whose answer is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import simplejpeg

from sutdol.appearance import appearance
from sutdol.images import decode
from sutdol.predictor import fit_input, to_tensor
from sutdol.types import InputSpec

SPEC = InputSpec((64, 64), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def scene(seed: int, side: int = 96) -> np.ndarray:
    """A smooth picture with structure, (side, side, 3) uint8."""
    rough = np.random.default_rng(seed).uniform(0, 255, (6, 6, 3)).astype(np.float32)
    return np.clip(cv2.resize(rough, (side, side), interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)


def of(rgb: np.ndarray, spec: InputSpec = SPEC):
    return appearance(to_tensor(fit_input(rgb, spec), spec), spec)


def test_each_value_moves_with_what_it_is_named_after() -> None:
    """Otherwise an alarm would name the wrong cause."""
    rgb = scene(0)
    plain = of(rgb)
    darker = of((rgb * 0.85).astype(np.uint8))
    blurred = of(cv2.GaussianBlur(rgb, (0, 0), 4))
    noisy = of(np.clip(rgb + np.random.default_rng(1).normal(0, 12, rgb.shape), 0, 255).astype(np.uint8))
    swapped = of(rgb[:, :, ::-1])
    assert darker.brightness == pytest.approx(0.85 * plain.brightness, abs=0.01)
    assert blurred.sharpness < 0.9 * plain.sharpness
    assert noisy.sharpness > 1.1 * plain.sharpness
    assert swapped.colour == pytest.approx(-plain.colour, abs=0.01)
    assert abs(plain.colour) > 0.01


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 7), (7, 1), (2, 2), (5, 9), (300, 40)])
def test_every_size_has_an_answer(size_hw: tuple[int, int]) -> None:
    """A model may take any input; logging must never be what fails."""
    spec = InputSpec(size_hw)
    found = appearance(np.random.default_rng(0).random((3, *size_hw), np.float32), spec)
    assert 0 <= found.brightness <= 1
    assert 0 <= found.sharpness <= 1
    assert len(found.fingerprint) == 16


def test_the_input_scaling_does_not_show() -> None:
    """Two models that normalise differently log the same picture with the same values."""
    rgb = scene(3)
    one, other = of(rgb), of(rgb, InputSpec((64, 64)))
    assert one.fingerprint == other.fingerprint
    assert one.brightness == pytest.approx(other.brightness, abs=1e-5)
    assert one.sharpness == pytest.approx(other.sharpness, abs=1e-5)


def test_a_picture_encoded_again_keeps_its_fingerprint_and_another_has_another() -> None:
    """This is how a near-duplicate of a training image is kept out of the live accuracy."""
    same = 0
    for seed in range(30):
        rgb = scene(seed)
        again = decode(simplejpeg.encode_jpeg(rgb, quality=80))
        same += of(rgb).fingerprint == of(again).fingerprint
    assert same >= 24
    assert len({of(scene(seed)).fingerprint for seed in range(200)}) == 200
