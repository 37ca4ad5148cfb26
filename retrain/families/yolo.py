"""Object detection with narrow YOLO11 networks by ultralytics, from scratch or from an earlier version of the same model.

    items -> copies of the images and YOLO text labels in the run folder -> ultralytics' own trainer -> averaged weights
          -> weights.safetensors -> ONNX: images -> scores (boxes before NMS), features (mean and std of early layers)

ultralytics is AGPL-3.0 and reaches out unless told not to: `environment` holds the switches, they must be set before its
import, and `fit` refuses to start without them. The network's own description is read from the installed package and only
its width and depth are replaced. ultralytics' checkpoints are pickles: only those that we wrote ourselves, and whose hash
still matches, are opened, with its restricted loader.

Images are copied, never linked: ultralytics rewrites JPEGs that it takes for broken in place.

Errors: SetupError without the switches; TrainingError when there is nothing to train on.
"""

from __future__ import annotations

import copy
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrain.families import Export, Hooks, Item, Spec, load_checkpoint, save_checkpoint
from sutdol.errors import SetupError, TrainingError
from sutdol.images import admit
from sutdol.types import InputSpec, Task

if TYPE_CHECKING:
    import torch

OPSET = 18
FEATURE_LAYERS = (1, 2, 4)
"""Early layers: the last backbone layer hides noise, darkness and other pictures entirely, these show them."""
SUFFIX = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp"}
RAM_CACHE_PIXELS = 300_000_000
MAX_REPEATS = 3
"""An image that people labelled appears at most so many times in an epoch."""


def defaults(task: Task, classes: list[str]) -> dict[str, Any]:
    """Parameters with their defaults; width .125 and depth .33 make 0.56 M parameters. Sizes are in pixels.

    `fliplr` is the chance of a mirrored image: set it to 0 where a mirrored object is another thing (digits, signs).
    """
    return {
        "width": 0.125,
        "depth": 0.33,
        "image_size": 256,
        "epochs": 30,
        "warm_epochs": 40,  # at 20 blood cells gained 15 points of mAP50 and lost 9 of AP50 on white cells
        "batch": 16,
        "lr": 0.003,
        "warm_lr": 0.002,
        "weight_decay": 0.0005,
        "warm_start": True,
        "mosaic": 1.0,
        "fliplr": 0.5,
        "flipud": 0.0,
        "scale": 0.4,
        "hsv_h": 0.015,
        "hsv_s": 0.5,
        "hsv_v": 0.4,
        "seed": 0,
        "device": "auto",
    }


def environment(run_dir: Path) -> dict[str, str]:
    """No network, no installs, no settings outside the run folder, no arbitrary pickles."""
    return {
        "YOLO_OFFLINE": "true",
        "YOLO_AUTOINSTALL": "false",
        "YOLO_CONFIG_DIR": str(run_dir / "config"),
        "ULTRALYTICS_SAFE_LOAD": "true",
        "MPLCONFIGDIR": str(run_dir / "config" / "matplotlib"),
        "YOLO_VERBOSE": "false",
    }


def fit(spec: Spec, hooks: Hooks) -> Path:
    """Train and return weights.safetensors (the best epoch's averaged weights) in the run folder; resumes by itself."""
    from safetensors.torch import save_file

    run_dir = Path(spec.run_dir)
    (run_dir / "config").mkdir(parents=True, exist_ok=True)
    _check_offline(run_dir)
    if not spec.of("train"):
        raise TrainingError("there are no training images in this dataset version")
    warm = bool(spec.warm_start) and bool(spec.params["warm_start"])
    epochs = int(spec.params["warm_epochs"] if warm else spec.params["epochs"])
    found = load_checkpoint(run_dir)
    weights = run_dir / "yolo" / "weights"
    if found is None or found[0] < epochs:
        trainer = _trainer(spec, epochs, warm=warm, resume=found[1] if found else None, hooks=hooks)
        trainer.train()
    else:
        weights.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found[1]["best.pt"], weights / "best.pt")
    from ultralytics.nn.tasks import load_checkpoint as load_ultralytics

    model, _ = load_ultralytics(weights / "best.pt")
    path = run_dir / "weights.safetensors"
    state = {name: value.float() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    save_file({name: value.contiguous().cpu() for name, value in state.items()}, path)
    return path


def to_onnx(spec: Spec, weights: Path) -> Export:
    """Boxes before suppression and early-layer features in one file, compared with torch on a batch of three."""
    import torch
    from safetensors.torch import load_file

    from retrain.families._export import export

    _check_offline(Path(spec.run_dir))
    net = build(spec)
    net.load_state_dict(load_file(weights))
    net = net.eval().fuse(verbose=False)
    head = net.model[-1]
    head.export, head.format, head.dynamic = True, "onnx", False

    class WithFeatures(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = net.model

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            kept: list[Any] = []
            features = []
            x: Any = images
            for layer in self.layers:
                if layer.f != -1:
                    x = kept[layer.f] if isinstance(layer.f, int) else [x if j == -1 else kept[j] for j in layer.f]
                x = layer(x)
                kept.append(x)
                if layer.i in FEATURE_LAYERS:
                    mean = x.mean(dim=(2, 3))
                    variance = (x - mean[:, :, None, None]).square().mean(dim=(2, 3))
                    features += [mean, (variance + 1e-6).sqrt()]
            return x, torch.cat(features, 1)

    size = _input_size(spec)
    probe = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    onnx, parity = export(WithFeatures().eval(), probe, opset=OPSET)
    return Export(onnx, InputSpec((size, size), "letterbox"), OPSET, parity)


def repeats(items: list[Item]) -> list[int]:
    """How often each training image appears in an epoch: labelled ones up to MAX_REPEATS times, towards a half of it.

    >>> from sutdol.types import Label
    >>> old = [Item(str(i), "train", Label(), "imported", "") for i in range(8)]
    >>> repeats([*old, Item("n", "train", Label(), "annotation", "")])[-1]
    3
    """
    labelled = sum(item.source != "imported" for item in items)
    imported = len(items) - labelled
    times = min(MAX_REPEATS, max(1, round(imported / labelled))) if labelled and imported else 1
    return [1 if item.source == "imported" else times for item in items]


def _input_size(spec: Spec) -> int:
    """Ultralytics wants multiples of the largest stride, 32."""
    return max(32, math.ceil(int(spec.params["image_size"]) / 32) * 32)


def _check_offline(run_dir: Path) -> None:
    from ultralytics import utils

    right = utils.SAFE_LOAD and not utils.AUTOINSTALL and not utils.ONLINE
    if not right or not Path(utils.USER_CONFIG_DIR).is_relative_to(run_dir):
        raise SetupError(
            "ultralytics was started without its offline switches",
            hint="start the child with families.yolo.environment",
        )
    off = {name: False for name, value in utils.SETTINGS.items() if isinstance(value, bool)}
    utils.SETTINGS.update(off)


def _architecture(spec: Spec) -> dict[str, Any]:
    """yolo11 as the installed package describes it, with one scale of our own and as many classes as there are."""
    import ultralytics
    from ultralytics.utils import YAML

    path = Path(ultralytics.__file__).parent / "cfg" / "models" / "11" / "yolo11.yaml"
    described: dict[str, Any] = YAML.load(path)
    described["scales"] = {"n": [float(spec.params["depth"]), float(spec.params["width"]), 512]}
    described |= {"nc": len(spec.classes), "scale": "n", "yaml_file": "yolo11.yaml"}
    return described


def build(spec: Spec) -> Any:
    from ultralytics.nn.tasks import DetectionModel

    return DetectionModel(_architecture(spec), nc=len(spec.classes), ch=3, verbose=False)


def warm_start(net: Any, path: Path) -> None:
    """Copy every tensor that fits; of a grown head the old rows, because the class list is append-only."""
    from safetensors.torch import load_file

    own = net.state_dict()
    for name, old in load_file(path).items():
        target = own.get(name)
        if target is None or target.ndim != old.ndim:
            continue
        if target.shape == old.shape:
            target.copy_(old)
        elif target.shape[1:] == old.shape[1:] and old.shape[0] < target.shape[0]:
            target[: old.shape[0]].copy_(old)


def _materialise(spec: Spec, hooks: Hooks) -> dict[str, Any]:
    """Images, labels and lists in RUN_DIR/data; the dictionary that ultralytics calls a data set.

    A background image gets an empty label file. Without val images the training images are judged instead, so that there
    is a curve to look at; our own evaluation never uses those numbers.
    """
    root = Path(spec.run_dir) / "data"
    index = {name: i for i, name in enumerate(spec.classes)}
    lists: dict[str, list[str]] = {"train": [], "val": []}
    train = spec.of("train")
    for item, times in [*zip(train, repeats(train), strict=True), *((item, 1) for item in spec.of("val"))]:
        hooks.check()
        data = Path(item.path).read_bytes()
        image = admit(data)
        folder = root / item.split
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / "labels").mkdir(parents=True, exist_ok=True)
        path = folder / "images" / f"{item.sample_id}{SUFFIX[image.media_type]}"
        path.write_bytes(data)
        lines = []
        for box in item.value.boxes:
            x1, x2 = (min(max(x / image.width_px, 0.0), 1.0) for x in (box.x1, box.x2))
            y1, y2 = (min(max(y / image.height_px, 0.0), 1.0) for y in (box.y1, box.y2))
            if x2 > x1 and y2 > y1:
                numbers = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
                lines.append(f"{index[box.label]} " + " ".join(f"{v:.8f}" for v in numbers))
        (folder / "labels" / f"{item.sample_id}.txt").write_text("\n".join(lines))
        lists[item.split] += [str(path)] * times
    lists["val"] = lists["val"] or sorted(set(lists["train"]))
    for split, paths in lists.items():
        (root / f"{split}.txt").write_text("\n".join(paths) + "\n")
    names = dict(enumerate(spec.classes))
    described = {"path": str(root), "train": str(root / "train.txt"), "val": str(root / "val.txt")}
    return {**described, "names": names, "nc": len(names), "channels": 3}


def _trainer(spec: Spec, epochs: int, *, warm: bool, resume: dict[str, Path] | None, hooks: Hooks) -> Any:
    import torch
    from ultralytics.models.yolo.detect import DetectionTrainer

    run_dir, params = Path(spec.run_dir), spec.params
    described = _materialise(spec, hooks)
    weights = run_dir / "yolo" / "weights"
    shutil.rmtree(run_dir / "yolo", ignore_errors=True)
    weights.mkdir(parents=True)

    class Trainer(DetectionTrainer):  # type: ignore[misc]
        def get_dataset(self) -> dict[str, Any]:
            return copy.deepcopy(described)  # ultralytics' own way looks for a font on the network

        def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = False) -> Any:
            net = build(spec)
            if weights is not None:
                net.load(weights)
            elif warm:
                warm_start(net, Path(str(spec.warm_start)))
            return net

        def final_eval(self) -> None:
            """Nothing: the candidate is judged by `sutdol.predictor`, and ultralytics would look for a data file here."""

    device = ("0" if torch.cuda.is_available() else "cpu") if params["device"] == "auto" else params["device"]
    pixels = len(spec.items) * _input_size(spec) ** 2
    overrides: dict[str, Any] = {
        "model": "yolo11.yaml",
        "data": str(run_dir / "data"),
        "task": "detect",
        "project": str(run_dir),
        "name": "yolo",
        "exist_ok": True,
        "epochs": epochs,
        "imgsz": _input_size(spec),
        "batch": min(int(params["batch"]), max(2, len(spec.of("train")))),
        "nbs": int(params["batch"]),
        "device": device,
        "workers": 0 if device == "cpu" else 4,
        "optimizer": "AdamW",
        "lr0": float(params["warm_lr"] if warm else params["lr"]),
        "momentum": 0.9,
        "weight_decay": float(params["weight_decay"]),
        "cos_lr": True,
        "lrf": 0.02,
        "warmup_epochs": 1.0 if warm else 2.0,
        "warmup_bias_lr": 0.0,
        "close_mosaic": epochs // 3,
        "patience": 0,
        "amp": False,
        "plots": False,
        "verbose": False,
        "deterministic": True,
        "pretrained": False,
        "cache": "ram" if pixels < RAM_CACHE_PIXELS else False,
        **{name: params[name] for name in ("mosaic", "fliplr", "flipud", "scale", "hsv_h", "hsv_s", "hsv_v", "seed")},
    }
    if resume is not None:
        for name in ("last.pt", "best.pt"):
            shutil.copyfile(resume[name], weights / name)
        overrides |= {"model": str(weights / "last.pt"), "resume": str(weights / "last.pt")}
    trainer = Trainer(overrides=overrides)
    for event, callback in _callbacks(run_dir, hooks).items():
        trainer.add_callback(event, callback)
    return trainer


def _callbacks(run_dir: Path, hooks: Hooks) -> dict[str, Any]:
    """Progress and checkpoints. `on_model_save` fires once an epoch; `on_fit_epoch_end` fires once more after the end."""

    def batch_end(trainer: Any) -> None:
        hooks.check()
        numbers = {name: float(value) for name, value in trainer.label_loss_items(trainer.tloss).items()}
        hooks.step(epoch=trainer.epoch + 1, **numbers)

    def saved(trainer: Any) -> None:
        files = {"last.pt": trainer.last.read_bytes(), "best.pt": trainer.best.read_bytes()}
        save_checkpoint(run_dir, trainer.epoch + 1, files)
        metrics = {name: float(value) for name, value in trainer.label_loss_items(trainer.tloss).items()}
        for name, value in trainer.metrics.items():
            short = name.replace("metrics/", "val/").removesuffix("(B)")
            metrics[short] = float(value)
        hooks.epoch(trainer.epoch + 1, trainer.epochs, metrics)

    return {"on_train_batch_end": batch_end, "on_model_save": saved, "on_val_batch_end": lambda _: hooks.check()}
