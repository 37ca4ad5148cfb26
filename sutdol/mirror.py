"""The registry copied to an MLflow server, for people who look there; ours stays the truth.

    clock -> job `registry.mirror` -> rows of the registry, compared with what MLflow has -> what differs is brought over

Nothing waits for it: a promotion commits here, and the next look brings it there. Nothing is remembered here either: what was
mirrored is read from MLflow (tag `sutdol.version`), so a mirror that was away, or was emptied, catches up by itself.

A version becomes an MLflow run (metrics, lineage, decision) with the bundle as its artifact, and a model version of it: `onnx`
flavour, description, tags, aliases. Versions deleted here are deleted there. MLflow counts its versions itself; where ours has
gaps the numbers differ, `models:/NAME@champion` never does. What people add there under other names stays.

Errors: SetupError without mlflow or with an address that is none; BusyError when the server cannot be reached or refuses.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlmodel import col, select

from sutdol import registry
from sutdol.errors import BusyError, SetupError
from sutdol.jobs import Handler, Running
from sutdol.settings import without_passwords
from sutdol.tables import Alias, Decision, Model, ModelVersion

EXPERIMENT = "sutdol"
MINE = "sutdol."
"""Beginning of the tags that are ours there."""
MAX_DESCRIPTION = 4000
REQUEST_TIMEOUT_S, REQUEST_RETRIES = 20, 2
_LEFT_OUT = ("weights.safetensors",)


@dataclass(frozen=True)
class Wanted:
    """What MLflow should say about one version."""

    version: int
    description: str
    tags: dict[str, str]
    metrics: dict[str, float]


def handle(running: Running) -> dict[str, Any]:
    """Job handler of `registry.mirror`: everything that differs, one version after the other."""
    address = running.context.settings.mlflow_url
    if not address:
        return {"off": True}
    client, trouble = _open(address)
    with running.context.database.read() as session:
        models = list(session.exec(select(Model).order_by(col(Model.slug))))
    counted = {"added": 0, "changed": 0, "removed": 0}
    try:
        for model in models:
            running.check_cancelled()
            _mirror(running, client, model, counted)
    except trouble as error:
        told = without_passwords(str(error).strip().splitlines()[0])[:300]
        raise BusyError(f"MLflow: {told}", hint="it catches up by itself") from error
    return counted


HANDLERS: dict[str, Handler] = {"registry.mirror": handle}


def _open(address: str) -> tuple[Any, tuple[type[Exception], ...]]:
    """(client, what it raises)."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # nothing leaves this machine but for the address that was named
    try:
        from mlflow import MlflowClient, environment_variables
        from mlflow.exceptions import MlflowException
    except ModuleNotFoundError as error:
        raise SetupError("the mirror needs mlflow, not installed here", hint="pip install 'sutdol[mlflow]'") from error
    import requests

    environment_variables.MLFLOW_HTTP_REQUEST_TIMEOUT.set(REQUEST_TIMEOUT_S)
    environment_variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES.set(REQUEST_RETRIES)
    trouble = (MlflowException, requests.RequestException, OSError)
    try:
        return MlflowClient(tracking_uri=address, registry_uri=address), trouble
    except MlflowException as error:
        raise SetupError(f"SUTDOL_MLFLOW_URL: {without_passwords(str(error).splitlines()[0])[:200]}") from error


def _mirror(running: Running, client: Any, model: Model, counted: dict[str, int]) -> None:
    wanted, aliases = _wanted(running, model)
    there = _there(client, model)
    if there is None:
        if not wanted:
            return
        client.create_registered_model(model.slug, tags={f"{MINE}task": model.task}, description=_told(model))
        there = {}
    for version, found in list(there.items()):
        if version not in wanted:
            for name in found.aliases:
                client.delete_registered_model_alias(model.slug, name)
            client.delete_model_version(model.slug, found.version)
            del there[version]
            counted["removed"] += 1
    for version in sorted(wanted):
        running.check_cancelled()
        if version not in there:
            there[version] = _add(running, client, model, wanted[version])
            counted["added"] += 1
        elif _update(client, model, wanted[version], there[version]):
            counted["changed"] += 1
    _point(client, model, aliases, there)


def _wanted(running: Running, model: Model) -> tuple[dict[int, Wanted], dict[str, int]]:
    with running.context.database.read() as session:
        rows = session.exec(
            select(ModelVersion).where(ModelVersion.model == model.slug, ModelVersion.state != "deleted")
        ).all()
        decided = session.exec(select(Decision).where(Decision.model == model.slug).order_by(col(Decision.at))).all()
        aliases = {a.name: a.version for a in session.exec(select(Alias).where(Alias.model == model.slug))}
    said = {decision.candidate: decision.text for decision in decided}
    wanted = {}
    for row in rows:
        if row.manifest.get("files", {}).get("model.onnx") in (None, "pending"):
            continue  # its bundle is still being written
        lineage = {
            "version": row.version,
            "state": row.state,
            "sha256": row.sha256,
            "run": row.run_id,
            "parent": row.parent_version,
            "dataset_version": row.dataset_version_id,
            **row.manifest.get("provenance", {}),
        }
        tags = {str(k): str(v) for k, v in (row.tags or {}).items()}
        tags |= {f"{MINE}{name}": str(value)[:MAX_DESCRIPTION] for name, value in lineage.items() if value is not None}
        metrics = {k: float(v) for k, v in row.metrics.items() if isinstance(v, int | float)}
        text = f"{row.name}\n\n{said.get(row.version, '')}".strip()[:MAX_DESCRIPTION]
        wanted[row.version] = Wanted(row.version, text, tags, metrics)
    return wanted, {name: version for name, version in aliases.items() if version in wanted}


def _there(client: Any, model: Model) -> dict[int, Any] | None:
    """Our version -> what MLflow has of it; None when it does not know the model. Versions of others are left alone."""
    found: dict[int, Any] = {}
    token = None
    while True:
        page = client.search_model_versions(f"name='{model.slug}'", page_token=token)
        for one in page:
            mine = one.tags.get(f"{MINE}version")
            if mine is not None and mine.isdigit():
                found[int(mine)] = one
        token = page.token
        if not token:
            break
    if found:
        return {k: client.get_model_version(model.slug, v.version) for k, v in found.items()}  # with its aliases
    known = client.search_registered_models(f"name='{model.slug}'")
    return {} if known else None


def _add(running: Running, client: Any, model: Model, wanted: Wanted) -> Any:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
    run = client.create_run(
        experiment_id,
        run_name=f"{model.slug} version {wanted.version}",
        tags={**wanted.tags, f"{MINE}model": model.slug},
    )
    for name, value in wanted.metrics.items():
        client.log_metric(run.info.run_id, name, value)
    with tempfile.TemporaryDirectory() as folder:
        _write(running, model, wanted, Path(folder), run.info.run_id)
        client.log_artifacts(run.info.run_id, folder, "model")
    client.set_terminated(run.info.run_id)
    return client.create_model_version(
        model.slug,
        f"{run.info.artifact_uri}/model",
        run_id=run.info.run_id,
        tags=wanted.tags,
        description=wanted.description,
        await_creation_for=0,
    )


def _write(running: Running, model: Model, wanted: Wanted, folder: Path, run_id: str) -> None:
    """The bundle as MLflow's `onnx` flavour: `mlflow.onnx.load_model("models:/NAME@champion")` opens it."""
    import onnx
    from mlflow.models import Model as Description

    store = running.context.store
    manifest = registry.read_manifest(store, model.slug, wanted.version)
    for name in [*manifest.files, "manifest.json"]:
        if name not in _LEFT_OUT:
            (folder / name).write_bytes(store.get(registry.bundle_key(model.slug, wanted.version, name)))
    described = Description(run_id=run_id)
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    described.add_flavor(
        "onnx", onnx_version=onnx.__version__, data="model.onnx", providers=providers, onnx_session_options=None
    )
    described.save(str(folder / "MLmodel"))


def _update(client: Any, model: Model, wanted: Wanted, there: Any) -> bool:
    changed = False
    if (there.description or "") != wanted.description:
        client.update_model_version(model.slug, there.version, wanted.description)
        changed = True
    for name, value in wanted.tags.items():
        if there.tags.get(name) != value:
            client.set_model_version_tag(model.slug, there.version, name, value)
            changed = True
    for name in there.tags.keys() - wanted.tags.keys():
        client.delete_model_version_tag(model.slug, there.version, name)
        changed = True
    return changed


def _point(client: Any, model: Model, aliases: dict[str, int], there: dict[int, Any]) -> None:
    """Our aliases as ours point; others' aliases on our versions are none of theirs to keep, ours is the registry."""
    now = {alias: found.version for found in there.values() for alias in found.aliases}
    for name, version in aliases.items():
        if str(now.get(name)) != str(there[version].version):
            client.set_registered_model_alias(model.slug, name, there[version].version)
    for name in now.keys() - aliases.keys():
        client.delete_registered_model_alias(model.slug, name)


def _told(model: Model) -> str:
    return f"{model.task}, family {model.family}; classes: {', '.join(model.classes)}"[:MAX_DESCRIPTION]
