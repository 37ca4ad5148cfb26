"""The one place where bytes become predictions: pixels out where they went in, calibrated, checked, finite."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from sutdol import registry
from sutdol.context import Context
from sutdol.errors import ImageError, ModelError, SetupError
from sutdol.images import encode_png
from sutdol.predictor import Predictor, Raw, fit_input
from sutdol.runtime import Runtime, check_self_contained, choose_providers
from sutdol.types import InputSpec, Manifest
from tests import tiny_models
from tests.tiny_models import detector_onnx

DETECTOR = Manifest("detect", ["cat", "dog"], InputSpec((64, 64), "letterbox"), "tiny", score_min=0.3, nms_iou=0.5)


def test_a_box_comes_back_in_pixels_of_the_original_image() -> None:
    """Letterboxing is our business, not the caller's."""
    predictor = Predictor.from_parts(detector_onnx([(32, 32, 16, 8, 0.9, 0.1)]), DETECTOR)
    box = predictor.predict_rgb(np.zeros((200, 400, 3), np.uint8)).boxes[0]
    assert (box.x1, box.y1, box.x2, box.y2) == pytest.approx((150, 75, 250, 125), abs=1e-3)
    assert box.label == "cat"
    assert box.confidence == pytest.approx(0.9, abs=1e-5)


def test_overlapping_boxes_are_suppressed_within_a_class_only() -> None:
    """A cat on a dog is two animals."""
    rows = [(30, 30, 20, 20, 0.9, 0), (31, 30, 20, 20, 0.8, 0), (30, 30, 20, 20, 0, 0.7), (10, 10, 5, 5, 0.2, 0)]
    boxes = Predictor.from_parts(detector_onnx(rows), DETECTOR).predict_rgb(np.zeros((64, 64, 3), np.uint8)).boxes
    assert [(b.label, round(b.confidence or 0, 2)) for b in boxes] == [("cat", 0.9), ("dog", 0.7)]


def test_a_box_over_the_border_is_clipped_and_one_outside_is_dropped() -> None:
    """Label Studio and training refuse what lies outside."""
    rows = [(0, 0, 20, 20, 0.9, 0), (90, 90, 10, 10, 0.8, 0)]
    boxes = Predictor.from_parts(detector_onnx(rows), DETECTOR).predict_rgb(np.zeros((64, 64, 3), np.uint8)).boxes
    assert [(b.x1, b.y1, b.x2, b.y2) for b in boxes] == [(0, 0, 10, 10)]


def test_nothing_found_is_the_least_certain_answer() -> None:
    """A missed object looks exactly like this."""
    found = Predictor.from_parts(detector_onnx([(30, 30, 20, 20, 0.1, 0)]), DETECTOR).predict_rgb(
        np.zeros((64, 64, 3), np.uint8)
    )
    assert (found.boxes, found.confidence, found.margin) == ([], 0.0, 0.0)


def test_every_score_of_an_answer_comes_by_its_name(context: Context) -> None:
    """A picked sample carries them all, so that people can ask later why it was picked and what else would have."""
    predictor = Predictor.open(context.store, "tiny", tiny_models.classifier_bundle(context))
    raw = predictor.run(predictor.prepare(np.full((32, 32, 3), 90, np.uint8))[None])
    answer = predictor.interpret(raw, 0, (32, 32))
    scores = predictor.scores(raw, 0, answer)
    assert set(scores) == {
        "max_probability",
        "margin",
        "entropy",
        "energy",
        "gen",
        "mahalanobis",
        "nearest",
        "unfamiliar",
    }
    assert scores["unfamiliar"] == pytest.approx(answer.ood_score)


@pytest.mark.parametrize(("chance", "empty"), [(0.1, True), (0.9, False)])
def test_a_detector_says_how_near_it_was_to_finding_something(chance: float, empty: bool) -> None:
    """An object just below the threshold is the likeliest miss."""
    predictor = Predictor.from_parts(detector_onnx([(30, 30, 20, 20, chance, 0)]), DETECTOR)
    raw = predictor.run(np.zeros((1, 3, 64, 64), np.float32))
    scores = predictor.scores(raw, 0, predictor.interpret(raw, 0, (64, 64)))
    assert scores["nothing_found"] == pytest.approx(1.1 if empty else 0.0)
    assert (scores["box_doubts"] == 0) == empty


def test_judging_sees_the_whole_ranking() -> None:
    """Mean average precision counts boxes that people never see."""
    predictor = Predictor.from_parts(detector_onnx([(30, 30, 20, 20, 0.1, 0)]), DETECTOR)
    assert len(predictor.evaluating().predict_rgb(np.zeros((64, 64, 3), np.uint8)).boxes) == 1


def test_a_classifier_answers_in_order_with_its_doubt(context: Context) -> None:
    """Confidence, margin and familiarity are what everything later is chosen by."""
    version = tiny_models.classifier_bundle(context)
    predictor = Predictor.open(context.store, "tiny", version)
    predictor.check_golden()
    found = predictor.predict_bytes(tiny_models.coloured_png("green"))
    assert found.classes[0].label == "green"
    assert found.classes[0].index == 1
    assert sum(c.confidence for c in found.classes) == pytest.approx(1)
    assert found.margin == pytest.approx(found.classes[0].confidence - found.classes[1].confidence)
    assert found.ood_score is not None
    assert predictor.provider == "CPUExecutionProvider"


def test_temperature_changes_the_confidence_and_not_the_answer() -> None:
    """Calibration must never reorder."""
    onnx_bytes = tiny_models.classifier_onnx()
    spec = InputSpec((tiny_models.SIDE_PX, tiny_models.SIDE_PX))
    hot, cold = (
        Predictor.from_parts(onnx_bytes, Manifest("classify", list(tiny_models.CLASSES), spec, "tiny", temperature=t))
        for t in (4.0, 0.05)
    )
    image = tiny_models.coloured_png("blue")
    first, second = hot.predict_bytes(image), cold.predict_bytes(image)
    assert [c.label for c in first.classes] == [c.label for c in second.classes]
    assert first.confidence < second.confidence
    assert first.raw_confidence == pytest.approx(second.raw_confidence)


@pytest.mark.parametrize(
    ("shape", "spec", "expected"),
    [
        ((10, 20, 3), InputSpec((8, 8)), (8, 8, 3)),
        ((1, 1, 3), InputSpec((8, 8)), (8, 8, 3)),
        ((1, 500, 3), InputSpec((32, 32), "letterbox"), (32, 32, 3)),
        ((500, 1, 3), InputSpec((32, 16), "letterbox"), (32, 16, 3)),
    ],
)
def test_any_size_fits_the_input(shape: tuple[int, int, int], spec: InputSpec, expected: tuple[int, int, int]) -> None:
    """One pixel, one line, one column: people send them."""
    assert fit_input(np.zeros(shape, np.uint8), spec).shape == expected


def test_answers_that_are_not_finite_never_leave(context: Context) -> None:
    """NaN weights load without a word."""
    spec = InputSpec((tiny_models.SIDE_PX, tiny_models.SIDE_PX))
    manifest = Manifest("classify", list(tiny_models.CLASSES), spec, "tiny")
    with pytest.raises(ModelError, match="finite"):
        Predictor.from_parts(tiny_models.nan_onnx(), manifest).predict_bytes(tiny_models.coloured_png())


def test_another_models_golden_answers_are_noticed(context: Context) -> None:
    """Whatever differs from what was proved must not serve."""
    version = tiny_models.classifier_bundle(context, golden="wrong", promote=False)
    with pytest.raises(ModelError, match="golden"):
        Predictor.open(context.store, "tiny", version).check_golden()


def test_a_flipped_byte_is_noticed_before_loading(context: Context) -> None:
    """Flips inside weights load silently in ONNX Runtime."""
    version = tiny_models.classifier_bundle(context)
    assert context.store.root is not None
    path = context.store.root / registry.bundle_key("tiny", version, "model.onnx")
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ModelError, match="sha256"):
        Predictor.open(context.store, "tiny", version)


@pytest.mark.parametrize("data", [b"", b"not onnx", tiny_models.classifier_onnx()[:100]])
def test_what_is_no_model_is_refused_in_words(data: bytes) -> None:
    """A crash of the server would be the alternative."""
    with pytest.raises(ModelError):
        Runtime(data)


def test_a_model_of_another_shape_is_refused() -> None:
    """The manifest decides how pixels are prepared; a lie there would give quiet nonsense."""
    with pytest.raises(ModelError, match="pixels"):
        Predictor.from_parts(tiny_models.classifier_onnx(), Manifest("classify", ["a"], InputSpec((64, 64)), "tiny"))
    predictor = Predictor.from_parts(
        tiny_models.classifier_onnx(), Manifest("classify", ["a", "b"], InputSpec((32, 32)), "tiny")
    )
    with pytest.raises(ModelError, match="2 class scores"):
        predictor.predict_bytes(tiny_models.coloured_png())


def test_external_data_and_foreign_operators_are_not_adopted() -> None:
    """A model is one file that runs on stock ONNX Runtime."""
    check_self_contained(tiny_models.classifier_onnx())
    model = onnx.load_model_from_string(tiny_models.classifier_onnx())
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with pytest.raises(ModelError, match="another file"):
        check_self_contained(model.SerializeToString())
    model = onnx.load_model_from_string(tiny_models.classifier_onnx())
    model.graph.node[0].domain = "evil"
    with pytest.raises(ModelError, match="evil"):
        check_self_contained(model.SerializeToString())
    with pytest.raises(ModelError, match="not an ONNX"):
        check_self_contained(b"\x00\x01garbage")


def test_a_provider_is_never_replaced_silently() -> None:
    """ONNX Runtime falls back to the CPU without a word."""
    with pytest.raises(SetupError, match="MadeUpProvider"):
        choose_providers(["MadeUpProvider"])


def test_a_broken_image_is_the_callers_error(context: Context) -> None:
    """ImageError belongs to the first arrow, ModelError to all later ones."""
    predictor = Predictor.open(context.store, "tiny", tiny_models.classifier_bundle(context))
    with pytest.raises(ImageError):
        predictor.predict_bytes(encode_png(np.zeros((9, 9, 3), np.uint8))[:-20])


def test_a_batch_is_interpreted_row_by_row(context: Context) -> None:
    """Nobody may get a neighbour's answer, although what is strange is computed for the whole batch at once."""
    predictor = Predictor.open(context.store, "tiny", tiny_models.classifier_bundle(context))
    pictures = [np.zeros((32, 32, 3), np.uint8) for _ in range(5)]
    for i, picture in enumerate(pictures):
        picture[:, :, i % 3] = 200 - 20 * i
    raw = predictor.run(np.stack([predictor.prepare(p) for p in pictures]))
    assert isinstance(raw, Raw)
    together = [predictor.interpret(raw, i, (32, 32)) for i in range(5)]
    assert [found.classes[0].label for found in together] == [tiny_models.CLASSES[i % 3] for i in range(5)]
    for i, found in enumerate(together):
        alone = predictor.interpret(Raw(raw.scores[i : i + 1], raw.features[i : i + 1]), 0, (32, 32))
        assert found.classes == alone.classes
        assert found.ood_score == pytest.approx(alone.ood_score, abs=1e-4)
