"""A team with a model in production starts here: its ONNX file becomes version 1, served and improved like any other.

    file -> tried in a limited child -> Proposal (what was found, what is assumed) -> answers -> surgery
         -> contract tried in the child -> manifest, golden record -> bundle -> version, champion if there is none

What the file cannot say (how pixels were normalised, how images were resized, what classes are called) is assumed, told, and
can be answered otherwise. The version has no weights to start from: a training of its model starts a family's own network
from scratch, and the gate compares that with the adopted champion. Without labels there are no statistics yet either: no OOD
score, temperature 1.

Errors: ModelError (hostile, broken, or of a form that cannot be read, with the remedy), InputError (answers that do not fit
the file), ConflictError (the model exists and does something else).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto
from sqlmodel import Session

from sutdol import registry, selftest, surgery
from sutdol.context import Context
from sutdol.errors import ConflictError, InputError, ModelError
from sutdol.events import tell
from sutdol.predictor import Predictor
from sutdol.surgery import Look, Outputs, Plan
from sutdol.tables import Decision, Model
from sutdol.types import InputSpec, Manifest, Task

NORMALISATIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "255": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""By name, (mean, std) of pixels in [0, 1]; `255` hands the model pixels from 0 to 255."""
FAMILY = "onnx"
"""What the manifest of an adopted version says: no family of ours made it, so none can go on from its weights."""
TRAINED_BY: dict[str, str] = {"classify": "timm", "multilabel": "timm", "detect": "yolo"}
MAX_BYTES = 2_000_000_000
DEFAULT_SIZE = 224
PROBES = 4

Normalise = Literal["none", "imagenet", "half", "clip", "255"]
Resize = Literal["stretch", "letterbox", "crop"]


@dataclass(frozen=True)
class Answers:
    """What a person may say instead of what is assumed; None leaves it to the file and the defaults."""

    task: Task | None = None
    classes: list[str] | None = None
    size: int | None = None
    normalise: Normalise | None = None
    resize: Resize | None = None
    crop_share: float | None = None
    bgr: bool = False
    outputs: Outputs | None = None


@dataclass(frozen=True)
class Proposal:
    """How the file will be read.

    Attributes:
        found: in words, what the file itself says.
        assumed: by the name of an answer, in words, what it cannot say and was taken for granted.
    """

    look: Look
    task: Task
    classes: list[str]
    input: InputSpec
    plan: Plan
    found: list[str]
    assumed: dict[str, str]
    data: bytes


def propose(data: bytes, answers: Answers | None = None) -> Proposal:
    """Try the file in a limited child, look at it, and say how it will be read.

    Raises:
        ModelError, InputError: see the top of this file.
    """
    answers = answers or Answers()
    if len(data) > MAX_BYTES:
        raise ModelError(f"model.onnx: {len(data) / 1e9:.1f} GB, at most {MAX_BYTES / 1e9:g} are taken")
    selftest.try_model(data)
    look = surgery.look(data)
    assumed: dict[str, str] = {}
    found = [f"input {look.input!r}, {look.layout}, output {look.output!r} {look.shape}"]
    if look.maker:
        found.append(f"exported by {look.maker}")
    size_hw = _size(look, answers, assumed)
    probe = _probe(data, look, size_hw)
    shape = list(probe.shape)
    task = _task(look, answers, shape, assumed)
    outputs = _outputs(look, answers, task, shape, probe, assumed)
    count = _class_count(outputs, shape)
    classes = _classes(look, answers, count, assumed)
    normalise = answers.normalise or ("none" if task == "detect" or look.maker else "imagenet")
    if answers.normalise is None and not look.maker:
        assumed["normalise"] = f"pixels are normalised as {normalise!r} (others: {', '.join(NORMALISATIONS)})"
    resize: Resize = answers.resize or ("letterbox" if task == "detect" else "crop")
    share = answers.crop_share or (1.0 if look.maker or resize != "crop" else 0.875)
    if not 0 < share <= 1:
        raise InputError(f"crop share: expected a share in (0, 1], found {share}")
    if answers.resize is None and not look.maker:
        told = f", of which {share:.1%} of each side is kept" if resize == "crop" and share < 1 else ""
        assumed["resize"] = f"images are brought to {size_hw[1]} x {size_hw[0]} by {resize!r}{told}"
    mean, std = NORMALISATIONS[normalise]
    boxes = (
        task == "detect" and float(probe[..., :4].max(initial=0.0) if outputs != "boxes" else probe[:, :4].max()) <= 2.0
    )
    plan = Plan(
        classes=len(classes),
        size_hw=size_hw,
        outputs=outputs,
        multilabel=task == "multilabel",
        bgr=answers.bgr,
        range_255=normalise == "255",
        normalised_boxes=boxes,
    )
    spec = InputSpec(size_hw, resize, mean, std, 114, share)
    return Proposal(look, task, classes, spec, plan, found, assumed, data)


def build(proposal: Proposal) -> tuple[bytes, Manifest, dict[str, bytes]]:
    """The file with our ends, tried in the child, its manifest, and the files of the bundle.

    Raises:
        ModelError: it cannot be given the ends, or breaks the contract with them.
    """
    look = proposal.look
    manifest = Manifest(
        task=proposal.task,
        classes=proposal.classes,
        input=proposal.input,
        family=FAMILY,
        provenance={
            "adopted": "from a foreign ONNX file",
            "source_sha256": hashlib.sha256(proposal.data).hexdigest(),
            "source_output": f"{look.output} as {proposal.plan.outputs}",
            "opset": str(look.opset),
            **({"exporter": look.maker} if look.maker else {}),
            **{f"assumed_{name}": words for name, words in proposal.assumed.items()},
        },
    )
    onnx = surgery.operate(proposal.data, look, proposal.plan)
    try:
        selftest.check_contract(onnx, manifest)
    except ModelError:
        if not look.fixed_batch:
            raise
        onnx = surgery.operate(proposal.data, look, proposal.plan, scan=True)
        selftest.check_contract(onnx, manifest)
    golden = Predictor.from_parts(onnx, manifest).make_golden(_pictures(PROBES, *proposal.input.size_hw))
    return onnx, manifest, {"model.onnx": onnx, "golden.npz": golden}


def adopt(
    context: Context, model: str, proposal: Proposal, *, who: str, family: str | None = None, promote: bool = True
) -> int:
    """Make the file a version of `model`, made when there is none; the version's number.

    Args:
        family: which of our families trains its successors; None takes the task's usual one.
        promote: put it to work when the model has no champion yet; later ones are candidates like any other.

    Raises:
        ModelError, InputError, ConflictError: see the top of this file.
    """
    with context.database.read() as session:
        _check_model(session.get(Model, model), model, proposal)
    _, manifest, files = build(proposal)
    with context.database.begin() as session:
        row = session.get(Model, model)
        if row is None:
            chosen = family or TRAINED_BY[proposal.task]
            row = registry.create_model(
                session, model, task=proposal.task, classes=proposal.classes, family=chosen, params={}
            )
        _check_model(row, model, proposal)
        registry.add_classes(session, model, proposal.classes)
        version = registry.allocate_version(session, model)
        _reserve(session, model, version, manifest, files, who)
    manifest = registry.write_bundle(context.store, model, version, manifest, files)
    with context.database.begin() as session:
        row_ = registry.get_version(session, model, version)
        row_.state, row_.sha256 = "ready", manifest.files["model.onnx"]
        row_.manifest = cast(dict[str, Any], _builtins(manifest))
        session.add(row_)
        text = f"adopted from {proposal.look.maker or 'a foreign'} ONNX file, {len(proposal.classes)} classes"
        tell(session, "version.adopted", f"{model} version {version}: {text}", model=model, version=version, who=who)
        if promote and registry.alias(session, model, "champion") is None:
            registry.promote(session, model, version, who=who, text=f"version {version} {text}")
    return version


def _reserve(session: Session, model: str, version: int, manifest: Manifest, files: dict[str, bytes], who: str) -> None:
    """The row first, as a candidate: its number is taken, and a crash before the bundle leaves nothing that serves."""
    manifest = _with_hashes(manifest, files)
    size = len(files["model.onnx"])
    registry.register(session, model, version, manifest, size_bytes=size, metrics={}, state="candidate")
    text = f"adopted by {who}: {manifest.provenance['source_output']}"
    record = {"provenance": manifest.provenance, "classes": manifest.classes}
    session.add(
        Decision(model=model, kind="adopt", verdict="done", candidate=version, text=text, record=record, who=who)
    )


def _with_hashes(manifest: Manifest, files: dict[str, bytes]) -> Manifest:
    import msgspec

    return msgspec.structs.replace(manifest, files={k: hashlib.sha256(v).hexdigest() for k, v in files.items()})


def _builtins(manifest: Manifest) -> Any:
    import msgspec

    return msgspec.to_builtins(manifest)


def _check_model(row: Model | None, model: str, proposal: Proposal) -> None:
    if row is None:
        return
    if row.task != proposal.task:
        raise ConflictError(f"{model} is a {row.task} model, the file is one to {proposal.task}")
    if row.classes and proposal.classes[: len(row.classes)] != row.classes[: len(proposal.classes)]:
        raise ConflictError(
            f"{model} has the classes {', '.join(row.classes[:5])}..., in this order; the file's are "
            f"{', '.join(proposal.classes[:5])}...",
            hint="adopt it as a model of its own, or name its classes as they are",
        )


def _size(look: Look, answers: Answers, assumed: dict[str, str]) -> tuple[int, int]:
    if look.size_hw is not None:
        if answers.size not in (None, *look.size_hw):
            raise InputError(f"size: the file takes {look.size_hw[1]} x {look.size_hw[0]} pixels, not {answers.size}")
        return look.size_hw
    if answers.size is None:
        assumed["size"] = f"images have {DEFAULT_SIZE} x {DEFAULT_SIZE} pixels; the file leaves it open"
    size = answers.size or DEFAULT_SIZE
    if not 8 <= size <= 4096:
        raise InputError(f"size: expected 8 to 4096 pixels, found {size}")
    return size, size


def _probe(data: bytes, look: Look, size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """The first output for four pictures, one after the other, as it comes."""
    pictures = _pictures(PROBES, *size_hw)
    images: NDArray[Any] = pictures if look.layout == "nhwc" else pictures.transpose(0, 3, 1, 2)
    scaled = (images / np.float32(255)).astype(np.float16 if look.element == TensorProto.FLOAT16 else np.float32)
    feeds: NDArray[Any] = images if look.element == TensorProto.UINT8 else scaled
    feeds = np.ascontiguousarray(feeds)
    singles = [{look.input: feeds[i : i + 1]} for i in range(len(feeds))]
    outputs = selftest.try_model(data, singles).outputs
    found: NDArray[np.float32] = np.concatenate([out[look.output] for out in outputs]).astype(np.float32)
    if not np.isfinite(found).all():
        raise ModelError("self-test: the answers are not finite")
    return found


def _task(look: Look, answers: Answers, shape: list[int], assumed: dict[str, str]) -> Task:
    if answers.task is not None:
        return answers.task
    if len(shape) == 3:
        if look.task not in ("", "detect"):
            raise ModelError(f"model.onnx: a {look.task} model; classify, multilabel and detect are taken")
        return "detect"
    if look.others:
        raise ModelError(
            f"model.onnx: expected one output, found {[look.output, *look.others]}",
            hint="a detector must give one array of boxes, (n, 4 + classes, anchors), (n, boxes, 6) or YOLOv5's",
        )
    assumed["task"] = "each image has one class (classify); multilabel must be said"
    return "classify"


def _outputs(
    look: Look, answers: Answers, task: Task, shape: list[int], probe: NDArray[np.float32], assumed: dict[str, str]
) -> Outputs:
    if task == "detect":
        if len(shape) != 3:
            raise ModelError(f"model.onnx: expected boxes (n, 4 + classes, anchors), found an output {shape}")
        if answers.outputs is not None:
            return answers.outputs
        known = len(answers.classes or look.names)
        if shape[2] == 6 and shape[1] <= 1_000 and known != 2:
            return "end2end"
        if shape[1] < shape[2] or (known and shape[1] == 4 + known):
            return "boxes"
        if known and shape[2] == 5 + known:
            return "yolov5"
        if known and shape[2] == 4 + known:
            return "boxes-last"
        assumed["outputs"] = "boxes come last as centre, size, classes (`boxes-last`); YOLOv5's must be said (`yolov5`)"
        return "boxes-last"
    flat = probe.reshape(len(probe), -1)
    if answers.outputs is not None:
        return answers.outputs
    inside = float(flat.min()) >= 0 and float(flat.max()) <= 1
    if task == "multilabel":
        return "probabilities" if inside else "logits"
    return "probabilities" if inside and np.allclose(flat.sum(axis=1), 1, atol=1e-3) else "logits"


def _class_count(outputs: Outputs, shape: list[int]) -> int | None:
    """None where the output does not tell (`end2end`)."""
    if outputs == "end2end":
        return None
    if outputs in ("logits", "probabilities"):
        return int(np.prod(shape[1:]))
    return {"boxes": shape[1] - 4, "boxes-last": shape[2] - 4, "yolov5": shape[2] - 5}[outputs]


def _classes(look: Look, answers: Answers, count: int | None, assumed: dict[str, str]) -> list[str]:
    names = answers.classes or look.names
    if count is not None and count < 1:
        raise ModelError("model.onnx: expected at least one class, the output has room for none")
    if not names:
        if count is None:
            raise InputError("classes: this output does not tell how many there are", hint="name them with --classes")
        assumed["classes"] = f"{count} classes without names are called class0 to class{count - 1}"
        names = [f"class{i}" for i in range(count)]
    if count is not None and len(names) != count:
        raise InputError(f"classes: the file answers for {count}, expected as many names, found {len(names)}")
    if len(set(names)) != len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise InputError(f"classes: expected distinct names, found {twice!r} twice")
    return list(names)


def _pictures(count: int, height: int, width: int) -> NDArray[np.uint8]:
    """Smooth gradients with some texture, (count, h, w, 3): what a network meets, and the same every time."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    pictures = []
    for _ in range(count):
        a, b, c = rng.uniform(0.02, 0.3, 3), rng.uniform(0.02, 0.3, 3), rng.uniform(0, 6.28, 3)
        waves = np.stack([np.sin(a[k] * x + b[k] * y + c[k]) for k in range(3)], axis=2)
        pictures.append((127 + 90 * waves + rng.normal(0, 12, waves.shape)).clip(0, 255).astype(np.uint8))
    return np.stack(pictures)
