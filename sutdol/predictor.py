"""One image becomes one Prediction; the only place where that happens, for serving and for judging alike.

    bytes -> decode -> (h, w, 3) uint8 RGB -> fit_input -> (s, s, 3) uint8 -> prepare -> (3, s, s) float32 -> run -> Raw
          -> interpret -> Prediction in pixels of the original image

ImageError belongs to the first arrow, ModelError to all later ones. `prepare`, `run` and `interpret` are separate so that
the server may batch `run`; `predict_rgb` is all three for one image.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

from sutdol import images, registry, scoring
from sutdol.errors import InputError, ModelError
from sutdol.familiarity import OodStatistics, pack
from sutdol.runtime import Float32, Runtime
from sutdol.stores import Store
from sutdol.types import Box, ClassScore, InputSpec, Manifest, Prediction

GOLDEN_TOLERANCE = 2e-3
"""Largest difference from the recorded outputs, relative to their largest value; other processors round differently."""
TOP_CLASSES = 5


@dataclass
class Raw:
    """What the model said about a batch: scores and features of `types.Manifest`.

    Attributes:
        strangeness: of every image each distance (n, c) and the OOD score (n,), as `OodStatistics.strangeness` gives them;
            None until `interpret` reads the first one.
    """

    scores: Float32
    features: Float32
    strangeness: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None


def fit_input(rgb: images.Rgb, spec: InputSpec) -> images.Rgb:
    """Resize to the model's input, (h, w, 3) uint8. Training must use this very function, or it learns other pixels."""
    height, width = spec.size_hw
    if rgb.shape[:2] == (height, width) and (spec.resize != "crop" or spec.crop_share == 1):
        return rgb
    if spec.resize == "crop":
        rgb = _middle(rgb, spec)
    if spec.resize != "letterbox":
        # averaging pays from a half on; above that two pixels in four are enough, at a sixth of the cost
        halving = rgb.shape[0] >= 2 * height and rgb.shape[1] >= 2 * width
        resized = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA if halving else cv2.INTER_LINEAR)
        return np.asarray(resized, np.uint8)
    _, (new_height, new_width), (top, left) = _letterbox(rgb.shape[0], rgb.shape[1], spec)
    canvas = np.full((height, width, 3), spec.pad_value, np.uint8)
    canvas[top : top + new_height, left : left + new_width] = cv2.resize(
        rgb, (new_width, new_height), interpolation=cv2.INTER_LINEAR
    )
    return canvas


def cover(spec: InputSpec, size_hw: tuple[int, int]) -> tuple[int, int]:
    """The smallest decoded size of an image of `size_hw` that is not smaller than what the model sees of it."""
    if not spec.scaled_decode:
        return size_hw
    if spec.resize == "stretch":
        return spec.size_hw
    if spec.resize == "crop":
        part = _middle_size(*size_hw, spec)
        scale = max(spec.size_hw[0] / part[0], spec.size_hw[1] / part[1])
        return min(math.ceil(size_hw[0] * scale), size_hw[0]), min(math.ceil(size_hw[1] * scale), size_hw[1])
    return _letterbox(*size_hw, spec)[1]


def decode_for(data: bytes, spec: InputSpec) -> images.Rgb:
    """Bytes that `images.admit` let through, decoded as a model with this input sees them: training must do it so as well.

    Raises:
        ImageError: truncated or broken.
    """
    size_hw = images.jpeg_size_hw(data)
    return images.decode(data, cover_hw=cover(spec, size_hw) if size_hw else None)


def to_tensor(fitted: images.Rgb, spec: InputSpec) -> Float32:
    """(h, w, 3) uint8 at input size -> (3, h, w) float32, scaled to [0, 1], minus mean, divided by std."""
    out = np.empty((3, *fitted.shape[:2]), np.float32)
    for channel, plane, mean, std in zip(out, cv2.split(fitted), spec.mean, spec.std, strict=True):
        np.multiply(plane, np.float32(1 / 255), out=channel, dtype=np.float32)  # one pass, no copy of the whole image
        if (mean, std) != (0.0, 1.0):
            channel -= np.float32(mean)
            channel /= np.float32(std)
    return out


class Predictor:
    """A loaded model version with its manifest and statistics; may be used from many threads at once."""

    def __init__(
        self,
        runtime: Runtime,
        manifest: Manifest,
        ood: OodStatistics | None,
        golden: bytes | None,
        model: str,
        version: int,
    ) -> None:
        self.runtime = runtime
        self.manifest = manifest
        self.ood = ood
        self.model = model
        self.version = version
        self._golden = golden
        if runtime.input_hw not in (None, tuple(manifest.input.size_hw)):
            raise ModelError(f"model.onnx takes {runtime.input_hw} pixels, its manifest says {manifest.input.size_hw}")

    @classmethod
    def open(
        cls, store: Store, model: str, version: int, *, providers: list[str] | None = None, threads: int = 1
    ) -> Self:
        """Load a bundle: every file is compared with its hash in the manifest.

        Raises:
            ModelError: wrong hash, or a file that cannot be loaded. NotFoundError: no such bundle.
        """
        manifest = registry.read_manifest(store, model, version)
        files = {name: registry.read_file(store, model, version, manifest, name) for name in _needed(manifest)}
        ood = OodStatistics.from_bytes(files["scoring.npz"]) if "scoring.npz" in files else None
        runtime = Runtime(files["model.onnx"], providers=providers, threads=threads)
        return cls(runtime, manifest, ood, files.get("golden.npz"), model, version)

    @classmethod
    def from_parts(
        cls,
        onnx: bytes,
        manifest: Manifest,
        ood: OodStatistics | None = None,
        *,
        model: str = "",
        version: int = 0,
        providers: list[str] | None = None,
        threads: int = 1,
    ) -> Self:
        """A predictor that lies in no store, for judging a candidate while it is being made."""
        return cls(Runtime(onnx, providers=providers, threads=threads), manifest, ood, None, model, version)

    @property
    def provider(self) -> str:
        """The execution provider really in use."""
        return self.runtime.provider

    def evaluating(self) -> Self:
        """The same model with `score_min` .001: mean average precision wants the whole ranking, people do not."""
        import msgspec

        manifest = msgspec.structs.replace(self.manifest, score_min=0.001)
        return type(self)(self.runtime, manifest, self.ood, self._golden, self.model, self.version)

    def predict_bytes(self, data: bytes) -> Prediction:
        """One image as a client sent it, or as the store keeps it.

        Raises:
            ImageError, ModelError.
        """
        image = images.admit(data)
        size_hw = (image.height_px, image.width_px)
        return self.predict_rgb(images.decode(image.data, cover_hw=self.cover(size_hw)), size_hw=size_hw)

    def cover(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """See the function of that name."""
        return cover(self.manifest.input, size_hw)

    def examine(self, data: bytes) -> tuple[Prediction, dict[str, float], bytes | None]:
        """As `predict_bytes`, with what the log keeps of picked samples: every score by name, and `familiarity.pack`.

        Raises:
            ImageError, ModelError.
        """
        image = images.admit(data)
        size_hw = (image.height_px, image.width_px)
        raw = self.run(self.prepare(images.decode(image.data, cover_hw=self.cover(size_hw)))[None])
        prediction = self.interpret(raw, 0, size_hw)
        return prediction, self.scores(raw, 0, prediction), pack(self.ood, raw.features[0])

    def predict_rgb(self, rgb: images.Rgb, *, size_hw: tuple[int, int] | None = None) -> Prediction:
        """One decoded image; `size_hw` is its original size when it was decoded smaller."""
        raw = self.run(self.prepare(rgb)[None])
        return self.interpret(raw, 0, size_hw or (rgb.shape[0], rgb.shape[1]))

    def prepare(self, rgb: images.Rgb) -> Float32:
        """(h, w, 3) uint8 of any size -> (3, s, s) float32."""
        return to_tensor(fit_input(rgb, self.manifest.input), self.manifest.input)

    def run(self, batch: Float32) -> Raw:
        """The model itself, on (n, 3, s, s) float32.

        Raises:
            ModelError: it failed, or answered with something that is not finite or has another length.
        """
        return Raw(*self.runtime.run(batch))

    def interpret(self, raw: Raw, i: int, original_hw: tuple[int, int]) -> Prediction:
        """Row `i` of a batch's answer, for an image whose normalised size was `original_hw`."""
        features = raw.features[i]
        if raw.strangeness is None and self.ood:
            raw.strangeness = self.ood.strangeness(raw.features)  # a batch costs little more than one image
        ood_score = None if raw.strangeness is None else float(raw.strangeness[1][i])
        common = {"ood_score": ood_score, "height_px": original_hw[0], "width_px": original_hw[1], "features": features}
        if self.manifest.task == "detect":
            return self._boxes(raw.scores[i], original_hw, common)
        return self._classes(raw.scores[i], common)

    def scores(self, raw: Raw, i: int, prediction: Prediction) -> dict[str, float]:
        """Every score of `scoring.SCORERS` that this version can give, for row `i` and its `prediction`."""
        manifest = self.manifest
        common = {"temperature": manifest.temperature, "features": raw.features[i : i + 1], "statistics": self.ood}
        if raw.strangeness is not None:
            common["strangeness"] = tuple(part[i : i + 1] for part in raw.strangeness)
        if manifest.task == "classify":
            evidence = scoring.Evidence(logits=raw.scores[i : i + 1], **common)  # type: ignore[arg-type]
        else:
            evidence = scoring.Evidence(**self._doubtful(raw.scores[i], prediction), **common)  # type: ignore[arg-type]
        return {
            name: float(scoring.SCORERS[name].score(evidence)[0])
            for name in scoring.scorers_for(manifest.task, self.ood)
        }

    def _doubtful(self, scores: Float32, prediction: Prediction) -> dict[str, object]:
        """Boxes for the scorers; of a multi-label model every class counts as a box."""
        manifest = self.manifest
        if manifest.task == "multilabel":
            chances = scoring.sigmoid(scores, temperature=manifest.temperature)
            return {"boxes": [np.stack([chances, np.arange(len(chances))], axis=1)]}
        index = {name: k for k, name in enumerate(manifest.classes)}
        found = [(box.confidence or 0.0, index[box.label]) for box in prediction.boxes]
        best = np.zeros(1) if found else scores[4:].max(initial=0.0, keepdims=True).reshape(1)
        missed = scoring.sigmoid(scoring.log_odds(best), temperature=manifest.temperature)
        difficulty = np.array([manifest.difficulty.get(name, 1.0) for name in manifest.classes])
        return {"boxes": [np.array(found).reshape(-1, 2)], "missed": missed, "difficulty": difficulty}

    def warm(self, batch_sizes: tuple[int, ...] = (1,)) -> None:
        """Run once for each batch size and read one answer, so that the first request pays nothing.

        Raises:
            ModelError: it fails, or its answer is not that of its manifest (another number of classes).
        """
        height, width = self.manifest.input.size_hw
        for n in batch_sizes:
            raw = self.run(np.zeros((n, 3, height, width), np.float32))
        self.interpret(raw, 0, (height, width))

    def check_golden(self) -> None:
        """Compare the answers for the recorded inputs with the recorded answers.

        Raises:
            ModelError: they differ, or the record cannot be read.
        """
        if self._golden is None:
            return
        try:
            with np.load(io.BytesIO(self._golden), allow_pickle=False) as record:
                inputs, scores, features = record["images"], record["scores"], record["features"]
        except (ValueError, KeyError, OSError) as error:
            raise ModelError(f"golden.npz: {error}") from error
        raw = self.run(np.stack([to_tensor(image, self.manifest.input) for image in inputs]))
        for name, expected, found in (("scores", scores, raw.scores), ("features", features, raw.features)):
            if expected.shape != found.shape:
                raise ModelError(f"golden check: expected {name} of shape {expected.shape}, found {found.shape}")
            worst = float(np.abs(expected - found).max(initial=0.0))
            allowed = GOLDEN_TOLERANCE * max(float(np.abs(expected).max(initial=0.0)), 1.0)
            if worst > allowed:
                raise ModelError(
                    f"golden check: {name} differ from the record by {worst:.3g}, allowed is {allowed:.3g}"
                )

    def make_golden(self, fitted: NDArray[np.uint8]) -> bytes:
        """The file `golden.npz` for images (m, h, w, 3) uint8 at input size."""
        raw = self.run(np.stack([to_tensor(image, self.manifest.input) for image in fitted]))
        buffer = io.BytesIO()
        np.savez_compressed(buffer, images=fitted, scores=raw.scores, features=raw.features)
        return buffer.getvalue()

    def _classes(self, logits: Float32, common: dict[str, object]) -> Prediction:
        manifest = self.manifest
        if logits.shape != (len(manifest.classes),):
            raise ModelError(f"expected {len(manifest.classes)} class scores, found {logits.shape}")
        if manifest.task == "multilabel":
            chances, raw_chances = scoring.sigmoid(logits, temperature=manifest.temperature), scoring.sigmoid(logits)
            order = np.argsort(-logits, kind="stable")
            shown = [int(k) for k in order if chances[k] >= manifest.multilabel_min]
            margin = float(2 * np.abs(chances - 0.5).min())
            confidence, raw_confidence = _least_sure(chances), _least_sure(raw_chances)
        else:
            shown = _largest(logits, TOP_CLASSES)  # by logits: calibrated values may tie at 1.0
            exponentials = logits.astype(np.float64) - float(logits[shown[0]])
            raw_confidence = 1.0 / float(np.exp(exponentials).sum())
            chances = np.exp(exponentials / manifest.temperature)
            chances /= chances.sum()
            confidence = float(chances[shown[0]])
            margin = confidence - float(chances[shown[1]]) if len(shown) > 1 else 1.0
        classes = [ClassScore(manifest.classes[k], k, float(chances[k])) for k in shown]
        return Prediction(classes, [], confidence, raw_confidence, margin, **common)  # type: ignore[arg-type]

    def _boxes(self, scores: Float32, original_hw: tuple[int, int], common: dict[str, object]) -> Prediction:
        manifest = self.manifest
        if scores.ndim != 2 or scores.shape[0] != 4 + len(manifest.classes):
            raise ModelError(f"expected scores (4 + {len(manifest.classes)}, anchors), found {scores.shape}")
        best = scores[4:].max(axis=0)
        least = scoring.sigmoid(scoring.log_odds(np.array(manifest.score_min)) * manifest.temperature)
        keep = np.flatnonzero(best >= least.astype(np.float32))
        if len(keep) > 4 * manifest.max_boxes:
            keep = keep[np.argpartition(-best[keep], 4 * manifest.max_boxes)[: 4 * manifest.max_boxes]]
        calibrated = scoring.sigmoid(scoring.log_odds(best[keep]), temperature=manifest.temperature)
        indices = scores[4:, keep].argmax(axis=0)
        centres, sizes = scores[:2, keep].T, scores[2:4, keep].T
        corners = np.concatenate([centres - sizes / 2, sizes], axis=1)
        chosen = _suppress(corners, best[keep], indices, iou=manifest.nms_iou, most=manifest.max_boxes)
        (scale_x, scale_y), (left, top) = _placed(original_hw, manifest.input)
        boxes = []
        for j in chosen:
            x1, y1 = (corners[j, 0] - left) / scale_x, (corners[j, 1] - top) / scale_y
            x2, y2 = x1 + corners[j, 2] / scale_x, y1 + corners[j, 3] / scale_y
            x1, x2 = max(float(x1), 0.0), min(float(x2), float(original_hw[1]))
            y1, y2 = max(float(y1), 0.0), min(float(y2), float(original_hw[0]))
            if x2 - x1 > 0 and y2 - y1 > 0:
                label = manifest.classes[int(indices[j])]
                boxes.append(Box(label, x1, y1, x2, y2, float(calibrated[j])))
        confidence = max((b.confidence or 0.0 for b in boxes), default=0.0)
        margin = min((2 * abs((b.confidence or 0.0) - 0.5) for b in boxes), default=0.0)
        raw = float(best[keep].max(initial=0.0))
        return Prediction([], boxes, confidence, raw, margin, **common)  # type: ignore[arg-type]


def _needed(manifest: Manifest) -> list[str]:
    if "model.onnx" not in manifest.files:
        raise ModelError("manifest: expected a hash of model.onnx, found none")
    return [name for name in ("model.onnx", "scoring.npz", "golden.npz") if name in manifest.files]


def _letterbox(height: int, width: int, spec: InputSpec) -> tuple[float, tuple[int, int], tuple[int, int]]:
    """(scale, (new height, new width), (top, left)): the whole image, centred, aspect ratio kept."""
    if height < 1 or width < 1:
        raise InputError(f"expected at least 1 x 1 pixels, found {width} x {height}")
    scale = min(spec.size_hw[0] / height, spec.size_hw[1] / width)
    new_height, new_width = max(round(height * scale), 1), max(round(width * scale), 1)
    return scale, (new_height, new_width), ((spec.size_hw[0] - new_height) // 2, (spec.size_hw[1] - new_width) // 2)


def _placed(original_hw: tuple[int, int], spec: InputSpec) -> tuple[tuple[float, float], tuple[float, float]]:
    """((scale x, scale y), (left, top)) of an image in the model's input: input pixel = original pixel * scale + offset."""
    height, width = original_hw
    if spec.resize == "letterbox":
        scale, _, (top, left) = _letterbox(height, width, spec)
        return (scale, scale), (left, top)
    if spec.resize == "stretch":
        return (spec.size_hw[1] / width, spec.size_hw[0] / height), (0.0, 0.0)
    part_h, part_w = _middle_size(height, width, spec)
    scale_x, scale_y = spec.size_hw[1] / part_w, spec.size_hw[0] / part_h
    return (scale_x, scale_y), (-((width - part_w) // 2) * scale_x, -((height - part_h) // 2) * scale_y)


def _middle_size(height: int, width: int, spec: InputSpec) -> tuple[int, int]:
    """Height and width of the middle part that `crop` keeps, at least one pixel."""
    unit = min(height / spec.size_hw[0], width / spec.size_hw[1]) * spec.crop_share
    return max(round(spec.size_hw[0] * unit), 1), max(round(spec.size_hw[1] * unit), 1)


def _middle(rgb: images.Rgb, spec: InputSpec) -> images.Rgb:
    height, width = rgb.shape[:2]
    part_h, part_w = _middle_size(height, width, spec)
    top, left = (height - part_h) // 2, (width - part_w) // 2
    return rgb[top : top + part_h, left : left + part_w]


def _suppress(
    corners: NDArray[np.floating], scores: Float32, indices: NDArray[np.integer], *, iou: float, most: int
) -> list[int]:
    """Greedy non-maximum suppression within each class; rows to keep, best first. `corners` are (x, y, width, height)."""
    if not len(corners):
        return []
    kept = cv2.dnn.NMSBoxesBatched(
        corners.astype(np.float64).tolist(), scores.astype(float).tolist(), indices.astype(int).tolist(), 0.0, iou
    )
    order = sorted((int(k) for k in np.asarray(kept).reshape(-1)), key=lambda k: -float(scores[k]))
    return order[:most]


def _largest(values: Float32, n: int) -> list[int]:
    """Places of the `n` largest values, largest first; of equal ones the first."""
    if len(values) > 64:  # a partial sort pays only for long lists
        few = np.argpartition(values, -n)[-n:].tolist()
        return sorted(few, key=lambda k: (-values[k], k))
    return [int(k) for k in np.argsort(-values, kind="stable")[:n]]


def _least_sure(chances: scoring.Float) -> float:
    return float(np.maximum(chances, 1 - chances).min())
