"""Images (and words) become unit vectors whose nearness means likeness: what zero-shot and nearest-neighbour labels stand on.

    rgb images -> Encoder.images -> (n, d) float32 of length 1
    words      -> Clip.words     -> (classes, d) float32 of length 1, in the same space

    Pixels   a thumbnail; knows nothing, needs nothing
    OfModel  projected features of one of our own versions
    Clip     an open_clip network with weights from a file; nothing is downloaded

The only file that knows open_clip. Weights are safetensors, never pickles.

Errors: SetupError when open_clip is not installed, or weights are missing or of the wrong kind; ModelError of a version.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from sutdol.errors import SetupError
from sutdol.images import Rgb
from sutdol.predictor import Predictor

Float32 = NDArray[np.float32]
BATCH = 32
TEMPLATES = ("a photo of a {}.", "a close-up photo of a {}.", "a picture showing a {}.")
"""For a class without queries of its own."""


class Encoder(Protocol):
    """What turns images into vectors; `name` is told to people."""

    name: str

    def images(self, images: Sequence[Rgb]) -> Float32:
        """(n, d) of length 1; n may be 0."""


class Pixels:
    """A thumbnail of 12 x 12 greys and 4 x 4 colours, its mean taken away: enough to tell crowds of alike pictures."""

    name = "thumbnails"

    def images(self, images: Sequence[Rgb]) -> Float32:
        rows = [np.zeros((0, 12 * 12 + 4 * 4 * 3), np.float32)]
        for image in images:
            grey = cv2.resize(image, (12, 12), interpolation=cv2.INTER_AREA).mean(axis=2).ravel()
            colour = cv2.resize(image, (4, 4), interpolation=cv2.INTER_AREA).ravel()
            rows.append(np.concatenate([grey - grey.mean(), colour - colour.mean()])[None].astype(np.float32))
        return unit(np.concatenate(rows))


class OfModel:
    """Features of one of our versions, in the projection that its OOD score uses."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self.name = f"features of {predictor.model} version {predictor.version}"

    def images(self, images: Sequence[Rgb]) -> Float32:
        predictor, parts = self._predictor, []
        for start in range(0, len(images), BATCH):
            batch = np.stack([predictor.prepare(image) for image in images[start : start + BATCH]])
            features = predictor.run(batch).features
            parts.append(features if predictor.ood is None else predictor.ood.project(features))
        return unit(np.concatenate(parts)) if parts else np.zeros((0, 1), np.float32)


class Clip:
    """An open_clip network; use `Clip.load`."""

    def __init__(self, network: Any, preprocess: Any, tokenizer: Any, name: str) -> None:
        self._network = network
        self._preprocess = preprocess
        self._tokenizer = tokenizer
        self.name = f"CLIP {name}"

    @classmethod
    def load(cls, model: str, weights: str) -> Clip:
        """An architecture that open_clip knows by name, or a `.json` description of one, and its weights.

        Raises:
            SetupError: see the top of this file.
        """
        if find_spec("open_clip") is None:
            raise SetupError("zero-shot labels need open_clip, not installed here", hint="pip install 'sutdol[clip]'")
        path = Path(weights)
        if not weights or not path.is_file():
            raise SetupError(
                f"CLIP weights: expected a file, found {weights!r}",
                hint="set SUTDOL_CLIP_WEIGHTS to an open_clip .safetensors file; nothing is downloaded",
            )
        if path.suffix != ".safetensors":
            raise SetupError(f"CLIP weights: expected a .safetensors file, found {path.name!r}: pickles run code")
        import open_clip

        name = model
        if model.endswith(".json"):
            open_clip.add_model_config(Path(model))
            name = Path(model).stem
        if name not in open_clip.list_models():
            close = ", ".join(n for n in open_clip.list_models() if n.startswith(name[:3]))
            raise SetupError(f"CLIP model {name!r} is unknown to open_clip", hint=f"close: {close or 'none'}")
        try:
            network, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=str(path))
        except (RuntimeError, ValueError, KeyError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise SetupError(f"CLIP weights {path.name!r} do not fit {name!r}: {reason}") from error
        return cls(network.eval(), preprocess, open_clip.get_tokenizer(name), name)

    def images(self, images: Sequence[Rgb]) -> Float32:
        import torch
        from PIL import Image

        parts = []
        for start in range(0, len(images), BATCH):
            batch = torch.stack([self._preprocess(Image.fromarray(image)) for image in images[start : start + BATCH]])
            with torch.inference_mode():
                parts.append(self._network.encode_image(batch).float().numpy())
        return unit(np.concatenate(parts)) if parts else np.zeros((0, 1), np.float32)

    def words(self, queries: Sequence[Sequence[str]]) -> Float32:
        """One vector per class: the mean of those of its queries."""
        import torch

        rows = []
        for texts in queries:
            with torch.inference_mode():
                vectors = self._network.encode_text(self._tokenizer(list(texts))).float().numpy()
            rows.append(unit(vectors).mean(axis=0))
        return unit(np.stack(rows))

    @property
    def sharpness(self) -> float:
        """By which similarities are multiplied before softmax; learned with the weights."""
        return float(self._network.logit_scale.detach().exp())


def queries_of(classes: Sequence[str], given: dict[str, list[str]]) -> list[list[str]]:
    """Texts per class: those given, else the class's name in a few templates."""
    return [given.get(name) or [template.format(name.replace("_", " ")) for template in TEMPLATES] for name in classes]


def unit(x: NDArray[np.floating]) -> Float32:
    """Each row at length 1; a row of zeros stays."""
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12), np.float32)
