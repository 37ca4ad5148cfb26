"""What every demo stands on: a fresh home, `sutdol up` with the real Label Studio, a client process, a labeler, and eyes.

Everything is done as a user would do it: processes are started by `sutdol up`, traffic comes over HTTP from another
process, labels through Label Studio's own API. Only the eyes (`Stage.look`) read our database directly.

Errors: SetupError when something needed is missing; Overdue when a promise is not kept in time.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from sqlalchemy import func
from sqlmodel import col, select

from sutdol import keys, registry, settings
from sutdol.client import reachable
from sutdol.context import Context, open_context
from sutdol.demo.traffic import Control, Sent
from sutdol.errors import SetupError, SutdolError
from sutdol.process import free_port, start_child
from sutdol.tables import (
    Alias,
    Decision,
    Event,
    LabelTask,
    ModelVersion,
    PredictionRow,
    Replica,
    TrainingRun,
    now,
)

MARKER = ".sutdol-demo"
LABELER = "labeler@sutdol.local"


class Overdue(SutdolError):
    """A promise was not kept in time; the message says which."""

    code = "overdue"


@dataclass
class View:
    """What is going on right now, read in one transaction."""

    champion: int | None = None
    serving: int | None = None
    serve_pid: int | None = None
    tasks: dict[str, int] = field(default_factory=dict)
    run: TrainingRun | None = None
    decision: Decision | None = None
    refused: dict[int, str] = field(default_factory=dict)


class Stage:
    """One demo's home and processes; use it in a `with` block, everything is ended at its end."""

    def __init__(self, home: Path, model: str, console: Console, **overrides: Any) -> None:
        self.home = home
        self.model = model
        self.console = console
        _fresh(home)
        self.folder = home / "stream"
        self.folder.mkdir(parents=True)
        self.context: Context = open_context(
            settings.load(home=home, port=free_port(), label_studio_port=free_port(), **overrides)
        )
        self._children: list[subprocess.Popen[bytes]] = []
        with self.context.database.begin() as session:
            self.key = keys.create(session, "demo", ["admin"])
        self._control: Control | None = None
        self._read_to = 0
        self.sent: list[Sent] = []
        self.began = time.monotonic()
        self._shown_at = 0.0
        self._status = console.status("starting")

    def __enter__(self) -> Stage:
        if self.console.is_terminal:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()
        for child in self._children:
            if child.poll() is None:
                child.terminate()
        for child in self._children:
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self.context.database.close()

    def say(self, text: str) -> None:
        """A line with the time since the start."""
        self.console.print(f"[dim]{time.monotonic() - self.began:5.0f} s[/]  {text}", highlight=False, soft_wrap=True)

    def _show(self, view: View) -> None:
        """A living line on a terminal; elsewhere a line every ten seconds."""
        pause = 0.5 if self.console.is_terminal else 10.0
        if time.monotonic() - self._shown_at < pause:
            return
        self._shown_at = time.monotonic()
        if self.console.is_terminal:
            self._status.update(self.progress(view))
        else:
            self.say(f"[dim]{self.progress(view)}[/]")

    def sutdol(self, *arguments: str) -> None:
        """One of our own commands, as a user would type it.

        Raises:
            SetupError: it failed; the text is the end of what it printed.
        """
        done = subprocess.run(
            [sys.executable, "-m", "sutdol", *arguments],
            env=settings.child_environment(self.context.settings),
            capture_output=True,
            check=False,
        )
        if done.returncode:
            words = (done.stdout + done.stderr).decode()[-800:]
            raise SetupError(f"`sutdol {' '.join(arguments[:2])}` failed: {words}")

    def set_params(self, **params: Any) -> None:
        """Training parameters for every later run of the model."""
        with self.context.database.begin() as session:
            row = registry.get_model(session, self.model)
            row.params = row.params | params
            session.add(row)

    def start_up(self) -> None:
        """`sutdol up` on this home."""
        self._start([sys.executable, "-m", "sutdol", "up"], "up")

    def start_traffic(self) -> None:
        """The application, in its own process; `control` must have been called."""
        self._start([sys.executable, "-m", "sutdol.demo.traffic", str(self.folder)], "traffic")

    def start_labeler(self, name: str, *, limit: int, wrong: float, skip: float) -> subprocess.Popen[bytes]:
        """The labeler who knows the answers, in its own process with its own account, for `limit` labels."""
        arguments = [sys.executable, "-m", "labeling_bridge.oracle", "--url", self.context.settings.studio_url]
        arguments += ["--project-model", self.model, "--email", LABELER, "--password", self.labeler_password]
        arguments += ["--truth", str(self.folder / "truth.json"), "--until-file", str(self.folder / f"{name}.stop")]
        arguments += ["--limit", str(limit), "--wrong", str(wrong), "--skip", str(skip)]
        return self._start(arguments, name)

    @property
    def labeler_password(self) -> str:
        """Of the labeler's own account; also printed for people who want to look over its shoulder."""
        return keys.secret(self.context.database, "demo-labeler-password")

    @property
    def invite_password(self) -> str:
        """Of the bridge's account; people may log in with it."""
        config = self.context.settings
        return config.label_studio_password or keys.secret(self.context.database, "label-studio-password")

    def control(self, **changes: Any) -> None:
        """Tell the application what to send from now on."""
        config = self.context.settings
        current = self._control or Control(f"http://{config.host}:{config.port}", self.key, self.model, "", 1.0)
        self._control = msgspec.structs.replace(current, **changes)
        temporary = self.folder / "control.json.new"
        temporary.write_bytes(msgspec.json.encode(self._control))
        os.replace(temporary, self.folder / "control.json")

    def look(self) -> View:
        """Read the state; also takes in what the application has logged since the last look."""
        self._take_in()
        with self.context.database.read() as session:
            counts = session.exec(
                select(LabelTask.state, func.count()).where(LabelTask.model == self.model).group_by(LabelTask.state)
            ).all()
            champion = session.get(Alias, (self.model, "champion"))
            replicas = session.exec(
                select(Replica).where(Replica.role == "serve").order_by(col(Replica.started_at))
            ).all()
            run = session.exec(
                select(TrainingRun).where(TrainingRun.model == self.model).order_by(col(TrainingRun.created_at).desc())
            ).first()
            decision = session.exec(
                select(Decision)
                .where(Decision.model == self.model, Decision.kind == "gate")
                .order_by(col(Decision.at).desc())
            ).first()
            told = session.exec(select(Event).where(Event.kind == "swap.refused", Event.model == self.model)).all()
        replica = replicas[-1] if replicas else None
        serving = (replica.serving.get(self.model) or {}).get("version") if replica else None
        return View(
            champion.version if champion else None,
            serving,
            replica.pid if replica else None,
            {str(state): int(n) for state, n in counts},
            run,
            decision,
            {int(event.data["version"]): event.text for event in told},
        )

    def wait(
        self, what: str, done: Callable[[View], bool], *, seconds: float, watch: Callable[[View], None] | None = None
    ) -> View:
        """Look every 0.2 s until `done`; shows a line of progress every few seconds.

        Raises:
            Overdue: it did not happen in `seconds`.
        """
        deadline = time.monotonic() + seconds
        while True:
            view = self.look()
            if watch:
                watch(view)
            if done(view):
                return view
            if any(child.poll() not in (None, 0) for child in self._children[:1]):
                raise SetupError("`sutdol up` ended", hint=f"see {self.home / 'logs' / 'up.log'}")
            if time.monotonic() > deadline:
                raise Overdue(f"{what}: did not happen within {seconds:.0f} s")
            self._show(view)
            time.sleep(0.2)

    def wait_for_studio(self) -> None:
        """Until Label Studio answers; its first start makes its database."""
        url = f"{self.context.settings.studio_url}/health"
        self.wait("Label Studio's start", lambda _: reachable(url), seconds=600)

    def wait_for_version(self, version: int, *, seconds: float, watch: Callable[[View], None] | None = None) -> View:
        """Until the replica serves `version`; a failed run or a refusal ends the waiting at once."""

        def done(view: View) -> bool:
            if view.run and view.run.state in ("failed", "cancelled") and view.serving != version:
                raise Overdue(f"training run {view.run.id} {view.run.state}: {view.run.error}")
            if view.decision and view.decision.candidate == version and view.decision.verdict == "refuse":
                raise Overdue(f"the gate refused version {version}: {view.decision.text.splitlines()[0]}")
            if view.refused and version in view.refused:
                raise Overdue(f"version {version} was promoted, but does not serve: {view.refused[version]}")
            return view.serving == version

        return self.wait(f"version {version} serving", done, seconds=seconds, watch=watch)

    def kill_serve(self) -> int:
        """SIGKILL to the serving process; returns its pid."""
        pid = self.look().serve_pid
        if pid is None:
            raise Overdue("no serving process is known")
        os.kill(pid, signal.SIGKILL)
        return pid

    def progress(self, view: View) -> str:
        """One line for people."""
        parts = []
        if self._control and self._control.world:
            recent = [s for s in self.sent[-400:] if s.status == 200 and s.ended > time.time() - 3]
            parts += [f"world {self._control.world}", f"{len(recent) / 3:.0f} requests/s"]
            judged = [s for s in recent if s.label is not None]
            if judged:
                parts.append(f"accuracy {sum(s.top == s.label for s in judged) / len(judged):.0%}")
            parts.append(f"{view.tasks.get('in_studio', 0)} tasks wait, {view.tasks.get('annotated', 0)} labelled")
        if view.run and view.run.finished_at is None:
            eta = f", {view.run.eta_s:.0f} s left" if view.run.eta_s else ""
            parts.append(f"{view.run.state} epoch {view.run.epoch}/{view.run.epochs}{eta}")
        parts.append(f"serving v{view.serving}" if view.serving else "serving nothing yet")
        return " | ".join(parts)

    def swaps(self) -> list[Event]:
        """Every swap a replica has reported, oldest first."""
        with self.context.database.read() as session:
            return list(
                session.exec(
                    select(Event).where(Event.kind == "swap.done", Event.model == self.model).order_by(col(Event.at))
                )
            )

    def versions(self) -> list[ModelVersion]:
        """All versions, oldest first."""
        with self.context.database.read() as session:
            return list(
                session.exec(
                    select(ModelVersion).where(ModelVersion.model == self.model).order_by(col(ModelVersion.version))
                )
            )

    def logged(self) -> tuple[str, bool]:
        """Whether every id that a client got is in the log, in words too."""
        answered = {s.prediction_id for s in self.sent if s.prediction_id}
        with self.context.database.read() as session:
            known = set(session.exec(select(PredictionRow.id).where(PredictionRow.model == self.model)))
        return f"{len(answered & known)} of {len(answered)}", answered <= known

    def tasks_once(self) -> tuple[str, bool]:
        """Compare Label Studio's own list with ours: each sample at most once, each pushed task there.

        Raises:
            SetupError: Label Studio could not be asked.
        """
        done = subprocess.run(
            [sys.executable, "-m", "labeling_bridge.inventory", self.model],
            env=settings.child_environment(self.context.settings),
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise SetupError(f"the inventory of Label Studio failed: {done.stderr.decode()[-300:]}")
        found = msgspec.json.decode(done.stdout, type=list[str])
        states = ("in_studio", "annotated", "skipped", "conflict", "unlabelable")
        with self.context.database.read() as session:
            ours = session.exec(
                select(LabelTask.sample_id).where(LabelTask.model == self.model, col(LabelTask.state).in_(states))
            ).all()
        words = f"{len(found)} tasks, {len(set(found))} samples, {len(ours)} expected"
        return words, len(found) == len(set(found)) and set(found) >= set(ours)

    def answered_since(self, moment: float, world: str, version: int) -> int:
        """How many images of `world` were answered by `version` after `moment`."""
        return sum(s.begun > moment and s.world == world and s.version == version for s in self.sent)

    def pushed_since(self, moment: float) -> int:
        """How many tasks that were made after `moment` Label Studio has taken."""
        new = (LabelTask.model == self.model, col(LabelTask.created_at) > moment, col(LabelTask.pushed_at).is_not(None))
        with self.context.database.read() as session:
            return session.exec(select(func.count()).select_from(LabelTask).where(*new)).one()

    def _take_in(self) -> None:
        path = self.folder / "traffic.jsonl"
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._read_to)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read_to += len(whole)
        self.sent += [msgspec.json.decode(line, type=Sent) for line in whole.splitlines()]

    def _start(self, arguments: list[str], name: str, **extra: str) -> subprocess.Popen[bytes]:
        environment = settings.child_environment(self.context.settings, **extra)
        child = start_child(arguments, environment=environment, log=self.home / "logs" / f"{name}.log")
        self._children.append(child)
        return child


def swap_row(event: Event) -> tuple[str, str]:
    """A line about one swap: how long loading and warming took beside the traffic, and the swap itself."""
    data = event.data
    beside = f"{data['load_ms'] + data['warm_ms']:.0f} ms loaded and warmed beside the traffic"
    return f"swap to v{data['version']}", f"{beside}, {data['swap_ms'] * 1000:.0f} µs to swap"


def _fresh(home: Path) -> None:
    """An empty home; only one that a demo made before is removed."""
    if home.exists() and any(home.iterdir()):
        if not (home / MARKER).exists():
            raise SetupError(
                f"{home} is not empty and was not made by a demo", hint="choose another folder with --home"
            )
        shutil.rmtree(home)
    home.mkdir(parents=True, exist_ok=True)
    (home / MARKER).write_text(f"made by `sutdol demo` at {now():.0f}; may be deleted\n")
