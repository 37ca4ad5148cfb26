"""Models, their versions and which of them is put to work. MLflow's words: version, alias, `models:/NAME@champion`.

A version is a row and a bundle of files in the store under `models/{model}/{version}/`:

    model.onnx         one self-contained file, outputs `scores` and `features`
    manifest.json      types.Manifest; written last, so a bundle with a manifest is whole
    scoring.npz        familiarity.OodStatistics (may be missing)
    golden.npz         recorded inputs and outputs that every load is compared with
    thresholds.json    thresholds.Study (may be missing)
    weights.safetensors  for warm starts (may be missing)

Replicas follow the alias `champion`; promoting is one row written here, rolling back is swapping two.

Errors: NotFoundError (lists what there is), ConflictError (the state forbids it), ModelError (a bundle that does not match
its hashes).
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import msgspec
from sqlalchemy import func
from sqlmodel import Session, col, select

from sutdol import jobs, wake
from sutdol.errors import ConflictError, InputError, ModelError, NotFoundError, unknown
from sutdol.events import tell
from sutdol.stores import Store
from sutdol.tables import Alias, Decision, Model, ModelVersion, Rollout, now
from sutdol.types import Manifest, Task

DEFAULT_FAMILY: dict[str, str] = {"classify": "timm", "multilabel": "timm", "detect": "yolo"}
"""What a new model is trained with, unless somebody says otherwise, by its task."""
_SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_REFERENCE = re.compile(r"(?:models:/)?(?P<model>[a-z0-9-]+)(?:[@/](?P<which>[a-z][a-z0-9-]*|[0-9]+))?")


def create_model(
    session: Session, slug: str, *, task: Task, classes: list[str], family: str, params: dict[str, Any] | None = None
) -> Model:
    """Name a new model; `classes` may be empty, an import adds those it finds.

    Raises:
        InputError: a slug that is not lower-case letters, digits and dashes.
        ConflictError: there is one of that name.
    """
    if not _SLUG.fullmatch(slug):
        raise InputError(f"model name {slug!r}: expected lower-case letters, digits and dashes, at most 63")
    if session.get(Model, slug) is not None:
        raise ConflictError(f"there is a model {slug!r} already")
    row = Model(slug=slug, task=task, classes=_distinct(classes), family=family, params=params or {})
    session.add(row)
    session.flush()
    tell(session, "model.created", f"model {slug} ({task}, {family})", model=slug)
    return row


def get_model(session: Session, slug: str) -> Model:
    """The model's row.

    Raises:
        NotFoundError: lists the known ones.
    """
    row = session.get(Model, slug)
    if row is None:
        raise unknown("model", slug, list(session.exec(select(Model.slug).order_by(col(Model.slug)))))
    return row


def add_classes(session: Session, slug: str, names: list[str]) -> list[str]:
    """Append the classes that are new; an index, once given, never means another class. Returns the whole list."""
    row = get_model(session, slug)
    added = [name for name in _distinct(names) if name not in row.classes]
    if added:
        tell(session, "class.added", f"{slug} knows {len(added)} more classes: {', '.join(added[:10])}", model=slug)
    row.classes = [*row.classes, *added]
    row.retired = [c for c in row.retired or [] if c not in names]
    session.add(row)
    return row.classes


def retire_class(session: Session, slug: str, name: str) -> list[str]:
    """Offer a class to labelers no more; it keeps its index and its labels. `add_classes` takes it back. Returns all retired.

    Raises:
        NotFoundError: the model has no such class.
    """
    row = get_model(session, slug)
    if name not in row.classes:
        raise unknown("class", name, row.classes)
    row.retired = _distinct([*(row.retired or []), name])
    session.add(row)
    tell(session, "class.retired", f"{name} of {slug} is offered to labelers no more", model=slug)
    return row.retired


def allocate_version(session: Session, model: str) -> int:
    """The next version number of `model`. The caller registers it in this transaction or keeps it on its run."""
    from sutdol.tables import TrainingRun

    registered = session.exec(select(func.max(ModelVersion.version)).where(ModelVersion.model == model)).one()
    reserved = session.exec(select(func.max(TrainingRun.version)).where(TrainingRun.model == model)).one()
    return max(registered or 0, reserved or 0) + 1


def bundle_key(model: str, version: int, file: str) -> str:
    """Where one file of a bundle lies in the store."""
    return f"models/{model}/{version}/{file}"


def write_bundle(store: Store, model: str, version: int, manifest: Manifest, files: dict[str, bytes]) -> Manifest:
    """Store a bundle; `model.onnx` must be among `files`. Writing the same bundle twice is harmless.

    Returns:
        The manifest with the files' hashes, as it was written.

    Raises:
        ConflictError: the version's bundle exists with other content.
    """
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    manifest = msgspec.structs.replace(manifest, files=digests)
    for name, data in files.items():
        key = bundle_key(model, version, name)
        if not store.put(key, data) and hashlib.sha256(store.get(key)).hexdigest() != digests[name]:
            if store.has(bundle_key(model, version, "manifest.json")):
                raise ConflictError(f"version {version} of {model} has another {name} already")
            store.delete(key)  # left by an attempt that died before its manifest
            store.put(key, data)
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    store.put(bundle_key(model, version, "manifest.json"), text)
    return manifest


def read_manifest(store: Store, model: str, version: int) -> Manifest:
    """The manifest of a bundle.

    Raises:
        NotFoundError: no such bundle. ModelError: not a manifest.
    """
    try:
        return msgspec.json.decode(store.get(bundle_key(model, version, "manifest.json")), type=Manifest)
    except (msgspec.MsgspecError, InputError) as error:
        raise ModelError(f"manifest of {model} version {version}: {error}") from error


def read_file(store: Store, model: str, version: int, manifest: Manifest, file: str) -> bytes:
    """One file of a bundle, checked against the manifest's hash.

    Raises:
        ModelError: the bytes are not those that were registered.
    """
    data = store.get(bundle_key(model, version, file))
    found = hashlib.sha256(data).hexdigest()
    if found != manifest.files.get(file):
        expected = str(manifest.files.get(file))
        raise ModelError(f"{file} of {model} version {version}: expected sha256 {expected[:12]}, found {found[:12]}")
    return data


def register(
    session: Session,
    model: str,
    version: int,
    manifest: Manifest,
    *,
    size_bytes: int,
    metrics: dict[str, Any],
    run_id: str | None = None,
    dataset_version_id: str | None = None,
    parent_version: int | None = None,
    state: str = "candidate",
) -> ModelVersion:
    """Make a stored bundle known. Registering the same version again returns the row that is there."""
    existing = session.get(ModelVersion, (model, version))
    if existing is not None:
        return existing
    row = ModelVersion(
        model=model,
        version=version,
        name=f"{model} v{version}",
        state=state,
        sha256=manifest.files["model.onnx"],
        size_bytes=size_bytes,
        manifest=msgspec.to_builtins(manifest),
        metrics=metrics,
        run_id=run_id,
        dataset_version_id=dataset_version_id,
        parent_version=parent_version,
    )
    session.add(row)
    session.flush()
    return row


def get_version(session: Session, model: str, version: int) -> ModelVersion:
    """The version's row.

    Raises:
        NotFoundError: lists the known ones.
    """
    get_model(session, model)
    row = session.get(ModelVersion, (model, version))
    if row is None:
        known = session.exec(
            select(ModelVersion.version).where(ModelVersion.model == model).order_by(col(ModelVersion.version))
        )
        raise unknown(f"version of {model}", version, [str(v) for v in known])
    return row


def alias(session: Session, model: str, name: str) -> int | None:
    """Which version `champion`, `challenger` or `previous` means; None when nothing does."""
    row = session.get(Alias, (model, name))
    return row.version if row else None


def set_alias(session: Session, model: str, name: str, version: int | None) -> None:
    """Point an alias at a version; None removes it. Servers that listen hear of it at the commit."""
    wake.call(session, wake.REGISTRY)
    row = session.get(Alias, (model, name))
    if version is None:
        if row is not None:
            session.delete(row)
        return
    if row is None:
        row = Alias(model=model, name=name, version=version)
    row.version, row.updated_at = version, now()
    session.add(row)


def resolve(session: Session, reference: str) -> tuple[str, int]:
    """`digits`, `digits@champion`, `digits@3` or `models:/digits@champion` become (model, version); no `@` means champion.

    Raises:
        InputError: not of that form. NotFoundError: no such model, version, or nothing behind the alias.
    """
    slug, which = split(reference)
    get_model(session, slug)
    if which.isdigit():
        row = get_version(session, slug, int(which))
        if row.state == "deleted":
            raise NotFoundError(f"version {row.version} of {slug} is deleted")
        return slug, row.version
    version = alias(session, slug, which)
    if version is None:
        known = [f"{slug}@{a}" for a in session.exec(select(Alias.name).where(Alias.model == slug))]
        raise unknown("model reference", reference, known)
    return slug, version


def split(reference: str) -> tuple[str, str]:
    """(model, `champion` or another alias or a number) of a reference; nothing is looked up.

    Raises:
        InputError: not of that form.

    >>> split("models:/digits@3"), split("digits")
    (('digits', '3'), ('digits', 'champion'))
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise InputError(
            f"model reference {reference!r}: expected NAME, NAME@champion, NAME@3 or models:/NAME@champion"
        )
    return match["model"], match["which"] or "champion"


def promote(
    session: Session, model: str, version: int, *, who: str, text: str, record: dict[str, Any] | None = None
) -> Decision:
    """Put a version to work: it becomes `champion`, the old champion becomes `previous`; replicas follow by themselves.

    Raises:
        ConflictError: the version was refused or is not ready; it serves already. NotFoundError.
    """
    row = get_version(session, model, version)
    session.refresh(row, with_for_update=True)  # a deletion at the same moment waits, or we see it
    champion = alias(session, model, "champion")
    if row.state != "ready":
        raise ConflictError(f"version {version} of {model} is {row.state}, only `ready` ones can be promoted")
    if champion == version:
        raise ConflictError(f"version {version} of {model} is the champion already")
    set_alias(session, model, "champion", version)
    if champion is not None:
        set_alias(session, model, "previous", champion)
    _end_trial(session, model, version)
    return _decided(session, "promote", model, version, champion, who=who, text=text, record=record)


def rollback(
    session: Session, model: str, *, who: str, text: str = "", record: dict[str, Any] | None = None
) -> Decision:
    """Put `previous` back to work in one step; the version that served becomes `previous`.

    Raises:
        ConflictError: there is no previous version.
    """
    get_model(session, model)
    champion, previous = alias(session, model, "champion"), alias(session, model, "previous")
    if champion is None or previous is None:
        raise ConflictError(f"{model} has no previous version to roll back to")
    set_alias(session, model, "champion", previous)
    set_alias(session, model, "previous", champion)
    _end_trial(session, model, previous)
    return _decided(session, "rollback", model, previous, champion, who=who, text=text, record=record)


def _end_trial(session: Session, model: str, champion: int) -> None:
    """A challenger was on trial against the champion that is now gone; its numbers mean nothing beside another one."""
    trial = session.get(Rollout, model)
    if trial is not None:
        session.delete(trial)
    if trial is not None or alias(session, model, "challenger") == champion:
        set_alias(session, model, "challenger", None)


def _decided(
    session: Session,
    kind: str,
    model: str,
    version: int,
    champion: int | None,
    *,
    who: str,
    text: str,
    record: dict[str, Any] | None,
) -> Decision:
    words = text or f"{kind} version {version}"
    decision = Decision(
        model=model,
        kind=kind,
        verdict="done",
        candidate=version,
        champion=champion,
        text=words,
        record=record or {},
        who=who,
    )
    session.add(decision)
    tell(session, f"model.{kind}", f"{model}: {words}", model=model, version=version, champion=champion, who=who)
    jobs.send(session, "bridge.refresh", {"model": model, "version": version}, unique_key=f"bridge.refresh:{model}")
    return decision


def _distinct(names: list[str]) -> list[str]:
    for name in names:
        if not name.strip() or len(name) > 200:
            raise InputError(f"class name {name!r}: expected 1 to 200 characters")
    return list(dict.fromkeys(names))
