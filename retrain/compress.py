"""The job `retrain.compress`: a smaller, faster copy of the champion, and whether it may serve.

    payload {model, how, min_speed_up} -> variants (`quantise`, `prune`) -> each: accuracy on val, speed beside the champion
        -> the fastest that keeps its accuracy -> calibrated, bundled -> both on the test split -> gate (not worse, and faster)

Every variant's figures stand in the decision record, also when none was good enough, so a refusal can be checked. The copy is
a version like any other: its parent is the champion it was made from, and it has no weights, so a training never starts from
it but from a trained one.

Errors: ConflictError (no champion, it changed meanwhile, it cannot be pruned), InputError (nothing to calibrate or judge
with), ModelError, TrainingError.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
import numpy as np
from sqlmodel import Session

from retrain import datasets, gate, prune, quantise, reports, speed
from retrain.calibrate import calibrate
from retrain.evaluate import Evaluated, evaluate
from sutdol import jobs, registry
from sutdol.errors import ConflictError, InputError, unknown
from sutdol.events import tell
from sutdol.images import decode
from sutdol.jobs import Running
from sutdol.predictor import Predictor
from sutdol.runtime import Float32
from sutdol.tables import DatasetItem, DatasetVersion, Decision, Evaluation, Model
from sutdol.types import Manifest
from sutdol.versions import code_version

WAYS = (*quantise.VARIANTS, "prune")
MIN_SPEED_UP = 1.1
SPEED_IMAGES = 32
VARIANT_PAIRS = 6
"""Turns while variants are compared; the chosen one is measured again, longer."""


@dataclass(frozen=True)
class Variant:
    """One way to make the file smaller, and what it is worth; `score` is accuracy or mAP50 on val."""

    name: str
    size_bytes: int
    score: float | None
    champion_score: float | None
    speed_up: speed.SpeedUp


def start(session: Session, model: str, how: str, *, min_speed_up: float = MIN_SPEED_UP) -> str:
    """Queue it in the caller's transaction; the job's id.

    Raises:
        NotFoundError: no such model, no such way. ConflictError: the model has no champion. InputError.
    """
    if how not in WAYS:
        raise unknown("way to compress", how, list(WAYS))
    if not 1 <= min_speed_up <= 10:
        raise InputError(f"min_speed_up: expected 1 to 10, found {min_speed_up}")
    registry.get_model(session, model)
    version = registry.alias(session, model, "champion")
    if version is None:
        raise ConflictError(f"{model} has no champion to make a faster copy of")
    manifest = msgspec.convert(registry.get_version(session, model, version).manifest, Manifest)
    if how == "prune" and (reason := prune.unavailable(manifest)):
        raise ConflictError(f"prune of {model} version {version}: {reason}")
    payload = {"model": model, "version": version, "how": how, "min_speed_up": min_speed_up}
    job_id = jobs.send(session, "retrain.compress", payload, unique_key=f"compress:{model}:{how}")
    if job_id is None:
        raise ConflictError(f"{model} is being compressed ({how}) already")
    return job_id


def handle(running: Running) -> dict[str, Any]:
    """Job handler of `retrain.compress`."""
    return _Attempt(running).work()


class _Attempt:
    def __init__(self, running: Running) -> None:
        self.running, self.context = running, running.context
        payload = running.payload
        self.model, self.version = str(payload["model"]), int(payload["version"])
        self.how, self.wanted = str(payload["how"]), float(payload["min_speed_up"])
        self._checked = 0.0

    def work(self) -> dict[str, Any]:
        running, store = self.running, self.context.store
        with running.commit() as session:
            model = registry.get_model(session, self.model)
            if registry.alias(session, self.model, "champion") != self.version:
                raise ConflictError(f"version {self.version} is not the champion of {self.model} any more")
            dataset = datasets.freeze(session, self.model)
            items = datasets.items(session, dataset.id)
        by_split = {split: [i for i in items if i.split == split] for split in ("train", "val", "test")}
        if not by_split["train"] or not by_split["test"]:
            raise InputError(f"{self.model}: expected labelled images in train and test, found none")
        champion = Predictor.open(store, self.model, self.version, providers=self._providers())
        champion.warm()
        onnx = registry.read_file(store, self.model, self.version, champion.manifest, "model.onnx")
        chosen, variants = self._choose(champion, onnx, by_split)
        best = variants[[v.name for v in variants].index(chosen[0])]
        running.report(step="calibrating", variant=best.name)
        number, candidate = self._bundle(model, dataset, items, champion.manifest, chosen, best)
        running.report(step="judging")
        theirs = evaluate(champion, by_split["test"], self._read, progress=self._check)
        ours = evaluate(candidate, by_split["test"], self._read, progress=self._check)
        images = [self._read(i.sample_id) for i in by_split["test"][:SPEED_IMAGES]]
        measured = speed.measure(champion, candidate, images, threads=self._threads(), check=self._check)
        decision = self._decide(dataset, by_split["test"], number, candidate, (ours, theirs), measured, variants)
        return {"version": number, "variant": best.name, "verdict": decision.verdict, "speed_up": measured.ratio}

    def _choose(
        self, champion: Predictor, onnx: bytes, by_split: dict[str, list[DatasetItem]]
    ) -> tuple[tuple[str, bytes], list[Variant]]:
        """The fastest variant that keeps the champion's accuracy on val within the margin, else the most accurate one."""
        judged = by_split["val"] or by_split["train"][:200]
        if self.how == "prune":  # a pruned network has fewer features, for which there are no statistics yet
            champion = Predictor.from_parts(onnx, champion.manifest, providers=self._providers())
        before = _score(evaluate(champion, judged, self._read, progress=self._check))
        images = [self._read(i.sample_id) for i in judged[:SPEED_IMAGES]]
        files, variants = {}, []
        for name, data in self._variants(champion, onnx, by_split):
            self.running.report(step="trying", variant=name)
            candidate = Predictor.from_parts(data, champion.manifest, champion.ood, providers=self._providers())
            candidate.warm()
            after = _score(evaluate(candidate, judged, self._read, progress=self._check))
            measured = speed.measure(
                champion,
                candidate,
                images,
                pairs=VARIANT_PAIRS,
                block_s=0.5,
                threads=self._threads(),
                check=self._check,
            )
            files[name] = data
            variants.append(Variant(name, len(data), after, before, measured))
        kept = [v for v in variants if (v.score or 0.0) >= (before or 0.0) - gate.MARGIN]
        best = max(kept, key=lambda v: v.speed_up.ratio) if kept else max(variants, key=lambda v: v.score or 0.0)
        return (best.name, files[best.name]), variants

    def _variants(
        self, champion: Predictor, onnx: bytes, by_split: dict[str, list[DatasetItem]]
    ) -> Iterator[tuple[str, bytes]]:
        if self.how != "prune":
            return quantise.VARIANTS[self.how](onnx, self._tensors(champion, by_split["train"]))
        if reason := prune.unavailable(champion.manifest):
            raise InputError(f"prune of {self.model} version {self.version}: {reason}")
        known = [i for i in by_split["train"] + by_split["val"] if _known(i, champion.manifest.classes)]
        return prune.pruned(self.running, champion.manifest, known)

    def _bundle(
        self,
        model: Model,
        dataset: DatasetVersion,
        items: list[DatasetItem],
        before: Manifest,
        chosen: tuple[str, bytes],
        best: Variant,
    ) -> tuple[int, Predictor]:
        name, data = chosen
        calibrated = calibrate(
            data,
            before.input,
            task=before.task,
            classes=before.classes,
            family=before.family,
            items=[i for i in items if _known(i, before.classes)],
            read=self._read,
            provenance={
                **before.provenance,
                "made_from": f"version {self.version}",
                "compressed": f"{self.how}, {name}",
                "code": code_version(),
                "dataset_version": str(dataset.number),
            },
            check=self._check,
            threads=self._threads(),
            low_level=before.low_level,
        )
        store = self.context.store
        with self.running.commit() as session:
            number = registry.allocate_version(session, self.model)
            row = registry.register(
                session,
                self.model,
                number,
                msgspec.structs.replace(calibrated.manifest, files={"model.onnx": "pending"}),
                size_bytes=len(data),
                metrics={},
                dataset_version_id=dataset.id,
                parent_version=self.version,
            )
            row.name = f"{self.model} v{number} ({self.how})"
            session.add(row)
        manifest = registry.write_bundle(store, self.model, number, calibrated.manifest, calibrated.files)
        with self.running.commit() as session:
            row = registry.get_version(session, self.model, number)
            row.sha256, row.manifest = manifest.files["model.onnx"], msgspec.to_builtins(manifest)
            session.add(row)
        candidate = Predictor.open(store, self.model, number, providers=self._providers())
        candidate.warm()
        candidate.check_golden()
        return number, candidate

    def _decide(
        self,
        dataset: DatasetVersion,
        test: list[DatasetItem],
        number: int,
        candidate: Predictor,
        both: tuple[Evaluated, Evaluated],
        measured: speed.SpeedUp,
        variants: Sequence[Variant],
    ) -> Decision:
        ours, theirs = both
        verdict = gate.judge(
            candidate.manifest.task,
            dataset.classes,
            ours,
            theirs,
            test,
            recent=set(),
            looks=0,
            candidate_size_bytes=None,
            faster=gate.Faster(measured.ratio, measured.low, measured.high, self.wanted),
        )
        told = "\n".join(_told(v) for v in variants)
        passed = verdict.verdict == "promote"
        automatic = self.context.settings.promotion == "auto"
        decision = Decision(
            model=self.model,
            kind="gate",
            verdict="refuse" if not passed else "promote" if automatic else "approve",
            candidate=number,
            champion=self.version,
            text=f"{verdict.text}\nVariants on val:\n{told}",
            record=verdict.record | {"variants": [asdict(v) for v in variants], "dataset_version_id": dataset.id},
            test_digest=dataset.test_digest,
            who=f"job {self.running.job_id}",
        )
        row = Evaluation(
            model=self.model,
            version=number,
            dataset_version_id=dataset.id,
            split="test",
            metrics=ours.metrics,
            against=self.version,
            report=True,
        )
        row.items_key = f"evaluations/{row.id}.jsonl"
        self.context.store.put(row.items_key, ours.to_bytes())
        title = f"{self.model} version {number} ({self.how}) on the test split of data {dataset.number}"
        reports.write(self.context.store, row.id, ours, test, title=title, against=(f"version {self.version}", theirs))
        with self.running.commit() as session:
            if registry.alias(session, self.model, "champion") != self.version:
                raise ConflictError("the champion changed while the copy was judged")
            version = registry.get_version(session, self.model, number)
            version.state, version.metrics = ("ready" if passed else "refused"), ours.metrics
            session.add_all([version, decision, row])
            session.flush()
            first_line = verdict.text.splitlines()[0]
            tell(session, f"gate.{decision.verdict}", f"{self.model} version {number}: {first_line}", model=self.model)
            if decision.verdict == "promote":
                record = {"decision_id": decision.id}
                registry.promote(session, self.model, number, who="gate", text=first_line, record=record)
        return decision

    def _tensors(self, champion: Predictor, train: list[DatasetItem]) -> list[Float32]:
        """Calibration images, the same ones every time."""
        few = np.random.default_rng(0).permutation(len(train))[: quantise.CALIBRATION_IMAGES]
        return [champion.prepare(decode(self._read(train[i].sample_id))) for i in few]

    def _threads(self) -> int:
        return self.context.settings.inference_threads or os.cpu_count() or 1

    def _providers(self) -> list[str] | None:
        return self.context.settings.provider_names or None

    def _read(self, sample_id: str) -> bytes:
        return self.context.store.get(f"samples/{sample_id}")

    def _check(self, *_: int) -> None:
        if time.monotonic() - self._checked >= 0.5:
            self._checked = time.monotonic()
            self.running.check_cancelled()


def _score(evaluated: Evaluated) -> float | None:
    value = evaluated.metrics["map50" if evaluated.task == "detect" else "accuracy"]
    return None if value is None else float(value)


def _told(variant: Variant) -> str:
    score = "-" if variant.score is None else f"{variant.score:.3f} (champion {variant.champion_score or 0:.3f})"
    faster = variant.speed_up
    return (
        f"    {variant.name}: {score}, {faster.ratio:.2f} times as fast [{faster.low:.2f}, {faster.high:.2f}], "
        f"{variant.size_bytes / 1e6:.1f} MB"
    )


def _known(item: DatasetItem, classes: list[str]) -> bool:
    """Whether the copy knows every class on it; labels may be newer than the champion."""
    label = datasets.label_of(item)
    return {*label.classes, *(box.label for box in label.boxes)} <= set(classes)
