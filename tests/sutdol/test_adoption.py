"""Files of other people's exporters get our ends and keep their own answers; what cannot be read is refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlmodel import select

from sutdol import adoption, cli, registry
from sutdol.adoption import Answers
from sutdol.context import Context
from sutdol.errors import ConflictError, InputError, ModelError
from sutdol.predictor import Predictor, fit_input
from sutdol.tables import Decision, Event, ModelVersion
from sutdol.types import InputSpec
from tests.foreign_models import BOXES, SIDE, classifier, detector
from tests.hostile_models import HOSTILE

RGB = ("red", "green", "blue")


def picture(colour: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    rgb = np.full((SIDE, SIDE, 3), 20, np.uint8)
    rgb[:, :, colour] = 220
    return rgb


CLASSIFIERS: list[tuple[str, bytes, Answers]] = [
    ("logits", classifier(), Answers(normalise="none")),
    ("softmax at the end", classifier("Softmax"), Answers(normalise="none")),
    ("a batch of one, named by a reshape", classifier(batch=1, reshape=True), Answers(normalise="none")),
    ("a batch of one that cannot be opened", classifier(batch=1, expand=True), Answers(normalise="none")),
    ("channels last", classifier(nhwc=True), Answers(normalise="none")),
    ("bytes in, channels last", classifier(nhwc=True, uint8=True), Answers(normalise="none")),
    ("blue first", classifier(bgr=False), Answers(normalise="none", bgr=True)),
]


@pytest.mark.parametrize(("name", "data", "answers"), CLASSIFIERS, ids=[c[0] for c in CLASSIFIERS])
def test_a_foreign_classifier_answers_as_it_did(name: str, data: bytes, answers: Answers) -> None:
    """Confidence, features and batches are ours, the answer is its own."""
    proposal = adoption.propose(data, answers)
    assert (proposal.task, proposal.input.size_hw, len(proposal.classes)) == ("classify", (SIDE, SIDE), 3)
    onnx, manifest, files = adoption.build(proposal)
    assert set(files) == {"model.onnx", "golden.npz"}
    predictor = Predictor.from_parts(onnx, manifest)
    raw = predictor.run(np.stack([predictor.prepare(picture(c)) for c in range(3)]))
    order = [2, 1, 0] if answers.bgr else [0, 1, 2]
    assert raw.scores.argmax(axis=1).tolist() == order
    means = np.stack([picture(c).mean(axis=(0, 1)) / 255 for c in order])
    expected = means * 6 + np.array([0.1, 0.2, -0.3])
    differences = raw.scores - expected
    np.testing.assert_allclose(differences - differences[:, :1], 0, atol=2e-2 if "bytes" in name else 1e-4)
    np.testing.assert_allclose(raw.features, means, atol=5e-3)


def test_sigmoids_are_multilabel_when_that_is_said() -> None:
    """A file cannot say whether its classes exclude each other."""
    proposal = adoption.propose(classifier("Sigmoid"), Answers(task="multilabel", normalise="none", classes=list(RGB)))
    onnx, manifest, _ = adoption.build(proposal)
    found = Predictor.from_parts(onnx, manifest).predict_rgb(picture(1))
    assert {c.label for c in found.classes} >= {"green"}
    assert found.classes[0].confidence == pytest.approx(1 / (1 + np.exp(-(220 / 255 * 6 + 0.2))), abs=1e-4)


@pytest.mark.parametrize("layout", ["boxes", "boxes-last", "yolov5", "end2end"])
@pytest.mark.parametrize("normalised", [False, True])
def test_a_foreign_detector_finds_its_boxes_where_they_are(layout: str, normalised: bool) -> None:
    """Ultralytics, YOLOv5, RT-DETR and end-to-end exports each have an order of their own."""
    given = None if layout != "end2end" else "end2end"
    data = detector(layout, normalised=normalised)
    proposal = adoption.propose(data, Answers(outputs=given, resize="stretch"))  # type: ignore[arg-type]
    assert (proposal.task, proposal.classes, proposal.plan.outputs) == ("detect", ["cell", "platelet"], layout)
    onnx, manifest, _ = adoption.build(proposal)
    predictor = Predictor.from_parts(onnx, manifest)
    found = predictor.predict_rgb(np.zeros((2 * SIDE, SIDE, 3), np.uint8))
    assert [(b.label, round(b.confidence or 0, 3)) for b in found.boxes] == [("cell", 0.9), ("platelet", 0.8)]
    for box, (x, y, w, h) in zip(found.boxes, BOXES, strict=True):
        corners = (x - w / 2, 2 * (y - h / 2), x + w / 2, 2 * (y + h / 2))
        assert (box.x1, box.y1, box.x2, box.y2) == pytest.approx(corners, abs=1e-2)
    assert len(found.features) >= 12
    bright = predictor.predict_rgb(np.full((SIDE, SIDE, 3), 250, np.uint8))
    assert np.abs(bright.features - found.features).max() > 0.1, "features see what the image looks like"


REFUSED: list[tuple[str, bytes, Answers, type[Exception], str]] = [
    ("wrong number of names", classifier(), Answers(classes=["a"]), InputError, "answers for 3"),
    ("names twice", classifier(), Answers(classes=["a", "a", "b"]), InputError, "twice"),
    ("a size the file has not", classifier(), Answers(size=32), InputError, "takes 64 x 64"),
    ("a detector that is a classifier", classifier(), Answers(task="detect"), ModelError, "expected boxes"),
    ("a crop of nothing", classifier(), Answers(crop_share=1.5, resize="crop"), InputError, "crop share"),
]


@pytest.mark.parametrize(("name", "data", "answers", "error", "words"), REFUSED, ids=[r[0] for r in REFUSED])
def test_answers_that_do_not_fit_are_refused(
    name: str, data: bytes, answers: Answers, error: type[Exception], words: str
) -> None:
    """A wrong name list would label every image wrongly for ever."""
    with pytest.raises(error, match=words):
        adoption.propose(data, answers)


@pytest.mark.parametrize("name", ["a pickle", "cut in half", "weights at an absolute path", "an operator of its own"])
def test_a_hostile_file_is_never_opened_here(context: Context, name: str) -> None:
    """The child says no, and nothing is written. (The whole table runs against the child itself.)"""
    with pytest.raises(ModelError):
        adoption.adopt(context, "new", adoption.propose(HOSTILE[name][0]), who="t")
    with context.database.read() as session:
        assert session.exec(select(ModelVersion)).all() == []


def test_adopting_makes_a_champion_once_and_candidates_later(context: Context) -> None:
    """The second file of the same model waits for somebody to promote it."""
    proposal = adoption.propose(classifier(), Answers(classes=list(RGB), normalise="none"))
    assert adoption.adopt(context, "lamps", proposal, who="Kim") == 1
    assert adoption.adopt(context, "lamps", proposal, who="Kim") == 2
    with context.database.read() as session:
        assert registry.resolve(session, "models:/lamps@champion") == ("lamps", 1)
        model = registry.get_model(session, "lamps")
        assert (model.task, model.classes, model.family) == ("classify", list(RGB), "timm")
        assert [d.kind for d in session.exec(select(Decision).order_by(Decision.at))] == ["adopt", "promote", "adopt"]
        told = [e.data["who"] for e in session.exec(select(Event)) if e.kind == "version.adopted"]
    assert told == ["Kim", "Kim"]
    predictor = Predictor.open(context.store, "lamps", 2)
    predictor.check_golden()
    assert predictor.manifest.family == adoption.FAMILY
    assert predictor.manifest.provenance["assumed_task"]
    other = adoption.propose(classifier(), Answers(classes=["x", "y", "z"], normalise="none"))
    with pytest.raises(ConflictError, match="has the classes red"):
        adoption.adopt(context, "lamps", other, who="Kim")
    with pytest.raises(ConflictError, match="is a classify model"):
        adoption.adopt(context, "lamps", adoption.propose(detector("boxes")), who="Kim")


def test_the_command_adopts_and_says_what_it_assumed(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever reads the output can correct it."""
    monkeypatch.setenv("SUTDOL_HOME", str(context.settings.home))
    (tmp_path / "cells.onnx").write_bytes(detector("boxes"))
    (tmp_path / "names.txt").write_text("cell\nplatelet\n")
    command = ["adopt", "cells", str(tmp_path / "cells.onnx"), "--classes", str(tmp_path / "names.txt")]
    with pytest.raises(SystemExit) as ended:
        cli.main(command)
    assert not ended.value.code
    said = capsys.readouterr().out
    assert "assumed (resize)" in said
    assert "version 1 is adopted" in said


def test_crop_keeps_the_middle() -> None:
    """As published classifiers were evaluated; a box in it comes back to its place."""
    rgb = np.zeros((100, 200, 3), np.uint8)
    rgb[40:60, 90:110] = 255
    fitted = fit_input(rgb, InputSpec((50, 50), "crop", crop_share=0.5))
    assert fitted.shape == (50, 50, 3)
    assert fitted[25, 25, 0] == 255
    assert fitted[2, 2, 0] == 0
    assert (fitted[:, :, 0] > 127).sum() == pytest.approx(20 * 20, rel=0.1)
    tall = fit_input(np.zeros((1, 7, 3), np.uint8), InputSpec((8, 8), "crop"))
    assert tall.shape == (8, 8, 3)
