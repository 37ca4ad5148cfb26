"""YOLO networks by ultralytics: YOLOv5, v8, 11 and 26 from n to x, for detection and (but v5) classification.

    items -> copies of the images and YOLO text labels in the run folder -> ultralytics' own trainer -> averaged weights
          -> weights.safetensors -> ONNX: images -> scores (boxes before NMS), features (mean and std of early layers)

ultralytics is AGPL-3.0 and reaches out unless told not to: `environment` holds the switches, they must be set before its
import, and `fit` refuses to start without them. The network's own description is read from the installed package; the tiny
one is yolo11 with a width and depth of our own. Classification networks are trained by `_classifier`. ultralytics' checkpoints
are pickles: only those that we wrote ourselves, and whose hash still matches, are opened, with its restricted loader.

Images are copied, never linked: ultralytics rewrites JPEGs that it takes for broken in place.

Errors: SetupError without the switches; TrainingError when there is nothing to train on.
"""

from __future__ import annotations

import copy
import itertools
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from retrain.families import Export, Hooks, Item, Spec, _classifier, load_checkpoint, save_checkpoint
from retrain.families._augment import augmentation_defaults, draw_boxes
from retrain.families._memory import fitting_batch
from retrain.families._pretrained import load_pretrained
from retrain.families._prune import fit_shapes, prune
from retrain.families._replay import repeats
from retrain.families._warm import start_warm
from sutdol.errors import InputError, SetupError, TrainingError
from sutdol.images import Rgb, admit
from sutdol.types import Box, InputSpec, Task

if TYPE_CHECKING:
    import torch

OPSET = 18
FEATURE_LAYERS = (1, 2, 4)
"""Early layers: the last backbone layer hides noise, darkness and other pictures entirely, these show them."""
SUFFIX = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp"}
RAM_CACHE_PIXELS = 300_000_000


TINY = "yolo11_tiny"
VERSIONS = {"yolov5": "v5/yolov5", "yolov8": "v8/yolov8", "yolo11": "11/yolo11", "yolo26": "26/yolo26"}
"""Beginning of an architecture's name -> its description in the installed package; the last letter is the scale, n to x."""
PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"architecture": TINY, "image_size": 320, "epochs": 20},
    "balanced": {"architecture": "yolo11n", "epochs": 60, "mosaic": 0.5},
    "accurate": {"architecture": "yolo26s", "epochs": 120, "mosaic": 1.0, "crop": 0.4, "patience": 30},
}


def defaults(task: Task, classes: list[str]) -> dict[str, Any]:
    """Parameters with their defaults. The tiny network's width .125 and depth .33 make 0.56 M parameters; the others (yolov5n
    to x, yolov8n to x, yolo11n to x, yolo26n to x) have their own. For classification see `_classifier.defaults`."""
    if task != "detect":
        return {"architecture": "yolo11n", "image_size": 224, **_classifier.defaults(classes)}
    return {
        "architecture": TINY,
        "width": 0.125,
        "depth": 0.33,
        "image_size": 256,
        "epochs": 30,
        "warm_epochs": 40,  # at 20 blood cells gained 15 points of mAP50 and lost 9 of AP50 on white cells
        "batch": 16,
        "lr": 0.003,
        "warm_lr": 0.002,
        "weight_decay": 0.0005,
        "patience": 0,
        "warm_start": True,
        "pretrained": False,
        "head_only": False,
        **augmentation_defaults(classes),
        "mosaic": 0.0,
        "hsv_h": 0.015,
        "hsv_s": 0.5,
        "seed": 0,
        "device": "auto",
    }


def native_size(params: dict[str, Any], task: Task) -> int:
    """The input size that an architecture was made for, pixels a side."""
    return 224 if task != "detect" else 256 if params["architecture"] == TINY else 640


def environment(run_dir: Path, params: dict[str, Any]) -> dict[str, str]:
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
    if spec.task != "detect":
        return _classifier.fit(spec, hooks, KIND)
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
    if spec.task != "detect":
        return _classifier.to_onnx(spec, weights, KIND)
    net, state = build(spec), load_file(weights)
    fit_shapes(net, state)
    net.load_state_dict(state)
    if hasattr(net.model[-1], "end2end"):
        net.model[-1].end2end = False
    net = net.eval().fuse(verbose=False)
    # yolo26 has a second head without suppression; the contract wants boxes before suppression, from the first one.
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
    """The network as the installed package describes it, with the wanted scale alone and as many classes as there are.

    Raises:
        InputError: an unknown architecture, or one without a classification network; lists the known ones.
    """
    import ultralytics
    from ultralytics.utils import YAML

    name = str(spec.params["architecture"])
    version, scale = (name.removesuffix("_tiny"), "n") if name == TINY else (name[:-1], name[-1:])
    folder = Path(ultralytics.__file__).parent / "cfg" / "models"
    path = folder / f"{VERSIONS.get(version, version)}{'' if spec.task == 'detect' else '-cls'}.yaml"
    if (
        version not in VERSIONS
        or not path.is_file()
        or scale not in "nsmlx"
        or (name == TINY and spec.task != "detect")
    ):
        able = [v for v in VERSIONS if spec.task == "detect" or v != "yolov5"]
        known = [*([TINY] if spec.task == "detect" else []), *(f"{v}n to {v}x" for v in able)]
        raise InputError(f"architecture {name!r} is unknown for task {spec.task} (known: {', '.join(known)})")
    described: dict[str, Any] = YAML.load(path)
    own = (
        [float(spec.params["depth"]), float(spec.params["width"]), 512] if name == TINY else described["scales"][scale]
    )
    return described | {"scales": {scale: own}, "nc": len(spec.classes), "scale": scale, "yaml_file": path.name}


def build(spec: Spec) -> Any:
    """The untrained network."""
    from ultralytics.nn.tasks import ClassificationModel, DetectionModel

    kind = DetectionModel if spec.task == "detect" else ClassificationModel
    net = kind(_architecture(spec), nc=len(spec.classes), ch=3, verbose=False)
    return net if spec.task == "detect" else _logits_only(net)


def _logits_only(net: Any) -> Any:
    """The layers one after the other, with logits at the end in both modes; ultralytics' own answers probabilities."""
    import torch

    class Classifier(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = net.model

        def features(self, images: Any) -> Any:
            for layer in self.layers[:-1]:
                images = layer(images)
            last = self.layers[-1]
            return last.pool(last.conv(images)).flatten(1)

        def forward(self, images: Any) -> Any:
            return self.layers[-1].linear(self.features(images))

    return Classifier()


def _pretrain(net: Any, spec: Spec) -> None:
    """From a file alone: what ultralytics offers for download are pickles."""
    suffix = "" if spec.task == "detect" else "-cls"
    load_pretrained(net, spec, f"{spec.params['architecture']}{suffix}", None)


def _fixed(net: Any) -> list[Any]:
    """Layers that pruning leaves as wide as they are: the last ones of a head, attention, and those whose output is halved."""
    from ultralytics.nn.modules import block

    halved = [m.cv1 for m in net.modules() if isinstance(m, block.C2f | block.C2PSA)]
    kept = [m for m in net.modules() if isinstance(m, block.Attention | block.PSABlock | block.DFL)]
    head = getattr(net, "model", [None])[-1]
    branches = [getattr(head, name, None) or [] for name in ("cv2", "cv3", "one2one_cv2", "one2one_cv3")]
    return [*halved, *kept, *(branch[-1] for branch in itertools.chain(*branches))]


KIND = _classifier.Kind(
    build, _pretrain, lambda net, images: net.features(images), lambda net: net.layers[-1].linear, _fixed
)


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
                fit_shapes(net, weights.state_dict())
                net.load(weights)
            elif warm:
                start_warm(net, Path(str(spec.warm_start)), spec)
            elif params["pretrained"]:
                _pretrain(net, spec)
            if weights is None and spec.prune:
                prune(net, torch.rand(1, 3, size, size), spec.prune, fixed=_fixed(net))
            return net

        def final_eval(self) -> None:
            """Nothing: the candidate is judged by `sutdol.predictor`, and ultralytics would look for a data file here."""

    device = ("0" if torch.cuda.is_available() else "cpu") if params["device"] == "auto" else params["device"]
    probe, size = build(spec), _input_size(spec)
    wanted = min(int(params["batch"]), max(2, len(spec.of("train"))))
    batch = fitting_batch(
        probe, (3, size, size), wanted, "cpu" if device == "cpu" else f"cuda:{str(device).split(',')[0]}"
    )
    layers = len(probe.model)
    pixels = len(spec.items) * _input_size(spec) ** 2
    overrides: dict[str, Any] = {
        "model": _architecture(spec)["yaml_file"],
        "data": str(run_dir / "data"),
        "task": "detect",
        "project": str(run_dir),
        "name": "yolo",
        "exist_ok": True,
        "epochs": epochs,
        "imgsz": _input_size(spec),
        "batch": batch,
        "nbs": batch,
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
        "patience": int(params["patience"]) or epochs + 1,
        "freeze": list(range(layers - 1)) if params["head_only"] else None,
        "amp": False,
        "plots": False,
        "verbose": False,
        "deterministic": True,
        "pretrained": False,
        "cache": "ram" if pixels < RAM_CACHE_PIXELS else False,
        **_augmentation(params),
        "seed": params["seed"],
    }
    if resume is not None:
        for name in ("last.pt", "best.pt"):
            shutil.copyfile(resume[name], weights / name)
        overrides |= {"model": str(weights / "last.pt"), "resume": str(weights / "last.pt")}
    trainer = Trainer(overrides=overrides)
    for event, callback in _callbacks(run_dir, hooks).items():
        trainer.add_callback(event, callback)
    return trainer


def _augmentation(params: dict[str, Any]) -> dict[str, Any]:
    """Our names as ultralytics calls them."""
    names = {"fliplr": "hflip", "flipud": "vflip", "degrees": "rotate_deg", "hsv_v": "brightness", "scale": "crop"}
    return {theirs: params[ours] for theirs, ours in names.items()} | {
        n: params[n] for n in ("mosaic", "hsv_h", "hsv_s")
    }


def examples(spec: Spec, hooks: Hooks, count: int) -> list[list[Rgb]]:
    """For each of the spec's items: the image as the network gets it, then `count` augmented ones, with their boxes."""
    if spec.task != "detect":
        return _classifier.examples(spec, hooks, count)
    from ultralytics.cfg import get_cfg
    from ultralytics.data import build_yolo_dataset

    (Path(spec.run_dir) / "config").mkdir(parents=True, exist_ok=True)
    _check_offline(Path(spec.run_dir))
    described = _materialise(msgspec.structs.replace(spec, items=[replace_split(i) for i in spec.items]), hooks)
    overrides = _augmentation(spec.params) | {"imgsz": _input_size(spec), "task": "detect"}
    sheet: list[list[Rgb]] = []
    for mode, times in (("val", 1), ("train", count)):
        data = build_yolo_dataset(get_cfg(overrides=overrides), described["train"], 1, described, mode=mode, stride=32)
        for _ in range(times):
            for i in range(len(data)):
                shown = _drawn(data[i], spec.classes)
                if mode == "val":
                    sheet.append([shown])
                else:
                    sheet[i].append(shown)
    return sheet


def replace_split(item: Item) -> Item:
    return msgspec.structs.replace(item, split="train", source="imported")


def _drawn(sample: dict[str, Any], classes: list[str]) -> Rgb:
    rgb = sample["img"].permute(1, 2, 0).contiguous().numpy()[:, :, ::1].copy()
    height, width = rgb.shape[:2]
    boxes = [
        Box(classes[int(c)], (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
        for c, (x, y, w, h) in zip(sample["cls"].flatten().tolist(), sample["bboxes"].tolist(), strict=True)
    ]
    return draw_boxes(rgb, boxes)


def _callbacks(run_dir: Path, hooks: Hooks) -> dict[str, Any]:
    """Progress and checkpoints. `on_model_save` fires once an epoch; `on_fit_epoch_end` fires once more after the end."""

    def batch_end(trainer: Any) -> None:
        hooks.check()
        numbers = {name: float(value) for name, value in trainer.label_loss_items(trainer.tloss).items()}
        hooks.step(epoch=trainer.epoch + 1, images=trainer.batch_size, **numbers)

    def saved(trainer: Any) -> None:
        files = {"last.pt": trainer.last.read_bytes(), "best.pt": trainer.best.read_bytes()}
        save_checkpoint(run_dir, trainer.epoch + 1, files)
        metrics = {name: float(value) for name, value in trainer.label_loss_items(trainer.tloss).items()}
        for name, value in trainer.metrics.items():
            short = name.replace("metrics/", "val/").removesuffix("(B)")
            metrics[short] = float(value)
        hooks.epoch(trainer.epoch + 1, trainer.epochs, metrics)

    return {"on_train_batch_end": batch_end, "on_model_save": saved, "on_val_batch_end": lambda _: hooks.check()}


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
