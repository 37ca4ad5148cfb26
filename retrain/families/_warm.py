"""A network begins where an earlier version of the same model ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retrain.families import Spec


def start_warm(net: Any, path: Path, spec: Spec) -> None:
    """Copy every tensor that fits; of a grown head the old classes' rows, because the class list is append-only.

    A head has one row per class, or per anchor and class (in this order).
    """
    import torch
    from safetensors.torch import load_file

    own, classes = net.state_dict(), len(spec.classes)
    with torch.no_grad():
        for name, old in load_file(path).items():
            target = own.get(name)
            if target is None or target.ndim != old.ndim or target.ndim == 0:
                if target is not None and target.shape == old.shape:
                    target.copy_(old)
                continue
            if target.shape == old.shape:
                target.copy_(old)
            elif target.shape[1:] == old.shape[1:] and len(old) < len(target) and len(target) % classes == 0:
                anchors = len(target) // classes
                if len(old) % anchors == 0:
                    rows = target.view(anchors, classes, *target.shape[1:])
                    rows[:, : len(old) // anchors].copy_(old.view(anchors, -1, *old.shape[1:]))
