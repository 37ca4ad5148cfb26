"""The training job: from a row of `training_run` to a judged, perhaps promoted version.

    preparing   dataset version frozen, run folder written
    waiting     another training holds the device
    training    a child process per candidate; their epochs become rows of `run_progress` (see `fitting`)
    exporting   of several candidates the best on val, version number given out once, calibrated, bundle in the store
    evaluating  candidate and champion on the same frozen test items
    deciding    gate, decision record, promotion: one transaction, under the job's lease

Every step looks before it acts, because this may be the second attempt: the dataset version, the parent version and the
number are kept on the run, a finished training is not repeated and an unfinished one goes on after its last epoch.

Errors: TrainingError with the child's last words; SetupError for a missing extra; Cancelled; ConflictError when the lease
was lost or the champion changed while the candidate was judged (the next attempt judges against the new one).
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlmodel import Session, col, select

from retrain import datasets, gate, reports
from retrain.calibrate import Calibrated, calibrate
from retrain.evaluate import Evaluated, evaluate
from retrain.families import get_family
from retrain.fitting import Candidate, Fitting
from sutdol import jobs, notify, registry, runs
from sutdol.errors import ConflictError, InputError, SutdolError, TrainingError, unknown
from sutdol.events import tell
from sutdol.jobs import Running
from sutdol.predictor import Predictor
from sutdol.tables import (
    DatasetItem,
    DatasetVersion,
    Decision,
    Evaluation,
    Model,
    ModelVersion,
    RunCandidate,
    TrainingRun,
    now,
)
from sutdol.versions import code_version


def start(
    session: Session,
    model: str,
    *,
    cause: str,
    params: dict[str, Any] | None = None,
    candidates: list[dict[str, Any]] | None = None,
) -> TrainingRun | None:
    """Queue a training of `model` in the caller's transaction, with parameters that its families know.

    Args, Returns: see `sutdol.runs.queue`.

    Raises:
        NotFoundError: no such model or family. InputError: an unknown parameter.
    """
    known = registry.get_model(session, model)
    for wanted in candidates or [{}]:
        family = str(wanted.get("family") or known.family)
        own = known.params if family == known.family else {}
        layers = (own, params or {}, dict(wanted.get("params") or {}))
        get_family(family).params(known.task, known.classes, *layers)  # type: ignore[arg-type]
    return runs.queue(session, model, cause=cause, params=params, candidates=candidates)


def handle(running: Running) -> dict[str, Any]:
    """Job handler of `train`, payload {"run_id"}."""
    run_id = str(running.payload["run_id"])
    with running.context.database.read() as session:
        run = session.get(TrainingRun, run_id)
    if run is None:
        raise unknown("training run", run_id, [])
    if run.state == "done":
        return {"version": run.version}
    try:
        return _Attempt(running, run_id).work()
    except BaseException as error:
        if not running.lost:
            _mark(running, run_id, error)
        raise


class _Attempt:
    """One attempt at one run."""

    def __init__(self, running: Running, run_id: str) -> None:
        self.running = running
        self.context = running.context
        self.run_id = run_id
        self.folder = (running.context.settings.home / "runs" / run_id).absolute()
        self.fitting = Fitting(running, run_id, self.folder)

    def work(self) -> dict[str, Any]:
        with self._step("preparing"):
            run, model, dataset, items = self._freeze()
            candidates = self.fitting.prepare(run, model, dataset, items)
        with self._step("training"):
            finished = self.fitting.train(candidates)
        with self._step("exporting"):
            chosen, calibrated = self._choose(finished, dataset, items)
            version = self._allocate(chosen)
            candidate = self._bundle(chosen, calibrated, dataset, version)
        with self._step("evaluating"):
            test = [item for item in items if item.split == "test"]
            champion_version, champion = self._champion(model.slug)
            ours = evaluate(candidate, test, self._read, progress=self.fitting.check)
            theirs = evaluate(champion, test, self._read, progress=self.fitting.check) if champion else None
        with self._step("deciding"):
            decision = self._decide(model, dataset, test, candidate, ours, champion_version, theirs)
        self._tidy()
        return {"version": version, "verdict": decision.verdict}

    # -- preparing ----------------------------------------------------------------------------------------------------

    def _freeze(self) -> tuple[TrainingRun, Model, DatasetVersion, list[DatasetItem]]:
        with self.running.commit() as session:
            run = session.get_one(TrainingRun, self.run_id)
            model = registry.get_model(session, run.model)
            if run.dataset_version_id is None:
                run.dataset_version_id = datasets.freeze(session, run.model).id
                run.parent_version = registry.alias(session, run.model, "champion")
            run.started_at, run.finished_at, run.error = run.started_at or now(), None, None
            session.add(run)
            dataset = session.get_one(DatasetVersion, run.dataset_version_id)
            return run, model, dataset, datasets.items(session, dataset.id)

    # -- exporting ----------------------------------------------------------------------------------------------------

    def _choose(
        self, finished: list[Candidate], dataset: DatasetVersion, items: list[DatasetItem]
    ) -> tuple[Candidate, Calibrated | None]:
        """The best of several on the val split, judged by the predictor; what is equal there is decided by size.

        The test split is not looked at: it is there to judge the one that is chosen.
        """
        with self.context.database.read() as session:
            version = session.get_one(TrainingRun, self.run_id).version
        if len(finished) == 1:
            [only] = finished
            there = version is not None and self._has_bundle(dataset.model, version)
            return only, None if there else self._calibrated(only, dataset, items)
        val = [item for item in items if item.split == "val"]
        judged: list[tuple[tuple[float, float], Candidate, Calibrated]] = []
        for candidate in finished:
            calibrated = self._calibrated(candidate, dataset, items)
            onnx = calibrated.files["model.onnx"]
            numbers = evaluate(calibrated.predictor, val, self._read, progress=self.fitting.check).metrics
            score = numbers.get("map50" if candidate.spec.task == "detect" else "accuracy") or 0.0
            told = {k: v for k, v in numbers.items() if isinstance(v, int | float)} | {"size_bytes": len(onnx)}
            self.fitting.mark(candidate.number, metrics=told)
            judged.append(((round(score, 4), -len(onnx)), candidate, calibrated))
        _, best, calibrated = max(judged, key=lambda one: one[0])
        return best, calibrated

    def _calibrated(self, candidate: Candidate, dataset: DatasetVersion, items: list[DatasetItem]) -> Calibrated:
        spec, result = candidate.spec, candidate.result()
        if result is None:
            raise TrainingError("the training process ended without a whole result")
        return calibrate(
            (candidate.folder / "model.onnx").read_bytes(),
            result.input,
            task=spec.task,
            classes=spec.classes,
            family=spec.family,
            items=items,
            read=self._read,
            provenance={
                "run": self.run_id,
                "code": code_version(),
                "dataset_version": str(dataset.number),
                "dataset_digest": dataset.digest,
                "opset": str(result.opset),
                "onnx_torch_parity": f"{result.parity:.2g}",
                **result.versions,
            },
            check=self.fitting.check,
            threads=self.context.settings.inference_threads or os.cpu_count() or 1,
            low_level=result.low_level,
        )

    def _allocate(self, chosen: Candidate) -> int:
        with self.running.commit() as session:
            run = session.get_one(TrainingRun, self.run_id)
            row = session.get_one(RunCandidate, (self.run_id, chosen.number))
            row.state = "chosen"
            run.family = row.family
            if run.version is None:
                run.version = registry.allocate_version(session, run.model)
            session.add_all([run, row])
            return run.version

    def _has_bundle(self, model: str, version: int) -> bool:
        return self.context.store.has(registry.bundle_key(model, version, "manifest.json"))

    def _bundle(
        self, chosen: Candidate, calibrated: Calibrated | None, dataset: DatasetVersion, version: int
    ) -> Predictor:
        """The candidate as the server will load it: written to the store, read back, golden-checked."""
        store, model = self.context.store, dataset.model
        if calibrated is not None and not self._has_bundle(model, version):
            weights = (chosen.folder / "weights.safetensors").read_bytes()
            if chosen.folder != self.folder:
                shutil.copyfile(chosen.folder / "spec.json", self.folder / "spec.json")  # how the version was made
            files = calibrated.files | {"weights.safetensors": weights}
            registry.write_bundle(store, model, version, calibrated.manifest, files)
        candidate = Predictor.open(store, model, version, providers=self._providers())
        candidate.check_golden()
        return candidate

    def _providers(self) -> list[str] | None:
        return self.context.settings.provider_names or None

    # -- evaluating and deciding --------------------------------------------------------------------------------------

    def _champion(self, model: str) -> tuple[int | None, Predictor | None]:
        with self.context.database.read() as session:
            version = registry.alias(session, model, "champion")
        if version is None:
            return None, None
        return version, Predictor.open(self.context.store, model, version, providers=self._providers())

    def _decide(
        self,
        model: Model,
        dataset: DatasetVersion,
        test: list[DatasetItem],
        candidate: Predictor,
        ours: Evaluated,
        champion: int | None,
        theirs: Evaluated | None,
    ) -> Decision:
        """Judge, and write everything that follows from it in one transaction."""
        version, store = candidate.version, self.context.store
        size = len(store.get(registry.bundle_key(model.slug, version, "model.onnx")))
        beside = (champion, theirs) if champion is not None and theirs is not None else None
        rows = [self._evaluation(model.slug, version, dataset, ours, test, beside=beside)]
        if beside is not None:
            rows.append(self._evaluation(model.slug, beside[0], dataset, beside[1], test))
        with self.context.database.read() as session:
            recent = _recent(session, model.slug, champion, test)
            looks = _looks(session, model.slug, {item.sample_id for item in test})
            recent_looks = _looks(session, model.slug, recent)
        verdict = gate.judge(
            model.task,  # type: ignore[arg-type]
            dataset.classes,
            ours,
            theirs,
            test,
            recent=recent,
            looks=looks,
            recent_looks=recent_looks,
            candidate_size_bytes=size,
        )
        automatic = self.context.settings.promotion == "auto"
        passed = verdict.verdict == "promote"
        decision = Decision(
            model=model.slug,
            kind="gate",
            verdict="refuse" if not passed else "promote" if automatic else "approve",
            candidate=version,
            champion=champion,
            text=verdict.text,
            record=verdict.record
            | {
                "run_id": self.run_id,
                "dataset_version_id": dataset.id,
                "dataset_digest": dataset.digest,
                "candidate_sha256": candidate.manifest.files["model.onnx"],
            },
            test_digest=dataset.test_digest,
            alpha=verdict.alpha,
            who=f"job {self.running.job_id}",
        )
        with self.running.commit() as session:
            if registry.alias(session, model.slug, "champion") != champion:
                raise ConflictError("the champion changed while the candidate was judged")
            run = session.get_one(TrainingRun, self.run_id)
            row = registry.register(
                session,
                model.slug,
                version,
                candidate.manifest,
                size_bytes=size,
                metrics=ours.metrics,
                run_id=self.run_id,
                dataset_version_id=dataset.id,
                parent_version=run.parent_version,
            )
            row.state = "ready" if passed else "refused"
            run.state, run.finished_at, run.eta_s, run.error = "done", now(), None, None
            session.add_all([*rows, decision, row, run])
            session.flush()
            first_line = verdict.text.splitlines()[0]
            tell(session, f"gate.{decision.verdict}", f"{model.slug} version {version}: {first_line}", model=model.slug)
            if decision.verdict == "promote":
                registry.promote(
                    session, model.slug, version, who="gate", text=first_line, record={"decision_id": decision.id}
                )
                if model.task == "classify" and (limit := self.context.settings.second_looks):
                    payload = {"model": model.slug, "limit": limit}
                    key = f"retrain.labelquality:{model.slug}"
                    jobs.send(session, "retrain.labelquality", payload, unique_key=key)
            kind = "approval" if decision.verdict == "approve" else "done"
            words = {"approve": "waits for your approval", "promote": "is at work", "refuse": "was refused"}
            title = f"{model.slug} version {version} {words[decision.verdict]}"
            notify.queue(session, self.context.settings, kind, title, verdict.text)
        return decision

    def _evaluation(
        self,
        model: str,
        version: int,
        dataset: DatasetVersion,
        evaluated: Evaluated,
        test: list[DatasetItem],
        *,
        beside: tuple[int, Evaluated] | None = None,
    ) -> Evaluation:
        row = Evaluation(
            model=model,
            version=version,
            dataset_version_id=dataset.id,
            split="test",
            metrics=evaluated.metrics,
            against=beside[0] if beside else None,
            report=True,
        )
        row.items_key = f"evaluations/{row.id}.jsonl"
        self.context.store.put(row.items_key, evaluated.to_bytes())
        title = f"{model} version {version} on the test split of data {dataset.number}"
        against = (f"version {beside[0]}", beside[1]) if beside else None
        reports.write(self.context.store, row.id, evaluated, test, title=title, against=against)
        return row

    # -- common -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        """A named step: shown on the run and the job, timed, and a place where cancelling works."""
        self.running.check_cancelled()
        with self.running.commit() as session:
            run = session.get_one(TrainingRun, self.run_id)
            run.state = name
            session.add(run)
        self.running.report(step=name)
        begun = time.monotonic()
        yield
        with self.running.commit() as session:
            run = session.get_one(TrainingRun, self.run_id)
            run.timings = {**(run.timings or {}), name: round(time.monotonic() - begun, 3)}
            session.add(run)

    def _read(self, sample_id: str) -> bytes:
        return self.context.store.get(f"samples/{sample_id}")

    def _tidy(self) -> None:
        """What the store holds, or nobody will ask for, goes; spec, log and result stay."""
        shutil.rmtree(self.folder / "samples", ignore_errors=True)
        for folder in [self.folder, *self.folder.glob("candidate-*")]:
            for name in ("data", "yolo", "config"):
                shutil.rmtree(folder / name, ignore_errors=True)
            for pattern in ("epoch?????-*", "*.safetensors", "model.onnx", "last.json", "*.u8"):
                for path in folder.glob(pattern):
                    path.unlink()


def _recent(session: Session, model: str, champion: int | None, test: list[DatasetItem]) -> set[str]:
    """Drawn test items that the champion's own dataset version did not have: traffic since it was trained."""
    drawn = {item.sample_id for item in test if item.arm == "drawn"}
    row = session.get(ModelVersion, (model, champion)) if champion is not None else None
    if row is None or row.dataset_version_id is None:
        return drawn
    before = select(DatasetItem.sample_id).where(DatasetItem.dataset_version_id == row.dataset_version_id)
    return drawn - set(session.exec(before).all())


def _looks(session: Session, model: str, test_ids: set[str]) -> int:
    """How often a candidate was compared with a champion on this test set before."""
    decided = select(Decision).where(Decision.model == model, Decision.kind == "gate", col(Decision.alpha).is_not(None))
    seen = []
    for decision in session.exec(decided).all():
        items = select(DatasetItem.sample_id).where(
            DatasetItem.dataset_version_id == str(decision.record.get("dataset_version_id")),
            DatasetItem.split == "test",
        )
        seen.append(set(session.exec(items).all()))
    return gate.looks_at(test_ids, seen)


def _mark(running: Running, run_id: str, error: BaseException) -> None:
    """Say on the run how this attempt ended; the next attempt, if there is one, sets it back to work."""
    cancelled = isinstance(error, SutdolError) and error.code == "cancelled"
    with running.commit() as session:
        run = session.get_one(TrainingRun, run_id)
        if run.state == "done":  # decided and committed; what failed came after it
            return
        run.state = "cancelled" if cancelled else "failed"
        run.error = str(error) or type(error).__name__
        if run.state == "failed" and (isinstance(error, InputError) or running.attempt >= running.job.max_attempts):
            title = f"{run.model}: the training failed"
            notify.queue(session, running.context.settings, "failed", title, f"run {run.id} ({run.cause}): {run.error}")
        run.eta_s, run.finished_at = None, now()
        session.add(run)
