"""Image classification with timm networks, for one class an image or any number of them.

`resnet_tiny` (0.3 M parameters) is a four-block ResNet that learns handwritten digits on two cores in seconds; any name
that timm knows works (convnext_tiny, resnet50, resnet101, efficientnet_b0, efficientnet_b3, mobilenetv2_100, ...), from
scratch, from an earlier version of the same model, or from pretrained weights. The training itself is `_classifier`.

Errors: InputError for an unknown architecture; SetupError when pretrained weights cannot be had.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from retrain.families import Export, Hooks, Spec, _classifier
from retrain.families._pretrained import load_pretrained
from retrain.families._warm import start_warm
from sutdol.errors import InputError
from sutdol.images import Rgb
from sutdol.types import Task

TINY = "resnet_tiny"
SIZES = {TINY: 32, "efficientnet_b1": 256, "efficientnet_b2": 288, "efficientnet_b3": 320, "efficientnet_b4": 384}
"""Input sizes other than 224; written down, because asking timm would load torch where only parameters are checked."""
PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"architecture": "mobilenetv2_100", "image_size": 160, "epochs": 15, "lr": 0.002},
    "balanced": {"architecture": "efficientnet_b0", "epochs": 30, "lr": 0.002},
    "accurate": {
        "architecture": "convnext_tiny",
        "epochs": 60,
        "lr": 0.0005,
        "warm_lr": 0.0003,
        "ema": 0.995,
        "batch": 32,
    },
}


def defaults(task: Task, classes: list[str]) -> dict[str, Any]:
    """Parameters with their defaults; without `image_size` it is the architecture's own."""
    return {"architecture": TINY, "image_size": 32, **_classifier.defaults(classes)}


def native_size(params: dict[str, Any], task: Task) -> int:
    """The input size that an architecture was made for, pixels a side."""
    return SIZES.get(str(params["architecture"]), 224)


def environment(run_dir: Path, params: dict[str, Any]) -> dict[str, str]:
    """The hub is asked only for pretrained weights."""
    return {} if params.get("pretrained") else {"HF_HUB_OFFLINE": "1"}


def fit(spec: Spec, hooks: Hooks) -> Path:
    """See `_classifier.fit`."""
    return _classifier.fit(spec, hooks, KIND)


def to_onnx(spec: Spec, weights: Path) -> Export:
    """See `_classifier.to_onnx`."""
    return _classifier.to_onnx(spec, weights, KIND)


def examples(spec: Spec, hooks: Hooks, count: int) -> list[list[Rgb]]:
    """See `_classifier.examples`."""
    return _classifier.examples(spec, hooks, count)


def build(spec: Spec) -> Any:
    """The untrained network of a spec."""
    import timm
    from timm.models.resnet import BasicBlock, ResNet

    name, classes = str(spec.params["architecture"]), len(spec.classes)
    if name == TINY:
        return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=classes, channels=(16, 32, 64, 128), stem_width=16)
    _known(name)
    return timm.create_model(name, pretrained=False, num_classes=classes)


def _features(net: Any, images: Any) -> Any:
    return net.forward_head(net.forward_features(images), pre_logits=True)


def _known(name: str) -> None:
    import timm

    if name not in timm.list_models():
        close = timm.list_models(f"*{name.split('_')[0]}*")[:10]
        raise InputError(f"architecture {name!r} is unknown to timm (close: {', '.join([TINY, *close])})")


def _pretrain(model: Any, spec: Spec) -> None:
    import timm

    name = str(spec.params["architecture"])

    def download() -> dict[str, Any]:
        os.environ["HF_HUB_OFFLINE"] = "0"
        state: dict[str, Any] = timm.create_model(name, pretrained=True, num_classes=len(spec.classes)).state_dict()
        return state

    load_pretrained(model, spec, name, None if name == TINY else download)


KIND = _classifier.Kind(build, _pretrain, _features, lambda net: net.get_classifier())


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
