"""What Label Studio's ML backend protocol asks, answered by the champion; `routes` speaks HTTP around it.

    task {"data": {"sample_id"}} -> image from the store -> champion's Predictor -> one result per task, in order
    context (a box that somebody draws) -> the champion's box that fits it best

`Champions` keeps one loaded predictor per model in this process. When the champion changes, the new one is loaded by a thread
beside, and the old one answers until it is there: Label Studio waits for us inside the labeler's request.

Errors: NotFoundError (no such model, no champion yet), InputError (a request of another shape).
"""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import structlog
from sqlmodel import Session, select

from labeling_bridge.convert import Result, results_of
from labeling_bridge.project import version_name
from sutdol import registry, sampling
from sutdol.agreement import iou
from sutdol.context import Context
from sutdol.errors import ImageError, InputError, NotFoundError, SutdolError
from sutdol.predictor import Predictor
from sutdol.tables import Model, ModelVersion, StudioProject
from sutdol.types import Box, Prediction

LEAST_FIT_IOU = 0.1
"""A drawn box that overlaps the model's less than this was meant for something else."""
log = structlog.get_logger(__name__)


class Champions:
    """Loaded champions by model; safe from many threads."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._loaded: dict[str, Predictor] = {}
        self._loading: set[str] = set()
        self._lock = threading.Lock()

    def predictor(self, model: str) -> Predictor:
        """The champion, or the one before it for as long as the new one is being loaded.

        Raises:
            NotFoundError: there is no champion yet. ModelError: the first one cannot be loaded.
        """
        with self._context.database.read() as session:
            champion = registry.alias(session, model, "champion")
        if champion is None:
            raise NotFoundError(f"{model} has no champion yet", hint=f"train it: sutdol train {model}")
        with self._lock:
            known = self._loaded.get(model)
            if known is not None and known.version != champion and model not in self._loading:
                self._loading.add(model)
                name = f"backend-{model}"
                threading.Thread(target=self._swap, args=(model, champion), name=name, daemon=True).start()
        if known is None:
            known = self._load(model, champion)
            with self._lock:
                known = self._loaded.setdefault(model, known)
        return known

    def _load(self, model: str, version: int) -> Predictor:
        found = Predictor.open(self._context.store, model, version, providers=self._context.settings.provider_names)
        found.warm()
        return found

    def _swap(self, model: str, version: int) -> None:
        try:
            fresh = self._load(model, version)
            with self._lock:
                self._loaded[model] = fresh
        except SutdolError as error:  # the old one goes on answering
            log.warning("ML backend: version not loaded", model=model, version=version, error=str(error))
        finally:
            with self._lock:
                self._loading.discard(model)


def model_of(session: Session, project: Any) -> Model:
    """The model of a project as Label Studio names it, "13.1795254715" (id, creation time); the only model for others.

    Raises:
        NotFoundError: somebody else's project, and there are several models or none.
    """
    number = str(project or "").split(".")[0]
    row = None
    if number.isdigit():
        row = session.exec(select(StudioProject).where(StudioProject.project_id == int(number))).first()
    if row is not None:
        return registry.get_model(session, row.model)
    models = session.exec(select(Model)).all()
    if len(models) != 1:
        known = ", ".join(m.slug for m in models)
        raise NotFoundError(f"project {number or '?'} belongs to no model", hint=f"known models: {known or 'none'}")
    return models[0]


def versions(session: Session, model: str) -> list[str]:
    """Names of all versions that may serve, the newest first."""
    wanted = select(ModelVersion.version).where(ModelVersion.model == model, ModelVersion.state == "ready")
    return [version_name(model, v) for v in sorted(session.exec(wanted), reverse=True)]


def predictions(context: Context, predictor: Predictor, tasks: list[Any], drawn: Any = None) -> list[dict[str, Any]]:
    """One result for each task, in order; an image that is not ours gives an empty one.

    Args:
        drawn: `params.context` of an interactive request; None otherwise.
    """
    if not isinstance(tasks, list):
        raise InputError(f"predict: expected a list of tasks, found {type(tasks).__name__}")
    task_kind, name = predictor.manifest.task, version_name(predictor.model, predictor.version)
    found = []
    for task in tasks:
        data = task.get("data") if isinstance(task, dict) else None
        sample_id = str((data or {}).get("sample_id", ""))
        try:
            if not sample_id.isalnum():
                raise NotFoundError("not one of our samples")
            prediction = predictor.predict_bytes(context.store.get(f"samples/{sample_id}"))
        except (NotFoundError, ImageError):
            found.append({"result": [], "score": 0.0, "model_version": name})
            continue
        if drawn is not None:
            results = snapped(prediction, drawn, task_kind)
        else:
            answer = msgspec.to_builtins({"classes": prediction.classes, "boxes": prediction.boxes})
            size = {"width_px": prediction.width_px, "height_px": prediction.height_px}
            results = results_of(answer, task_kind, **size)
        score = 1 - sampling.priority(prediction, predictor.manifest)
        found.append({"result": results, "score": score, "model_version": name})
    return found


def snapped(prediction: Prediction, drawn: Any, task_kind: str) -> list[Result]:
    """The model's box that fits a drawn one best, with the class that was chosen for it; nothing when none fits.

    Args:
        drawn: {"result": [region, ...]}; the last region counts: a rectangle, or a point inside the object.
    """
    regions = drawn.get("result") if isinstance(drawn, dict) else None
    if task_kind != "detect" or not isinstance(regions, list) or not regions or not isinstance(regions[-1], dict):
        return []
    value: Any = regions[-1].get("value")
    try:
        x, y = (float(value[k]) / 100 for k in ("x", "y"))
        width, height = (float(value.get(k) or 0.0) / 100 for k in ("width", "height"))
    except (KeyError, TypeError, ValueError):
        raise InputError(f"interactive: expected x and y in percent, found {value!r}") from None
    w, h = prediction.width_px, prediction.height_px
    is_point = regions[-1].get("type") == "keypointlabels"
    if is_point:
        inside = [b for b in prediction.boxes if b.x1 <= x * w <= b.x2 and b.y1 <= y * h <= b.y2]
        best = max(inside, key=lambda b: b.confidence or 0.0, default=None)
    elif width <= 0 or height <= 0:
        return []
    else:
        mine = Box("?", x * w, y * h, (x + width) * w, (y + height) * h)
        best = max(prediction.boxes, key=lambda b: iou(b, mine), default=None)
        best = best if best is not None and iou(best, mine) >= LEAST_FIT_IOU else None
    if best is None:
        return []
    chosen = value.get("keypointlabels" if is_point else "rectanglelabels") or [best.label]
    box = {"label": chosen[0], "x1": best.x1, "y1": best.y1, "x2": best.x2, "y2": best.y2}
    answer = {"classes": [], "boxes": [box | {"confidence": best.confidence or 0.0}]}
    return results_of(answer, "detect", width_px=w, height_px=h)
