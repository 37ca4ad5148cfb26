"""A route for looking at labelled images: those of a dataset version, or the labels of now.

    rows along the primary key -> class, split, arm -> Page, and `next` to go on from
    judged=wrong | unsure: along the newest evaluation, the surest mistakes or the least sure answers first

A page reads at most LOOKED_AT rows, so it costs the same with a thousand samples and with a million; where hardly any row fits,
it ends early and says where to go on.

Errors: NotFoundError for an unknown model or version, InputError for a condition that is none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import msgspec
import sqlalchemy as sa
from litestar import Router, get
from litestar.params import Parameter
from sqlmodel import Session, col, select

from serving.auth import Keyring, needs
from serving.evaluations import evaluation_file
from sutdol import dataset_versions, registry
from sutdol.context import Context
from sutdol.errors import InputError
from sutdol.tables import DatasetItem, DatasetVersion, Evaluation, LabelRow, Sample
from sutdol.types import Label

LOOKED_AT = 10_000
SLICES = (200, 1_800)
"""Rows that are read at first, and then at a time."""
JUDGED = ("wrong", "unsure")


class Wanted(msgspec.Struct, frozen=True):
    """Which samples; `version` None means the labels of now."""

    version: int | None = None
    class_name: str | None = None
    split: str | None = None
    arm: str | None = None
    judged: str | None = None
    after: str | None = None
    limit: int = 48


class Said(msgspec.Struct):
    """What the evaluated version answered."""

    predicted: list[str]
    boxes: list[dict[str, Any]]
    confidence: float
    correct: bool


class Seen(msgspec.Struct):
    """One labelled sample."""

    sample_id: str
    width_px: int
    height_px: int
    split: str
    source: str
    arm: str | None
    weight: float
    label: dict[str, Any]
    answer: Said | None
    """Only with `judged`."""


class Page(msgspec.Struct):
    """`next` is what `after` has to be for the page behind this one; null at the end."""

    items: list[Seen]
    next: str | None
    looked_at: int
    evaluation_id: str | None
    """The evaluation that `judged` goes by; null when there is none to go by."""


class _Outcome(msgspec.Struct):
    sample_id: str
    correct: bool
    confidence: float


def build(context: Context, keyring: Keyring) -> Router:
    """The route of this file."""

    @get(
        "/v1/models/{model:str}/samples",
        guards=[needs(keyring, "label")],
        sync_to_thread=True,
        summary="Labelled images by class, split, arm, right and wrong",
        tags=["samples"],
        operation_id="list_samples",
    )
    def list_samples(
        model: str,
        version: Annotated[int | None, Parameter(description="Dataset version; the labels of now without one.")] = None,
        class_name: Annotated[str | None, Parameter(query="class", description="Only samples with this class.")] = None,
        split: str | None = None,
        arm: str | None = None,
        judged: Annotated[str | None, Parameter(description="`wrong` or `unsure`, by the newest evaluation.")] = None,
        after: Annotated[str | None, Parameter(description="`next` of the page before.")] = None,
        limit: Annotated[int, Parameter(ge=1, le=500)] = 48,
    ) -> Page:
        return browse(context, model, Wanted(version, class_name, split, arm, judged, after, limit))

    return Router("/", route_handlers=[list_samples])


def browse(context: Context, model: str, wanted: Wanted) -> Page:
    """One page. Raises NotFoundError, InputError."""
    if wanted.judged not in (None, *JUDGED):
        raise InputError(f"judged {wanted.judged!r}: expected {' or '.join(JUDGED)}")
    if wanted.split not in (None, *dataset_versions.SPLITS):
        raise InputError(f"split {wanted.split!r}: expected one of {', '.join(dataset_versions.SPLITS)}")
    with context.database.read() as session:
        registry.get_model(session, model)
        data = dataset_versions.get_version(session, model, wanted.version) if wanted.version is not None else None
        if wanted.judged is not None:
            return _by_evaluation(context, session, model, data, wanted)
        found: list[Seen] = []
        looked_at, last, more = 0, "", True
        for row in _rows(session, model, data, after=wanted.after or ""):
            if looked_at == LOOKED_AT or len(found) == wanted.limit:
                break
            looked_at, last = looked_at + 1, row[0]
            if fits(row, wanted):
                found.append(_seen(row))
        else:
            more = False
        _sizes(session, found)
    return Page(found, last if more else None, looked_at, None)


Row = Sequence[Any]
"""(sample id, split, source, arm, weight, label as JSON text); only what fits is taken apart."""


def fits(row: Row, wanted: Wanted) -> bool:
    """Whether a sample meets the conditions."""
    if wanted.split not in (None, row[1]) or wanted.arm not in (None, row[3] or "none"):
        return False
    if wanted.class_name is None:
        return True
    # As text first: most labels do not hold the class, and taking one apart costs ten times as much.
    text = json.dumps(wanted.class_name)
    if text not in row[5] and f'"{wanted.class_name}"' not in row[5]:
        return False
    return wanted.class_name in dataset_versions.class_names(msgspec.json.decode(row[5], type=Label))


def _rows(
    session: Session, model: str, data: DatasetVersion | None, *, after: str = "", only: list[str] | None = None
) -> Iterator[Row]:
    """Samples by rising id."""
    table: Any = LabelRow if data is None else DatasetItem
    names = ("sample_id", "split", "source", "arm", "weight")
    columns = [getattr(table, name) for name in names]
    mine = table.model == model if data is None else table.dataset_version_id == data.id
    query = sa.select(*columns, sa.cast(table.value, sa.Text)).where(mine).order_by(table.sample_id)
    if only is not None:
        yield from session.execute(query.where(table.sample_id.in_(only)))
        return
    size = SLICES[0]
    while True:
        rows = session.execute(query.where(table.sample_id > after).limit(size)).all()
        yield from rows
        if len(rows) < size:
            return
        after, size = rows[-1][0], SLICES[1]


def _seen(row: Row) -> Seen:
    """Without its size."""
    sample_id, split, source, arm, weight, value = row
    return Seen(sample_id, 0, 0, split, source, arm, weight, msgspec.json.decode(value), None)


def _by_evaluation(context: Context, session: Session, model: str, data: DatasetVersion | None, wanted: Wanted) -> Page:
    query = select(Evaluation.id).where(Evaluation.model == model, col(Evaluation.report).is_(True))
    if data is not None:
        query = query.where(Evaluation.dataset_version_id == data.id)
    if wanted.split is not None:
        query = query.where(Evaluation.split == wanted.split)
    evaluation_id = session.exec(query.order_by(col(Evaluation.at).desc()).limit(1)).first()
    if evaluation_id is None:
        return Page([], None, 0, None)
    decoder = msgspec.json.Decoder(_Outcome)
    lines = evaluation_file(context, evaluation_id, "items.jsonl").splitlines()
    outcomes = [(decoder.decode(line), line) for line in lines]
    if wanted.judged == "wrong":
        outcomes = [(o, line) for o, line in outcomes if not o.correct]
    sign = -1 if wanted.judged == "wrong" else 1
    outcomes.sort(key=lambda pair: (sign * pair[0].confidence, pair[0].sample_id))
    start = int(wanted.after) if wanted.after is not None and wanted.after.isdecimal() else 0
    found: list[Seen] = []
    place = start
    while place < len(outcomes) and len(found) < wanted.limit and place - start < LOOKED_AT:
        part = outcomes[place : place + SLICES[0]]
        known = {row[0]: row for row in _rows(session, model, data, only=[o.sample_id for o, _ in part])}
        for outcome, line in part:
            if len(found) == wanted.limit:
                break
            place += 1
            row = known.get(outcome.sample_id)
            if row is not None and fits(row, wanted):
                seen = _seen(row)
                seen.answer = msgspec.json.decode(line, type=Said)
                found.append(seen)
    _sizes(session, found)
    return Page(found, str(place) if place < len(outcomes) else None, place - start, evaluation_id)


def _sizes(session: Session, found: list[Seen]) -> None:
    query = sa.select(col(Sample.id), col(Sample.width_px), col(Sample.height_px))
    sizes = {row[0]: row[1:] for row in session.execute(query.where(col(Sample.id).in_([s.sample_id for s in found])))}
    for row in found:
        row.width_px, row.height_px = sizes.get(row.sample_id, (0, 0))
