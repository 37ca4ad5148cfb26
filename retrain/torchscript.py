"""`python -m retrain.torchscript FOLDER`: a version's network as TorchScript, in a process that may load torch.

    FOLDER/{spec.json, weights.safetensors, probe.npy} -> FOLDER/{model.torchscript, answers.npz}

The family builds its network as it does for ONNX and hands it to `families._export.export`; there it is traced as well.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np

from retrain.families import Spec, get_family
from sutdol.process import die_with_parent


def main(folder: Path) -> None:
    """See the top of this file."""
    import torch

    from retrain.families import _export

    spec = msgspec.json.decode((folder / "spec.json").read_bytes(), type=Spec)
    probe = torch.from_numpy(np.load(folder / "probe.npy"))
    target = folder / "model.torchscript"
    with _export.traced_to(target):
        get_family(spec.family).load().to_onnx(spec, folder / "weights.safetensors")
    module = torch.jit.load(str(target))
    with torch.inference_mode():
        scores, features = module(probe)
    np.savez(folder / "answers.npz", scores=scores.numpy(), features=features.numpy())


if __name__ == "__main__":
    die_with_parent()
    main(Path(sys.argv[1]))
