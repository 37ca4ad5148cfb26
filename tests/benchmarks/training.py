"""What retraining forgets, what a warm start saves, what a run costs beside its fit, and what big data sets cost.

    python -m tests.benchmarks.training [forgetting] [warm] [overhead] [freeze] [import]     all without any

Digits are scikit-learn's, at 32 px, with the demo's network; five seeds. Every figure stands beside its target.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from sqlmodel import col, select

from retrain import datasets, train
from retrain.families import Item, Spec, get_family
from retrain.jobs import HANDLERS
from sutdol import registry
from sutdol.context import Context, open_context
from sutdol.images import encode_png
from sutdol.jobs import worker
from sutdol.settings import load
from sutdol.tables import LabelRow, RunProgress, Sample, TrainingRun, now
from sutdol.types import Label

SEEDS = range(5)
OLD, NEW = [str(i) for i in range(8)], ["8", "9"]


class Hooks:
    """Keeps every epoch's metrics."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def step(self, **numbers: float) -> None: ...

    def epoch(self, epoch: int, epochs: int, metrics: dict[str, float]) -> None:
        self.epochs.append(metrics)

    def check(self) -> None: ...


class Digits:
    """Pictures as files, shuffled by seed: 300 old ones to train, 500 to test, the rest to label from."""

    def __init__(self, folder: Path, seed: int) -> None:
        from sklearn.datasets import load_digits

        data = load_digits()
        self.folder = folder
        self.names = [str(t) for t in data.target]
        order = np.random.default_rng(seed).permutation(len(self.names)).tolist()
        self.test, self.rest = order[:500], order[500:]
        self.images = data.images

    def item(self, index: int, source: str, split: str = "train") -> Item:
        path = self.folder / f"{index}.png"
        if not path.is_file():
            large = cv2.resize(
                (self.images[index] / 16 * 255).astype(np.uint8), (32, 32), interpolation=cv2.INTER_CUBIC
            )
            path.write_bytes(encode_png(np.repeat(large[:, :, None], 3, axis=2)))
        return Item(str(index), split, Label(classes=[self.names[index]]), source, str(path))  # type: ignore[arg-type]

    def of(self, names: Iterable[str], count: int, skip: int = 0) -> list[int]:
        """`count` of each class in names, from those to label from."""
        return [i for name in names for i in [j for j in self.rest if self.names[j] == name][skip : skip + count]]


def fit(
    digits: Digits, name: str, items: list[Item], classes: list[str], warm: Path | None, **params: Any
) -> tuple[Path, Hooks]:
    """Train in this process; the weights and the curve."""
    run_dir = digits.folder / name
    run_dir.mkdir()
    family = get_family("timm")
    complete = family.params("classify", classes, params)
    spec = Spec(
        name, str(run_dir), "timm", "classify", classes, complete, items, str(run_dir), str(warm) if warm else None
    )
    hooks = Hooks()
    return family.load().fit(spec, hooks), hooks


def accuracy(digits: Digits, weights: Path, classes: list[str], names: list[str]) -> float:
    """Of the test digits with one of `names`."""
    import torch
    from safetensors.torch import load_file

    from retrain.families import _classifier, timm

    family = get_family("timm")
    items = [digits.item(i, "imported", "test") for i in digits.test if digits.names[i] in names]
    spec = Spec("t", str(digits.folder), "timm", "classify", classes, family.params("classify", classes), items, "")
    net = timm.build(spec)
    net.load_state_dict(load_file(weights))
    images = (
        torch.from_numpy(_classifier.load_images(items, 32, Hooks(), digits.folder / "x")).permute(0, 3, 1, 2).float()
    )
    with torch.inference_mode():
        found = net.eval()(_classifier.normalise(images / 255)).argmax(1).tolist()
    return float(np.mean([classes[f] == item.value.classes[0] for f, item in zip(found, items, strict=True)]))


def forgetting() -> None:
    """Trained on 0 to 7; then 20 (40) labels of each of 8 and 9, with balanced replay."""
    print("\n## Forgetting: 300 digits 0-7, then labels of 8 and 9 (mean of 5 seeds; worst seed)")
    print(
        "| labels of each new class | old before | old after | drop, points (target <= 1) | new (target) | old, no replay |"
    )
    print("|---|---|---|---|---|---|")
    results: dict[int, list[tuple[float, float, float, float]]] = {20: [], 40: []}
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            digits = Digits(Path(folder), seed)
            old = [digits.item(i, "imported") for i in digits.of(OLD, 38)]
            base, _ = fit(digits, "base", old, OLD, None, seed=seed, epochs=60)
            before = accuracy(digits, base, OLD, OLD)
            for count in results:
                labels = [digits.item(i, "annotation") for i in digits.of(NEW, count)]
                grown, _ = fit(digits, f"grown{count}", old + labels, OLD + NEW, base, seed=seed)
                alone, _ = fit(digits, f"alone{count}", labels, OLD + NEW, base, seed=seed)
                numbers = (accuracy(digits, grown, OLD + NEW, OLD), accuracy(digits, grown, OLD + NEW, NEW))
                results[count].append((before, *numbers, accuracy(digits, alone, OLD + NEW, OLD)))
    for count, rows in results.items():
        before, after, new, alone = np.mean(rows, axis=0)
        drops = [100 * (r[0] - r[1]) for r in rows]
        target = ".80" if count == 20 else ".90"
        worst = f"{min(r[2] for r in rows):.3f}"
        print(
            f"| {count} | {before:.4f} | {after:.4f} | {np.mean(drops):.2f} (worst {max(drops):.2f}) | "
            f"{new:.3f} ({target}; worst {worst}) | {alone:.3f} |",
            flush=True,
        )


def warm() -> None:
    """From 100 to 300 labels: how many steps a warm start needs to come within .3 points of training from scratch."""
    print(
        "\n## Warm start: a version of 100 digits, then 300 (5 seeds); target: scratch - .3 points in <= .50 of its steps"
    )
    print("| share of the steps | accuracy, mean | scratch, all steps | difference, points (target >= -.3) |")
    print("|---|---|---|---|")
    shares = (0.25, 0.5, 1.0)
    found: dict[float, list[tuple[float, float]]] = {share: [] for share in shares}
    epochs = 30
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            digits = Digits(Path(folder), seed)
            classes = OLD + NEW
            first = [digits.item(i, "imported") for i in digits.of(classes, 10)]
            second = [digits.item(i, "annotation") for i in digits.of(classes, 20, skip=10)]
            base, _ = fit(digits, "base", first, classes, None, seed=seed, epochs=epochs)
            whole, _ = fit(digits, "scratch", first + second, classes, None, seed=seed, epochs=epochs)
            scratch = accuracy(digits, whole, classes, classes)
            for share in shares:
                wanted = {"seed": seed, "warm_epochs": max(1, round(share * epochs))}
                warmed, _ = fit(digits, f"warm{share}", first + second, classes, base, **wanted)
                found[share].append((accuracy(digits, warmed, classes, classes), scratch))
    for share, rows in found.items():
        warmed, scratch = np.mean(rows, axis=0)
        print(f"| {share:.2f} | {warmed:.4f} | {scratch:.4f} | {100 * (warmed - scratch):+.2f} |", flush=True)


def overhead() -> None:
    """What a run of 1,700 images takes beside its fit: it does not depend on how long the fit is, so a short one will do."""
    from tests.retrain.test_train_job import make_model

    print("\n## A run beside its fit, 1,700 images of 32 px (target: <= 15 % of a 5-minute fit = 45 s)")
    with tempfile.TemporaryDirectory() as folder:
        context = open_context(load(home=Path(folder)))
        make_model(context, 1700, epochs=4, steps_per_epoch=20)
        with context.database.begin() as session:
            run = train.start(session, "digits", cause="benchmark")
        assert run is not None
        worker.run_pending(context, {"train": HANDLERS["train"]})
        with context.database.read() as session:
            done = session.get_one(TrainingRun, run.id)
            query = select(RunProgress.at).where(RunProgress.run_id == run.id).order_by(col(RunProgress.epoch))
            ends = list(session.exec(query))
        context.database.close()
        assert done.state == "done", done.error
        fit_s = (ends[-1] - ends[0]) * len(ends) / (len(ends) - 1)
        rest_s = float(done.finished_at or 0) - float(done.started_at or 0) - fit_s
        print(f"fit {fit_s:.1f} s; everything else {rest_s:.1f} s = {100 * rest_s / 300:.1f} % of 300 s")
        print(f"steps: {done.timings}", flush=True)


def freeze() -> None:
    """A version of 100,000 labelled samples with three boxes each."""
    print("\n## Freezing 100,000 samples with 3 boxes each, SQLite (target: <= 10 s)")
    with tempfile.TemporaryDirectory() as folder:
        context = open_context(load(home=Path(folder)))
        _many_labels(context, 100_000)
        begun = time.perf_counter()
        with context.database.begin() as session:
            version = datasets.freeze(session, "cells")
        first_s, begun = time.perf_counter() - begun, time.perf_counter()
        with context.database.begin() as session:
            assert datasets.freeze(session, "cells").id == version.id
        again_s, begun = time.perf_counter() - begun, time.perf_counter()
        with context.database.read() as session:
            datasets.statistics(session, version)
        print(
            f"first {first_s:.1f} s, again without a change {again_s:.1f} s, "
            f"its statistics {time.perf_counter() - begun:.1f} s",
            flush=True,
        )
        context.database.close()


def _many_labels(context: Context, count: int) -> None:
    import sqlalchemy as sa

    boxes = [{"label": name, "x1": 1.0 + i, "y1": 2.0, "x2": 20.0 + i, "y2": 30.0} for i, name in enumerate("abc")]
    with context.database.begin() as session:
        registry.create_model(session, "cells", task="detect", classes=["a", "b", "c"], family="yolo", params={})
        for start in range(0, count, 5000):
            ids = [f"{i:064x}" for i in range(start, start + 5000)]
            size = {"width_px": 640, "height_px": 480, "media_type": "image/jpeg", "size_bytes": 1, "created_at": now()}
            session.execute(sa.insert(Sample), [{"id": i, **size} for i in ids])
            row = {"model": "cells", "value": {"classes": [], "boxes": boxes}, "source": "imported", "weight": 1.0}
            row |= {"created_at": now(), "updated_at": now()}
            session.execute(
                sa.insert(LabelRow),
                [{**row, "sample_id": i, "split": ("train", "val", "test")[n % 3]} for n, i in enumerate(ids)],
            )


IMPORT = """
import resource, sys
from pathlib import Path
from retrain import datasets
from sqlmodel import col, select

from sutdol import registry
from sutdol.context import open_context
from sutdol.settings import load
context = open_context(load(home=Path(sys.argv[1])))
with context.database.begin() as session:
    registry.create_model(session, "m", task=sys.argv[3], classes=[], family="timm", params={})
report = datasets.import_folder(context, "m", Path(sys.argv[2])).report
print(report["imported"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def import_() -> None:
    """Peak memory and time of importing 1,000, 5,000 and 20,000 photos, in processes of their own."""
    print("\n## Importing: peak memory of the process (target: constant in the number of images)")
    print("| format | photos | peak memory, MB | photos/s |")
    print("|---|---|---|---|")
    for name, task in (("imagefolder", "classify"), ("yolo", "detect"), ("csv", "multilabel")):
        peaks = []
        for count in (1_000, 5_000, 20_000):
            with tempfile.TemporaryDirectory() as folder:
                _write(Path(folder) / "set", name, count)
                begun = time.perf_counter()
                done = subprocess.run(
                    [sys.executable, "-c", IMPORT, f"{folder}/home", f"{folder}/set", task],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                took_s = time.perf_counter() - begun
                imported, peak = done.stdout.split()
                assert int(imported) == count
                peaks.append(float(peak))
                print(f"| {name} | {count} | {float(peak):.0f} | {count / took_s:.0f} |", flush=True)
        print(
            f"| {name} | growth per photo beyond 1,000 | {1e3 * (peaks[-1] - peaks[0]) / 19_000:.2f} KB | |", flush=True
        )


def _write(folder: Path, name: str, count: int) -> None:
    """`count` small photos, all different, with a label each."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 255, (48, 64, 3), np.uint8)
    lines = ["image,a,b"]
    for i in range(count):
        base[0, :3] = [[i % 256, i // 256 % 256, i // 65536]] * 3
        data = cv2.imencode(".png", base)[1].tobytes()
        place = {"imagefolder": f"{'ab'[i % 2]}/{i}.png", "yolo": f"images/{i}.png", "csv": f"{i % 100}/{i}.png"}[name]
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(data)
        lines.append(f"{place},{i % 2},1")
        if name == "yolo":
            (folder / "labels").mkdir(exist_ok=True)
            (folder / "labels" / f"{i}.txt").write_text(f"{i % 2} .5 .5 .25 .25\n" * 3)
    if name == "csv":
        (folder / "labels.csv").write_text("\n".join(lines))
    if name == "yolo":
        (folder / "data.yaml").write_text("names: [a, b]\n")


PARTS: dict[str, Callable[[], None]] = {
    "forgetting": forgetting,
    "warm": warm,
    "overhead": overhead,
    "freeze": freeze,
    "import": import_,
}


def main(arguments: list[str]) -> int:
    for name in arguments or PARTS:
        begun = time.perf_counter()
        PARTS[name]()
        print(f"({name}: {time.perf_counter() - begun:.0f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
