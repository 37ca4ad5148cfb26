"""The fit of one run: a training child for each candidate, the weak ones given up early.

    items, candidates -> RUN_DIR[/candidate-N]/spec.json -> children, one after the other -> epochs become rows -> finished ones

One candidate trains to its end. Several train in rounds: all of them for a quarter of their epochs, the better half (but at
least two) for a half, the better half of those to the end. A child that is paused ends with its checkpoint on disk and
goes on from there, so nothing is trained twice; the same holds after a crash.

Errors: TrainingError when the only candidate, or every one, failed; Cancelled; ConflictError when the lease was lost.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from sqlmodel import col, select

from retrain import datasets, supervise
from retrain.child import Result, read_result
from retrain.families import Item, Spec, get_family, write_atomically
from retrain.hints import hints, score_of
from sutdol import registry
from sutdol.context import Context
from sutdol.db import upsert
from sutdol.errors import TrainingError
from sutdol.jobs import Running
from sutdol.settings import child_environment
from sutdol.tables import DatasetItem, DatasetVersion, Model, RunCandidate, RunProgress, TrainingRun

REPORT_EVERY_S = 1.0
ROUNDS = (0.25, 0.5, 1.0)
"""Shares of its epochs after which the weaker half of several candidates is given up."""
KEEP = 2
"""Candidates that always train to the end."""


@dataclass(frozen=True)
class Candidate:
    """One network of a run: its row's number, what its child is told, and where it lives."""

    number: int
    spec: Spec
    folder: Path

    @property
    def epochs(self) -> int:
        warm = self.spec.warm_start and self.spec.params.get("warm_start")
        return int(self.spec.params["warm_epochs" if warm else "epochs"])

    def result(self) -> Result | None:
        """What its finished child left, or None."""
        return read_result(self.folder)


def sample_file(context: Context, folder: Path, sample_id: str) -> Path:
    """A file with the sample's bytes: the store's own where it is a folder, else a copy in `folder`."""
    key, root = f"samples/{sample_id}", context.store.root
    if root is not None and (root / key).is_file():
        return root / key
    path = folder / "samples" / sample_id
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, context.store.get(key))
    return path


class Fitting:
    """Prepares and trains the candidates of one attempt at one run."""

    def __init__(self, running: Running, run_id: str, folder: Path) -> None:
        self.running = running
        self.context = running.context
        self.run_id = run_id
        self.folder = folder
        self._reported = self._checked = 0.0
        self._history: dict[int, list[dict[str, float]]] = {}
        self._waiting = False

    # -- preparing ----------------------------------------------------------------------------------------------------

    def prepare(
        self, run: TrainingRun, model: Model, dataset: DatasetVersion, items: list[DatasetItem]
    ) -> list[Candidate]:
        """Run folders with spec.json, the champion's weights, and the images that the store does not hold as files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        known = [
            Item(i.sample_id, i.split, datasets.label_of(i), i.source, self._file(i.sample_id), i.arm, i.weight)  # type: ignore[arg-type]
            for i in items
            if i.split != "test"
        ]
        with self.context.database.read() as session:
            query = select(RunCandidate).where(RunCandidate.run_id == run.id).order_by(col(RunCandidate.number))
            rows = session.exec(query).all()
        candidates = []
        for row in rows:
            family = get_family(row.family)
            own = model.params if row.family == model.family else {}
            params = family.params(model.task, dataset.classes, own, run.params, row.params)  # type: ignore[arg-type]
            family.load()
            folder = self.folder if len(rows) == 1 else self.folder / f"candidate-{row.number}"
            folder.mkdir(exist_ok=True)
            spec = Spec(
                run_id=run.id,
                run_dir=str(folder),
                family=row.family,
                task=model.task,  # type: ignore[arg-type]
                classes=list(dataset.classes),
                params=params,
                items=known,
                locks_dir=str((self.context.settings.home / "locks").absolute()),
                warm_start=self._warm_start(run, row.family, folder) if params.get("warm_start") else None,
                attempt=self.running.attempt,
                weights_dir=str((self.context.settings.home / "weights").absolute()),
            )
            candidates.append(Candidate(row.number, spec, folder))
        return candidates

    def _file(self, sample_id: str) -> str:
        self.check()
        return str(sample_file(self.context, self.folder, sample_id))

    def _warm_start(self, run: TrainingRun, family: str, folder: Path) -> str | None:
        """The parent's weights as a file, if it has any that this family can read."""
        if run.parent_version is None:
            return None
        store, name = self.context.store, "weights.safetensors"
        manifest = registry.read_manifest(store, run.model, run.parent_version)
        if manifest.family != family or name not in manifest.files:
            return None
        path = folder / "parent.safetensors"
        write_atomically(path, registry.read_file(store, run.model, run.parent_version, manifest, name))
        return str(path)

    # -- training -----------------------------------------------------------------------------------------------------

    def train(self, candidates: list[Candidate]) -> list[Candidate]:
        """Those that were trained to their end, best first by their own score on val."""
        if len(candidates) == 1:
            self._fit(candidates[0], stop_after=0)
            return candidates
        failed: dict[int, Exception] = {}
        alive = [c for c in candidates if self._row(c).state not in ("eliminated", "failed")]
        for number, share in enumerate(ROUNDS, 1):
            if share < 1 and len(alive) <= KEEP:
                continue
            for candidate in list(alive):
                stop_after = math.ceil(share * candidate.epochs) if share < 1 else 0
                try:
                    self._fit(candidate, stop_after=stop_after)
                except TrainingError as error:
                    failed[candidate.number] = error
                    alive.remove(candidate)
                    self._mark(candidate, state="failed", error=str(error))
            if not alive:
                raise TrainingError(f"every candidate failed; the first: {next(iter(failed.values()))}")
            scores = self._scores()
            alive.sort(key=lambda c: scores[c.number], reverse=True)
            # Counted from all of them and not from those alive: a second attempt must not halve once more.
            kept = max(KEEP, math.ceil(len(candidates) / 2**number)) if share < 1 else len(alive)
            for candidate in alive[kept:]:
                self._mark(candidate, state="eliminated")
            alive = alive[:kept]
        for candidate in alive:
            self._mark(candidate, state="finished")
        return alive

    def _fit(self, candidate: Candidate, *, stop_after: int) -> None:
        """Train one candidate to `stop_after` (0: to its end); what an earlier attempt did is not done again."""
        row = self._row(candidate)
        if candidate.result() is not None or (stop_after and row.epoch >= stop_after) or row.state == "eliminated":
            return
        spec = msgspec.structs.replace(candidate.spec, stop_after=stop_after)
        write_atomically(candidate.folder / "spec.json", msgspec.json.encode(spec))
        self._mark(candidate, state="training", epochs=candidate.epochs)
        self._history[candidate.number] = self._stored(candidate)
        extra = get_family(spec.family).environment(candidate.folder, spec.params)
        environment = child_environment(self.context.settings, **extra)
        begun = time.monotonic()
        supervise.train(
            candidate.folder,
            environment,
            on_event=lambda event: self._heard(candidate, event),
            check=self.running.check_cancelled,
        )
        self._mark(candidate, training_s=row.training_s + time.monotonic() - begun)
        if not stop_after and candidate.result() is None:
            raise TrainingError("the training process ended without a whole result")

    def _heard(self, candidate: Candidate, event: dict[str, Any]) -> None:
        kind = event.pop("event", None)
        if kind == "epoch":
            self._epoch(candidate, event)
            self.running.report(step="training", candidate=candidate.number, **event)
        elif kind == "waiting":
            self._state("waiting")
            self.running.report(step="waiting for the device", device=event["device"])
        elif kind == "step" and time.monotonic() - self._reported >= REPORT_EVERY_S:
            self._reported = time.monotonic()
            if self._waiting:
                self._state("training")
            self.running.report(step="training", candidate=candidate.number, now=event)

    def _epoch(self, candidate: Candidate, event: dict[str, Any]) -> None:
        history = self._history.setdefault(candidate.number, [])
        history.append(event["metrics"])
        with self.running.commit() as session:
            progress = RunProgress(
                run_id=self.run_id,
                candidate=candidate.number,
                attempt=self.running.attempt,
                epoch=event["epoch"],
                metrics=event["metrics"],
            )
            upsert(session, progress, keys=["run_id", "candidate", "attempt", "epoch"], update=["metrics", "at"])
            row = session.get_one(RunCandidate, (self.run_id, candidate.number))
            row.epoch, row.epochs, row.score = event["epoch"], event["epochs"], score_of(event["metrics"])
            run = session.get_one(TrainingRun, self.run_id)
            run.state = "training"
            run.epoch, run.epochs, run.eta_s = event["epoch"], event["epochs"], event["eta_s"]
            run.hints = hints(history, event["epochs"])
            session.add_all([row, run])
        self._waiting = False

    def _state(self, state: str) -> None:
        self._waiting = state == "waiting"
        with self.running.commit() as session:
            run = session.get_one(TrainingRun, self.run_id)
            run.state = state
            session.add(run)

    def _stored(self, candidate: Candidate) -> list[dict[str, float]]:
        """The metrics of the epochs that earlier attempts finished."""
        query = select(RunProgress).where(RunProgress.run_id == self.run_id, RunProgress.candidate == candidate.number)
        with self.context.database.read() as session:
            rows = session.exec(query.order_by(col(RunProgress.attempt), col(RunProgress.epoch))).all()
        return list({row.epoch: row.metrics for row in rows}.values())

    def _row(self, candidate: Candidate) -> RunCandidate:
        with self.context.database.read() as session:
            return session.get_one(RunCandidate, (self.run_id, candidate.number))

    def _scores(self) -> dict[int, float]:
        """By number; without a val split there is none, and the first ones asked for stay."""
        with self.context.database.read() as session:
            rows = session.exec(select(RunCandidate).where(RunCandidate.run_id == self.run_id)).all()
        return {row.number: row.score if row.score is not None else -math.inf for row in rows}

    def _mark(self, candidate: Candidate, **values: Any) -> None:
        self.mark(candidate.number, **values)

    def mark(self, number: int, **values: Any) -> None:
        """Change a candidate's row, under the lease."""
        with self.running.commit() as session:
            row = session.get_one(RunCandidate, (self.run_id, number))
            for name, value in values.items():
                setattr(row, name, value)
            session.add(row)

    def check(self, *_: int) -> None:
        """Between images: look for a cancel request, at most twice a second."""
        if time.monotonic() - self._checked >= supervise.CHECK_EVERY_S:
            self._checked = time.monotonic()
            self.running.check_cancelled()
