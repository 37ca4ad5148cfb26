"""What the command line shows: models, status, keys, settings, and the doctor's findings. Reads, never writes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table
from sqlalchemy import func
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import col, select

from sutdol import images, registry
from sutdol import settings as settings_module
from sutdol.client import reachable
from sutdol.context import Context
from sutdol.db import Database
from sutdol.errors import SetupError, SutdolError
from sutdol.process import port_is_free
from sutdol.runtime import choose_providers
from sutdol.settings import Settings
from sutdol.stores import open_store
from sutdol.tables import Alias, ApiKey, Job, LabelTask, Model, ModelVersion, Replica, TrainingRun, now


def models(context: Context, model: str | None, console: Console) -> None:
    """All models with their aliases, or one model's versions."""
    with context.database.read() as session:
        aliases: dict[tuple[str, int], list[str]] = {}
        for a in session.exec(select(Alias).order_by(col(Alias.name))):
            aliases.setdefault((a.model, a.version), []).append(a.name)
        if model is None:
            table = _table("model", "task", "classes", "versions", "champion")
            for row in session.exec(select(Model).order_by(col(Model.slug))):
                count = session.exec(select(func.count()).where(ModelVersion.model == row.slug)).one()
                champion = registry.alias(session, row.slug, "champion")
                table.add_row(
                    row.slug, row.task, str(len(row.classes)), str(count), f"v{champion}" if champion else "-"
                )
        else:
            registry.get_model(session, model)
            table = _table("version", "name", "state", "alias", "MB", "made", "metrics")
            for version in session.exec(
                select(ModelVersion)
                .where(ModelVersion.model == model, ModelVersion.state != "deleted")
                .order_by(col(ModelVersion.version))
            ):
                numbers = {k: v for k, v in version.metrics.items() if isinstance(v, (int, float))}
                table.add_row(
                    str(version.version),
                    version.name,
                    version.state,
                    ", ".join(aliases.get((model, version.version), [])),
                    f"{version.size_bytes / 1e6:.1f}",
                    _moment(version.created_at),
                    ", ".join(f"{k} {v:.3g}" for k, v in list(numbers.items())[:4]),
                )
    console.print(table)


def status(context: Context, console: Console) -> None:
    """Processes, what each serves, label tasks, training runs, jobs."""
    alive = now() - 3 * context.settings.lease_s
    with context.database.read() as session:
        table = _table("role", "pid", "address", "serves", "last sign of life")
        for replica in session.exec(select(Replica).order_by(col(Replica.role), col(Replica.started_at))):
            serves = ", ".join(
                f"{m} v{s.get('version')}{' FAILED: ' + str(s['error']) if s.get('error') else ''}"
                for m, s in replica.serving.items()
            )
            sign = f"{now() - replica.heartbeat_at:.0f} s ago" + ("" if replica.heartbeat_at > alive else " (gone?)")
            table.add_row(replica.role, str(replica.pid), replica.url or "", serves, sign)
        console.print(table)
        table = _table("model", "label tasks")
        for row in session.exec(select(Model).order_by(col(Model.slug))):
            counts = session.exec(
                select(LabelTask.state, func.count()).where(LabelTask.model == row.slug).group_by(LabelTask.state)
            ).all()
            table.add_row(row.slug, ", ".join(f"{n} {state}" for state, n in counts) or "none")
        console.print(table)
        table = _table("run", "model", "state", "epoch", "version", "why", "error")
        for run in session.exec(select(TrainingRun).order_by(col(TrainingRun.created_at).desc()).limit(10)):
            done = f"{run.epoch}/{run.epochs}" + (f", {run.eta_s:.0f} s left" if run.eta_s else "")
            table.add_row(run.id[:13], run.model, run.state, done, str(run.version or ""), run.cause, run.error or "")
        console.print(table)
        jobs = session.exec(select(Job.state, func.count()).group_by(Job.state)).all()
    console.print("jobs: " + (", ".join(f"{n} {state}" for state, n in jobs) or "none"))


def keys(context: Context, console: Console) -> None:
    """API keys without their secrets."""
    table = _table("id", "name", "scopes", "made", "expires", "state")
    with context.database.read() as session:
        for row in session.exec(select(ApiKey).order_by(col(ApiKey.created_at))):
            expired = row.expires_at is not None and row.expires_at < now()
            state = "revoked" if row.revoked_at else "expired" if expired else "valid"
            expires = _moment(row.expires_at) if row.expires_at else "never"
            table.add_row(row.id, row.name, ", ".join(row.scopes), _moment(row.created_at), expires, state)
    console.print(table)


def settings(current: Settings, console: Console) -> None:
    """Every setting with the value in force; secrets are shown as `set`."""
    table = _table("variable", "value", "default", "meaning")
    for row in settings_module.effective(current):
        table.add_row(*row)
    console.print(table)


Check = Callable[[Settings], str]
"""Says in words what it found; raises an error of ours, with a hint, when something is wrong."""


class Finding(msgspec.Struct):
    """What one check found; `hint` is the fix when it is not `well`."""

    name: str
    well: bool
    text: str
    hint: str | None


def findings(
    current: Settings, more: Mapping[str, Check] | None = None, *, only: Collection[str] = ()
) -> list[Finding]:
    """Check every part an installation needs.

    Args:
        more: checks of the siblings, done after ours.
        only: the names of those wanted; none means all.
    """
    found = []
    for name, check in {**CHECKS, **(more or {})}.items():
        if only and name not in only:
            continue
        try:
            found.append(Finding(name, True, check(current), None))
        except SutdolError as error:
            found.append(Finding(name, False, error.message, error.hint))
        except (OSError, SQLAlchemyError) as error:
            found.append(Finding(name, False, str(error).splitlines()[0], None))
    return found


def doctor(current: Settings, console: Console, more: Mapping[str, Check] | None = None) -> bool:
    """Print what was found; each line names what is wrong and its fix. True when all is well."""
    well = True
    for finding in findings(current, more):
        if finding.well:
            console.print(f"[green]ok[/]    {finding.name}: {finding.text}", highlight=False)
        else:
            well = False
            hint = f"\n      -> {finding.hint}" if finding.hint else ""
            console.print(f"[red]wrong[/] {finding.name}: {finding.text}{hint}", highlight=False)
    return well


def _check_database(current: Settings) -> str:
    database = Database(current.database)
    database.migrate()
    with database.read() as session:
        count = session.exec(select(func.count()).select_from(Model)).one()
    return f"{'SQLite' if database.is_sqlite else 'PostgreSQL'}, newest schema, {count} models"


def _check_disk(current: Settings) -> str:
    current.home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(current.home).free / 1e9
    if free < 2:
        raise SetupError(f"{free:.1f} GB free, at least 2 are needed", hint="make room, or move SUTDOL_HOME")
    return f"{free:.0f} GB free in {current.home}"


def _check_ports(current: Settings) -> str:
    words = []
    for name, host, port in (
        ("serve", current.host, current.port),
        ("Label Studio", "127.0.0.1", current.label_studio_port),
    ):
        if port_is_free(host, port):
            words.append(f"{port} is free for {name}")
        elif reachable(f"http://{host}:{port}/{'livez' if name == 'serve' else 'health'}"):
            words.append(f"{name} answers on {port}")
        else:
            variable = "SUTDOL_PORT" if name == "serve" else "SUTDOL_LABEL_STUDIO_PORT"
            raise SetupError(
                f"port {port} is taken by something else than {name}", hint=f"choose another one with {variable}"
            )
    return ", ".join(words)


def _check_store(current: Settings) -> str:
    store = open_store(current.store, current.store_options)
    key = f"doctor/{time.time_ns()}"
    store.put(key, b"x")
    store.delete(key)
    return f"{current.store.split(':')[0]} store can be written"


def _check_providers(current: Settings) -> str:
    return f"ONNX Runtime would use {choose_providers(current.provider_names)[0]}"


def _check_cv2(_: Settings) -> str:
    images.assert_one_cv2()
    return "one owner"


def _check_broker(current: Settings) -> str:
    from sutdol.context import open_context
    from sutdol.jobs.brokers import open_broker

    open_broker(open_context(current)).close()
    return f"{current.broker.split(':')[0]} can be opened"


def _check_studio(current: Settings) -> str:
    if reachable(f"{current.studio_url}/health"):
        return f"answers on {current.studio_url}"
    if current.label_studio_url:
        raise SetupError(
            f"Label Studio does not answer on {current.studio_url}", hint="start it, or mend SUTDOL_LABEL_STUDIO_URL"
        )
    program = current.label_studio_venv / "bin" / "label-studio"
    if not Path(program).exists():
        raise SetupError(f"Label Studio is not installed in {current.label_studio_venv}", hint="run `make setup`")
    return "is installed, `sutdol up` starts it"


CHECKS: dict[str, Check] = {
    "disk": _check_disk,
    "database": _check_database,
    "store": _check_store,
    "broker": _check_broker,
    "ports": _check_ports,
    "providers": _check_providers,
    "cv2": _check_cv2,
    "Label Studio": _check_studio,
}


def _table(*columns: str) -> Table:
    table = Table()
    for column in columns:
        table.add_column(column)
    return table


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
