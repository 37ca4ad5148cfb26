"""How a team with a model in production starts: two stock exports are adopted, served, logged, labelled and retrained."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from sqlmodel import col, select

from retrain import train
from retrain.families import get_family
from retrain.jobs import HANDLERS
from sutdol import adoption, keys, registry, versions
from sutdol.adoption import Answers
from sutdol.context import Context
from sutdol.images import encode_png
from sutdol.jobs import worker
from sutdol.predictor import Predictor
from sutdol.settings import child_environment
from sutdol.tables import Decision, Evaluation, LabelRow, LabelTask, PredictionRow, Sample, TrainingRun
from sutdol.types import Box
from tests.running_server import running, wait_for

EXPORT = """
import warnings; warnings.simplefilter("ignore")
import timm
from timm.utils.onnx import onnx_export
from ultralytics import YOLO
onnx_export(timm.create_model("resnet10t", num_classes=10), "resnet.onnx", batch_size=1, input_size=(3, 32, 32))
YOLO("yolo11n.yaml").export(format="onnx", imgsz=64, simplify=False)
"""
"""Stock networks by their own libraries' exporters, nothing said but the size."""


def stock_exports(context: Context, folder: Path) -> dict[str, bytes]:
    environment = child_environment(context.settings, **get_family("yolo").environment(folder))
    folder.mkdir()
    (folder / "config").mkdir()
    done = subprocess.run([sys.executable, "-c", EXPORT], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return {"digits": (folder / "resnet.onnx").read_bytes(), "squares": (folder / "yolo11n.onnx").read_bytes()}


def digits(count: int) -> list[tuple[bytes, dict[str, Any]]]:
    from sklearn.datasets import load_digits

    data = load_digits()
    found = []
    for image, target in zip(data.images[:count], data.target[:count], strict=True):
        large = cv2.resize((image / 16 * 255).astype(np.uint8), (40, 40), interpolation=cv2.INTER_CUBIC)
        found.append((encode_png(np.repeat(large[:, :, None], 3, axis=2)), {"classes": [str(target)], "boxes": []}))
    return found


def squares(count: int) -> list[tuple[bytes, dict[str, Any]]]:
    """One bright square on noise each; it is called `0`, as the stock network calls its first class."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(count):
        rgb = rng.integers(60, 100, (96, 96, 3), dtype=np.uint8)
        x, y = (int(v) for v in rng.integers(4, 50, 2))
        cv2.rectangle(rgb, (x, y), (x + 36, y + 36), (230, 60, 40), -1)
        box = Box("0", x, y, x + 37, y + 37)
        value = {"classes": [], "boxes": [{f: getattr(box, f) for f in ("label", "x1", "y1", "x2", "y2")}]}
        found.append((encode_png(rgb), value))
    return found


def answer_tasks(context: Context, model: str, truth: dict[str, dict[str, Any]]) -> int:
    """As the bridge writes what people answered: the tasks' samples, a third of the drawn ones for test, a sixth for val."""
    with context.database.begin() as session:
        tasks = session.exec(select(LabelTask).where(LabelTask.model == model).order_by(col(LabelTask.sample_id))).all()
        for i, task in enumerate(tasks):
            split = "train" if task.arm != "drawn" else "test" if i % 3 == 0 else "val" if i % 6 == 1 else "train"
            weight = 1 / (task.inclusion_probability or 1.0)
            session.add(
                LabelRow(
                    model=model,
                    sample_id=task.sample_id,
                    value=truth[task.sample_id],
                    source="annotation",
                    arm=task.arm,
                    weight=weight,
                    split=split,
                )
            )
            task.state = "annotated"
            session.add(task)
    return len(tasks)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_stock_exports_are_adopted_served_logged_labelled_and_retrained(context: Context, tmp_path: Path) -> None:
    """No step asks where the model came from: its successor is trained from people's labels and judged against it."""
    for model, data in stock_exports(context, tmp_path / "stock").items():
        answers = Answers(classes=[str(i) for i in range(10)]) if model == "digits" else Answers()
        assert adoption.adopt(context, model, adoption.propose(data, answers), who="test") == 1
    with context.database.begin() as session:
        key = keys.create(session, "test", ["admin"])
        for model, params in (("digits", {"epochs": 15}), ("squares", {"epochs": 30, "image_size": 64, "batch": 8})):
            registry.get_model(session, model).params = params
    traffic = {"digits": digits(240), "squares": squares(36)}
    with running(context.settings.home, label_rate=1.0, max_open_tasks=10_000, labels_per_day=10_000) as server:
        client = httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}, timeout=30)
        for model, images in traffic.items():
            truth = {}
            for data, value in images:
                reply = client.post(f"/v1/predict/{model}", content=data).raise_for_status().json()
                assert reply["version"] == 1
                with context.database.read() as session:
                    row = session.get_one(PredictionRow, reply["prediction_id"])
                truth[row.sample_id] = value
            assert answer_tasks(context, model, truth) >= len(truth) // 4, "picked for labelling like any other"
            with context.database.read() as session:
                assert len(session.exec(select(Sample)).all()) > 0
            with context.database.begin() as session:
                run = train.start(session, model, cause="labels")
            assert run is not None
            assert worker.run_pending(context, {"train": HANDLERS["train"]}) == 1
            with context.database.read() as session:
                done = session.get_one(TrainingRun, run.id)
                assert (done.state, done.error, done.version, done.parent_version) == ("done", None, 2, 1)
                gate = session.exec(select(Decision).where(Decision.model == model, Decision.kind == "gate")).one()
                assert (gate.candidate, gate.champion) == (2, 1), "judged against the adopted champion"
                judged = session.exec(select(Evaluation).where(Evaluation.model == model)).all()
                lineage = versions.lineage(session, model, 2)
            assert sorted(e.version for e in judged) == [1, 2]
            assert lineage.parents == [1]
        with context.database.read() as session:
            assert registry.alias(session, "digits", "champion") == 2, "ten random weights are not hard to beat"

        def swapped() -> bool:
            return bool(client.get("/v1/models/digits").json()["serving"].get("version") == 2)

        wait_for(swapped, "the successor to serve")
        data, value = traffic["digits"][0]
        assert client.post("/v1/predict/digits", content=data).json()["predictions"][0]["name"] == value["classes"][0]
        client.close()
    adopted = Predictor.open(context.store, "digits", 1)
    adopted.check_golden()
    assert adopted.manifest.family == adoption.FAMILY
