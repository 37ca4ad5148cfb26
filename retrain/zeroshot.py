"""A cold start: a folder of unlabelled photos becomes a queue, and labels are suggested before there is a model.

    folder -> pool: samples and label tasks of version 0; some drawn by chance and blind, the audit sample
    job `retrain.zeroshot`:
        tasks of version 0, labelled samples -> encoder -> vectors (kept on the tasks: the window begins with what is typical)
        words (CLIP) or labelled neighbours  -> class and chance of each task
        the same for the audit sample        -> learn_then_test: from which chance on the error is below the target
        -> tasks above it show a pre-label; with too few audit labels none does, and it is said how many are missing

The audit sample is drawn by chance and goes out without suggestions, so its labels are nobody's echo; labelled data that was
imported counts too. Tasks of version 0 are scored again by the first champion, whose answers then take the place of these.

Errors: InputError for a task other than classification, an unknown method, queries for an unknown class; NotFoundError;
SetupError of the encoder. An image that cannot be read is left out and told.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlmodel import Session, col, select

from retrain.encoders import Clip, Encoder, OfModel, Pixels, queries_of
from sutdol import images, jobs, registry, scoring
from sutdol.context import Context
from sutdol.db import upsert
from sutdol.errors import ImageError, InputError, NotFoundError, unknown
from sutdol.events import tell
from sutdol.jobs import Running
from sutdol.monitor.guarantee import Rule, learn_then_test
from sutdol.predictor import Predictor
from sutdol.sampling import uniform
from sutdol.tables import LabelRow, LabelTask, Sample, now

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]
METHODS = ("knn", "clip")
AUDIT = 60
"""Photos of a pool that are drawn by chance, to measure suggestions by; fewer than 22 correct ones prove nothing at 10 %."""
MOST = 5_000
"""Tasks, and labelled samples, that one job encodes; the newest."""
NEIGHBOURS = 5
SOFTNESS = 0.05
"""By which similarities of neighbours are divided: one that is .05 nearer counts e times as much."""
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif"}


@dataclass(frozen=True)
class Pool:
    """What became of a folder: photos taken in, those of them in the audit sample, and (file, reason) of those left out."""

    added: int
    audit: int
    left_out: list[tuple[str, str]]


def pool(context: Context, model: str, folder: Path) -> Pool:
    """Take unlabelled photos into the queue of `model`; a photo that is there already stays as it is.

    Raises:
        NotFoundError: no such model. InputError: no photos in the folder.
    """
    with context.database.read() as session:
        _classifier(session, model)
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise InputError(f"{folder}: expected photos ({', '.join(sorted(SUFFIXES))}), found none")
    pi, left_out, made = min(1.0, AUDIT / len(files)), [], []
    for file in files:
        try:
            image = images.admit(file.read_bytes())
            images.decode(image.data)
        except ImageError as error:
            left_out.append((str(file.relative_to(folder)), error.message))
            continue
        context.store.put(f"samples/{image.sample_id}", image.data)
        made.append((_sample(image), _task(model, image.sample_id, pi)))
    added = audit = 0
    with context.database.begin() as session:
        known = set(session.exec(select(LabelTask.sample_id).where(LabelTask.model == model)))
        for sample, task in made:
            if sample.id in known:
                continue
            known.add(sample.id)
            upsert(session, sample, keys=["id"], update=[])
            session.add(task)
            added, audit = added + 1, audit + (task.arm == "drawn")
        text = f"{model}: {added} unlabelled photos wait for labels, {audit} of them drawn by chance"
        tell(session, "pool.added", text, model=model, left_out=len(left_out))
    return Pool(added, audit, left_out)


def request(
    session: Session,
    model: str,
    *,
    method: str,
    encoder: str = "",
    queries: dict[str, list[str]] | None = None,
    error: float = 0.1,
) -> str | None:
    """Send the job; its id, or None when one is waiting already.

    Args:
        method: `clip` (words) or `knn` (labelled neighbours).
        encoder: for `knn`, the version whose features are compared (`digits@3`); empty: the model's own champion, or
            thumbnails while there is none.
        queries: for `clip`, texts by class.
        error: share of wrong suggestions among those that are shown.

    Raises:
        InputError, NotFoundError: see the top of this file.
    """
    row = _classifier(session, model)
    if method not in METHODS:
        raise InputError(f"method {method!r}: expected one of {', '.join(METHODS)}")
    for name in queries or {}:
        if name not in row:
            raise unknown("class", name, row)
    if not 0 < error <= 0.5:
        raise InputError(f"error: expected a share in (0, 0.5], found {error}")
    if encoder:
        registry.resolve(session, encoder)
    payload = {"model": model, "method": method, "encoder": encoder, "queries": queries or {}, "error": error}
    return jobs.send(session, "retrain.zeroshot", payload, unique_key=f"retrain.zeroshot:{model}")


def handle(running: Running) -> dict[str, Any]:
    """Job handler of `retrain.zeroshot`; the payload is that of `request`."""
    context, model = running.context, str(running.payload["model"])
    with context.database.read() as session:
        classes = _classifier(session, model)
        tasks = _waiting(session, model)
        labelled = _labelled(session, model)
    encoder = _encoder(context, model, running.payload)
    running.report(step="encoding", encoder=encoder.name, tasks=len(tasks), labelled=len(labelled))
    asked, vectors = _encode(running, encoder, [task.sample_id for task in tasks])
    known, bank = _encode(running, encoder, [row.sample_id for row in labelled])
    truth = np.array([classes.index(labelled[i].value["classes"][0]) for i in known], np.int64)
    audited = np.array([labelled[i].source == "imported" or labelled[i].arm == "drawn" for i in known], bool)
    if running.payload["method"] == "clip" and isinstance(encoder, Clip):
        words = encoder.words(queries_of(classes, running.payload["queries"]))
        chances = by_words(vectors, words, sharpness=encoder.sharpness)
        own = by_words(bank, words, sharpness=encoder.sharpness)
    else:
        chances = by_neighbours(vectors, bank, truth, len(classes))
        own = by_neighbours(bank, bank, truth, len(classes), same=True)
    rule = audit(own[audited], truth[audited], error=float(running.payload["error"]))
    suggested = 0
    with running.commit() as session:
        for place, vector, chance in zip(asked, vectors, chances, strict=True):
            task = session.get_one(LabelTask, tasks[place].id)
            if task.state not in ("candidate", "queued") or task.version != 0:
                continue
            task.features = vector.astype(np.float16).tobytes()
            best = float(chance.max(initial=0.0))
            if not task.blind and rule.threshold is not None and scoring.log_odds(np.array(best)) >= rule.threshold:
                task.answer = _answer(classes, chance)
                task.uncertainty = 1.0 - best
                task.reason = f"cold start; suggested by {encoder.name}, {_measured(rule)}"
                suggested += 1
            session.add(task)
        text = _told(model, encoder.name, rule, suggested)
        tell(session, "zeroshot.done" if rule.threshold is not None else "zeroshot.refused", text, model=model)
    return {"suggested": suggested, "audited": int(audited.sum()), "missing": rule.missing, "encoder": encoder.name}


def by_words(vectors: Float32, words: Float32, *, sharpness: float) -> Float:
    """Chance of each class (n, classes): softmax of the similarities between images (n, d) and words (classes, d)."""
    if not len(vectors):
        return np.zeros((0, len(words)))
    return scoring.softmax(sharpness * (vectors @ words.T))


def by_neighbours(
    vectors: Float32, bank: Float32, labels: NDArray[np.int64], classes: int, *, same: bool = False
) -> Float:
    """Chance of each class (n, classes) by the NEIGHBOURS nearest labelled images; nothing labelled: all alike.

    The votes are softened as if one more neighbour had voted for every class alike.

    Args:
        same: `vectors` are the bank itself; then none is its own neighbour.
    """
    if not len(vectors) or len(bank) <= same:
        return np.full((len(vectors), classes), 1 / max(classes, 1))
    similar = vectors @ bank.T
    if same:
        np.fill_diagonal(similar, -np.inf)
    k = min(NEIGHBOURS, len(bank) - same)
    near = np.argpartition(-similar, k - 1, axis=1)[:, :k]
    values = np.take_along_axis(similar, near, axis=1)
    weights = np.exp((values - values.max(axis=1, keepdims=True)) / SOFTNESS)
    votes = np.full((len(vectors), classes), 1 / classes)
    for column in range(k):
        np.add.at(votes, (np.arange(len(vectors)), labels[near[:, column]]), weights[:, column])
    return np.asarray(votes / votes.sum(axis=1, keepdims=True))


def audit(chances: Float, truth: NDArray[np.int64], *, error: float) -> Rule:
    """From which log-odds of the best class on suggestions are wrong with at most `error`, by the audit sample."""
    if not len(truth):
        return learn_then_test(np.zeros(0), np.zeros(0), target=error)
    right = (chances.argmax(axis=1) == truth).astype(np.float64)
    return learn_then_test(scoring.log_odds(chances.max(axis=1)), right, target=error)


def _classifier(session: Session, model: str) -> list[str]:
    """The classes of a classification model."""
    row = registry.get_model(session, model)
    if row.task != "classify":
        raise InputError(f"{model} is a {row.task} model: suggestions without a model are for `classify`")
    if not row.classes:
        raise InputError(f"{model} has no classes yet", hint="name them when the model is made, or import a few labels")
    return row.classes


def _encoder(context: Context, model: str, payload: dict[str, Any]) -> Encoder:
    settings = context.settings
    if payload["method"] == "clip":
        return Clip.load(settings.clip_model, settings.clip_weights)
    with context.database.read() as session:
        reference = payload["encoder"] or model
        try:
            slug, version = registry.resolve(session, reference)
        except NotFoundError:
            if payload["encoder"]:
                raise
            return Pixels()
    return OfModel(Predictor.open(context.store, slug, version, providers=settings.provider_names or None))


def _encode(running: Running, encoder: Encoder, samples: list[str]) -> tuple[list[int], Float32]:
    """(places of the samples that could be read, their vectors)."""
    places: list[int] = []
    parts: list[Float32] = []
    for start in range(0, len(samples), 64):
        running.check_cancelled()
        found = []
        for place in range(start, min(start + 64, len(samples))):
            try:
                found.append(images.decode(running.context.store.get(f"samples/{samples[place]}")))
            except (ImageError, NotFoundError):
                continue
            places.append(place)
        parts.append(encoder.images(found))
    full = [part for part in parts if len(part)]
    return places, np.concatenate(full) if full else np.zeros((0, 1), np.float32)


def _waiting(session: Session, model: str) -> list[LabelTask]:
    wanted = (LabelTask.model == model, LabelTask.version == 0, col(LabelTask.state).in_(("candidate", "queued")))
    return list(session.exec(select(LabelTask).where(*wanted).order_by(col(LabelTask.created_at).desc()).limit(MOST)))


def _labelled(session: Session, model: str) -> list[LabelRow]:
    wanted = (LabelRow.model == model, LabelRow.source != "auto")
    return list(session.exec(select(LabelRow).where(*wanted).order_by(col(LabelRow.updated_at).desc()).limit(MOST)))


def _task(model: str, sample_id: str, pi: float) -> LabelTask:
    drawn = uniform(f"pool:{model}", sample_id) < pi
    return LabelTask(
        model=model,
        sample_id=sample_id,
        prediction_id="",
        version=0,
        arm="drawn" if drawn else "diverse",
        reason=f"drawn at random (1 in {1 / pi:.0f})" if drawn else "cold start",
        inclusion_probability=pi if drawn else None,
        priority=now() / 1e10 if drawn else 0.5,
        uncertainty=1.0,
        answer={"classes": [], "boxes": []},
        blind=drawn,
    )


def _sample(image: images.Image) -> Sample:
    return Sample(
        id=image.sample_id,
        width_px=image.width_px,
        height_px=image.height_px,
        media_type=image.media_type,
        size_bytes=len(image.data),
    )


def _answer(classes: list[str], chance: Float) -> dict[str, Any]:
    best = int(chance.argmax())
    return {"classes": [{"label": classes[best], "index": best, "confidence": float(chance[best])}], "boxes": []}


def _measured(rule: Rule) -> str:
    return f"{rule.labels - rule.errors} of {rule.labels} right on the audit sample"


def _told(model: str, encoder: str, rule: Rule, suggested: int) -> str:
    if rule.threshold is not None:
        return f"{model}: {suggested} tasks show a suggestion by {encoder}, {_measured(rule)}"
    if rule.missing:
        return f"{model}: no suggestions by {encoder}: {rule.missing} more labels of the audit sample are needed"
    return f"{model}: no suggestions by {encoder}: it is too often wrong on the audit sample"
