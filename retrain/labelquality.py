"""Labels that are probably wrong get a second look: job `retrain.labelquality`. Nothing is ever deleted or changed here.

    labels of people and imports -> champion's features -> softmax regression, five folds -> out-of-fold probabilities
        -> suspects: another class is confidently likelier (confident learning), or the given one is very unlikely
           (self-confidence); the least likely first
    answered task    -> state `conflict`, job `bridge.reask`: one more person is asked
    imported label   -> label task of arm `disagree`, with the likelier class filled in and the reason in words

The network has seen these labels, so its own confidence would confirm them; the regression on its features has not seen the
one it judges. Whatever was looked at twice is left in peace.

Sources: confident learning, Northcutt et al. 2021 (arXiv:1911.00068); accelerated gradient descent, Nesterov 1983.

Errors: InputError for a model that does not classify, or shapes that do not fit; NotFoundError; ModelError of the champion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlmodel import Session, col, select

from sutdol import jobs, registry
from sutdol.errors import ImageError, InputError, NotFoundError
from sutdol.events import tell
from sutdol.images import admit, decode
from sutdol.jobs import Running
from sutdol.predictor import Predictor
from sutdol.scoring import softmax
from sutdol.tables import LabelRow, LabelTask, Model, Sample, Snapshot

FOLDS = 5
RIDGE = 10.0
STEPS = 120
MIN_LABELS = 50
MAX_LABELS = 5_000
"""The newest labels that are looked at."""
UNLIKELY = 0.05
"""On digits with 5 % wrong labels the two rules together find 97 % of them, and 92 % of what they find is wrong."""
LIMIT = 20
"""Second looks that one job asks for, unless it says otherwise."""
SEED = 20_260_101
_BATCH = 64

Float = NDArray[np.float64]
Int = NDArray[np.int64]


@dataclass(frozen=True)
class Suspect:
    """A label that is probably wrong: its place, the likelier class, and the probabilities of both."""

    place: int
    likelier: int
    given_probability: float
    likelier_probability: float


def out_of_fold(features: NDArray[np.floating], labels: Int, classes: int, *, seed: int = SEED) -> Float:
    """Class probabilities (n, classes) of every item by a model that has not seen its label.

    Args:
        features: (n, d), n >= FOLDS.
        labels: class indices (n,), possibly wrong.

    Raises:
        InputError: shapes that do not fit, too few items, values that are not finite, a label out of range.
    """
    n = len(labels)
    if features.ndim != 2 or len(features) != n or n < FOLDS:
        raise InputError(
            f"label quality: expected features (n, d) and labels (n,), n >= {FOLDS}, found {features.shape}, {n}"
        )
    if not np.isfinite(features).all() or labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"label quality: expected finite features and labels in 0..{classes - 1}")
    x = features.astype(np.float64)
    x = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-6)
    x = np.concatenate([x / np.sqrt(x.shape[1]) * 8, np.ones((n, 1))], axis=1)
    fold = np.random.default_rng(seed).permutation(n) % FOLDS
    probabilities = np.empty((n, classes))
    for k in range(FOLDS):
        weights = _softmax_regression(x[fold != k], labels[fold != k], classes)
        probabilities[fold == k] = softmax(x[fold == k] @ weights)
    return probabilities


def suspects(probabilities: Float, labels: Int) -> list[Suspect]:
    """Labels that either rule calls wrong, the least likely one first.

    Confident learning: a class counts as confidently likely for an item from the mean probability that it has where it is
    given; an item whose likeliest such class is not the given one is suspect. So a class that is always doubtful needs less
    than a sure one. Self-confidence: the given class has less than UNLIKELY, and another one is likelier.

    >>> found = suspects(np.array([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.1, 0.9], [0.05, 0.95]]), np.array([0, 0, 1, 1, 0]))
    >>> [(s.place, s.likelier) for s in found]
    [(4, 1)]
    """
    n, classes = probabilities.shape
    own = probabilities[np.arange(n), labels]
    means = np.array([own[labels == c].mean() if (labels == c).any() else np.inf for c in range(classes)])
    confident = np.where(probabilities >= means, probabilities, -1.0)
    flagged = (confident.max(axis=1) > 0) & (confident.argmax(axis=1) != labels)
    likeliest = np.where(flagged, confident.argmax(axis=1), probabilities.argmax(axis=1))
    wrong = flagged | ((own < UNLIKELY) & (likeliest != labels))
    order = sorted(np.flatnonzero(wrong), key=lambda i: own[i])
    return [Suspect(int(i), int(likeliest[i]), float(own[i]), float(probabilities[i, likeliest[i]])) for i in order]


def handle(running: Running) -> dict[str, Any]:
    """Payload {"model", "limit"}. Returns how many labels were looked at, are suspect, and get a second look."""
    context, slug = running.context, running.payload["model"]
    limit = int(running.payload.get("limit", LIMIT))
    with context.database.read() as session:
        model = registry.get_model(session, slug)
        version = registry.alias(session, slug, "champion")
        rows = _labels(session, slug)
    if model.task != "classify":
        raise InputError(f"label quality: only models that classify, {slug} is for {model.task}")
    if version is None or len(rows) < MIN_LABELS:
        return _keep(
            running, slug, {"labels": len(rows), "refused": f"a version at work and {MIN_LABELS} labels are needed"}
        )
    predictor = Predictor.open(context.store, slug, version, providers=context.settings.provider_names)
    index = {name: i for i, name in enumerate(model.classes)}
    features, kept = _features(running, predictor, rows)
    if len(kept) < MIN_LABELS:
        return _keep(
            running, slug, {"labels": len(kept), "refused": f"{MIN_LABELS} labels with their images are needed"}
        )
    labels = np.array([index[row.value["classes"][0]] for row in kept], np.int64)
    found = suspects(out_of_fold(features, labels, len(model.classes)), labels)
    with running.commit() as session:
        asked = _ask(session, model, version, [(kept[s.place], s) for s in found], limit)
    return _keep(running, slug, {"labels": len(kept), "suspect": len(found), "asked": asked})


def _labels(session: Session, model: str) -> list[LabelRow]:
    query = (
        select(LabelRow)
        .join(Sample, col(Sample.id) == col(LabelRow.sample_id))
        .where(LabelRow.model == model, LabelRow.source != "auto")
        .order_by(col(LabelRow.updated_at).desc(), col(LabelRow.sample_id))
        .limit(MAX_LABELS)
    )
    return list(session.exec(query))


def _features(
    running: Running, predictor: Predictor, rows: list[LabelRow]
) -> tuple[NDArray[np.float32], list[LabelRow]]:
    """(features (n, d), their rows); an image that is gone or broken is left out."""
    tensors: list[NDArray[np.float32]] = []
    kept: list[LabelRow] = []
    parts: list[NDArray[np.float32]] = []
    for row in rows:
        try:
            image = admit(running.context.store.get(f"samples/{row.sample_id}"))
            rgb = decode(image.data, cover_hw=predictor.cover((image.height_px, image.width_px)))
        except (ImageError, NotFoundError):
            continue
        tensors.append(predictor.prepare(rgb))
        kept.append(row)
        if len(tensors) == _BATCH:
            running.check_cancelled()
            parts.append(predictor.run(np.stack(tensors)).features)
            tensors = []
    if tensors:
        parts.append(predictor.run(np.stack(tensors)).features)
    return (np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)), kept


def _ask(session: Session, model: Model, version: int, found: list[tuple[LabelRow, Suspect]], limit: int) -> int:
    """Second looks for the worst of them; how many."""
    asked = again = 0
    for label, suspect in found:
        if asked >= limit:
            break
        query = select(LabelTask).where(LabelTask.model == model.slug, LabelTask.sample_id == label.sample_id)
        task = session.exec(query).first()
        if task is None:
            session.add(_second_look(model, version, label, suspect))
        elif task.state == "annotated" and task.overlap < 2 and label.source == "annotation":
            task.state = "conflict"  # one more person is asked; the label stays until they have answered
            session.add(task)
            again += 1
        else:
            continue
        asked += 1
    if again:
        jobs.send(session, "bridge.reask", {"model": model.slug}, unique_key=f"bridge.reask:{model.slug}")
    if asked:
        text = f"{model.slug}: {len(found)} labels are probably wrong, {asked} get a second look"
        tell(session, "labels.suspect", text, model=model.slug, suspect=len(found), asked=asked)
    return asked


def _second_look(model: Model, version: int, label: LabelRow, suspect: Suspect) -> LabelTask:
    likelier, given = model.classes[suspect.likelier], label.value["classes"][0]
    answer = {"label": likelier, "index": suspect.likelier, "confidence": suspect.likelier_probability}
    return LabelTask(
        model=model.slug,
        sample_id=label.sample_id,
        prediction_id="",
        version=version,
        arm="disagree",
        reason=f"a second look: it is labelled {given}, images like it are {likelier}",
        priority=1 - suspect.given_probability,
        uncertainty=1 - suspect.given_probability,
        answer={"classes": [answer], "boxes": []},
        split=label.split,
    )


def _keep(running: Running, model: str, report: dict[str, Any]) -> dict[str, Any]:
    with running.commit() as session:
        session.add(Snapshot(model=model, kind="label-quality", data=report))
    return report


def _softmax_regression(x: Float, labels: Int, classes: int) -> Float:
    """Weights (d, classes) with a ridge on all but the last row (the intercept); accelerated gradient descent."""
    n, d = x.shape
    truth = np.eye(classes)[labels]
    ridge = np.full((d, 1), RIDGE / n)
    ridge[-1] = 0.0
    steepest = 0.5 * float(np.linalg.eigvalsh(x.T @ x / n)[-1]) + RIDGE / n
    weights: Float = np.zeros((d, classes))
    ahead: Float = weights
    momentum = 1.0
    for _ in range(STEPS):
        slope = x.T @ (softmax(x @ ahead) - truth) / n + ridge * ahead
        moved = ahead - slope / steepest
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead = moved + (momentum - 1) / following * (moved - weights)
        weights, momentum = moved, following
    return weights
