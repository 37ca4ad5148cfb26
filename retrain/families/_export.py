"""torch module -> one self-contained ONNX file with outputs `scores` and `features`, compared with torch.

torch has two exporters. The TorchScript-based one is used on purpose: it writes the weights into the file itself, needs half
a second where the other needs six, and no further library. torch announces its end with DeprecationWarnings and its
tracer warns about every shape that becomes a constant (height and width are meant to be); both are silenced here and
only here. When it goes: `dynamo=True, external_data=False, dynamic_shapes=({0: Dim("batch")},)` gives the same file.

Errors: TrainingError when ONNX Runtime and torch disagree; ModelError when ONNX Runtime refuses the file.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retrain.families import PARITY_MAX
from sutdol.errors import TrainingError
from sutdol.runtime import Runtime, check_self_contained

if TYPE_CHECKING:
    import torch


LOW_LEVEL = 9
"""Features that `picture` appends."""
_ROWS = 64
_TRACE_TO: ContextVar[Path | None] = ContextVar("trace_to", default=None)


@contextmanager
def traced_to(path: Path) -> Iterator[None]:
    """Inside, whatever is exported is also written to `path` as TorchScript (see `retrain.torchscript`)."""
    token = _TRACE_TO.set(path)
    try:
        yield
    finally:
        _TRACE_TO.reset(token)


def picture(images: torch.Tensor) -> torch.Tensor:
    """Mean, contrast and grain of each channel, (n, 3, h, w) -> (n, LOW_LEVEL), read from about 64 rows.

    A blank image has neither contrast nor grain, and what a net's last layer makes of it may look like any class.
    """
    import torch

    rows = images[:, :, :: max(1, images.shape[2] // _ROWS)]
    mean = rows.mean(dim=(2, 3))
    contrast = (rows - mean[:, :, None, None]).square().mean(dim=(2, 3)).add(1e-8).sqrt()
    grain = (rows[:, :, :, 1:] - rows[:, :, :, :-1]).abs().mean(dim=(2, 3))
    return torch.cat([mean, contrast, grain], 1)


def export(module: Any, probe: torch.Tensor, *, opset: int) -> tuple[bytes, float]:
    """Export `module` (images -> (scores, features), in eval mode) with a dynamic batch axis.

    Args:
        probe: (m, 3, h, w) float32 images, m >= 2; they are traced with and compared.

    Returns:
        The file, and the parity: the largest |ONNX - torch| / max(1, |torch|), over batches of m and of one.
    """
    import torch

    trace_to = _TRACE_TO.get()
    if trace_to is not None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
            torch.jit.trace(module, (probe,), check_trace=False).save(str(trace_to))
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        torch.onnx.export(
            module,
            (probe,),
            buffer,
            dynamo=False,
            opset_version=opset,
            input_names=["images"],
            output_names=["scores", "features"],
            dynamic_axes={name: {0: "batch"} for name in ("images", "scores", "features")},
        )
    onnx = buffer.getvalue()
    check_self_contained(onnx)
    runtime = Runtime(onnx, providers=["CPUExecutionProvider"])
    parity = 0.0
    for batch in (probe, probe[:1]):
        with torch.inference_mode():
            expected = [tensor.numpy() for tensor in module(batch)]
        for name, want, found in zip(("scores", "features"), expected, runtime.run(batch.numpy()), strict=True):
            if want.shape != found.shape:
                raise TrainingError(f"export: torch answers {name} of shape {want.shape}, the ONNX file {found.shape}")
            parity = max(parity, float((np.abs(found - want) / np.maximum(np.abs(want), 1.0)).max(initial=0.0)))
    if not parity <= PARITY_MAX:
        raise TrainingError(f"export: torch and the ONNX file differ by {parity:.2g}, allowed is {PARITY_MAX:g}")
    return onnx, parity
