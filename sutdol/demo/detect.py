"""The detection story: a detector trained on a third of the photos meets the rest, people draw the boxes, it gets better.

Everything of the folder is imported once under the model `reference`: its labels are what the labeler knows, and nothing
else. The model `objects` is trained on a third of the training photos; the other two thirds are streamed. Half of what
is drawn trains, a third joins the test split, a sixth the validation split.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from sqlmodel import col, select

from sutdol import images
from sutdol.demo.checks import Check, at_least, at_most, show
from sutdol.demo.digits import Frame
from sutdol.demo.stage import Overdue, Stage, View, swap_row
from sutdol.errors import DatasetError
from sutdol.tables import Annotation, Dataset, Decision, Evaluation, LabelRow, LabelTask

MODEL, REFERENCE = "objects", "reference"
DEMO_SETTINGS = {
    "label_rate": 1.0,
    "drawn_share": 1.0,
    "labels_per_day": 5_000,
    "max_open_tasks": 5_000,
    "retrain_cooldown_s": 5.0,
    "poll_interval_s": 2.0,
    "window_interval_s": 1.0,
    "gold_share": 0.0,  # every answer is compared with the stream's own boxes
}


TRAINING = {"mosaic": 1.0, "crop": 0.4, "brightness": 0.4, "rotate_deg": 0.0}
"""Few photos of many small things: four of them at a time, zoomed, and upright, because a turned box is no longer tight."""


def play(home: Path, data: Path, *, check: bool, labeler: str, params: dict[str, Any], console: Console) -> int:
    """Play it with the Pascal VOC folder `data`; returns the exit code."""
    files = _images(data)
    parts = _split(data, sorted(files))
    first, streamed = parts["train"][::3], [s for i, s in enumerate(parts["train"]) if i % 3]
    enough = max(int(len(streamed) * 0.8), 4)
    settings = DEMO_SETTINGS | {"retrain_after_labels": enough, "retrain_on_drift_labels": enough}
    with Stage(home, MODEL, console, **settings) as stage:
        stage.sutdol("import", REFERENCE, str(data), "--task", "detect", "--format", "voc")
        _tell_import(stage)
        folder = stage.home / "first"
        _copy(data, files, folder, parts | {"train": first})
        stage.sutdol("import", MODEL, str(folder), "--task", "detect", "--format", "voc")
        stage.set_params(**TRAINING | params)
        _write_stream(stage, files, streamed)
        stage.start_up()
        stage.sutdol("train", MODEL)
        stage.say(f"training version 1 with {len(first)} of {len(parts['train'])} photos, while Label Studio starts")
        broken: str | None = None
        try:
            stage.wait_for_version(1, seconds=1800)
            stage.wait_for_studio()
            if labeler == "human":
                config = stage.context.settings
                stage.say(f"open {config.studio_url}, log in as {config.label_studio_email} / {stage.invite_password}")
            else:
                stage.start_labeler("labeler", limit=len(streamed), wrong=0.0, skip=0.02)
            _stream(stage, len(streamed))
            stage.wait_for_version(2, seconds=1800 if labeler == "oracle" else 86_400, watch=_burst(stage))
            time.sleep(1.0)
        except Overdue as overdue:
            broken = overdue.message
            stage.say(f"[red]{broken}[/]")
        stage.control(stop=True)
        time.sleep(0.5)
        stage.look()
        _report(stage, console)
        checks = _promises(stage)
        if broken:
            checks.insert(0, Check("the story came to its end", broken, False))
        kept = show(checks, console)
        return 0 if kept or not check else 1


def _stream(stage: Stage, count: int) -> None:
    """Every photo once, slowly enough for the labels to follow."""
    stage.control(world="photos", rate=6.0, clients=4)
    stage.start_traffic()
    stage.wait("every photo streamed", lambda _: len({s.file for s in stage.sent}) >= count, seconds=300)
    stage.control(rate=0.5)


def _burst(stage: Stage) -> Callable[[View], None]:
    def watch(view: View) -> None:
        running = view.run is not None and view.run.finished_at is None and view.run.parent_version is not None
        state = view.run.state if view.run and running else ""
        stage.control(rate=0.0 if state == "deciding" else 0.5)

    return watch


def _promises(stage: Stage) -> list[Check]:
    failed = [s for s in stage.sent if s.status != 200]
    before, after = _map50(stage)
    with stage.context.database.read() as session:
        gates = session.exec(
            select(Decision.verdict).where(Decision.model == MODEL, Decision.kind == "gate", Decision.candidate == 2)
        ).all()
    return [
        at_most("requests failed", len(failed), 0),
        Check("every answered id is in the log", *stage.logged()),
        Check("every task stands in Label Studio exactly once", *stage.tasks_once()),
        Check("boxes that people drew came back in pixels", *_boxes_back(stage)),
        Check(
            "the gate let version 2 pass at its default settings", ", ".join(gates) or "no decision", "promote" in gates
        ),
        at_least("mAP50 gained on the same frozen test photos", after - before, 0.01),
        at_least("versions that served", len({e.data.get("version") for e in stage.swaps()}), 2),
    ]


def _boxes_back(stage: Stage) -> tuple[str, bool]:
    """Largest distance, in pixels, between what the labeler drew and what we read back; accepted ones are left out."""
    with stage.context.database.read() as session:
        truth = {r.sample_id: r.value for r in session.exec(select(LabelRow).where(LabelRow.model == REFERENCE))}
        rows = session.exec(
            select(LabelTask.sample_id, Annotation)
            .join(Annotation, col(Annotation.label_task_id) == LabelTask.id)
            .where(LabelTask.model == MODEL, Annotation.state == "valid")
        ).all()
    worst, drawn = 0.0, 0
    for sample_id, annotation in rows:
        if annotation.value is None or "prediction" in annotation.origins:
            continue
        told, known = (sorted(v["boxes"], key=_corners) for v in (annotation.value, truth[sample_id]))
        if len(told) != len(known):
            return f"{len(told)} boxes where {len(known)} were drawn", False
        drawn += len(told)
        distances = [
            abs(a - b) for t, k in zip(told, known, strict=True) for a, b in zip(_corners(t), _corners(k), strict=True)
        ]
        worst = max([worst, *distances])
    return f"{drawn} boxes, at most {worst:.3f} px off", drawn > 0 and worst < 0.05


def _corners(box: dict[str, Any]) -> tuple[float, float, float, float]:
    return round(box["x1"], 1), round(box["y1"], 1), round(box["x2"], 1), round(box["y2"], 1)


def _report(stage: Stage, console: Console) -> None:
    before, after = _map50(stage)
    table = Table(title="the loop", show_header=False)
    view = stage.look()
    table.add_row("mAP50 of version 1 and 2, same test photos", f"{before:.3f} -> {after:.3f}")
    table.add_row("photos labelled in Label Studio", str(view.tasks.get("annotated", 0)))
    table.add_row("requests sent, failed", f"{len(stage.sent)}, {sum(s.status != 200 for s in stage.sent)}")
    for event in stage.swaps():
        table.add_row(*swap_row(event))
    if view.decision:
        table.add_row("the gate's words", view.decision.text)
    console.print(table)


def _map50(stage: Stage) -> tuple[float, float]:
    """mAP50 of version 1 and 2 on the test split of version 2's data set; NaN where there is none."""
    with stage.context.database.read() as session:
        rows = session.exec(
            select(Evaluation).where(Evaluation.model == MODEL, Evaluation.split == "test").order_by(Evaluation.at)  # type: ignore[arg-type]
        ).all()
    second = [r for r in rows if r.version == 2]
    if not second:
        return float("nan"), float("nan")
    same = {r.version: float(r.metrics["map50"]) for r in rows if r.dataset_version_id == second[-1].dataset_version_id}
    return same.get(1, float("nan")), same.get(2, float("nan"))


def _tell_import(stage: Stage) -> None:
    with stage.context.database.read() as session:
        report = session.exec(select(Dataset.report).where(Dataset.model == REFERENCE)).one()
    stage.say(f"the folder holds {report.get('imported')} photos and {report.get('boxes')} boxes")
    for row in report.get("left_out", []):
        stage.say(f"left out: {row.get('file')}: {row.get('reason')}")


def _write_stream(stage: Stage, files: dict[str, Path], stems: list[str]) -> None:
    """The application's frames, and what the labeler knows about every photo by its pixels."""
    with stage.context.database.read() as session:
        labels = {r.sample_id: r.value for r in session.exec(select(LabelRow).where(LabelRow.model == REFERENCE))}
    folder = stage.folder / "photos"
    folder.mkdir(parents=True)
    truth: dict[str, object] = {}
    frames = []
    for number, stem in enumerate(stems):
        image = images.admit(files[stem].read_bytes())
        name = f"photos/{number:05d}{files[stem].suffix}"
        (stage.folder / name).write_bytes(files[stem].read_bytes())
        frames.append(Frame(name, number, None))
        truth[images.pixel_key(images.decode(image.data))] = labels[image.sample_id]
    (stage.folder / "photos.json").write_bytes(msgspec.json.encode(frames))
    (stage.folder / "truth.json").write_bytes(msgspec.json.encode(truth))


def _images(data: Path) -> dict[str, Path]:
    """Photos that have an annotation, by stem."""
    annotated = {p.stem for p in (data / "Annotations").glob("*.xml")}
    files = {p.stem: p for p in sorted((data / "JPEGImages").glob("*")) if p.stem in annotated}
    if len(files) < 12:
        raise DatasetError(
            f"expected a Pascal VOC folder with at least 12 annotated photos, found {len(files)}",
            hint="it holds Annotations/*.xml and JPEGImages/*",
        )
    return files


def _split(data: Path, stems: list[str]) -> dict[str, list[str]]:
    """The folder's own splits, or 55 / 15 / 30 by position."""
    sets = data / "ImageSets" / "Main"
    if all((sets / f"{part}.txt").exists() for part in ("train", "val", "test")):
        return {p: (sets / f"{p}.txt").read_text().split() for p in ("train", "val", "test")}
    parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for i, stem in enumerate(stems):
        place = i % 20
        part = "test" if place in (1, 4, 8, 12, 15, 18) else "val" if place in (5, 10, 16) else "train"
        parts[part].append(stem)
    return parts


def _copy(data: Path, files: dict[str, Path], folder: Path, parts: dict[str, list[str]]) -> None:
    """A VOC folder with only the named photos."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for part, stems in parts.items():
        (folder / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(stems) + "\n")
        for stem in stems:
            shutil.copy(data / "Annotations" / f"{stem}.xml", folder / "Annotations")
            shutil.copy(files[stem], folder / "JPEGImages" / os.path.basename(files[stem]))
