"""The models of the benchmarks: ultralytics' yolo11n with random weights, exported to our own ONNX contract.

NAMES -> build once (torch, ten seconds) -> build/benchmarks/NAME/{model.onnx, scoring.npz} -> a registered, promoted version

Random weights cost the same as trained ones. The class head of the detector is shifted so that about 25 boxes an image
survive suppression, as in a busy scene; the statistics of familiarity have one centre per class, as real ones do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg

from sutdol import registry
from sutdol.context import Context
from sutdol.errors import NotFoundError
from sutdol.familiarity import OodStatistics, fit_ood
from sutdol.images import decode
from sutdol.predictor import Predictor
from sutdol.types import InputSpec, Manifest, Task

CACHE = Path(__file__).parents[2] / "build" / "benchmarks"
BOXES = 25


@dataclass(frozen=True)
class Model:
    """One benchmark model: its task, its side in pixels, and how many clients it is measured with."""

    task: Task
    side_px: int
    classes: int
    clients: int


NAMES = {
    "cls224": Model("classify", 224, 1000, 8),
    "det320": Model("detect", 320, 80, 8),
    "tiny64": Model("classify", 64, 1000, 32),
}


def photos(count: int = 64) -> list[bytes]:
    """JPEGs of 640 x 480, 20 to 110 KB: soft colours, hard edges, some grain; always the same."""
    rng = np.random.default_rng(7)
    found = []
    for i in range(count):
        coarse = rng.integers(0, 255, (6 + i % 5, 8 + i % 7, 3)).astype(np.uint8)
        image = cv2.resize(coarse, (640, 480), interpolation=cv2.INTER_CUBIC).astype(np.float32)
        for _ in range(12):
            x, y, r = rng.integers(0, 640), rng.integers(0, 480), rng.integers(10, 90)
            cv2.circle(image, (int(x), int(y)), int(r), rng.integers(0, 255, 3).tolist(), -1)
        image += rng.normal(0, 1 + i % 8, image.shape)
        pixels = np.ascontiguousarray(np.clip(image, 0, 255).astype(np.uint8))
        found.append(simplejpeg.encode_jpeg(pixels, quality=85, colorsubsampling="420"))
    return found


def bundle(context: Context, name: str, *, promote: bool = True) -> int:
    """Register a version of the benchmark model `name` here; its number."""
    spec = NAMES[name]
    onnx, scoring = _parts(name)
    manifest = Manifest(
        task=spec.task,
        classes=[f"class {i}" for i in range(spec.classes)],
        input=InputSpec((spec.side_px, spec.side_px), "letterbox" if spec.task == "detect" else "stretch"),
        family="benchmark",
        unfamiliar_at=1e9,
    )
    fitted = np.stack([decode(data)[: spec.side_px, : spec.side_px] for data in photos(2)])
    golden = Predictor.from_parts(onnx, manifest, OodStatistics.from_bytes(scoring)).make_golden(fitted)
    with context.database.begin() as session:
        try:
            registry.get_model(session, name)
        except NotFoundError:
            registry.create_model(session, name, task=spec.task, classes=manifest.classes, family="benchmark")
        version = registry.allocate_version(session, name)
    files = {"model.onnx": onnx, "scoring.npz": scoring, "golden.npz": golden}
    written = registry.write_bundle(context.store, name, version, manifest, files)
    with context.database.begin() as session:
        registry.register(
            session, name, version, written, size_bytes=len(onnx), metrics={}, state="ready", run_id="benchmark"
        )
        if promote:
            registry.promote(session, name, version, who="benchmark", text="benchmark")
    return version


def onnx_of(name: str) -> Path:
    """The model's file, made when it is not there."""
    _parts(name)
    return CACHE / name / "model.onnx"


def _parts(name: str) -> tuple[bytes, bytes]:
    folder = CACHE / name
    if not (folder / "scoring.npz").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.onnx").write_bytes(_export(name))
        (folder / "scoring.npz").write_bytes(_statistics(name, (folder / "model.onnx").read_bytes()))
    return (folder / "model.onnx").read_bytes(), (folder / "scoring.npz").read_bytes()


def _export(name: str) -> bytes:
    import os

    from retrain.families import yolo

    os.environ |= yolo.environment(CACHE, {})
    import torch
    from ultralytics.nn.tasks import ClassificationModel, DetectionModel

    from retrain.families._export import export

    spec = NAMES[name]
    torch.manual_seed(0)
    if spec.task == "classify":
        net: Any = ClassificationModel("yolo11n-cls.yaml", nc=spec.classes, verbose=False).eval().fuse(verbose=False)
    else:
        net = DetectionModel("yolo11n.yaml", nc=spec.classes, verbose=False).eval().fuse(verbose=False)
        net.model[-1].export, net.model[-1].format = True, "onnx"

    class Classifier(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = net.model[:-1], net.model[-1]

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            features = self.head.pool(self.head.conv(self.body(images))).flatten(1)
            return self.head.linear(features), features

    class Detector(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = net.model

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            kept: list[Any] = []
            features, x = [], images
            for layer in self.layers:
                if layer.f != -1:
                    x = kept[layer.f] if isinstance(layer.f, int) else [x if j == -1 else kept[j] for j in layer.f]
                x = layer(x)
                kept.append(x)
                if layer.i in yolo.FEATURE_LAYERS:
                    mean = x.mean(dim=(2, 3))
                    features += [mean, ((x - mean[:, :, None, None]).square().mean(dim=(2, 3)) + 1e-6).sqrt()]
            return x, torch.cat(features, 1)

    probe = torch.rand(2, 3, spec.side_px, spec.side_px, generator=torch.Generator().manual_seed(0))
    if spec.task == "classify":
        return export(Classifier().eval(), probe, opset=yolo.OPSET)[0]
    _shift_scores(net, torch, spec)
    return export(Detector().eval(), probe, opset=yolo.OPSET)[0]


def _shift_scores(net: Any, torch: Any, spec: Model) -> None:
    """Spread the class scores and move them, so that about BOXES an image lie over the threshold of .25."""
    from sutdol.predictor import fit_input, to_tensor

    layers = [branch[-1] for branch in net.model[-1].cv3]
    for layer in layers:
        layer.weight.data *= 40
    fit = InputSpec((spec.side_px, spec.side_px), "letterbox")
    images = torch.from_numpy(np.stack([to_tensor(fit_input(decode(d), fit), fit) for d in photos(8)]))
    with torch.inference_mode():
        scores = net(images)
        best = (scores[0] if isinstance(scores, tuple) else scores)[:, 4:].amax(1).flatten().double()
    odds = torch.log(best.clamp(1e-12, 1 - 1e-9)) - torch.log1p(-best.clamp(1e-12, 1 - 1e-9))
    wanted = odds.sort(descending=True).values[BOXES * 5 * len(images)]
    for layer in layers:
        layer.bias.data += float(np.log(0.25 / 0.75) - wanted)


def _statistics(name: str, onnx: bytes) -> bytes:
    """Statistics of the real size: 256 dimensions and one centre per class, spread around real features."""
    from sutdol.runtime import Runtime

    spec = NAMES[name]
    rng = np.random.default_rng(0)
    images = rng.random((4, 3, spec.side_px, spec.side_px)).astype(np.float32)
    mean = Runtime(onnx).run(images)[1].mean(axis=0)
    labels = np.arange(2 * spec.classes) % spec.classes if spec.task == "classify" else None
    features = mean + rng.normal(0, 0.1, (2 * max(spec.classes, 200), len(mean)))
    if labels is not None:
        features += rng.normal(0, 0.1, (spec.classes, len(mean)))[labels]
    return fit_ood(features, labels, held_out=features[:100], normalise=spec.task == "classify").to_bytes()
