"""Training of any classification network: the loop that the families `timm` and `yolo` share.

    items -> all images decoded once (n, s, s, 3) uint8 -> balanced batches -> augmented on the device -> one-cycle AdamW
          -> moving average of the weights -> weights.safetensors -> ONNX: images -> scores (logits), features

What differs between kinds of networks is a `Kind`: how one is built, its penultimate features, the linear layer behind them.

Replay: half of each batch comes from the imported data and half from what people labelled since, both balanced over
classes. Fine-tuning on the newly labelled images alone makes a model worse; unbalanced replay hardly learns them.

Errors: TrainingError when there is nothing to train on or the loss is not finite.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retrain.families import Export, Hooks, Item, Spec, load_checkpoint, save_checkpoint
from retrain.families._augment import augment, augmentation_defaults
from retrain.families._memory import fitting_batch
from retrain.families._prune import fit_shapes, prune
from retrain.families._replay import draw_probabilities
from retrain.families._warm import start_warm
from sutdol.errors import TrainingError
from sutdol.images import Rgb
from sutdol.predictor import decode_for, fit_input
from sutdol.types import InputSpec

if TYPE_CHECKING:
    import torch

OPSET = 18
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
MIN_STEPS_PER_EPOCH = 10
"""A handful of images still makes an epoch worth its checkpoint."""
RAM_BYTES = 2_000_000_000
"""Decoded images beyond this lie in a file of the run folder instead of memory."""


@dataclass(frozen=True)
class Kind:
    """A kind of classification network, as functions of a spec or of the network.

    Attributes:
        build: the untrained network; calling it with images (n, 3, s, s) gives logits (n, classes).
        pretrain: loads pretrained weights, or raises SetupError that says why it cannot.
        features: the penultimate features (n, d) of images.
        head: the linear layer that makes logits of features.
        fixed: layers beside the head that must keep their width when the network is pruned.
    """

    build: Callable[[Spec], Any]
    pretrain: Callable[[Any, Spec], None]
    features: Callable[[Any, Any], Any]
    head: Callable[[Any], Any]
    fixed: Callable[[Any], list[Any]] = lambda net: []


def defaults(classes: list[str]) -> dict[str, Any]:
    """Parameters that every classification network has; `epochs` counts passes, `warm_epochs` replaces it when training
    starts warm, `batch` is the largest one: less is taken where memory is short."""
    return {
        "epochs": 30,
        "warm_epochs": 30,
        "steps_per_epoch": None,
        "batch": 64,
        "lr": 0.004,
        "warm_lr": 0.003,
        "weight_decay": 0.02,
        "label_smoothing": 0.05,
        "ema": 0.97,
        "patience": 0,
        "warm_start": True,
        "pretrained": False,
        "head_only": False,
        "replay_share": 0.5,
        **augmentation_defaults(classes),
        "shift": 0.1,
        "scale": 0.15,
        "noise": 0.04,
        "mixup": 0.4,
        "seed": 0,
        "device": "auto",
    }


def fit(spec: Spec, hooks: Hooks, kind: Kind) -> Path:
    """Train and return weights.safetensors in the run folder; goes on after the last whole checkpoint, if there is one."""
    import torch
    from safetensors.torch import save_file
    from timm.utils.model_ema import ModelEmaV3

    params, run_dir = spec.params, Path(spec.run_dir)
    train, val = spec.of("train"), spec.of("val")
    if not train:
        raise TrainingError("there are no training images in this dataset version")
    device = device_of(params["device"])
    torch.manual_seed(int(params["seed"]))
    size = int(params["image_size"])

    model = kind.build(spec)
    warm = bool(spec.warm_start) and bool(params["warm_start"])
    found = load_checkpoint(run_dir)
    if found is None and warm:
        start_warm(model, Path(str(spec.warm_start)), spec)
    elif found is None and params["pretrained"]:
        kind.pretrain(model, spec)
    if found is not None:
        state = torch.load(found[1]["last.pt"], map_location=device, weights_only=True)
        fit_shapes(model, state["model"])
    elif spec.prune:
        prune(model, torch.rand(1, 3, size, size), spec.prune, fixed=[kind.head(model), *kind.fixed(model)])
    model = model.to(device)
    images, targets = load_images(train, size, hooks, run_dir / "train.u8"), _targets(train, spec)
    val_images, val_targets = load_images(val, size, hooks, run_dir / "val.u8"), _targets(val, spec).to(device)

    trained = _freeze_body(model, kind) if params["head_only"] else list(model.parameters())
    epochs = int(params["warm_epochs"] if warm else params["epochs"])
    batch_size = fitting_batch(model, (3, size, size), min(int(params["batch"]), 4 * len(train)), device)
    steps = int(params["steps_per_epoch"] or max(MIN_STEPS_PER_EPOCH, math.ceil(len(train) / batch_size)))
    optimizer = torch.optim.AdamW(trained, lr=1.0, weight_decay=float(params["weight_decay"]))
    peak, total = float(params["warm_lr"] if warm else params["lr"]), epochs * steps
    ema = ModelEmaV3(model, decay=float(params["ema"]), use_warmup=True, warmup_power=0.75)
    best = Best(int(params["patience"]))

    first = 0
    if found is not None:
        first = found[0]
        model.load_state_dict(state["model"])
        ema.module.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        best.load(state["best"])
    probabilities = torch.as_tensor(draw_probabilities(train, float(params["replay_share"])))
    for epoch in range(first + 1, epochs + 1):
        if best.over:
            break
        # Seeded by epoch, so that a resumed run draws what an uninterrupted one would have drawn.
        generator = torch.Generator().manual_seed(int(params["seed"]) * 100_003 + epoch)
        order = torch.multinomial(probabilities, steps * batch_size, replacement=True, generator=generator)
        model.train()
        if params["head_only"]:
            model.eval()  # the statistics of a frozen body must not drift away from under its head
        total_loss = right = 0.0
        for step in range(steps):
            hooks.check()
            done = (epoch - 1) * steps + step
            for group in optimizer.param_groups:
                group["lr"] = peak * one_cycle(done / total)
            picked = order[step * batch_size : (step + 1) * batch_size]
            batch = augment(_floats(images, picked, device), params, generator)
            truth = targets[picked].to(device)
            other = torch.randperm(len(picked), generator=generator).to(device)
            kept = _kept_share(float(params["mixup"]), generator)
            mixed = kept * batch + (1 - kept) * batch[other]
            logits = model(normalise(mixed))
            loss = kept * _loss(logits, truth, spec) + (1 - kept) * _loss(logits, truth[other], spec)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 5.0)
            optimizer.step()
            ema.update(model, step=done + 1)
            total_loss += float(loss.detach())
            right += float(_hits(logits.detach(), truth, spec).float().mean())
            hooks.step(step=done + 1, steps=total, images=len(picked))
        metrics = {
            "train/loss": total_loss / steps,
            "train/accuracy": right / steps,  # of blended images with the weights of the moment: lower than it looks
            "lr": optimizer.param_groups[0]["lr"],
            "batch": float(batch_size),
        }
        if not math.isfinite(total_loss):
            raise TrainingError(f"epoch {epoch}: the loss is not finite", hint="lower the parameter lr")
        metrics |= _validate(ema.module, val_images, val_targets, spec, device)
        best.see(epoch, metrics.get("val/accuracy"), ema.module)
        buffer = io.BytesIO()
        state = {"model": model.state_dict(), "ema": ema.module.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state | {"best": best.state()}, buffer)
        save_checkpoint(run_dir, epoch, {"last.pt": buffer.getvalue()})
        hooks.epoch(epoch, epochs, metrics)
    path = run_dir / "weights.safetensors"
    chosen = best.weights or ema.module.state_dict()
    save_file({k: v.contiguous().cpu() for k, v in chosen.items()}, path)
    return path


class Best:
    """Early stopping: remembers the best epoch's weights, and is `over` when `patience` epochs brought nothing better.

    With patience 0 it does nothing: a one-cycle schedule has its best weights at its end.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._epoch = self._last = 0
        self._score = -math.inf
        self.weights: dict[str, torch.Tensor] | None = None

    @property
    def over(self) -> bool:
        return bool(self._patience) and self._last - self._epoch >= self._patience

    def see(self, epoch: int, score: float | None, model: Any) -> None:
        self._last = epoch
        if self._patience and score is not None and score > self._score:
            self._epoch, self._score = epoch, score
            self.weights = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}

    def state(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "last": self._last, "score": self._score, "weights": self.weights}

    def load(self, state: dict[str, Any]) -> None:
        self._epoch, self._last, self._score = state["epoch"], state["last"], state["score"]
        self.weights = state["weights"]


def to_onnx(spec: Spec, weights: Path, kind: Kind) -> Export:
    """Logits and features (penultimate, then those of the picture) in one file, compared with torch on a batch of three."""
    import torch
    from safetensors.torch import load_file

    from retrain.families._export import LOW_LEVEL, export, picture

    model, state = kind.build(spec), load_file(weights)
    fit_shapes(model, state)
    model.load_state_dict(state)

    class WithFeatures(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            features = kind.features(self.net, images)
            return kind.head(self.net)(features), torch.cat([features, picture(images)], 1)

    size = int(spec.params["image_size"])
    wrapped = WithFeatures().eval()
    probe = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        if not torch.allclose(wrapped(probe)[0], model.eval()(probe), atol=1e-4):
            raise TrainingError(f"architecture {spec.params['architecture']!r}: its head is more than one linear layer")
    onnx, parity = export(wrapped, probe, opset=OPSET)
    return Export(onnx, InputSpec((size, size), "stretch", MEAN, STD), OPSET, parity, LOW_LEVEL)


def examples(spec: Spec, hooks: Hooks, count: int) -> list[list[Rgb]]:
    """For each of the spec's items: the image as the network gets it, then `count` augmented ones."""
    import torch

    size = int(spec.params["image_size"])
    images = load_images(spec.items, size, hooks, Path(spec.run_dir) / "examples.u8")
    generator = torch.Generator().manual_seed(int(spec.params["seed"]))
    sheet = []
    for i in range(len(spec.items)):
        batch = _floats(images, torch.full((count,), i), "cpu")
        changed = augment(batch, spec.params, generator)
        shown = (changed.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
        sheet.append([np.asarray(images[i]), *shown])
    return sheet


def one_cycle(progress: float) -> float:
    """Share of the peak learning rate at `progress` in [0, 1]: a rise over the first fifth, then a cosine down to 0.

    >>> one_cycle(0.2), round(one_cycle(1.0), 3)
    (1.0, 0.0)
    """
    if progress < 0.2:
        return 0.04 + 0.96 * progress / 0.2
    return 0.5 * (1 + math.cos(math.pi * (progress - 0.2) / 0.8))


def device_of(wanted: str) -> str:
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def _freeze_body(model: Any, kind: Kind) -> list[Any]:
    """Only the head learns; its parameters."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    head = list(kind.head(model).parameters())
    for parameter in head:
        parameter.requires_grad_(True)
    return head


def load_images(items: list[Item], size: int, hooks: Hooks, file: Path) -> NDArray[np.uint8]:
    """All images, decoded once, (n, size, size, 3) uint8; 32 px images take 3 KB each, 224 px ones 150 KB. What is too
    much for memory lies in `file`, of which the system keeps in memory what is used."""
    shape = InputSpec((size, size), "stretch", MEAN, STD)
    wanted = (len(items), size, size, 3)
    large = math.prod(wanted) > RAM_BYTES
    out: NDArray[np.uint8] = np.memmap(file, np.uint8, "w+", shape=wanted) if large else np.empty(wanted, np.uint8)
    for i, item in enumerate(items):
        hooks.check()
        out[i] = fit_input(decode_for(Path(item.path).read_bytes(), shape), shape)
    return out


def _floats(images: NDArray[np.uint8], picked: torch.Tensor, device: str) -> torch.Tensor:
    """The picked images as (n, 3, s, s) float32 in [0, 1]."""
    import torch

    return torch.from_numpy(images[picked.numpy()]).to(device).permute(0, 3, 1, 2).float() / 255


def _targets(items: list[Item], spec: Spec) -> torch.Tensor:
    import torch

    index = {name: i for i, name in enumerate(spec.classes)}
    if spec.task == "classify":
        return torch.tensor([index[item.value.classes[0]] for item in items], dtype=torch.long)
    hot = torch.zeros(len(items), len(index))
    for row, item in zip(hot, items, strict=True):
        row[[index[name] for name in item.value.classes]] = 1.0
    return hot


def _kept_share(most: float, generator: torch.Generator) -> float:
    """Mixup: how much of an image stays when another one is blended in, between 1 - `most` and 1."""
    import torch

    return 1.0 - most * float(torch.rand(1, generator=generator))


def normalise(batch: torch.Tensor) -> torch.Tensor:
    return (batch - MEAN[0]) / STD[0]


def _loss(logits: torch.Tensor, targets: torch.Tensor, spec: Spec) -> torch.Tensor:
    from torch.nn import functional

    smoothing = float(spec.params["label_smoothing"])
    if spec.task == "multilabel":
        return functional.binary_cross_entropy_with_logits(logits, targets * (1 - smoothing) + smoothing / 2)
    return functional.cross_entropy(logits, targets, label_smoothing=smoothing)


def _hits(logits: torch.Tensor, targets: torch.Tensor, spec: Spec) -> torch.Tensor:
    """Which images are right altogether, (n,) bool."""
    if spec.task == "classify":
        return logits.argmax(1) == targets
    return ((logits > 0) == (targets > 0.5)).all(1)


def _validate(
    model: Any, images: NDArray[np.uint8], targets: torch.Tensor, spec: Spec, device: str
) -> dict[str, float]:
    """Loss, accuracy and mean recall over classes of the averaged weights on the val split; nothing when it is empty."""
    import torch

    if not len(images):
        return {}
    model.eval()
    loss = 0.0
    outputs = []
    with torch.inference_mode():
        for part in torch.arange(len(images)).split(64):
            logits = model(normalise(_floats(images, part, device)))
            loss += float(_loss(logits, targets[part.to(device)], spec)) * len(part)
            outputs.append(logits)
        logits = torch.cat(outputs)
        right = float(_hits(logits, targets, spec).float().mean())
        recalls = [
            float((logits[truth].argmax(1) == c if spec.task == "classify" else logits[truth, c] > 0).float().mean())
            for c in range(len(spec.classes))
            if (truth := targets == c if spec.task == "classify" else targets[:, c] > 0.5).any()
        ]
    numbers = {"val/loss": loss / len(images), "val/accuracy": right}
    return numbers | ({"val/recall": sum(recalls) / len(recalls)} if recalls else {})
