"""The words as data: what a prediction, a label and a model's manifest are. Pure structs, checked at birth.

Pixels are always those of the normalised image (EXIF applied): x to the right, y down, (0, 0) the top left corner.
Probabilities and confidences lie in [0, 1]. Larger scores mean "label it sooner".
Everything here is a msgspec Struct: `msgspec.json.encode` / `decode` are the only serialisation.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

from sutdol.errors import InputError

Task = Literal["classify", "multilabel", "detect"]
Split = Literal["train", "val", "test"]
Arm = Literal["drawn", "unfamiliar", "empty", "disagree", "diverse", "weak", "margin", "gold"]


class Box(msgspec.Struct, frozen=True):
    """One object: class name and corners in pixels of the normalised image, x1 < x2 and y1 < y2.

    `confidence` is None on labels, in [0, 1] on predictions.
    """

    label: str
    x1: float
    y1: float
    x2: float
    y2: float
    confidence: float | None = None

    def __post_init__(self) -> None:
        numbers = (self.x1, self.y1, self.x2, self.y2)
        if not all(math.isfinite(v) for v in numbers):
            raise InputError(f"box of {self.label!r}: expected four finite numbers, found {numbers}")
        if self.x1 >= self.x2 or self.y1 >= self.y2:
            raise InputError(f"box of {self.label!r}: expected x1 < x2 and y1 < y2, found {numbers}")


class Label(msgspec.Struct, frozen=True):
    """What is really on an image: class names (one for `classify`, any number for `multilabel`) or boxes (`detect`).

    No boxes on a detection label means "nothing to find here", which is a real answer.
    """

    classes: list[str] = []
    boxes: list[Box] = []


class ClassScore(msgspec.Struct, frozen=True):
    """One class with its calibrated confidence in [0, 1]; `index` is its place in the model's class list."""

    label: str
    index: int
    confidence: float


class Prediction(msgspec.Struct, frozen=True):
    """The model's answer for one image, before it has an id.

    Attributes:
        classes: classes, best first (`classify`: at most five, `multilabel`: those above the threshold).
        boxes: found objects, best first (`detect`), in pixels of the image.
        confidence: calibrated confidence of the best prediction; 0 when a detector found nothing.
        raw_confidence: the same before calibration.
        margin: distance between the best and the second class in [0, 1]; for boxes 2 * |confidence - 0.5| of the least
            certain kept box, 0 when nothing was found (a missed object looks exactly like this).
        ood_score: distance from what the model knows, in standard deviations of familiar images; larger is stranger (see
            `familiarity`). None when the model carries no statistics.
        width_px, height_px: size of the normalised image.
        features: penultimate features, float32, for the log of picked samples and for tests; not sent to clients.
    """

    classes: list[ClassScore]
    boxes: list[Box]
    confidence: float
    raw_confidence: float
    margin: float
    ood_score: float | None
    width_px: int
    height_px: int
    features: Any = None


class InputSpec(msgspec.Struct, frozen=True):
    """How an image becomes the model's input tensor (n, 3, h, w) float32 RGB: resize, scale to [0, 1], (x - mean) / std.

    `stretch` ignores the aspect ratio (classification); `letterbox` keeps it and pads with `pad_value` (detection); `crop`
    takes the largest middle part of the input's aspect ratio, and of that the share `crop_share` of each side, as most
    published classifiers were evaluated.
    `scaled_decode`: JPEGs may be decoded at a half, a quarter or an eighth, as far as that still covers the input; false
    for a model whose answers changed too often by it.
    """

    size_hw: tuple[int, int]
    resize: Literal["stretch", "letterbox", "crop"] = "stretch"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    pad_value: int = 114
    crop_share: float = 1.0
    scaled_decode: bool = True


class Manifest(msgspec.Struct, frozen=True, omit_defaults=False):
    """Everything beside the weights that decides an answer. Stored as `manifest.json` next to `model.onnx`.

    ONNX contract: input `images` (n, 3, h, w) float32 with dynamic n; outputs `scores` and `features` (n, d) float32.
    `scores` is (n, classes) logits for `classify` and `multilabel`, and (n, 4 + classes, anchors) for `detect`: centre x,
    centre y, width, height in input pixels, then class probabilities in [0, 1] (the Ultralytics layout, before NMS).

    Attributes:
        temperature: logits are divided by it before softmax or sigmoid; for `detect` it divides the log-odds.
        score_min, nms_iou, max_boxes: detection only; boxes below `score_min` (calibrated) are not reported.
        multilabel_min: calibrated confidence from which a class counts as present.
        unfamiliar_at: `ood_score` from which an image counts as unfamiliar; None without statistics.
        uncertain_at: 1 - `margin` from which an answer counts as uncertain; None with too few val images to tell.
        accept_at: (risk, least confidence) by rising risk: answers from that confidence on were shown, on val, to be wrong with
            at most that risk; see `thresholds`. Empty where nothing could be shown.
        low_level: the last so many features describe the picture itself: brightness, contrast, grain (see `familiarity`).
        difficulty: detection only, 1 - average precision on val by class name; a doubt about a hard class weighs more.
        files: sha256 of the bundle's other files by name (`model.onnx`, `scoring.npz`, `golden.npz`, ...).
        provenance: who made it from what, for people (run, dataset version, family, library versions).
    """

    task: Task
    classes: list[str]
    input: InputSpec
    family: str
    temperature: float = 1.0
    unfamiliar_at: float | None = None
    uncertain_at: float | None = None
    difficulty: dict[str, float] = {}
    accept_at: list[tuple[float, float]] = []
    low_level: int = 0
    score_min: float = 0.25
    nms_iou: float = 0.6
    max_boxes: int = 300
    multilabel_min: float = 0.5
    files: dict[str, str] = {}
    provenance: dict[str, str] = {}
    schema: int = 1

    def __post_init__(self) -> None:
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise InputError(f"manifest: expected distinct class names, found {self.classes}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise InputError(f"manifest: expected temperature > 0, found {self.temperature}")
