"""Image classification with timm networks, trained from scratch or from an earlier version of the same model.

    items -> all images decoded once (n, s, s, 3) uint8 -> balanced batches -> augmented on the device -> one-cycle AdamW
          -> moving average of the weights -> weights.safetensors -> ONNX: images -> scores (logits), features

`resnet_tiny` (0.3 M parameters) is a four-block ResNet that learns handwritten digits on two cores in seconds; any name
that timm knows works, without its pretrained weights (nothing is downloaded). There are no flips among the
augmentations: a mirrored digit or sign is another thing.

Replay: half of each batch comes from the imported data and half from what people labelled since, both balanced over
classes. Fine-tuning on the newly labelled images alone makes a model worse; unbalanced replay hardly learns them.

Errors: InputError for an unknown architecture; TrainingError when there is nothing to train on or the loss is not finite.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retrain.families import Export, Hooks, Item, Spec, load_checkpoint, save_checkpoint
from sutdol.errors import InputError, TrainingError
from sutdol.images import decode
from sutdol.predictor import fit_input
from sutdol.types import InputSpec, Task

if TYPE_CHECKING:
    import torch

OPSET = 18
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
MIN_STEPS_PER_EPOCH = 10
"""A handful of images still makes an epoch worth its checkpoint."""
MAX_REPEATS = 25.0
"""An image that people labelled is drawn at most so many times as often as an imported one."""


def defaults(task: Task, classes: list[str]) -> dict[str, Any]:
    """Parameters with their defaults. `epochs` counts passes; `warm_epochs` replaces it when training starts warm."""
    return {
        "architecture": "resnet_tiny",
        "image_size": 32,
        "epochs": 30,
        "warm_epochs": 30,
        "steps_per_epoch": None,
        "batch": 64,
        "lr": 0.004,
        "warm_lr": 0.003,
        "weight_decay": 0.02,
        "label_smoothing": 0.05,
        "ema": 0.97,
        "warm_start": True,
        "replay_share": 0.5,
        "shift": 0.1,
        "rotate_deg": 15.0,
        "scale": 0.15,
        "brightness": 0.15,
        "noise": 0.04,
        "mixup": 0.4,
        "seed": 0,
        "device": "auto",
    }


def environment(run_dir: Path) -> dict[str, str]:
    """timm needs no switches; the hub is never asked because no pretrained weights are."""
    return {"HF_HUB_OFFLINE": "1"}


def fit(spec: Spec, hooks: Hooks) -> Path:
    """Train and return weights.safetensors in the run folder; goes on after the last whole checkpoint, if there is one."""
    import torch
    from safetensors.torch import save_file
    from timm.utils.model_ema import ModelEmaV3

    params, run_dir = spec.params, Path(spec.run_dir)
    train, val = spec.of("train"), spec.of("val")
    if not train:
        raise TrainingError("there are no training images in this dataset version")
    device = _device(params["device"])
    torch.manual_seed(int(params["seed"]))
    size = int(params["image_size"])
    images, targets = _load(train, size, hooks).to(device), _targets(train, spec).to(device)
    val_images, val_targets = _load(val, size, hooks).to(device), _targets(val, spec).to(device)

    model = build(spec).to(device)
    warm = bool(spec.warm_start) and bool(params["warm_start"])
    if warm:
        warm_start(model, Path(str(spec.warm_start)))
    epochs = int(params["warm_epochs"] if warm else params["epochs"])
    steps = int(params["steps_per_epoch"] or max(MIN_STEPS_PER_EPOCH, math.ceil(len(train) / int(params["batch"]))))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=float(params["weight_decay"]))
    peak, total = float(params["warm_lr"] if warm else params["lr"]), epochs * steps
    ema = ModelEmaV3(model, decay=float(params["ema"]), use_warmup=True, warmup_power=0.75)

    first = 0
    if (found := load_checkpoint(run_dir)) is not None:
        first, files = found
        state = torch.load(files["last.pt"], map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        ema.module.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
    probabilities = torch.as_tensor(draw_probabilities(train, float(params["replay_share"])))
    for epoch in range(first + 1, epochs + 1):
        # Seeded by epoch, so that a resumed run draws what an uninterrupted one would have drawn.
        generator = torch.Generator().manual_seed(int(params["seed"]) * 100_003 + epoch)
        order = torch.multinomial(probabilities, steps * int(params["batch"]), replacement=True, generator=generator)
        model.train()
        total_loss = 0.0
        for step in range(steps):
            hooks.check()
            done = (epoch - 1) * steps + step
            for group in optimizer.param_groups:
                group["lr"] = peak * one_cycle(done / total)
            picked = order[step * int(params["batch"]) : (step + 1) * int(params["batch"])].to(device)
            batch = _augment(images[picked].permute(0, 3, 1, 2).float() / 255, params, generator)
            other = torch.randperm(len(picked), generator=generator).to(device)
            kept = _kept_share(float(params["mixup"]), generator)
            mixed = kept * batch + (1 - kept) * batch[other]
            logits = model(_normalise(mixed))
            loss = kept * _loss(logits, targets[picked], spec) + (1 - kept) * _loss(
                logits, targets[picked][other], spec
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            ema.update(model, step=done + 1)
            total_loss += float(loss.detach())
            hooks.step(step=done + 1, steps=total)
        metrics = {"train/loss": total_loss / steps, "lr": optimizer.param_groups[0]["lr"]}
        if not math.isfinite(total_loss):
            raise TrainingError(f"epoch {epoch}: the loss is not finite", hint="lower the parameter lr")
        metrics |= _validate(ema.module, val_images, val_targets, spec)
        buffer = io.BytesIO()
        state = {"model": model.state_dict(), "ema": ema.module.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, buffer)
        save_checkpoint(run_dir, epoch, {"last.pt": buffer.getvalue()})
        hooks.epoch(epoch, epochs, metrics)
    path = run_dir / "weights.safetensors"
    save_file({k: v.contiguous().cpu() for k, v in ema.module.state_dict().items()}, path)
    return path


def to_onnx(spec: Spec, weights: Path) -> Export:
    """Logits and features (penultimate, then those of the picture) in one file, compared with torch on a batch of three."""
    import torch
    from safetensors.torch import load_file

    from retrain.families._export import LOW_LEVEL, export, picture

    model = build(spec)
    model.load_state_dict(load_file(weights))

    class WithFeatures(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            features = self.net.forward_head(self.net.forward_features(images), pre_logits=True)
            return self.net.get_classifier()(features), torch.cat([features, picture(images)], 1)

    size = int(spec.params["image_size"])
    wrapped = WithFeatures().eval()
    probe = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        if not torch.allclose(wrapped(probe)[0], model.eval()(probe), atol=1e-4):
            raise TrainingError(f"architecture {spec.params['architecture']!r}: its head is more than one linear layer")
    onnx, parity = export(wrapped, probe, opset=OPSET)
    return Export(onnx, InputSpec((size, size), "stretch", MEAN, STD), OPSET, parity, LOW_LEVEL)


def one_cycle(progress: float) -> float:
    """Share of the peak learning rate at `progress` in [0, 1]: a rise over the first fifth, then a cosine down to 0.

    >>> one_cycle(0.2), round(one_cycle(1.0), 3)
    (1.0, 0.0)
    """
    if progress < 0.2:
        return 0.04 + 0.96 * progress / 0.2
    return 0.5 * (1 + math.cos(math.pi * (progress - 0.2) / 0.8))


def draw_probabilities(items: list[Item], replay_share: float) -> NDArray[np.float64]:
    """Probability of each training image to be drawn, shape (n,), summing to 1.

    Imported images get `replay_share` of the draws and labelled ones the rest (all of it when one kind is missing), each
    share evenly over the label values. A labelled image is never drawn more than MAX_REPEATS times as often as an
    imported one, so the first few labels cannot take half of every batch.
    """
    kinds = ["imported" if item.source == "imported" else "labelled" for item in items]
    values = [tuple(sorted(item.value.classes)) for item in items]
    counts, groups = Counter(zip(kinds, values, strict=True)), Counter(kinds)
    classes = {kind: len({v for k, v in counts if k == kind}) for kind in groups}
    share = {"imported": replay_share, "labelled": 1 - replay_share} if len(groups) == 2 else dict.fromkeys(groups, 1.0)
    if len(groups) == 2:
        most = MAX_REPEATS * groups["labelled"] / (MAX_REPEATS * groups["labelled"] + groups["imported"])
        share["labelled"] = min(share["labelled"], most)
        share["imported"] = 1 - share["labelled"]
    drawn = [share[k] / classes[k] / counts[k, v] for k, v in zip(kinds, values, strict=True)]
    return np.asarray(drawn, np.float64)


def build(spec: Spec) -> Any:
    import timm
    from timm.models.resnet import BasicBlock, ResNet

    name, classes = str(spec.params["architecture"]), len(spec.classes)
    if name == "resnet_tiny":
        return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=classes, channels=(16, 32, 64, 128), stem_width=16)
    if name not in timm.list_models():
        close = timm.list_models(f"*{name.split('_')[0]}*")[:10]
        raise InputError(f"architecture {name!r} is unknown to timm (close: {', '.join(['resnet_tiny', *close])})")
    return timm.create_model(name, pretrained=False, num_classes=classes)


def warm_start(model: Any, path: Path) -> None:
    """Copy every tensor that fits; of a grown head the old rows, because the class list is append-only."""
    import torch
    from safetensors.torch import load_file

    own = model.state_dict()
    for name, old in load_file(path).items():
        if name not in own:
            continue
        target = own[name]
        if target.shape == old.shape:
            target.copy_(old)
        elif target.ndim == old.ndim and target.shape[1:] == old.shape[1:] and old.shape[0] < target.shape[0]:
            with torch.no_grad():
                target[: old.shape[0]].copy_(old)


def _device(wanted: str) -> str:
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def _load(items: list[Item], size: int, hooks: Hooks) -> torch.Tensor:
    """All images, decoded once, (n, size, size, 3) uint8; 32 px images take 3 KB each, 224 px ones 150 KB."""
    import torch

    shape = InputSpec((size, size), "stretch", MEAN, STD)
    out = np.empty((len(items), size, size, 3), np.uint8)
    for i, item in enumerate(items):
        hooks.check()
        out[i] = fit_input(decode(Path(item.path).read_bytes(), cover_hw=(size, size)), shape)
    return torch.from_numpy(out)


def _targets(items: list[Item], spec: Spec) -> torch.Tensor:
    import torch

    index = {name: i for i, name in enumerate(spec.classes)}
    if spec.task == "classify":
        return torch.tensor([index[item.value.classes[0]] for item in items], dtype=torch.long)
    hot = torch.zeros(len(items), len(index))
    for row, item in zip(hot, items, strict=True):
        row[[index[name] for name in item.value.classes]] = 1.0
    return hot


def _augment(batch: torch.Tensor, params: dict[str, Any], generator: torch.Generator) -> torch.Tensor:
    """Small shifts, turns and zooms, then brightness, contrast and a little noise; (n, 3, s, s) in [0, 1]."""
    import torch

    def uniform(*shape: int) -> torch.Tensor:
        return (torch.rand(*shape, generator=generator) * 2 - 1).to(batch.device)

    n = len(batch)
    angle = uniform(n) * math.radians(float(params["rotate_deg"]))
    zoom = 1 + uniform(n) * float(params["scale"])
    shift = uniform(n, 2) * 2 * float(params["shift"])
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    theta = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = torch.nn.functional.affine_grid(theta, list(batch.shape), align_corners=False)
    moved = torch.nn.functional.grid_sample(batch, grid, padding_mode="border", align_corners=False)
    contrast = 1 + uniform(n, 1, 1, 1) * float(params["brightness"])
    bright = uniform(n, 1, 1, 1) * float(params["brightness"])
    noise = torch.randn(moved.shape, generator=generator).to(batch.device) * float(params["noise"])
    return ((moved - 0.5) * contrast + 0.5 + bright + noise).clamp(0, 1)


def _kept_share(most: float, generator: torch.Generator) -> float:
    """Mixup: how much of an image stays when another one is blended in, between 1 - `most` and 1."""
    import torch

    return 1.0 - most * float(torch.rand(1, generator=generator))


def _normalise(batch: torch.Tensor) -> torch.Tensor:
    return (batch - MEAN[0]) / STD[0]


def _loss(logits: torch.Tensor, targets: torch.Tensor, spec: Spec) -> torch.Tensor:
    from torch.nn import functional

    if spec.task == "multilabel":
        return functional.binary_cross_entropy_with_logits(logits, targets)
    return functional.cross_entropy(logits, targets, label_smoothing=float(spec.params["label_smoothing"]))


def _validate(model: Any, images: torch.Tensor, targets: torch.Tensor, spec: Spec) -> dict[str, float]:
    """Loss and accuracy of the averaged weights on the val split; nothing when it is empty."""
    import torch

    if not len(images):
        return {}
    loss = right = 0.0
    with torch.inference_mode():
        for start in range(0, len(images), 256):
            part, truth = images[start : start + 256], targets[start : start + 256]
            logits = model(_normalise(part.permute(0, 3, 1, 2).float() / 255))
            loss += float(_loss(logits, truth, spec)) * len(part)
            hit = logits.argmax(1) == truth if spec.task == "classify" else ((logits > 0) == (truth > 0.5)).all(1)
            right += float(hit.sum())
    return {"val/loss": loss / len(images), "val/accuracy": right / len(images)}
