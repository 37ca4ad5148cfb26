"""EfficientDet D0 to D7 by effdet (Apache-2.0), from scratch, from pretrained weights, or from an earlier version.

    items -> letterboxed to the network's square, augmented with their boxes -> anchors labelled by effdet -> focal and box
          loss -> one-cycle AdamW -> moving average -> weights.safetensors -> ONNX: images -> scores (boxes before NMS),
          features

The anchors' boxes are decoded inside the ONNX file, so that it keeps the same contract as all detectors: centre, size and
class probabilities per anchor. Every size of image that is a multiple of 128 works; each network has its own.

Errors: InputError for an unknown architecture or size; SetupError when pretrained weights cannot be had; TrainingError.
"""

from __future__ import annotations

import io
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retrain.families import Export, Hooks, Item, Spec, _classifier, load_checkpoint, save_checkpoint
from retrain.families._augment import augment_boxes, augmentation_defaults, draw_boxes, mosaic
from retrain.families._memory import fitting_batch
from retrain.families._pretrained import load_pretrained
from retrain.families._prune import fit_shapes, prune
from retrain.families._replay import repeats
from retrain.families._warm import start_warm
from retrain.metrics import Outcome, detection, match_image
from sutdol.errors import InputError, TrainingError
from sutdol.images import Rgb, decode
from sutdol.predictor import fit_input
from sutdol.types import Box, InputSpec, Task

if TYPE_CHECKING:
    import torch

OPSET = 18
SIZES = (512, 640, 768, 896, 1024, 1280, 1280, 1536)
"""Pixels a side that D0 to D7 were made for."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MIN_STEPS_PER_EPOCH = 5
SCORE_MIN = 0.05
"""Boxes below this do not count in the curve of the val split."""
MAX_BOXES = 300
"""Boxes of one training image; what is beyond is not learned."""
PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"architecture": "d0", "image_size": 384, "epochs": 20},
    "balanced": {"architecture": "d0", "epochs": 60},
    "accurate": {"architecture": "d2", "epochs": 120, "mosaic": 0.5, "crop": 0.3},
}


def defaults(task: Task, classes: list[str]) -> dict[str, Any]:
    """Parameters with their defaults; without `image_size` it is the architecture's own. `batch` is the largest one."""
    return {
        "architecture": "d0",
        "image_size": 512,
        "epochs": 40,
        "warm_epochs": 30,
        "batch": 8,
        "lr": 0.002,
        "warm_lr": 0.001,
        "weight_decay": 0.0005,
        "ema": 0.99,
        "patience": 0,
        "warm_start": True,
        "pretrained": False,
        "head_only": False,
        **augmentation_defaults(classes),
        "mosaic": 0.0,
        "seed": 0,
        "device": "auto",
    }


def native_size(params: dict[str, Any], task: Task) -> int:
    """The input size that an architecture was made for, pixels a side."""
    return SIZES[_number(str(params["architecture"]))]


def environment(run_dir: Path, params: dict[str, Any]) -> dict[str, str]:
    """The hub is asked only for pretrained weights."""
    return {} if params.get("pretrained") else {"HF_HUB_OFFLINE": "1"}


def fit(spec: Spec, hooks: Hooks) -> Path:
    """Train and return weights.safetensors in the run folder; goes on after the last whole checkpoint, if there is one."""
    import torch
    from effdet import DetBenchTrain
    from safetensors.torch import save_file
    from timm.utils.model_ema import ModelEmaV3

    params, run_dir = spec.params, Path(spec.run_dir)
    train, val = spec.of("train"), spec.of("val")
    if not train:
        raise TrainingError("there are no training images in this dataset version")
    device = _classifier.device_of(params["device"])
    torch.manual_seed(int(params["seed"]))
    size = _size(spec)
    model = build(spec)
    warm = bool(spec.warm_start) and bool(params["warm_start"])
    found = load_checkpoint(run_dir)
    if found is None and warm:
        start_warm(model, Path(str(spec.warm_start)), spec)
    elif found is None and params["pretrained"]:
        _pretrain(model, spec)
    if found is not None:
        state = torch.load(found[1]["last.pt"], map_location=device, weights_only=True)
        fit_shapes(model, state["model"])
    elif spec.prune:
        fixed = [part for name, part in model.named_modules() if name.endswith("predict")]
        prune(model, torch.rand(1, 3, size, size), spec.prune, fixed=fixed)
    if params["head_only"]:
        for part in (model.backbone, model.fpn):
            part.requires_grad_(False)
    bench = DetBenchTrain(model.to(device), create_labeler=True).to(device)
    trained = [p for p in model.parameters() if p.requires_grad]
    order = [i for i, times in enumerate(repeats(train)) for _ in range(times)]
    epochs = int(params["warm_epochs"] if warm else params["epochs"])
    batch = fitting_batch(model, (3, size, size), min(int(params["batch"]), max(2, len(order))), device)
    steps = max(MIN_STEPS_PER_EPOCH, math.ceil(len(order) / batch))
    optimizer = torch.optim.AdamW(trained, lr=1.0, weight_decay=float(params["weight_decay"]))
    peak, total = float(params["warm_lr"] if warm else params["lr"]), epochs * steps
    ema = ModelEmaV3(model, decay=float(params["ema"]), use_warmup=True, warmup_power=0.75)
    best = _classifier.Best(int(params["patience"]))
    first = 0
    if found is not None:
        first = found[0]
        model.load_state_dict(state["model"])
        ema.module.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        best.load(state["best"])
    judge = _Judge(spec, val, device) if val else None
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for epoch in range(first + 1, epochs + 1):
            if best.over:
                break
            rng = np.random.default_rng([int(params["seed"]), epoch])
            drawn = np.resize(rng.permutation(order), steps * batch)
            bench.train()
            if params["head_only"]:
                model.backbone.eval()
                model.fpn.eval()
            losses: dict[str, float] = {}
            for step in range(steps):
                hooks.check()
                done = (epoch - 1) * steps + step
                for group in optimizer.param_groups:
                    group["lr"] = peak * _classifier.one_cycle(done / total)
                seeds = rng.integers(0, 2**63, batch)
                picked = drawn[step * batch : (step + 1) * batch]
                loaded = list(
                    pool.map(
                        lambda pair: _example(spec, train, *pair), zip(picked.tolist(), seeds.tolist(), strict=True)
                    )
                )
                images = _tensor([rgb for rgb, _ in loaded]).to(device)
                out = bench(images, _targets([boxes for _, boxes in loaded], spec.classes, device))
                optimizer.zero_grad(set_to_none=True)
                out["loss"].backward()
                torch.nn.utils.clip_grad_norm_(trained, 10.0)
                optimizer.step()
                ema.update(model, step=done + 1)
                for name, value in out.items():
                    losses[f"train/{name}"] = losses.get(f"train/{name}", 0.0) + float(value.detach()) / steps
                hooks.step(step=done + 1, steps=total, images=batch)
            if not math.isfinite(losses["train/loss"]):
                raise TrainingError(f"epoch {epoch}: the loss is not finite", hint="lower the parameter lr")
            metrics = losses | {"lr": optimizer.param_groups[0]["lr"], "batch": float(batch)}
            if judge is not None:
                metrics |= judge.judge(ema.module, hooks)
            best.see(epoch, metrics.get("val/mAP50"), ema.module)
            buffer = io.BytesIO()
            state = {"model": model.state_dict(), "ema": ema.module.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"best": best.state()}, buffer)
            save_checkpoint(run_dir, epoch, {"last.pt": buffer.getvalue()})
            hooks.epoch(epoch, epochs, metrics)
    path = run_dir / "weights.safetensors"
    chosen = best.weights or ema.module.state_dict()
    save_file({k: v.contiguous().cpu() for k, v in chosen.items()}, path)
    return path


def to_onnx(spec: Spec, weights: Path) -> Export:
    """Boxes before suppression and early-layer features in one file, compared with torch on a batch of two."""
    import torch
    from safetensors.torch import load_file

    from retrain.families._export import export

    model, state = build(spec), load_file(weights)
    fit_shapes(model, state)
    model.load_state_dict(state)
    size = _size(spec)
    probe = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    onnx, parity = export(_decoded(model).eval(), (probe - 0.45) / 0.225, opset=OPSET)
    return Export(onnx, InputSpec((size, size), "letterbox", MEAN, STD), OPSET, parity)


def examples(spec: Spec, hooks: Hooks, count: int) -> list[list[Rgb]]:
    """For each of the spec's items: the image as the network gets it, then `count` augmented ones, with their boxes."""
    sheet = []
    for i in range(len(spec.items)):
        hooks.check()
        row = [draw_boxes(*_letterboxed(spec.items[i], _size(spec)))]
        row += [draw_boxes(*_example(spec, spec.items, i, seed)) for seed in range(count)]
        sheet.append(row)
    return sheet


def build(spec: Spec) -> Any:
    """The untrained network."""
    from effdet import EfficientDet, get_efficientdet_config

    size = _size(spec)
    config = get_efficientdet_config(f"efficientdet_{spec.params['architecture']}")
    config.num_classes, config.image_size = len(spec.classes), (size, size)
    return EfficientDet(config, pretrained_backbone=False)


def _number(architecture: str) -> int:
    names = [f"d{i}" for i in range(len(SIZES))]
    if architecture not in names:
        raise InputError(f"architecture {architecture!r} is unknown (known: {', '.join(names)})")
    return names.index(architecture)


def _size(spec: Spec) -> int:
    """The feature pyramid wants multiples of 128."""
    _number(str(spec.params["architecture"]))
    return max(128, math.ceil(int(spec.params["image_size"]) / 128) * 128)


def _pretrain(model: Any, spec: Spec) -> None:
    """From a file, or the backbone alone from timm's hub: what effdet offers for download are pickles."""
    name = f"efficientdet_{spec.params['architecture']}"

    def download() -> dict[str, Any]:
        import timm

        os.environ["HF_HUB_OFFLINE"] = "0"
        backbone = timm.create_model(model.config.backbone_name, pretrained=True, features_only=True)
        own: dict[str, Any] = dict(model.state_dict())
        own.update({f"backbone.{k}": v for k, v in backbone.state_dict().items() if f"backbone.{k}" in own})
        return own

    load_pretrained(model, spec, name, download)


def _decoded(model: Any) -> Any:
    """images -> (scores (n, 4 + classes, anchors): centre x and y, width, height in pixels, probabilities; features)."""
    import torch
    from effdet.anchors import Anchors

    anchors = Anchors.from_config(model.config).boxes  # y1, x1, y2, x2
    classes = model.config.num_classes

    class Decoded(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = model
            self.register_buffer("centre", (anchors[:, :2] + anchors[:, 2:]) / 2)
            self.register_buffer("size", anchors[:, 2:] - anchors[:, :2])

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            maps = self.net.backbone(images)
            levels = self.net.fpn(maps)
            scores, codes = (
                torch.cat([x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, n) for x in net(levels)], 1)
                for net, n in ((self.net.class_net, classes), (self.net.box_net, 4))
            )
            centre = codes[..., :2] * self.size + self.centre
            size = codes[..., 2:].clamp(max=8.0).exp() * self.size
            boxes = torch.stack([centre[..., 1], centre[..., 0], size[..., 1], size[..., 0]], -1)
            features = []
            for level in maps[:2]:
                mean = level.mean(dim=(2, 3))
                variance = (level - mean[:, :, None, None]).square().mean(dim=(2, 3))
                features += [mean, (variance + 1e-6).sqrt()]
            return torch.cat([boxes, scores.sigmoid()], -1).permute(0, 2, 1), torch.cat(features, 1)

    return Decoded()


def _letterboxed(item: Item, size: int) -> tuple[Rgb, list[Box]]:
    """The image as the predictor will give it to the network, and its boxes there."""
    rgb = decode(Path(item.path).read_bytes())
    height, width = rgb.shape[:2]
    scale = min(size / height, size / width)
    left, top = (size - round(width * scale)) // 2, (size - round(height * scale)) // 2
    moved = [
        Box(b.label, b.x1 * scale + left, b.y1 * scale + top, b.x2 * scale + left, b.y2 * scale + top)
        for b in item.value.boxes
    ]
    return fit_input(rgb, InputSpec((size, size), "letterbox")), moved


def _example(spec: Spec, items: list[Item], index: int, seed: int) -> tuple[Rgb, list[Box]]:
    """One training image, always the same for the same seed."""
    rng = np.random.default_rng(seed)
    size = _size(spec)
    loaded = _letterboxed(items[index], size)
    if rng.random() < float(spec.params["mosaic"]):
        others = [_letterboxed(items[int(i)], size) for i in rng.integers(0, len(items), 3)]
        loaded = mosaic([loaded, *others], rng)
    return augment_boxes(*loaded, spec.params, rng)


def _tensor(images: list[Rgb]) -> torch.Tensor:
    import torch

    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return (batch - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def _targets(boxes: list[list[Box]], classes: list[str], device: str) -> dict[str, Any]:
    """What effdet's bench wants: boxes as y1, x1, y2, x2, classes from 1, padded with -1."""
    import torch

    most = max(1, min(MAX_BOXES, max(len(found) for found in boxes)))
    corners, labels = torch.full((len(boxes), most, 4), -1.0), torch.full((len(boxes), most), -1.0)
    for row, found in enumerate(boxes):
        for place, box in enumerate(found[:most]):
            corners[row, place] = torch.tensor([box.y1, box.x1, box.y2, box.x2])
            labels[row, place] = classes.index(box.label) + 1
    return {"bbox": corners.to(device), "cls": labels.to(device)}


class _Judge:
    """mAP of the averaged weights on the val split, by the metrics that the evaluation uses too."""

    def __init__(self, spec: Spec, val: list[Item], device: str) -> None:
        self._spec, self._val, self._device = spec, val, device

    def judge(self, model: Any, hooks: Hooks) -> dict[str, float]:
        import torch

        outcomes = []
        net = _decoded(model).to(self._device).eval()
        for item in self._val:
            hooks.check()
            rgb, truth = _letterboxed(item, _size(self._spec))
            with torch.inference_mode():
                scores, _ = net(_tensor([rgb]).to(self._device))
            found = match_image(_suppressed(scores[0], self._spec.classes), truth)
            names = [box.label for box in truth]
            outcomes.append(
                Outcome(
                    item.sample_id,
                    correct=False,
                    truth=names,
                    predicted=[],
                    confidence=0.0,
                    ood_score=None,
                    detections=found,
                )
            )
        numbers = detection(outcomes, self._spec.classes, score_min=SCORE_MIN)
        return {"val/mAP50": numbers["map50"] or 0.0, "val/mAP50-95": numbers["map50_95"] or 0.0}


def _suppressed(scores: torch.Tensor, classes: list[str]) -> list[Box]:
    """(4 + classes, anchors) -> at most 100 boxes, best first."""
    import torch
    from torchvision.ops import batched_nms

    centre, size = scores[:2].T, scores[2:4].T.clamp(min=1e-3)
    corners = torch.cat([centre - size / 2, centre + size / 2], 1)
    best, which = scores[4:].max(0)
    kept = (best > SCORE_MIN).nonzero().flatten()
    kept = kept[best[kept].argsort(descending=True)[:2000]]
    kept = kept[batched_nms(corners[kept], best[kept], which[kept], 0.6)][:100]
    found = []
    for i in kept.tolist():
        x1, y1, x2, y2 = (float(v) for v in corners[i])
        found.append(Box(classes[int(which[i])], x1, y1, x2, y2, float(best[i])))
    return found


__all__ = [
    "PRESETS",
    "build",
    "defaults",
    "environment",
    "examples",
    "fit",
    "native_size",
    "start_warm",
    "to_onnx",
]
