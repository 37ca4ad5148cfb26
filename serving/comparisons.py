"""Before and after on the same images: what a version got right that another one did not, and the other way round.

    evaluation of a version beside another one -> report.json, comparison.jsonl (see `retrain.reports`) -> counts and items

    GET /v1/evaluations/{id}/comparison?change=fixed -> counts, difference with its interval, a page of items

Errors: NotFoundError (no such evaluation, judged alone, or its files are gone), InputError for an unknown change.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Router, get
from litestar.params import Parameter
from sqlmodel import col, select

from serving.auth import Keyring, needs
from serving.evaluations import evaluation_file
from sutdol import registry
from sutdol.context import Context
from sutdol.errors import InputError, NotFoundError
from sutdol.tables import Evaluation, Job

CHANGES = ("fixed", "broken", "both_wrong", "both_right")
"""`fixed` only the version has right, `broken` only the one it is compared with."""


class Said(msgspec.Struct):
    """What one of the two answered: class names, the confidence, and whether that is right."""

    predicted: list[str]
    confidence: float
    correct: bool


class Compared(msgspec.Struct):
    """One image under both versions; `candidate` is the newer, judged one."""

    sample_id: str
    change: str
    truth: list[str]
    candidate: Said
    champion: Said


class Comparison(msgspec.Struct):
    """Both versions on the same images; `difference` in shares of right answers, with its 95 % interval."""

    evaluation_id: str
    model: str
    version: int
    against: int
    n: int
    counts: dict[str, int]
    difference: float
    interval: list[float]
    count: int
    """Items of the chosen change."""
    items: list[Compared]


def build(context: Context, keyring: Keyring) -> Router:
    """The route of this file."""

    @get(
        "/v1/evaluations/{evaluation_id:str}/comparison",
        guards=[needs(keyring, "predict")],
        sync_to_thread=True,
        summary="Two versions on the same images",
        tags=["evaluations"],
        operation_id="get_comparison",
    )
    def show(
        evaluation_id: str,
        change: Annotated[str | None, Parameter(description="fixed, broken, both_wrong or both_right.")] = None,
        offset: Annotated[int, Parameter(ge=0, le=10_000_000)] = 0,
        limit: Annotated[int, Parameter(ge=1, le=1000)] = 100,
    ) -> Comparison:
        return comparison(context, evaluation_id, change=change, offset=offset, limit=limit)

    return Router("/", route_handlers=[show])


def comparison(
    context: Context, evaluation_id: str, *, change: str | None = None, offset: int = 0, limit: int = 100
) -> Comparison:
    """Counts of one evaluation that had two versions, and a page of its items, in the order of the dataset version."""
    if change is not None and change not in CHANGES:
        raise InputError(f"change {change[:20]!r}: expected one of {', '.join(CHANGES)}")
    data = evaluation_file(context, evaluation_id, "report.json")
    with context.database.read() as session:
        row = session.get_one(Evaluation, evaluation_id)
    found = msgspec.json.decode(data).get("comparison")
    if found is None or row.against is None:
        raise NotFoundError(f"evaluation {evaluation_id} has no other version beside it")
    lines = msgspec.json.Decoder(Compared).decode_lines(evaluation_file(context, evaluation_id, "comparison.jsonl"))
    chosen = [line for line in lines if change is None or line.change == change]
    return Comparison(
        row.id,
        row.model,
        row.version,
        row.against,
        found["n"],
        {name: found[name] for name in CHANGES},
        found["difference"],
        found["interval"],
        len(chosen),
        chosen[offset : offset + limit],
    )


def newest(context: Context, model: str, version: int, against: int) -> tuple[str | None, str | None]:
    """(id of the newest evaluation of the two on the same images, id of a job that is making one). Raises NotFoundError."""
    judged = select(Evaluation.id).where(
        Evaluation.model == model, Evaluation.version == version, Evaluation.against == against, col(Evaluation.report)
    )
    with context.database.read() as session:
        registry.get_version(session, model, version)
        found = session.exec(judged.order_by(col(Evaluation.at).desc()).limit(1)).first()
        running = select(Job).where(Job.kind == "retrain.evaluate", col(Job.state).in_(("queued", "running")))
        wanted: dict[str, Any] = {"model": model, "version": version, "against": against}
        job = next((j.id for j in session.exec(running) if wanted.items() <= j.payload.items()), None)
    return found, job
