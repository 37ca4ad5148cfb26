"""Pretrained weights, when they can be had: a file in the home folder, or the library's own place on the network.

    HOME/weights/ARCHITECTURE.safetensors -> else `download()` -> copied into the network where name and shape agree

Nothing is downloaded unless a training asks for it with `pretrained`. Pickles (.pt, .pth) of others are not opened.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from retrain.families import Spec
from sutdol.errors import SetupError, SutdolError


def load_pretrained(model: Any, spec: Spec, architecture: str, download: Callable[[], dict[str, Any]] | None) -> int:
    """Load them; the number of tensors that fitted.

    Args:
        download: asks the library's hub and returns its state; None when there is no hub that gives safe files.

    Raises:
        SetupError: they cannot be had, or do not fit at all; says where a file is looked for.
    """
    from safetensors.torch import load_file

    file = Path(spec.weights_dir) / f"{architecture}.safetensors"
    hint = f"put the file weights/{file.name} into the home folder, or train with pretrained=false"
    if file.is_file():
        state = load_file(file)
    elif download is None:
        raise SetupError(f"pretrained weights of {architecture}: there is no file weights/{file.name}", hint=hint)
    else:
        try:
            state = download()
        except SutdolError:
            raise
        except Exception as error:  # whatever a hub client raises: no network, no such repository, a broken file
            first = str(error).strip().splitlines()[:1] or [""]
            raise SetupError(
                f"pretrained weights of {architecture} cannot be had: {type(error).__name__}: {first[0][:200]}",
                hint=hint,
            ) from error
    own = model.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    if len(fitting) < len(own) / 2:
        raise SetupError(
            f"pretrained weights of {architecture}: {len(fitting)} of {len(own)} tensors fit; it is another network",
            hint=hint,
        )
    own.update(fitting)
    model.load_state_dict(own)
    return len(fitting)
