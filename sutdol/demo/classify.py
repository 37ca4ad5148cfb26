"""The classification story: digits are served, the world turns, labels come, the model follows; twice.

    clean (serve is killed with SIGKILL on the way) -> rotated -> labels, v2 -> inverted with noise -> labels, v3

Accuracy counts only frames whose source no label has ever named, so no version has seen them. Sources are split once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table
from sqlmodel import col, select

from sutdol.demo import digits as worlds
from sutdol.demo.checks import Check, at_least, at_most, show
from sutdol.demo.stage import Overdue, Stage, View, swap_row
from sutdol.demo.traffic import Sent
from sutdol.errors import ModelError
from sutdol.predictor import Predictor
from sutdol.sampling import is_unfamiliar
from sutdol.tables import Annotation, DatasetItem, DatasetVersion, Decision, LabelRow, LabelTask, PredictionRow

MODEL = "digits"
LABELS_PER_CHANGE = 150
TASKS_BEFORE_LABELER = 30
"""Tasks of the new world: who comes earlier answers what is left of the old one, and the new model learns less."""
WANTED_REQUESTS = 5_000
RATE = 30.0
PATIENCE_S = 900.0
"""For each step; a quiet machine of two cores takes a tenth. A failed run or a refusal ends the waiting at once."""
LEARNS_NOTHING = {"warm_start": False, "epochs": 1, "steps_per_epoch": 1, "lr": 1e-12}
DEMO_SETTINGS = {
    "label_rate": 0.14,
    "drawn_share": 0.97,  # other arms are answered first: a slow labeler would leave the test split too few drawn ones
    "labels_per_day": 2_000,
    "max_open_tasks": 1_000,
    "retrain_after_labels": 140,
    "retrain_on_drift_labels": 140,
    "second_looks": 0,
    "retrain_cooldown_s": 5.0,
    "poll_interval_s": 15.0,
    "window_interval_s": 2.0,
    "gold_share": 0.0,  # the labeler of the demo knows the stream, not the training digits
}


@dataclass
class Change:
    """One change of the world, as it went."""

    world: str
    version: int
    began: float
    swapped: float
    ended: float
    labels: int


def play(
    home: Path, *, check: bool, sabotage: str | None, labeler: str, params: dict[str, Any], console: Console
) -> int:
    """Play it; returns the exit code."""
    digits = worlds.load()
    with Stage(home, MODEL, console, **DEMO_SETTINGS) as stage:
        truth = worlds.write_worlds(digits, stage.folder, variants=3)
        known = {key: {"classes": [label]} for key, label in truth.items() if label is not None}
        (stage.folder / "truth.json").write_bytes(msgspec.json.encode(known))
        stage.say(f"{len(truth)} frames of {len(digits.stream)} handwritten digits in {len(worlds.WORLDS)} worlds")
        stage.start_up()
        _train_first(stage, digits, params)
        killed_at = _clean(stage)
        if sabotage == "model":
            stage.set_params(**LEARNS_NOTHING)
        if labeler == "human":
            return _leave_to_people(stage)
        changes: list[Change] = []
        broken: str | None = None
        try:
            for version, world in ((2, "rotated"), (3, "inverted")):
                changes.append(_change(stage, world, version, sabotage))
                stage.say(f"[bold]version {version} serves the {world} world[/], {changes[-1].labels} labels spent")
            _fill(stage)
        except Overdue as overdue:
            broken = overdue.message
            stage.say(f"[red]{broken}[/]")
        stage.control(stop=True)
        time.sleep(0.5)
        stage.look()
        _report(stage, changes, console)
        checks = _promises(stage, digits, changes, killed_at)
        if broken:
            checks.insert(0, Check("the story came to its end", broken, False))
        kept = show(checks, console)
        if kept:
            console.print("next: `sutdol demo --labeler human`, then `sutdol up` and your own images (see README.md)")
        return 0 if kept or not check else 1


def _train_first(stage: Stage, digits: worlds.Digits, params: dict[str, Any]) -> None:
    """Import 510 + 90 + 300 digits and train version 1, with the commands that users have."""
    folder = stage.home / "digits"
    held_out = worlds.TRAIN * 15 // 100
    parts = {"val": digits.train[:held_out], "train": digits.train[held_out:], "test": digits.test}
    for part, sources in parts.items():
        for source in sources:
            path = folder / part / digits.labels[source] / f"{source}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(worlds.png(digits.sources[source]))
    stage.sutdol("import", MODEL, str(folder), "--task", "classify", "--format", "imagefolder")
    stage.set_params(**params)
    stage.sutdol("train", MODEL)
    stage.say("training version 1 with 600 digits, while Label Studio starts for the first time")
    stage.wait_for_version(1, seconds=PATIENCE_S)
    stage.wait_for_studio()


def _clean(stage: Stage) -> float:
    """The world as version 1 knows it; in mid-stream the serving process is killed. Returns when (epoch seconds)."""
    began = time.time()
    stage.control(world="clean", rate=RATE)
    stage.start_traffic()
    stage.wait("150 clean answers", lambda _: stage.answered_since(began, "clean", 1) >= 150, seconds=PATIENCE_S)
    killed_at = time.time()
    pid = stage.kill_serve()
    stage.say(f"serving process {pid} killed with SIGKILL in mid-stream")
    stage.wait(
        "answers after the kill", lambda _: stage.answered_since(killed_at + 0.5, "clean", 1) >= 100, seconds=PATIENCE_S
    )
    return killed_at


def _change(stage: Stage, world: str, version: int, sabotage: str | None) -> Change:
    """The world changes; labels, retraining and swap follow by themselves. Returns when the new version is settled."""
    stage.say(f"[bold]the world changes: {world}[/]")
    began = time.time()
    stage.control(world=world, rate=RATE)
    stage.wait(
        f"tasks of the {world} world", lambda _: stage.pushed_since(began) >= TASKS_BEFORE_LABELER, seconds=PATIENCE_S
    )
    before = _answers(stage)
    wrong = 1.0 if sabotage == "labels" else 0.03
    stage.start_labeler(f"labeler-{world}", limit=LABELS_PER_CHANGE, wrong=wrong, skip=0.02)

    def watch(view: View) -> None:
        state = view.run.state if view.run and view.run.finished_at is None else ""
        if state in ("preparing", "training"):
            stage.control(rate=RATE / 5)  # the machine is shared with the training
        elif state:
            stage.control(rate=0.0)  # a burst, so that the swap happens under load
        if sabotage == "swap" and state in ("evaluating", "deciding"):
            _corrupt(stage, version)

    stage.wait_for_version(version, seconds=PATIENCE_S, watch=watch)
    swapped = time.time()
    stage.control(rate=RATE)
    stage.wait(
        f"answers of version {version}",
        lambda _: stage.answered_since(swapped, world, version) >= 400,
        seconds=PATIENCE_S,
    )
    return Change(world, version, began, swapped, time.time(), _answers(stage) - before)


def _fill(stage: Stage) -> None:
    """Go on until at least 5,000 requests have been answered."""
    stage.control(rate=0.0)
    stage.wait("5,000 requests", lambda _: len(stage.sent) >= WANTED_REQUESTS, seconds=PATIENCE_S)


def _leave_to_people(stage: Stage) -> int:
    config = stage.context.settings
    stage.control(world="rotated", rate=5.0)
    stage.say(f"open {config.studio_url} and log in as {config.label_studio_email} / {stage.invite_password}")
    stage.say(
        f"label what you find there; after {config.retrain_after_labels} labels the model retrains. Ctrl-C ends it"
    )
    with _until_interrupted():
        stage.wait("you", lambda _: False, seconds=86_400)
    return 0


@contextmanager
def _until_interrupted() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        return


def _report(stage: Stage, changes: list[Change], console: Console) -> None:
    """The closing tables."""
    labelled = _labelled_sources(stage)
    table = Table(title="accuracy on frames no version had seen, over HTTP")
    for column in ("world", "version", "frames", "accuracy", "by confidence alone", "by familiarity alone"):
        table.add_column(column, justify="right" if column != "world" else "left")
    for world in worlds.WORLDS:
        for version in sorted({s.version for s in stage.sent if s.world == world and s.version}):
            rows = [s for s in stage.sent if s.world == world and s.version == version and s.status == 200]
            fair = [s for s in rows if s.source not in labelled and s.label is not None]
            wrong = [s for s in fair if s.top != s.label]
            unsure = sum((s.confidence or 0) < 0.5 for s in wrong) / len(wrong) if wrong else float("nan")
            strange = sum(s.unfamiliar for s in wrong) / len(wrong) if wrong else float("nan")
            right = 1 - len(wrong) / len(fair) if fair else float("nan")
            table.add_row(world, f"v{version}", str(len(fair)), f"{right:.1%}", f"{unsure:.0%}", f"{strange:.0%}")
    console.print(table)
    console.print(
        "the last two columns: the share of wrong answers that a confidence under .5, or the distance to familiar"
    )
    console.print("images, would have caught on its own\n")
    facts = Table(title="the loop", show_header=False)
    with stage.context.database.read() as session:
        answers = session.exec(select(Annotation)).all()
    for change in changes:
        facts.add_row(
            f"{change.world}: labels, seconds from change to swap",
            f"{change.labels}, {change.swapped - change.began:.0f}",
        )
    for event in stage.swaps():
        facts.add_row(*swap_row(event))
    failed = [s for s in stage.sent if s.status not in (0, 200)]
    refused = [s for s in stage.sent if s.status == 0]
    facts.add_row(
        "requests sent, failed, refused while serve was dead", f"{len(stage.sent)}, {len(failed)}, {len(refused)}"
    )
    facts.add_row("answers read back from Label Studio, skips among them", _counted(list(answers)))
    console.print(facts)


def _promises(stage: Stage, digits: worlds.Digits, changes: list[Change], killed_at: float) -> list[Check]:
    """Every promise of the story, measured."""
    labelled = _labelled_sources(stage)
    sent, context = stage.sent, stage.context
    refused = [s for s in sent if s.status == 0]
    outside = [s for s in refused if not killed_at - 1 <= s.ended <= killed_at + 30]
    failed = [s for s in sent if s.status not in (0, 200)] + outside
    checks = [
        at_least(f"at least {WANTED_REQUESTS} requests", len(sent), WANTED_REQUESTS),
        at_most("requests failed (refused while serve was dead: counted apart)", len(failed), 0),
        Check("every answered id is in the log, SIGKILL or not", *stage.logged()),
        at_least("versions that served", len({s.version for s in sent if s.version}), 3),
    ]
    swaps = {int(e.data["version"]): e for e in stage.swaps()}
    for version in (2, 3):
        at = swaps[version].at if version in swaps else float("nan")
        at = float(swaps[version].data.get("published_at", at)) if version in swaps else at
        flying = sum(s.begun <= at <= s.ended for s in sent)
        checks.append(at_least(f"requests in flight at the swap to v{version}", flying, 4))
    predictors: dict[int, Predictor] = {}
    for row in stage.versions():
        try:
            predictors[row.version] = Predictor.open(context.store, MODEL, row.version)
        except ModelError as error:
            checks.append(Check(f"v{row.version} can be opened", str(error), False))
    clean = {v: _clean_accuracy(p, digits) for v, p in predictors.items()}
    for change in (c for c in changes if c.version in predictors):
        fair = [s for s in sent if s.world == change.world and s.status == 200 and s.label and s.source not in labelled]
        new = _right([s for s in fair if s.version == change.version and s.begun > change.swapped])
        checks += [
            at_most(
                f"v1 on the {change.world} world",
                _world_accuracy(predictors[1], digits, change.world, labelled),
                0.4,
                percent=True,
            ),
            at_least(f"v{change.version} on unseen {change.world} images, over HTTP", new, 0.85, percent=True),
            at_least(
                f"v{change.version} on the clean test, against v1's {clean[1]:.1%} - 2 points",
                clean[change.version],
                clean[1] - 0.02,
                percent=True,
            ),
            at_most(f"labels for the {change.world} world", change.labels, LABELS_PER_CHANGE),
            at_least(f"{change.world} items in v{change.version}'s test split", _drifted_in_test(stage, change), 20),
            Check(f"the gate let v{change.version} pass by itself", *_gate(stage, change.version)),
        ]
    if len(changes) == 2 and 2 in predictors:
        before = [s for s in sent if s.world == "inverted" and s.version == 2]
        checks.append(
            at_least(
                "inverted and noise images marked unfamiliar before retraining",
                _share_unfamiliar(before),
                0.9,
                percent=True,
            )
        )
    for version, predictor in predictors.items():
        checks.append(
            at_most(
                f"clean images that v{version} marks unfamiliar",
                _clean_unfamiliar(predictor, digits),
                0.1,
                percent=True,
            )
        )
    checks.append(Check("every task stands in Label Studio exactly once", *stage.tasks_once()))
    return checks


def _answers(stage: Stage) -> int:
    """Labels that people have given so far, as Label Studio has them (skips are not labels)."""
    total = 0
    for log in sorted((stage.home / "logs").glob("labeler-*.log")):
        total += sum(
            b'"skipped": false' in line or b'"skipped":false' in line for line in log.read_bytes().splitlines()
        )
    return total


def _labelled_sources(stage: Stage) -> set[int]:
    """Sources that any label names, in any world, in any variation."""
    with stage.context.database.read() as session:
        rows = session.exec(select(LabelRow.sample_id).where(LabelRow.source == "annotation")).all()
        tasks = set(session.exec(select(LabelTask.sample_id)).all())
    files = {s.file for s in _by_sample(stage, set(rows) & tasks)}
    return {int(Path(f).stem.split("-")[0]) for f in files if not Path(f).stem.startswith("noise")}


def _by_sample(stage: Stage, samples: set[str]) -> list[Sent]:
    with stage.context.database.read() as session:
        wanted = {
            row
            for part in np.array_split(sorted(samples), max(len(samples) // 500, 1))
            for row in session.exec(
                select(PredictionRow.id).where(col(PredictionRow.sample_id).in_([str(s) for s in part]))
            )
        }
    return [s for s in stage.sent if s.prediction_id in wanted]


def _right(rows: list[Sent]) -> float:
    return sum(s.top == s.label for s in rows) / len(rows) if rows else float("nan")


def _share_unfamiliar(rows: list[Sent]) -> float:
    return sum(s.unfamiliar for s in rows) / len(rows) if rows else float("nan")


def _clean_accuracy(predictor: Predictor, digits: worlds.Digits) -> float:
    found = [predictor.predict_bytes(worlds.png(digits.sources[i])).classes[0].label for i in digits.test]
    return sum(label == digits.labels[i] for label, i in zip(found, digits.test, strict=True)) / len(found)


def _clean_unfamiliar(predictor: Predictor, digits: worlds.Digits) -> float:
    marks = [
        is_unfamiliar(predictor.predict_bytes(worlds.png(digits.sources[i])), predictor.manifest) for i in digits.test
    ]
    return sum(marks) / len(marks)


def _world_accuracy(predictor: Predictor, digits: worlds.Digits, world: str, labelled: set[int]) -> float:
    sources = [i for i in digits.stream if i not in labelled]
    pngs = [worlds.png(worlds.world_image(digits.sources[i], world)) for i in sources]
    found = [predictor.predict_bytes(data).classes[0].label for data in pngs]
    return sum(label == digits.labels[i] for label, i in zip(found, sources, strict=True)) / len(found)


def _drifted_in_test(stage: Stage, change: Change) -> int:
    """Test items of the version's data set that were streamed after this change began."""
    with stage.context.database.read() as session:
        row = next((v for v in stage.versions() if v.version == change.version), None)
        if row is None:
            return 0
        items = session.exec(
            select(DatasetItem.sample_id)
            .join(DatasetVersion, col(DatasetVersion.id) == DatasetItem.dataset_version_id)
            .where(DatasetVersion.id == row.dataset_version_id, DatasetItem.split == "test", DatasetItem.arm == "drawn")
        ).all()
    return len({s.file for s in _by_sample(stage, set(items)) if s.world == change.world})


def _gate(stage: Stage, version: int) -> tuple[str, bool]:
    with stage.context.database.read() as session:
        rows = session.exec(
            select(Decision).where(Decision.model == MODEL, Decision.kind == "gate", Decision.candidate == version)
        ).all()
    return ", ".join(r.verdict for r in rows) or "no decision", any(r.verdict == "promote" for r in rows)


def _counted(answers: list[Annotation]) -> str:
    latest = {(a.project_id, a.annotation_id): a for a in sorted(answers, key=lambda a: a.fetched_at)}
    return f"{len(latest)}, {sum(a.state == 'skipped' for a in latest.values())}"


def _corrupt(stage: Stage, version: int) -> None:
    """Sabotage: flip bytes inside the candidate's stored weights."""
    root = stage.context.store.root
    path = root / "models" / MODEL / str(version) / "model.onnx" if root else None
    if path and path.exists():
        data = bytearray(path.read_bytes())
        middle = len(data) // 2
        data[middle : middle + 64] = bytes(64)
        path.write_bytes(bytes(data))
