"""What people already have goes before people: imported labels for a second look, and whole projects of theirs.

    `bridge.review`: imported labels without a task -> (suspicious ones only: the champion says something else) -> label tasks
                     that show the label -> what people correct is the label, and the next dataset version
    `bridge.adopt`:  a project that is in Label Studio already -> its images and annotations -> imported labels (or, as
                     pre-annotations, label tasks); the project itself is only read

A suspicious label is one that the champion contradicts; the surer it is, the sooner people see it. Images of an adopted project
are fetched from Label Studio itself (uploads) or from data URIs; addresses elsewhere are reported, never fetched.

Errors: NotFoundError (no such model or project, no champion to suspect with), InputError (a label config we cannot read).
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from typing import Any
from xml.etree import ElementTree

import msgspec
from sqlmodel import Session, col, select

from labeling_bridge.config import OBJECT, control
from labeling_bridge.convert import label_of
from labeling_bridge.pictures import sample_row
from labeling_bridge.rescore import REVIEW_ARM
from labeling_bridge.studio import Studio, StudioTask
from sutdol import images, jobs, registry
from sutdol.agreement import same
from sutdol.errors import ImageError, InputError, NotFoundError, StudioError, unknown
from sutdol.events import tell
from sutdol.jobs import Running
from sutdol.predictor import Predictor
from sutdol.tables import LabelRow, LabelTask, Sample, now
from sutdol.types import Label, Prediction, Split

_AT_ONCE = 50
_KINDS = {"Choices": ("choices", "classify"), "RectangleLabels": ("rectanglelabels", "detect")}


def review(running: Running) -> dict[str, Any]:
    """Payload {"model", "which": "all" | "suspicious", "limit": n or None}. Returns how many were looked at and queued."""
    context, payload = running.context, running.payload
    slug, suspicious, limit = payload["model"], payload.get("which") == "suspicious", payload.get("limit")
    with context.database.read() as session:
        model = registry.get_model(session, slug)
        champion = registry.alias(session, slug, "champion")
        taken = set(session.exec(select(LabelTask.sample_id).where(LabelTask.model == slug)))
        statement = select(LabelRow).where(LabelRow.model == slug, LabelRow.source == "imported")
        rows = [row for row in session.exec(statement.order_by(LabelRow.sample_id)) if row.sample_id not in taken]
    if suspicious and champion is None:
        raise NotFoundError(f"{slug} has no champion to suspect labels with", hint="train it, or review all labels")
    predictor = None
    if champion is not None and suspicious:
        predictor = Predictor.open(context.store, slug, champion, providers=context.settings.provider_names)
    found: list[tuple[float, str, LabelRow]] = []
    for number, row in enumerate(rows):
        if number % _AT_ONCE == 0:
            running.report(looked_at=number, of=len(rows))
            running.check_cancelled()
        label = msgspec.convert(row.value, Label)
        if predictor is None:
            found.append((_lot(row.sample_id), "an imported label, for a second look", row))
            continue
        try:
            prediction = predictor.predict_bytes(context.store.get(f"samples/{row.sample_id}"))
        except (ImageError, NotFoundError):
            continue
        doubt, reason = suspicion(label, prediction)
        if doubt > 0:
            found.append((doubt, reason, row))
    found.sort(key=lambda entry: (-entry[0], entry[2].sample_id))
    chosen = found if limit is None else found[:limit]
    for start in range(0, len(chosen), _AT_ONCE):
        with running.commit() as session:
            for doubt, reason, row in chosen[start : start + _AT_ONCE]:
                session.add(_task(slug, row, champion or 0, doubt, reason))
    with running.commit() as session:
        text = f"{len(chosen)} imported labels of {slug} go to Label Studio for review"
        tell(session, "bridge.review", text, model=slug)
        if chosen:
            jobs.send(session, "bridge.push", {"model": slug}, unique_key=f"bridge.push:{slug}")
    return {"model": model.slug, "looked_at": len(rows), "queued": len(chosen)}


def suspicion(label: Label, prediction: Prediction) -> tuple[float, str]:
    """(doubt in [0, 1], reason in words) about a label; 0 when the model says the same."""
    if label.classes:
        said = prediction.classes[0] if prediction.classes else None
        if said is None or said.label in label.classes:
            return 0.0, ""
        return said.confidence, f"the label says {', '.join(label.classes)}, the model {said.label}"
    sure = [b for b in prediction.boxes if (b.confidence or 0.0) >= 0.5]
    if same(label, Label(boxes=sure)):
        return 0.0, ""
    missing = len(sure) - len(label.boxes)
    words = "more" if missing > 0 else "fewer" if missing < 0 else "other"
    doubt = max((b.confidence or 0.0 for b in sure), default=0.5)
    return doubt, f"the model finds {words} objects than the label ({len(sure)} and {len(label.boxes)})"


def adopt(running: Running) -> dict[str, Any]:
    """Payload {"model", "project_id", "trust": true | false}. Returns counts, and what was left out by reason.

    With trust, annotations become imported labels (70 % train, 10 % val, 20 % test, by hash); without, tasks that show them.
    """
    payload, context = running.payload, running.context
    slug, project_id, trust = payload["model"], int(payload["project_id"]), bool(payload.get("trust", True))
    left_out: Counter[str] = Counter()
    labelled = 0
    with Studio.open(context) as studio:
        project = studio.project(project_id)
        if project is None:
            raise unknown("project in Label Studio", project_id, [])
        kind, names, image_key, classes = read_config(project["label_config"])
        with running.commit() as session:
            model = registry.get_model(session, slug)
            if model.task != kind and not (kind == "classify" and model.task == "multilabel"):
                raise InputError(f"project {project_id} is for {kind}, the model {slug} for {model.task}")
            registry.add_classes(session, slug, classes)
        with context.database.read() as session:
            model = registry.get_model(session, slug)
        ids = sorted(studio.changed_since(project_id, ""))
        for start in range(0, len(ids), _AT_ONCE):
            running.report(tasks=start, of=len(ids))
            running.check_cancelled()
            whole = list(studio.whole(project_id, ids[start : start + _AT_ONCE]))
            found: list[tuple[images.Image, Label]] = []
            for task in whole:
                try:
                    found.append(_adopted(studio, task, image_key, names, model.task, model.classes))
                except (InputError, StudioError) as error:
                    left_out[error.message.split(":")[0] if isinstance(error, StudioError) else error.message] += 1
            for image, _ in found:
                context.store.put(f"samples/{image.sample_id}", image.data)
            with running.commit() as session:
                labelled += sum(_enter(session, slug, image, label, trust) for image, label in found)
    with running.commit() as session:
        text = (
            f"project {project_id} of Label Studio: {labelled} annotated images for {slug}, {left_out.total()} left out"
        )
        tell(session, "bridge.adopted", text, model=slug, left_out=dict(left_out.most_common(20)))
        if labelled and not trust:
            jobs.send(session, "bridge.push", {"model": slug}, unique_key=f"bridge.push:{slug}")
        if labelled and trust:
            jobs.send(session, "retrain.trigger", {"model": slug}, unique_key=f"retrain.trigger:{slug}")
    return {"tasks": len(ids), "labelled": labelled, "left_out": dict(left_out)}


def read_config(config: str) -> tuple[str, set[str], str, list[str]]:
    """(task, names of its controls, key of the image in task data, classes) of somebody else's label config.

    Raises:
        InputError: no choices and no rectangles about exactly one image.
    """
    try:
        tree = ElementTree.fromstring(config)
    except ElementTree.ParseError as error:
        raise InputError(f"label config: {error}") from None
    sources = {e.attrib.get("name", ""): e.attrib.get("value", "") for e in tree.iter("Image")}
    controls = [e for e in tree.iter() if e.tag in _KINDS and e.attrib.get("toName") in sources]
    kinds = {e.tag for e in controls}
    if len(sources) != 1 or len(kinds) != 1:
        found = ", ".join(sorted({e.tag for e in tree.iter() if "toName" in e.attrib})) or "nothing"
        raise InputError(f"label config: expected Choices or RectangleLabels about one Image, found {found}")
    classes = [
        child.attrib.get("alias") or child.attrib["value"]
        for e in controls
        for child in e
        if child.tag in ("Choice", "Label") and "value" in child.attrib
    ]
    kind = _KINDS[kinds.pop()][1]
    return kind, {e.attrib["name"] for e in controls}, next(iter(sources.values())).lstrip("$"), classes


def split_by_hash(sample_id: str) -> Split:
    """70 % train, 10 % val, 20 % test; by the content, so a second adoption gives the same."""
    place = _lot(f"split:{sample_id}")
    return "test" if place < 0.2 else "val" if place < 0.3 else "train"


def _adopted(
    studio: Studio, task: StudioTask, image_key: str, names: set[str], kind: str, classes: list[str]
) -> tuple[images.Image, Label]:
    answers = [a for a in task.annotations if not a.get("was_cancelled")]
    if not answers:
        raise InputError("not annotated")
    newest = max(answers, key=lambda a: (bool(a.get("ground_truth")), str(a.get("updated_at"))))
    try:
        image = images.admit(_image_bytes(studio, str(task.data.get(image_key, ""))))
    except ImageError as error:
        raise InputError(f"image: {error.message}") from error
    regions = [r for r in newest.get("result") or [] if r.get("from_name") in names]
    own = control(kind)  # type: ignore[arg-type]
    ours = [r | {"from_name": own, "to_name": OBJECT} for r in regions]
    size = {"width_px": image.width_px, "height_px": image.height_px}
    return image, label_of(ours, kind, classes, **size)  # type: ignore[arg-type]


def _image_bytes(studio: Studio, address: str) -> bytes:
    if address.startswith("data:"):
        try:
            return base64.b64decode(address.split(",", 1)[1], validate=True)
        except (IndexError, ValueError):
            raise InputError("image: a data URI that is not base64") from None
    path = address.removeprefix(studio.url)
    if path.startswith("/data/"):
        return studio.ask("GET", path).content
    raise InputError("image: lies outside Label Studio; import the folder instead")


def _enter(session: Session, slug: str, image: images.Image, label: Label, trust: bool) -> bool:
    if session.get(Sample, image.sample_id) is None:
        session.add(sample_row(image))
    known = session.get(LabelRow, (slug, image.sample_id))
    row = LabelRow(
        model=slug,
        sample_id=image.sample_id,
        value=msgspec.to_builtins(label),
        source="imported",
        split=split_by_hash(image.sample_id),
    )
    if trust:
        if known is None:
            session.add(row)
        return known is None
    statement = select(LabelTask.id).where(LabelTask.model == slug, col(LabelTask.sample_id) == image.sample_id)
    if known is not None or session.exec(statement).first() is not None:
        return False
    champion = registry.alias(session, slug, "champion")
    session.add(_task(slug, row, champion or 0, _lot(image.sample_id), "annotated elsewhere, for a second look"))
    return True


def _task(slug: str, row: LabelRow, version: int, doubt: float, reason: str) -> LabelTask:
    boxes = [b | {"confidence": 1.0} for b in row.value.get("boxes", [])]
    classes = [{"label": c, "index": 0, "confidence": 1.0} for c in row.value.get("classes", [])]
    return LabelTask(
        model=slug,
        sample_id=row.sample_id,
        prediction_id="",
        version=version,
        arm=REVIEW_ARM,
        reason=reason,
        priority=min(max(doubt, 0.0), 1.0),
        uncertainty=doubt,
        answer={"classes": classes, "boxes": boxes},
        state="queued",
        queued_at=now(),
    )


def _lot(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48
