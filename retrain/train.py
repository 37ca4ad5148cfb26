"""The training job: from a row of `training_run` to a judged, perhaps promoted version.

    preparing   dataset version frozen, run folder written
    training    child process; its epochs become rows of `run_progress`
    exporting   version number given out once, calibrated, bundle in the store
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

import msgspec
from sqlmodel import Session, col, select

from retrain import datasets, gate, reports, supervise
from retrain.calibrate import calibrate
from retrain.child import Result, read_result
from retrain.evaluate import Evaluated, evaluate
from retrain.families import Item, Spec, get_family, write_atomically
from sutdol import jobs, registry
from sutdol.db import upsert
from sutdol.errors import ConflictError, SutdolError, TrainingError, unknown
from sutdol.events import tell
from sutdol.jobs import Running
from sutdol.predictor import Predictor
from sutdol.settings import child_environment
from sutdol.tables import (
    DatasetItem,
    DatasetVersion,
    Decision,
    Evaluation,
    Job,
    Model,
    ModelVersion,
    RunProgress,
    TrainingRun,
    new_id,
    now,
)
from sutdol.versions import code_version

REPORT_EVERY_S = 1.0
FINAL = ("done", "failed", "cancelled")


def start(session: Session, model: str, *, cause: str, params: dict[str, Any] | None = None) -> TrainingRun | None:
    """Queue a training of `model` in the caller's transaction.

    Args:
        cause: why, in words for people.
        params: override the model's own defaults for this run.

    Returns:
        The run, or None when one is queued or active already.

    Raises:
        NotFoundError: no such model or family. InputError: an unknown parameter.
    """
    known = registry.get_model(session, model)
    get_family(known.family).params(known.task, known.classes, known.params, params or {})  # type: ignore[arg-type]
    waiting = select(TrainingRun, Job).where(
        TrainingRun.model == model, col(TrainingRun.state).not_in(FINAL), col(TrainingRun.job_id) == col(Job.id)
    )
    for run, job in session.exec(waiting).all():
        if job.state in ("queued", "running"):
            return None
        # Its job ended without it: cancelled while it was queued, or abandoned too often.
        run.state, run.error = ("cancelled" if job.state == "cancelled" else "failed"), job.error
        run.finished_at = job.finished_at
        session.add(run)
    run_id = new_id()
    job_id = jobs.send(session, "train", {"run_id": run_id}, unique_key=f"train:{model}")
    if job_id is None:
        return None
    run = TrainingRun(id=run_id, model=model, family=known.family, params=params or {}, cause=cause, job_id=job_id)
    session.add(run)
    session.flush()
    tell(session, "run.queued", f"{model}: training queued ({cause})", model=model, run_id=run_id)
    return run


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
        self._reported = self._checked = 0.0

    def work(self) -> dict[str, Any]:
        with self._step("preparing"):
            run, model, dataset, items = self._freeze()
            spec = self._prepare(run, model, dataset, items)
        with self._step("training"):
            result = self._train(spec)
        with self._step("exporting"):
            version = self._allocate()
            candidate = self._bundle(spec, result, dataset, version, items)
        with self._step("evaluating"):
            test = [item for item in items if item.split == "test"]
            champion_version, champion = self._champion(model.slug)
            ours = evaluate(candidate, test, self._read, progress=self._check)
            theirs = evaluate(champion, test, self._read, progress=self._check) if champion else None
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

    def _prepare(self, run: TrainingRun, model: Model, dataset: DatasetVersion, items: list[DatasetItem]) -> Spec:
        """RUN_DIR with spec.json, the champion's weights, and the images that the store does not hold as files."""
        family = get_family(run.family)
        params = family.params(model.task, dataset.classes, model.params, run.params)  # type: ignore[arg-type]
        family.load()
        self.folder.mkdir(parents=True, exist_ok=True)
        known = [
            Item(i.sample_id, i.split, datasets.label_of(i), i.source, self._file_of(i.sample_id), i.arm, i.weight)  # type: ignore[arg-type]
            for i in items
            if i.split != "test"
        ]
        spec = Spec(
            run_id=run.id,
            run_dir=str(self.folder),
            family=run.family,
            task=model.task,  # type: ignore[arg-type]
            classes=list(dataset.classes),
            params=params,
            items=known,
            locks_dir=str((self.context.settings.home / "locks").absolute()),
            warm_start=self._warm_start(run) if params.get("warm_start") else None,
            attempt=self.running.attempt,
        )
        write_atomically(self.folder / "spec.json", msgspec.json.encode(spec))
        return spec

    def _file_of(self, sample_id: str) -> str:
        """A file with the sample's bytes: the store's own where it is a folder, else a copy in the run folder."""
        key, root = f"samples/{sample_id}", self.context.store.root
        if root is not None and (root / key).is_file():
            return str(root / key)
        path = self.folder / "samples" / sample_id
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, self.context.store.get(key))
            self._check()
        return str(path)

    def _warm_start(self, run: TrainingRun) -> str | None:
        """The parent's weights as a file, if it has any that this family can read."""
        if run.parent_version is None:
            return None
        store, name = self.context.store, "weights.safetensors"
        manifest = registry.read_manifest(store, run.model, run.parent_version)
        if manifest.family != run.family or name not in manifest.files:
            return None
        path = self.folder / "parent.safetensors"
        write_atomically(path, registry.read_file(store, run.model, run.parent_version, manifest, name))
        return str(path)

    # -- training -----------------------------------------------------------------------------------------------------

    def _train(self, spec: Spec) -> Result:
        if (done := read_result(self.folder)) is not None:
            return done
        extra = get_family(spec.family).environment(self.folder)
        environment = child_environment(self.context.settings, **extra)
        supervise.train(self.folder, environment, on_event=self._heard, check=self.running.check_cancelled)
        result = read_result(self.folder)
        if result is None:
            raise TrainingError("the training process ended without a whole result")
        return result

    def _heard(self, event: dict[str, Any]) -> None:
        kind = event.pop("event", None)
        if kind == "epoch":
            with self.running.commit() as session:
                progress = RunProgress(
                    run_id=self.run_id, attempt=self.running.attempt, epoch=event["epoch"], metrics=event["metrics"]
                )
                upsert(session, progress, keys=["run_id", "attempt", "epoch"], update=["metrics", "at"])
                run = session.get_one(TrainingRun, self.run_id)
                run.epoch, run.epochs, run.eta_s = event["epoch"], event["epochs"], event["eta_s"]
                session.add(run)
            self.running.report(step="training", **event)
        elif kind == "waiting":
            self.running.report(step="waiting for the device", device=event["device"])
        elif kind == "step" and time.monotonic() - self._reported >= REPORT_EVERY_S:
            self._reported = time.monotonic()
            self.running.report(step="training", now=event)

    # -- exporting ----------------------------------------------------------------------------------------------------

    def _allocate(self) -> int:
        with self.running.commit() as session:
            run = session.get_one(TrainingRun, self.run_id)
            if run.version is None:
                run.version = registry.allocate_version(session, run.model)
                session.add(run)
            return run.version

    def _bundle(
        self, spec: Spec, result: Result, dataset: DatasetVersion, version: int, items: list[DatasetItem]
    ) -> Predictor:
        """The candidate as the server will load it: written to the store, read back, golden-checked."""
        store, model = self.context.store, dataset.model
        if not store.has(registry.bundle_key(model, version, "manifest.json")):
            onnx = (self.folder / "model.onnx").read_bytes()
            calibrated = calibrate(
                onnx,
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
                check=self._check,
                threads=self.context.settings.inference_threads or os.cpu_count() or 1,
                low_level=result.low_level,
            )
            weights = (self.folder / "weights.safetensors").read_bytes()
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

    def _check(self, *_: int) -> None:
        """Between images: look for a cancel request, at most twice a second."""
        if time.monotonic() - self._checked >= supervise.CHECK_EVERY_S:
            self._checked = time.monotonic()
            self.running.check_cancelled()

    def _read(self, sample_id: str) -> bytes:
        return self.context.store.get(f"samples/{sample_id}")

    def _tidy(self) -> None:
        """What the store holds, or nobody will ask for, goes; spec, log and result stay."""
        for name in ("samples", "data", "yolo", "config"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for pattern in ("epoch?????-*", "*.safetensors", "model.onnx", "last.json"):
            for path in self.folder.glob(pattern):
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
        run.eta_s, run.finished_at = None, now()
        session.add(run)
