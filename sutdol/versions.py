"""What people do to versions beside promoting them: rename, tag, point an alias, delete, and ask where one comes from.

    rename | tag | point -> the row changed + an event that says who changed what (the audit trail)
    reject -> a version that passed the gate will not be put to work: `refused`, with a decision record
    plan_deletion -> what would be lost and a token -> delete(token) -> files gone, the row stays as `deleted`

A version is never deleted while something stands on it: an alias, a version behind an alias that was made from it, a
training, evaluation or batch under way, a replica that has it loaded. Its row stays: its number is never given out again, and
predictions, decisions and lineage go on naming it.

Errors: NotFoundError, InputError (a name that cannot be one), ConflictError (the state forbids it, or nobody confirmed).
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from sqlmodel import Session, col, select

import sutdol
from sutdol import registry
from sutdol.errors import ConflictError, InputError
from sutdol.events import tell
from sutdol.stores import Store
from sutdol.tables import (
    Alias,
    DatasetVersion,
    Decision,
    Evaluation,
    Job,
    ModelVersion,
    Replica,
    TrainingRun,
    now,
)

MANAGED = {"champion": "promote a version", "previous": "roll back", "challenger": "start a shadow or a canary"}
"""Aliases that the house sets, and how one gets them."""
MAX_NAME = 100
MAX_TAGS = 50
_ALIAS = re.compile(r"[a-z][a-z0-9-]{0,31}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./ -]{0,99}")
_GONE_AFTER_LEASES = 3


class Deletion(msgspec.Struct):
    """What deleting a version would take away; `token` must be given back to do it."""

    model: str
    version: int
    name: str
    files: list[str]
    size_bytes: int
    warnings: list[str]
    token: str


class Lineage(msgspec.Struct):
    """Where a version comes from and what was decided about it."""

    model: str
    version: int
    name: str
    state: str
    aliases: list[str]
    tags: dict[str, str]
    provenance: dict[str, str]
    """Who made it from what: run, data, family, code and library versions."""
    run: dict[str, Any] | None
    dataset_version: dict[str, Any] | None
    parents: list[int]
    """The version it was made from, the one before that, and so on."""
    children: list[int]
    decisions: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]


def rename(session: Session, model: str, version: int, name: str, *, who: str) -> ModelVersion:
    """Give a version another display name; its number, by which everything refers to it, stays.

    Raises:
        InputError: empty, too long, control characters. ConflictError: another version of the model is called so; deleted.
    """
    row = _living(session, model, version)
    name = name.strip()
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise InputError(f"name of a version: expected 1 to {MAX_NAME} printable characters, found {name[:20]!r}")
    same = select(ModelVersion.version).where(ModelVersion.model == model, ModelVersion.name == name)
    taken = session.exec(same.where(ModelVersion.version != version, ModelVersion.state != "deleted")).first()
    if taken is not None:
        raise ConflictError(f"version {taken} of {model} is called {name!r} already")
    if name != row.name:
        text = f"{model} version {version}: renamed from {row.name!r} to {name!r}"
        tell(session, "version.renamed", text, model=model, version=version, old=row.name, new=name, who=who)
        row.name = name
        session.add(row)
    return row


def tag(session: Session, model: str, version: int, key: str, value: str | None, *, who: str) -> dict[str, str]:
    """Set a tag, or remove it with None; returns all tags.

    Raises:
        InputError: a key that is no plain word, a value over 500 characters, or too many tags. ConflictError: deleted.
    """
    row = _living(session, model, version)
    if not _TAG.fullmatch(key):
        raise InputError(f"tag {key[:40]!r}: expected letters, digits and _ . / - or blanks, at most 100")
    if value is not None and (len(value) > 500 or not value.isprintable()):
        raise InputError(f"tag {key!r}: expected at most 500 printable characters")
    tags = {k: v for k, v in (row.tags or {}).items() if k != key}
    if value is not None:
        tags[key] = value
    if len(tags) > MAX_TAGS:
        raise InputError(f"version {version} of {model} has {MAX_TAGS} tags already")
    if tags != (row.tags or {}):
        text = f"{model} version {version}: tag {key!r} " + ("removed" if value is None else f"set to {value!r}")
        old = (row.tags or {}).get(key)
        tell(session, "version.tagged", text, model=model, version=version, key=key, old=old, new=value, who=who)
        row.tags = tags
        session.add(row)
    return tags


def point(session: Session, model: str, name: str, version: int | None, *, who: str) -> None:
    """Point an alias of your own (`staging`, `line-2`) at a version; None removes it. `models:/NAME@staging` then works.

    Raises:
        ConflictError: an alias that the house keeps; a version that is refused or deleted. InputError: no such form.
    """
    registry.get_model(session, model)
    if name in MANAGED:
        raise ConflictError(f"alias {name!r} is not set by hand", hint=f"{MANAGED[name]} instead")
    if not _ALIAS.fullmatch(name):
        raise InputError(f"alias {name[:40]!r}: expected lower-case letters, digits and dashes, at most 32")
    old = registry.alias(session, model, name)
    if version is not None and _living(session, model, version).state == "refused":
        raise ConflictError(f"version {version} of {model} was refused by the gate")
    if old == version:
        return
    registry.set_alias(session, model, name, version)
    text = f"{model}: alias {name} " + ("removed" if version is None else f"points at version {version}")
    tell(session, "alias.changed", text, model=model, alias=name, old=old, new=version, who=who)


def reject(session: Session, model: str, version: int, *, who: str, reason: str = "") -> Decision:
    """A person says no to a version that the gate let pass: it becomes `refused` and can no longer be promoted.

    Raises:
        ConflictError: it is not `ready`, or an alias means it. InputError: a reason of more than 1000 characters.
    """
    row = _living(session, model, version)
    session.refresh(row, with_for_update=True)  # a promotion at the same moment waits, or we see it
    reason = reason.strip()
    if len(reason) > 1000:
        raise InputError(f"reason: expected at most 1000 characters, found {len(reason)}")
    names = session.exec(select(Alias.name).where(Alias.model == model, Alias.version == version)).all()
    if row.state != "ready" or names:
        state = f"the {names[0]}" if names else row.state
        raise ConflictError(f"version {version} of {model} is {state}: only a waiting version can be rejected")
    row.state = "refused"
    text = "rejected by hand" + (f": {reason}" if reason else "")
    champion = registry.alias(session, model, "champion")
    decision = Decision(
        model=model, kind="gate", verdict="refuse", candidate=version, champion=champion, text=text, record={}, who=who
    )
    session.add_all([row, decision])
    tell(session, "gate.rejected", f"{model} version {version}: {text}", model=model, version=version, who=who)
    return decision


def plan_deletion(session: Session, store: Store, model: str, version: int, *, lease_s: float) -> Deletion:
    """First question: what deleting would take away. Changes nothing.

    Raises:
        ConflictError: something stands on it; names every such thing.
    """
    row = _living(session, model, version)
    standing = _standing_on(session, row, lease_s)
    if standing:
        raise ConflictError(
            f"version {version} of {model} cannot be deleted: {'; '.join(standing)}",
            hint="promote another version, move the alias, or wait until the work is done",
        )
    files = store.keys(f"models/{model}/{version}")
    warnings = []
    if row.state == "ready":
        warnings.append("it passed the gate and could still be promoted")
    children = [r.version for r in _children(session, row)]
    if children:
        warnings.append(f"version {', '.join(map(str, children))} was made from it; its record stays, its weights go")
    return Deletion(model, version, row.name, files, row.size_bytes, warnings, _token(row))


def delete(
    session: Session, store: Store, model: str, version: int, *, confirm: str, who: str, lease_s: float
) -> Deletion:
    """Second question answered: `confirm` is the token of `plan_deletion`. The files go, the row stays as `deleted`.

    The caller commits, and removes the files after that with `remove_files`: a crash in between leaves files without a
    use, never a version without files.

    Raises:
        ConflictError: not confirmed, changed since the plan, or something stands on it.
    """
    row = registry.get_version(session, model, version)
    session.refresh(row, with_for_update=True)  # a promotion at the same moment waits, or we see it
    plan = plan_deletion(session, store, model, version, lease_s=lease_s)
    if confirm != plan.token:
        raise ConflictError(
            f"deleting version {version} of {model} ({plan.name!r}) must be confirmed",
            hint=f"it takes {len(plan.files)} files away for ever; ask again with confirm={plan.token}",
        )
    row.state = "deleted"
    session.add(row)
    text = f"{model} version {version} ({row.name!r}) deleted, {len(plan.files)} files"
    tell(session, "version.deleted", text, model=model, version=version, sha256=row.sha256, who=who)
    return plan


def remove_files(store: Store, plan: Deletion) -> None:
    """Take the files of a deleted version away; the manifest first, so that no half bundle looks whole."""
    for key in sorted(plan.files, key=lambda k: not k.endswith("manifest.json")):
        store.delete(key)


def lineage(session: Session, model: str, version: int) -> Lineage:
    """Everything that is known about where a version comes from; works for deleted ones too.

    Raises:
        NotFoundError.
    """
    row = registry.get_version(session, model, version)
    run = session.get(TrainingRun, row.run_id) if row.run_id else None
    data = session.get(DatasetVersion, row.dataset_version_id) if row.dataset_version_id else None
    family = select(ModelVersion.version, ModelVersion.parent_version).where(ModelVersion.model == model)
    parent_of = dict(session.exec(family).all())
    parents: list[int] = []
    above = row.parent_version
    while above is not None and above not in parents:
        parents.append(above)
        above = parent_of.get(above)
    decided = select(Decision).where(Decision.model == model, Decision.candidate == version).order_by(col(Decision.at))
    judged = select(Evaluation).where(Evaluation.model == model, Evaluation.version == version)
    aliases = select(Alias.name).where(Alias.model == model, Alias.version == version)
    return Lineage(
        model=model,
        version=version,
        name=row.name,
        state=row.state,
        aliases=sorted(session.exec(aliases)),
        tags=row.tags or {},
        provenance=dict(row.manifest.get("provenance", {})),
        run=None if run is None else _some(run, "id", "family", "cause", "params", "state", "timings", "finished_at"),
        dataset_version=None if data is None else _some(data, "id", "number", "digest", "test_digest", "counts"),
        parents=parents,
        children=[r.version for r in _children(session, row)],
        decisions=[
            _some(d, "id", "kind", "verdict", "champion", "text", "record", "alpha", "who", "at")
            for d in session.exec(decided)
        ],
        evaluations=[
            _some(e, "id", "dataset_version_id", "split", "at")
            for e in session.exec(judged.order_by(col(Evaluation.at)))
        ],
    )


@cache
def code_version() -> str:
    """Our version and a hash of every source file that takes part in making a model, so that "the same code" can be checked."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for package in ("sutdol", "retrain"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return f"{sutdol.__version__}+{digest.hexdigest()[:12]}"


def _living(session: Session, model: str, version: int) -> ModelVersion:
    row = registry.get_version(session, model, version)
    if row.state == "deleted":
        raise ConflictError(f"version {version} of {model} is deleted")
    return row


def _standing_on(session: Session, row: ModelVersion, lease_s: float) -> list[str]:
    model, version = row.model, row.version
    aliases = {a.name: a.version for a in session.exec(select(Alias).where(Alias.model == model))}
    found = [f"it is the {name}" for name, v in sorted(aliases.items()) if v == version]
    for child in _children(session, row):
        names = sorted(name for name, v in aliases.items() if v == child.version)
        if names:
            found.append(f"version {child.version}, the {names[0]}, was made from it")
    running = select(Job).where(col(Job.state).in_(("queued", "running")))
    for job in session.exec(running):
        if job.payload.get("model") == model and version in (job.payload.get("version"), job.payload.get("against")):
            found.append(f"a job needs it ({job.kind} {job.id[:13]})")
    training = select(TrainingRun).where(
        TrainingRun.model == model, col(TrainingRun.state).not_in(("done", "failed", "cancelled"))
    )
    for run in session.exec(training):
        if version in (run.parent_version, run.version):
            found.append(f"training run {run.id[:13]} needs it")
    for replica in session.exec(select(Replica).where(Replica.heartbeat_at > now() - _GONE_AFTER_LEASES * lease_s)):
        if replica.serving.get(model, {}).get("version") == version:
            found.append(f"the replica on {replica.host} serves it")
    return found


def _children(session: Session, row: ModelVersion) -> list[ModelVersion]:
    made = select(ModelVersion).where(ModelVersion.model == row.model, ModelVersion.parent_version == row.version)
    return list(session.exec(made.where(ModelVersion.state != "deleted").order_by(col(ModelVersion.version))))


def _token(row: ModelVersion) -> str:
    """Changes with the version's name and state, so that a plan that is out of date confirms nothing."""
    text = f"{row.model}/{row.version}/{row.sha256}/{row.name}/{row.state}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _some(row: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(row, name) for name in names}
