"""JPEGs decoded at a fraction of their size: only for models that do not mind, and the same way in training and serving."""

from __future__ import annotations

import numpy as np
import pytest
import simplejpeg

from retrain.calibrate import calibrate
from sutdol.images import decode
from sutdol.predictor import Predictor, cover, decode_for
from sutdol.tables import DatasetItem
from sutdol.types import InputSpec, Manifest
from tests.tiny_models import CLASSES, SIDE_PX, classifier_onnx

LETTERBOX = InputSpec((SIDE_PX, SIDE_PX), "letterbox")


def striped(*, period_px: int) -> bytes:
    """A JPEG of 128 x 128: red stripes on even green. Seen every fourth pixel it is red, on average it is green."""
    image = np.full((128, 128, 3), 0, np.uint8)
    image[:, :, 1] = 160
    image[:, (np.arange(128) + 3 * period_px // 4) % period_px < period_px // 2, 0] = 255
    if period_px >= 128:
        image[:, :, 0] = 20
    return bytes(simplejpeg.encode_jpeg(image, quality=98, colorsubsampling="444"))


def calibrated(data: bytes) -> InputSpec:
    items = [
        DatasetItem(
            dataset_version_id="v",
            sample_id=f"s{i}",
            value={"classes": ["green"], "boxes": []},
            split="train",
            source="imported",
        )
        for i in range(12)
    ]
    made = calibrate(
        classifier_onnx(),
        LETTERBOX,
        task="classify",
        classes=list(CLASSES),
        family="tiny",
        items=items,
        read=lambda _: data,
        provenance={},
    )
    return made.manifest.input


def test_a_model_that_minds_gets_whole_images_for_ever() -> None:
    """Speed must not change answers: what training saw is what serving shows."""
    spec = calibrated(striped(period_px=4))
    assert spec.scaled_decode is False
    assert decode_for(striped(period_px=4), spec).shape == (128, 128, 3)


def test_a_model_that_does_not_mind_gets_small_ones() -> None:
    """Decoding is a fifth of a small model's work."""
    spec = calibrated(striped(period_px=128))
    assert spec.scaled_decode is True
    assert decode_for(striped(period_px=128), spec).shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("spec", "size_hw", "needed"),
    [
        (InputSpec((224, 224)), (480, 640), (224, 224)),
        (InputSpec((320, 320), "letterbox"), (480, 640), (240, 320)),
        (InputSpec((320, 320), "letterbox", scaled_decode=False), (480, 640), (480, 640)),
        (InputSpec((64, 64)), (10, 10), (64, 64)),
        (InputSpec((64, 64), "letterbox"), (1, 640), (1, 64)),
    ],
)
def test_what_a_model_needs_of_an_image(spec: InputSpec, size_hw: tuple[int, int], needed: tuple[int, int]) -> None:
    """A letterboxed image fills only a part of the input; decoding more than that part is wasted."""
    assert cover(spec, size_hw) == needed


def test_a_detector_sees_the_same_picture_from_half_the_pixels() -> None:
    """640 x 480 at a half is 320 x 240: exactly what a 320 px detector wants."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (12, 16, 3)).astype(np.uint8)
    data = bytes(
        simplejpeg.encode_jpeg(np.ascontiguousarray(np.kron(small, np.ones((40, 40, 1), np.uint8))), quality=95)
    )
    spec = InputSpec((320, 320), "letterbox")
    assert decode_for(data, spec).shape == (240, 320, 3)
    manifest = Manifest(task="classify", classes=list(CLASSES), input=spec, family="tiny")
    predictor = Predictor.from_parts(_any_size(), manifest)
    difference = predictor.prepare(decode_for(data, spec)) - predictor.prepare(decode(data))
    assert float(np.abs(difference).mean()) < 0.02


def _any_size() -> bytes:
    import onnx

    model = onnx.load_model_from_string(classifier_onnx())
    for axis, name in ((2, "h"), (3, "w")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    return bytes(model.SerializeToString())
