"""Job `monitor`: what the clock sends to keep an eye on every live model.

    {} or {"model": slug} -> per champion: new predictions into the drift charts
       -> alarm on: event `drift.alarm`, job `retrain.trigger`; over: event `drift.over`
       -> profile of the version (once) -> accuracy (when something changed, at most every ACCURACY_S) -> snapshot

A run takes at most TAKE predictions of a model, the next run goes on; what is younger than SETTLE_S waits, because several
replicas write and ids are only nearly in the order of their commits.

Errors: NotFoundError for an unknown model; ModelError when the version cannot be loaded for its profile.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import sqlalchemy as sa
from sqlmodel import Session, col, select

from sutdol import jobs, registry
from sutdol.agreement import answer_is_right
from sutdol.appearance import appearance
from sutdol.errors import ImageError, ModelError, NotFoundError, SutdolError
from sutdol.events import tell
from sutdol.images import admit, decode
from sutdol.jobs import Handler, Running
from sutdol.monitor import accuracy, columns, drift
from sutdol.monitor.answers import NOTHING, belief
from sutdol.predictor import Predictor
from sutdol.sampling import is_unfamiliar
from sutdol.tables import DatasetItem, DriftState, Model, ModelVersion, PredictionRow, VersionProfile, now
from sutdol.types import Label, Manifest, Prediction

TAKE = 5_000
SETTLE_S = 1.0
ACCURACY_S = 60.0
RECENT = 1_000
"""Contents that are remembered, so that a repeat does not count as news."""
PROFILED = 5_000
"""Training images and test images of which a profile is made, at most."""


def handle(running: Running) -> dict[str, Any]:
    """The handler of `monitor`; the result says per model how many predictions were taken in and what is in alarm."""
    context, told = running.context, {}
    with context.database.read() as session:
        if "model" in running.payload:
            models = [registry.get_model(session, running.payload["model"])]
        else:
            models = list(session.exec(select(Model).order_by(col(Model.slug))))
        champions = {model.slug: registry.alias(session, model.slug, "champion") for model in models}
    broken: list[SutdolError] = []
    for model in models:
        version = champions[model.slug]
        if version is None:
            continue
        running.check_cancelled()
        try:
            told[model.slug] = watch_model(running, model, version)
            profile_version(running, model, version)
            accuracy.refresh(running, model, every_s=ACCURACY_S)
        except (ModelError, NotFoundError) as error:
            broken.append(error)  # a bundle that is gone must not blind us for the other models
    if broken:
        raise broken[0]
    return told


HANDLERS: dict[str, Handler] = {"monitor": handle}


def watch_model(running: Running, model: Model, version: int) -> dict[str, Any]:
    """Take new predictions of the champion into its charts; everything that follows is in the same transaction."""
    with running.commit() as session:
        row = session.get(DriftState, model.slug)
        if row is None or row.version != version:
            row = _begin(session, model.slug, version, row)
        found = _new_predictions(session, model, row)
        if found:
            row.cursor = found[-1].id
            _take(session, model, row, _fresh(row, found))
        row.updated_at = now()
        session.add(row)
        state = msgspec.convert(row.charts, drift.State)
        return {"taken": len(found), "seen": state.seen, "alarms": state.alarms}


def profile_version(running: Running, model: Model, version: int) -> None:
    """Measure once what a version was trained on (for near-duplicates) and judged by (for label-free estimates)."""
    context = running.context
    with context.database.read() as session:
        if session.get(VersionProfile, (model.slug, version)) is not None:
            return
        row = session.get(ModelVersion, (model.slug, version))
        query = select(DatasetItem).where(DatasetItem.dataset_version_id == (row.dataset_version_id if row else None))
        items = list(session.exec(query.order_by(col(DatasetItem.sample_id))))
    predictor = Predictor.open(context.store, model.slug, version, providers=context.settings.provider_names)
    trained: list[list[Any]] = []
    judged: dict[str, list[Any]] = {name: [] for name in (*drift.SIGNALS, "said", "unfamiliar", "belief", "right")}
    for item in [i for i in items if i.split != "test"][:PROFILED] + [i for i in items if i.split == "test"][:PROFILED]:
        running.check_cancelled()
        try:
            image = admit(context.store.get(f"samples/{item.sample_id}"))
        except (ImageError, NotFoundError):
            continue  # a training image that is gone cannot be recognised; nothing else depends on it
        tensor = predictor.prepare(decode(image.data, cover_hw=predictor.cover((image.height_px, image.width_px))))
        looks = appearance(tensor, predictor.manifest.input)
        if item.split != "test":
            trained.append([looks.fingerprint, looks.brightness, looks.sharpness])
            continue
        prediction = predictor.interpret(predictor.run(tensor[None]), 0, (image.height_px, image.width_px))
        _add_judged(judged, prediction, predictor.manifest, item)
        for name in ("brightness", "sharpness", "colour"):
            judged[name].append(getattr(looks, name))
    with running.commit() as session:
        profile = VersionProfile(model=model.slug, version=version, trained_on=trained, judged=judged)
        if session.get(VersionProfile, (model.slug, version)) is None:
            session.add(profile)


def _add_judged(judged: dict[str, list[Any]], prediction: Prediction, manifest: Manifest, item: DatasetItem) -> None:
    answer = {"classes": msgspec.to_builtins(prediction.classes), "boxes": msgspec.to_builtins(prediction.boxes)}
    named = answer["boxes" if manifest.task == "detect" else "classes"]
    values = {
        "ood_score": prediction.ood_score,
        "confidence": prediction.confidence,
        "objects": len(prediction.boxes) if manifest.task == "detect" else None,
        "said": named[0]["label"] if named else NOTHING,
        "unfamiliar": is_unfamiliar(prediction, manifest),
        "belief": belief(manifest.task, prediction.confidence, prediction.margin),
        "right": answer_is_right(answer, msgspec.convert(item.value, Label), manifest.task),
    }
    for name, value in values.items():
        judged[name].append(value)


def _begin(session: Session, model: str, version: int, old: DriftState | None) -> DriftState:
    """A new version: its charts begin anew, behind what is in the log already; an alarm of the old one is over with it."""
    newest = sa.select(sa.func.max(col(PredictionRow.id))).where(
        col(PredictionRow.model) == model, col(PredictionRow.version) == version
    )
    charts = msgspec.to_builtins(drift.State())
    if old is None:
        return DriftState(model=model, version=version, cursor="", learning={}, charts=charts, recent=[])
    if old.alarm:
        text = f"{model}: version {version} is at work now, the drift alarm of version {old.version} is over"
        tell(session, "drift.over", text, model=model, version=version)
    back = session.execute(newest).scalar_one() or ""
    old.version, old.cursor, old.learning, old.reference, old.charts = version, back, {}, None, charts
    old.alarm, old.alarm_since, old.alarm_text, old.recent = False, None, "", []
    return old


def _new_predictions(session: Session, model: Model, row: DriftState) -> list[Any]:
    p = PredictionRow
    query = (
        sa.select(*columns.of_prediction(model.task))
        .where(
            col(p.model) == model.slug,
            col(p.version) == row.version,
            col(p.id) > row.cursor,
            col(p.at) <= now() - SETTLE_S,
        )
        .order_by(col(p.id))
        .limit(TAKE)
    )
    return list(session.execute(query).all())


def _fresh(row: DriftState, found: list[Any]) -> list[Any]:
    """Those whose content did not come lately."""
    known = set(row.recent)
    fresh = []
    for prediction in found:
        key = prediction.sample_id[:12]
        if key not in known:
            known.add(key)
            fresh.append(prediction)
    row.recent = [*row.recent, *(p.sample_id[:12] for p in fresh)][-RECENT:]
    return fresh


def _take(session: Session, model: Model, row: DriftState, found: list[Any]) -> None:
    """Learn from the first images, watch the others. While the images are unfamiliar there is nothing usual to learn."""
    manifest = columns.manifest_of(session, model.slug, row.version)
    state = msgspec.convert(row.charts, drift.State)
    reference = msgspec.convert(row.reference, drift.Reference) if row.reference else None
    start, changes = 0, []
    while start < len(found):
        kept = len((row.learning or {}).get("said", ())) if row.learning is not None else drift.LEARN
        step = _until_next_goal(kept)
        part = found[start : start + step]
        start += len(part)
        batch = columns.batch_of(part, manifest)
        news = drift.watch(reference, state, batch)
        changes += [(change, part[change.at].at) for change in news]
        if row.learning is not None and not state.alarms:
            row.learning = _grown(row.learning, batch)
            size = len(row.learning["said"])
            if size in (drift.MIN_LEARN, drift.LEARN):
                reference = drift.learn(_learned(row.learning))
                row.reference = msgspec.to_builtins(reference)
                row.learning = None if size >= drift.LEARN else row.learning
        elif row.learning is not None and reference is not None:
            row.learning = None  # an alarm ends the learning
    row.charts = msgspec.to_builtins(state)
    _tell(session, model.slug, row, state, changes)


def _until_next_goal(kept: int) -> int:
    for goal in (drift.MIN_LEARN, drift.LEARN):
        if kept < goal:
            return goal - kept
    return TAKE


def _grown(learning: dict[str, Any], batch: drift.Batch) -> dict[str, Any]:
    grown = {name: [*learning.get(name, ()), *_plain(values)] for name, values in batch.signals.items()}
    grown["said"] = [*learning.get("said", ()), *batch.classes]
    return grown


def _learned(learning: dict[str, Any]) -> drift.Batch:
    signals = {n: columns.floats(values) for n, values in learning.items() if n != "said"}
    return drift.Batch(signals, learning["said"], np.zeros(len(learning["said"]), bool))


def _tell(
    session: Session, model: str, row: DriftState, state: drift.State, changes: list[tuple[drift.Change, float]]
) -> None:
    was = row.alarm
    row.alarm = bool(state.alarms)
    began = [(change, at) for change, at in changes if change.on]
    if began:
        row.last_alarm_at = began[-1][1]
        texts = "; ".join(dict.fromkeys(change.text for change, _ in began))
        tell(session, "drift.alarm", f"{model} version {row.version}: {texts}", model=model, version=row.version)
        jobs.send(session, "retrain.trigger", {"model": model}, unique_key=f"retrain.trigger:{model}")
        if row.alarm:
            row.alarm_text = texts
            row.alarm_since = row.alarm_since or began[0][1]
    if not row.alarm:
        row.alarm_since, row.alarm_text = None, ""
        if was:
            tell(session, "drift.over", f"{model} version {row.version}: everything is as before", model=model)


def _plain(values: np.ndarray[Any, Any]) -> list[float | None]:
    return [None if not np.isfinite(v) else float(v) for v in values]
