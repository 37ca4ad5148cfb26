"""Evaluation: what a version gets right and wrong, where, how sure it is of it, and what sureness costs.

evaluations.listed + monitor.report.auto_labels -> one model; evaluations.state + report + thresholds.read -> one evaluation;
evaluations.items -> the images behind a number; forms -> evaluations.ordered, guarantee.request | hold
"""

from __future__ import annotations

import asyncio
from typing import Any

from litestar import Request, Response, Router, get, post

from serving import evaluations, reads
from serving.evaluations import SPLITS, EvaluationOrder, Wanted
from serving.web.desk import Desk
from serving.web.render import go
from sutdol import thresholds
from sutdol.errors import InputError, NotFoundError
from sutdol.monitor import guarantee, report

REFRESH_S = 2
PAGE = 48
MATRIX = 16
"""Classes of a confusion matrix that are shown: those with the most mistakes."""
CURVES = 6
NAMES = {
    "accuracy": "wholly right",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "ece": "Calibration error",
    "map50": "mAP50",
    "map50_95": "mAP50-95",
    "brightness": "brightness",
    "source": "source",
    "arm": "arm",
    "image_size": "image size",
    "object_size": "object size",
}
"""Name of a number or a slice -> what people read."""
HttpRequest = Request[Any, Any, Any]


def build(desk: Desk) -> Router:
    """Overview of a model, one evaluation, its items, the sweep, and the three actions."""
    context, database = desk.context, desk.context.database

    @get("/evaluation")
    async def overview(request: HttpRequest, model: str | None = None) -> Response[str]:
        visitor = await desk.visitor(request, "label")

        def values() -> dict[str, Any]:
            models = reads.models(database, desk.slots.serving())
            chosen = model or (models[0].name if models else None)
            if chosen is None:
                return {"models": [], "chosen": None}
            with database.read() as session:
                auto = report.auto_labels(session, chosen)
            return {
                "models": models,
                "chosen": chosen,
                "auto": auto,
                "evaluations": evaluations.listed(database, chosen),
                "versions": reads.versions(database, chosen),
            }

        found = await asyncio.to_thread(values)
        return desk.pages.show(request, "evaluations.html", visitor=visitor, splits=SPLITS, **found)

    @get("/evaluation/{evaluation_id:str}")
    async def one(request: HttpRequest, evaluation_id: str) -> Response[str]:
        visitor = await desk.visitor(request, "label")

        def values() -> dict[str, Any]:
            state = evaluations.state(database, evaluation_id)
            found: dict[str, Any] = {"state": state, "report": None, "study": None}
            if state.info is not None and state.info.report:
                shown = evaluations.report(context, evaluation_id)
                found |= {"report": shown, "matrix": _matrix(shown["analysis"]["confusion"])}
                found |= {"curves": _curves(shown["analysis"]["curves"])}
            if state.info is not None:
                found["study"] = _study(desk, state.info.model, state.info.version)
            return found

        found = await asyncio.to_thread(values)
        chosen = _chosen(found["study"], {})
        return desk.pages.show(
            request, "evaluation.html", visitor=visitor, refresh_s=REFRESH_S, names=NAMES, **chosen, **found
        )

    @get("/evaluation/{evaluation_id:str}/part")
    async def part(request: HttpRequest, evaluation_id: str) -> Response[str]:
        await desk.visitor(request, "label")
        state = await asyncio.to_thread(evaluations.state, database, evaluation_id)
        ended = {"HX-Redirect": f"/console/evaluation/{evaluation_id}"} if state.state == "done" else None
        return desk.pages.show(request, "evaluation_part.html", state=state, headers=ended)

    @get("/evaluation/{evaluation_id:str}/items")
    async def items(
        request: HttpRequest,
        evaluation_id: str,
        truth: str | None = None,
        predicted: str | None = None,
        cell: bool = False,
        right: str = "",
        order: str = "confidence",
        offset: int = 0,
    ) -> Response[str]:
        visitor = await desk.visitor(request, "label")
        correct = {"yes": True, "no": False}.get(right)
        if not cell:  # an empty choice of the form is no choice; in a cell it is the background
            truth, predicted = truth or None, predicted or None
        wanted = Wanted(correct, truth, predicted, cell, order, max(offset, 0), PAGE)

        def values() -> dict[str, Any]:
            info = evaluations.state(database, evaluation_id).info
            if info is None:
                raise NotFoundError(f"evaluation {evaluation_id} is not done yet")
            count, rows = evaluations.items(context, evaluation_id, wanted)
            classes = reads.model(database, {}, info.model).classes
            return {"info": info, "count": count, "items": rows, "classes": classes}

        found = await asyncio.to_thread(values)
        asked = {k: v for k, v in request.query_params.items() if k != "offset"}
        return desk.pages.show(
            request,
            "evaluation_items.html",
            visitor=visitor,
            wanted=wanted,
            right=right,
            asked=asked,
            page=PAGE,
            **found,
        )

    @get("/evaluation/{evaluation_id:str}/sweep")
    async def sweep(request: HttpRequest, evaluation_id: str) -> Response[str]:
        await desk.visitor(request, "label")

        def values() -> dict[str, Any]:
            info = evaluations.state(database, evaluation_id).info
            study = _study(desk, info.model, info.version) if info is not None else None
            if study is None:
                raise NotFoundError("this version has no threshold study")
            return {"study": study, **_chosen(study, dict(request.query_params))}

        return desk.pages.show(request, "sweep_part.html", **await asyncio.to_thread(values))

    @post("/evaluation", status_code=303)
    async def order_one(request: HttpRequest) -> Response[Any]:
        _, fields = await desk.form(request, "admin")
        against = fields.get("against", "")
        order = EvaluationOrder(
            _number(fields.get("version", ""), "version"),
            _number(against, "against") if against else None,
            fields.get("split", "test"),
        )
        ordered = await asyncio.to_thread(evaluations.ordered, context, fields.get("model", ""), order)
        return go(f"/console/evaluation/{ordered.evaluation_id}")

    @post("/evaluation/auto-labels", status_code=303)
    async def apply(request: HttpRequest) -> Response[Any]:
        visitor, fields = await desk.form(request, "admin")
        model, act = fields.get("model", ""), fields.get("act", "")

        def work() -> None:
            with database.begin() as session:
                if act == "apply":
                    guarantee.request(session, model, target=_percent(fields.get("error", "")))
                else:
                    guarantee.hold(session, model, act == "pause", who=f"key {visitor.key_id}")

        await asyncio.to_thread(work)
        return go(f"/console/evaluation?model={model}")

    return Router("/", route_handlers=[overview, one, part, items, sweep, order_one, apply])


def _study(desk: Desk, model: str, version: int) -> thresholds.Study | None:
    try:
        return thresholds.read(desk.context.store, model, version)
    except NotFoundError:
        return None


def _chosen(study: thresholds.Study | None, asked: dict[str, str]) -> dict[str, Any]:
    """Where the two sliders stand (at first: the temperature in force, nothing withheld), and accuracy where there is one."""
    if study is None:
        return {}
    in_force = min(range(len(study.temperatures)), key=lambda i: abs(study.temperatures[i] - study.temperature))
    temperature = _place(asked.get("temperature"), len(study.temperatures), in_force)
    known = [(t, a) for t, a in zip(study.thresholds, study.accuracy[temperature], strict=True) if a is not None]
    return {
        "at_temperature": temperature,
        "at_threshold": _place(asked.get("threshold"), len(study.thresholds), 0),
        "answered": ([t for t, _ in known], [a for _, a in known]),
    }


def _place(text: str | None, length: int, otherwise: int) -> int:
    return min(int(text), length - 1) if text is not None and text.isdecimal() and len(text) < 5 else otherwise


def _matrix(confusion: dict[str, Any]) -> dict[str, Any]:
    """The part that is shown: {"labels", "rows": [[(count, tenth of its row)]], "hidden": classes left out}."""
    labels, matrix = confusion["labels"], confusion["matrix"]
    if len(labels) > MATRIX:
        wrong = [sum(row) + sum(r[i] for r in matrix) - 2 * row[i] for i, row in enumerate(matrix)]
        kept = sorted(sorted(range(len(labels)), key=lambda i: -wrong[i])[:MATRIX])
    else:
        kept = list(range(len(labels)))
    rows = []
    for i in kept:
        whole = sum(matrix[i]) or 1
        rows.append([(matrix[i][j], -(-9 * matrix[i][j] // whole)) for j in kept])
    return {"labels": [labels[i] for i in kept], "rows": rows, "hidden": len(labels) - len(kept)}


def _curves(found: dict[str, Any]) -> list[tuple[str, list[float], list[float]]]:
    """(class with its average precision, recall, precision) of the classes that do worst."""
    known = sorted(((c["ap"], name, c) for name, c in found.items() if c["positives"]), key=lambda row: row[:2])
    return [(f"{name} (AP {ap:.2f})", c["recall"], c["precision"]) for ap, name, c in known[:CURVES]]


def _number(text: str, name: str) -> int:
    if not (text.isdecimal() and len(text) < 10):
        raise InputError(f"{name}: expected a number, found {text[:20]!r}")
    return int(text)


def _percent(text: str) -> float:
    try:
        return float(text.replace(",", ".")) / 100
    except ValueError:
        raise InputError(f"error: expected a share in percent, found {text[:20]!r}") from None
