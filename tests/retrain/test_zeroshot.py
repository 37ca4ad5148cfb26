"""Suggestions before there is a model: shown only when an audit sample has proved them, and never to that sample itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sqlmodel import col, select

from retrain import zeroshot
from retrain.encoders import Clip, Pixels, queries_of, unit
from retrain.jobs import HANDLERS
from retrain.zeroshot import NEIGHBOURS, audit, by_neighbours, by_words
from sutdol import registry
from sutdol.context import Context, open_context
from sutdol.errors import InputError, NotFoundError, SetupError
from sutdol.familiarity import unpack
from sutdol.jobs.worker import run_pending
from sutdol.settings import load
from sutdol.tables import Event, LabelRow, LabelTask
from tests.tiny_models import CLASSES, classifier_bundle, coloured_png

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def folder_of(tmp_path: Path, count: int) -> Path:
    """Photos of three colours, a file that is no photo, and one that is broken."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:03d}.png").write_bytes(coloured_png(CLASSES[i % 3], seed=i))
    (folder / "notes.txt").write_text("not a photo")
    (folder / "broken.png").write_bytes(coloured_png("red", seed=999)[:60])
    return folder


def make_model(context: Context) -> None:
    with context.database.begin() as session:
        registry.create_model(session, "new", task="classify", classes=list(CLASSES), family="timm")


def answer(context: Context, tasks: list[LabelTask], right: dict[str, str]) -> None:
    """What people would have said."""
    with context.database.begin() as session:
        for task in tasks:
            session.add(
                LabelRow(
                    model="new",
                    sample_id=task.sample_id,
                    value={"classes": [right[task.sample_id]], "boxes": []},
                    source="annotation",
                    arm=task.arm,
                    split="train",
                )
            )
            session.get_one(LabelTask, task.id).state = "annotated"


def run_job(context: Context, **more: object) -> None:
    with context.database.begin() as session:
        assert zeroshot.request(session, "new", **({"method": "knn"} | more)) is not None  # type: ignore[arg-type]
    run_pending(context, {"retrain.zeroshot": HANDLERS["retrain.zeroshot"]})


def tasks_of(context: Context, *states: str) -> list[LabelTask]:
    with context.database.read() as session:
        found = select(LabelTask).where(col(LabelTask.state).in_(states)).order_by(col(LabelTask.id))
        return list(session.exec(found))


def test_a_folder_becomes_a_queue_and_suggestions_follow_their_proof(context: Context, tmp_path: Path) -> None:
    """First nothing is suggested and the missing labels are counted; with the audit answered, the rest is suggested right."""
    from sutdol.images import admit

    folder = folder_of(tmp_path, 120)
    right = {admit(f.read_bytes()).sample_id: CLASSES[int(f.stem) % 3] for f in folder.glob("[0-9]*.png")}
    make_model(context)
    taken = zeroshot.pool(context, "new", folder)
    assert (taken.added, [name for name, _ in taken.left_out]) == (120, ["broken.png"])
    assert zeroshot.pool(context, "new", folder).added == 0
    drawn = [t for t in tasks_of(context, "candidate") if t.arm == "drawn"]
    assert len(drawn) == taken.audit
    assert 35 < taken.audit < 85
    assert all(t.blind and t.inclusion_probability == pytest.approx(60 / 121) for t in drawn)

    run_job(context)
    with context.database.read() as session:
        told = session.exec(select(Event.text).where(Event.kind == "zeroshot.refused")).one()
    assert "22 more labels of the audit sample are needed" in told
    assert all(t.answer["classes"] == [] for t in tasks_of(context, "candidate"))
    assert all(unpack(t.features) is not None for t in tasks_of(context, "candidate"))

    answer(context, drawn, right)
    run_job(context)
    rest = tasks_of(context, "candidate")
    shown = [t for t in rest if t.answer["classes"]]
    assert len(shown) > 0.9 * len(rest)
    assert all(t.answer["classes"][0]["label"] == right[t.sample_id] for t in shown)
    assert "right on the audit sample" in shown[0].reason


def test_a_champion_lends_its_features(context: Context, tmp_path: Path) -> None:
    """Neighbours in what a model of ours has learned are better than neighbours in pixels."""
    classifier_bundle(context, "tiny")
    make_model(context)
    zeroshot.pool(context, "new", folder_of(tmp_path, 9))
    run_job(context, encoder="tiny@champion")
    assert {len(unpack(t.features)) for t in tasks_of(context, "candidate")} == {3}  # type: ignore[arg-type]


def test_words_alone_make_suggestions_with_clip(tmp_path: Path) -> None:
    """The real loading code, with a network of a few kilobytes and random weights: it knows nothing, and nothing is shown."""
    open_clip, safetensors = pytest.importorskip("open_clip"), pytest.importorskip("safetensors.torch")
    (tmp_path / "tiny-clip.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    weights = tmp_path / "tiny.safetensors"
    safetensors.save_file(
        {k: v.contiguous() for k, v in open_clip.create_model("tiny-clip").state_dict().items()}, weights
    )
    names = {"clip_model": str(tmp_path / "tiny-clip.json"), "clip_weights": str(weights)}
    context = open_context(load(home=tmp_path / "home", **names))
    make_model(context)
    zeroshot.pool(context, "new", folder_of(tmp_path, 6))
    run_job(context, method="clip", queries={"red": ["something red"]})
    tasks = tasks_of(context, "candidate")
    assert {len(unpack(t.features)) for t in tasks} == {16}  # type: ignore[arg-type]
    assert all(t.answer["classes"] == [] for t in tasks)
    network = Clip.load(model=names["clip_model"], weights=names["clip_weights"])
    words = network.words(queries_of(CLASSES, {}))
    assert words.shape == (3, 16)
    assert np.linalg.norm(words, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    context.database.close()


@pytest.mark.parametrize(
    ("model", "weights", "word"),
    [
        ("ViT-B-32", "", "expected a file"),
        ("ViT-B-32", "weights.pt", "pickles"),
        ("no-such", "w.safetensors", "unknown"),
    ],
)
def test_what_cannot_be_loaded_says_why(tmp_path: Path, model: str, weights: str, word: str) -> None:
    """Nothing is downloaded, and no pickle is opened, so the remedy must be in the message."""
    pytest.importorskip("open_clip")
    if weights:
        (tmp_path / weights).write_bytes(b"x")
    with pytest.raises(SetupError, match=word):
        Clip.load(model, str(tmp_path / weights) if weights else "")


def test_a_request_that_cannot_work_is_refused_at_once(context: Context, tmp_path: Path) -> None:
    """Not by a job that fails an hour later."""
    make_model(context)
    with context.database.begin() as session:
        registry.create_model(session, "boxes", task="detect", classes=["cell"], family="yolo")
        registry.create_model(session, "bare", task="classify", classes=[], family="timm")
        with pytest.raises(InputError, match="classify"):
            zeroshot.request(session, "boxes", method="knn")
        with pytest.raises(InputError, match="no classes"):
            zeroshot.request(session, "bare", method="knn")
        with pytest.raises(InputError, match="clip"):
            zeroshot.request(session, "new", method="magic")
        with pytest.raises(NotFoundError, match="rde"):
            zeroshot.request(session, "new", method="clip", queries={"rde": ["red"]})
        with pytest.raises(NotFoundError):
            zeroshot.request(session, "new", method="knn", encoder="nobody")
        with pytest.raises(InputError, match="error"):
            zeroshot.request(session, "new", method="knn", error=0.9)
    with pytest.raises(InputError, match="found none"):
        zeroshot.pool(context, "new", tmp_path)


def test_neighbours_vote_by_nearness() -> None:
    """One very near neighbour outweighs four far ones, and nobody is sure with one label."""
    bank = unit(np.array([[1, 0.0], [0, 1], [0.05, 1], [0.1, 1], [0.15, 1]]))
    labels = np.array([0, 1, 1, 1, 1])
    chances = by_neighbours(unit(np.array([[1, 0.01], [0, 1.0]])), bank, labels, 2)
    assert chances.argmax(axis=1).tolist() == [0, 1]
    assert chances.max() < 1 - 1 / (2 * (NEIGHBOURS + 1))
    assert chances.sum(axis=1) == pytest.approx([1, 1])


def test_nobody_is_its_own_neighbour() -> None:
    """An audit in which each photo finds itself would always be right."""
    bank = unit(np.random.default_rng(0).normal(0, 1, (200, 16)))
    labels = np.random.default_rng(1).integers(0, 2, 200)
    right = by_neighbours(bank, bank, labels, 2, same=True).argmax(axis=1) == labels
    assert 0.35 < right.mean() < 0.65


@pytest.mark.parametrize("n", [0, 1])
def test_nothing_labelled_means_no_opinion(n: int) -> None:
    """The first day has no labels, the second one."""
    bank, labels = np.ones((n, 4), np.float32), np.zeros(n, np.int64)
    assert by_neighbours(bank, bank, labels, 3, same=True) == pytest.approx(np.full((n, 3), 1 / 3))
    assert by_words(np.zeros((0, 4), np.float32), np.ones((3, 4), np.float32), sharpness=9.0).shape == (0, 3)
    assert audit(np.zeros((0, 3)), np.zeros(0, np.int64), error=0.1).missing == 22


def test_a_thumbnail_tells_crowds_apart() -> None:
    """The encoder that needs nothing must at least see what differs at a glance."""
    images = [np.full((20, 30, 3), 0, np.uint8) for _ in range(4)]
    for i, image in enumerate(images):
        image[: 5 + i % 2, :, i // 2] = 250
    vectors = Pixels().images(images)
    similar = vectors @ vectors.T
    assert similar[0, 1] > similar[0, 2]
    assert Pixels().images([]).shape[0] == 0
