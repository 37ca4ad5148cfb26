"""The job `retrain.convert`: a version in a form that other programs take. FORMATS maps a name to its maker.

    {"model", "version", "format"} -> files -> zip with a README -> store `exports/{model}/{version}/{format}.zip`

    onnx         the bundle as it serves: model.onnx (calibration beside it, in the manifest), statistics, golden record
    torchscript  traced by the version's own family from its weights, compared with the ONNX file
    openvino     OpenVINO IR, converted from the ONNX file and compared with it (extra `[openvino]`)
    tensorflow   SavedModel and TFLite, without the features, made by onnx2tf in an environment of its own, compared

`unavailable(format, manifest)` says in words why a version cannot have a form, before anybody waits for it. Whatever is made
gives the same answers as the ONNX file, within PARITY_MAX, or it is not handed out.

Errors: NotFoundError (no such format or version), ConflictError (not available, with the reason), ModelError (it differs).
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from sqlmodel import Session

from retrain.families import PARITY_MAX, Spec, get_family
from retrain.networks import specs_of, without_network
from sutdol import jobs, registry
from sutdol.errors import ConflictError, InputError, ModelError, unknown
from sutdol.events import tell
from sutdol.jobs import Running
from sutdol.predictor import Predictor, Raw
from sutdol.runtime import Float32
from sutdol.settings import Settings, child_environment
from sutdol.types import Manifest

PROBES = 3
CHILD_TIMEOUT_S = 600
TENSORFLOW_TIMEOUT_S = 1800


def unavailable(format: str, manifest: Manifest, settings: Settings | None = None) -> str | None:
    """Why a version cannot be had in this form, or None. Without settings TensorFlow's environment counts as there."""
    if format == "tensorflow" and settings and not (settings.tensorflow_venv / "bin" / "onnx2tf").is_file():
        return (
            "not available because there is no onnx2tf where SUTDOL_TENSORFLOW_VENV points; it cannot be installed beside us: "
            "python3 -m venv .venv-tensorflow && .venv-tensorflow/bin/pip install onnx2tf"
        )
    if format == "openvino" and find_spec("openvino") is None:
        return "not available because OpenVINO is not installed here: pip install 'sutdol[openvino]'"
    return without_network(manifest) if format == "torchscript" else None


def start(session: Session, model: str, version: int, format: str) -> str:
    """Queue it in the caller's transaction; the job's id.

    Raises:
        NotFoundError, ConflictError: see the top of this file.
    """
    if format not in FORMATS:
        raise unknown("export format", format, sorted(FORMATS))
    row = registry.get_version(session, model, version)
    if row.state == "deleted":
        raise ConflictError(f"version {version} of {model} is deleted")
    reason = unavailable(format, msgspec.convert(row.manifest, Manifest))
    if reason is not None:
        raise ConflictError(f"{format} of {model} version {version}: {reason}")
    payload = {"model": model, "version": version, "format": format}
    job_id = jobs.send(session, "retrain.convert", payload)
    assert job_id is not None
    return job_id


def handle(running: Running) -> dict[str, Any]:
    """Job handler of `retrain.convert`."""
    payload, context = running.payload, running.context
    model, version, format = str(payload["model"]), int(payload["version"]), str(payload["format"])
    key = f"exports/{model}/{version}/{format}.zip"
    if not context.store.has(key):
        running.report(step="converting")
        folder = (context.settings.home / "exports" / running.job_id).absolute()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            manifest = registry.read_manifest(context.store, model, version)
            if (reason := unavailable(format, manifest, context.settings)) is not None:
                raise InputError(f"{format} of {model} version {version}: {reason}")
            files, told = FORMATS[format](running, manifest, folder)
            context.store.put(key, _zipped(files | {"README.txt": _readme(model, version, manifest, told).encode()}))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    with running.commit() as session:
        tell(session, "version.exported", f"{model} version {version}: {format} is ready", model=model, version=version)
    return {"key": key}


def _onnx(running: Running, manifest: Manifest, folder: Path) -> tuple[dict[str, bytes], str]:
    model, version = str(running.payload["model"]), int(running.payload["version"])
    store = running.context.store
    names = [name for name in manifest.files if name != "weights.safetensors"]
    files = {name: registry.read_file(store, model, version, manifest, name) for name in names}
    files["manifest.json"] = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    return files, "model.onnx takes `images` (n, 3, h, w) float32 and gives `scores` and `features`."


def _openvino(running: Running, manifest: Manifest, folder: Path) -> tuple[dict[str, bytes], str]:
    import openvino

    predictor, images = _probe(running, manifest)
    source = folder / "model.onnx"
    source.write_bytes(_bytes_of(running, manifest, "model.onnx"))
    converted = openvino.convert_model(str(source))
    openvino.save_model(converted, str(folder / "model.xml"), compress_to_fp16=False)
    compiled = openvino.Core().compile_model(str(folder / "model.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(images)
    parity = _compare(predictor.run(images), np.asarray(found["scores"]), np.asarray(found["features"]))
    files = {name: (folder / name).read_bytes() for name in ("model.xml", "model.bin")}
    return files | _described(manifest), f"OpenVINO IR; largest difference from the ONNX file {parity:.2g}."


def _torchscript(running: Running, manifest: Manifest, folder: Path) -> tuple[dict[str, bytes], str]:
    """Traced in a process of its own: this one stays without torch.

    A run may have trained several networks; the one whose traced answers are those of the ONNX file is the one.
    """
    predictor, images = _probe(running, manifest)
    (folder / "weights.safetensors").write_bytes(_bytes_of(running, manifest, "weights.safetensors"))
    (folder / "config").mkdir(exist_ok=True)
    np.save(folder / "probe.npy", images)
    first: ModelError | None = None
    for spec in specs_of(running, manifest, folder):
        try:
            answers = _traced(running, spec, folder)
            parity = _compare(predictor.run(images), answers["scores"], answers["features"])
        except ModelError as error:
            first = first or error
            continue
        files = {"model.torchscript": (folder / "model.torchscript").read_bytes()}
        return files | _described(
            manifest
        ), f"torch.jit.load opens it; largest difference from the ONNX file {parity:.2g}."
    raise first or ModelError("torchscript: how this version was trained is not known any more")


def _traced(running: Running, spec: Spec, folder: Path) -> dict[str, Float32]:
    """The answers of the network of `spec`, which then lies in the folder as model.torchscript."""
    (folder / "spec.json").write_bytes(msgspec.json.encode(spec))
    extra = get_family(spec.family).environment(folder, spec.params)
    done = subprocess.run(
        [sys.executable, "-m", "retrain.torchscript", str(folder)],
        env=child_environment(running.context.settings, **extra),
        cwd=Path(__file__).resolve().parents[1],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=CHILD_TIMEOUT_S,
    )
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise ModelError(f"torchscript: {lines[-1][:300] if lines else f'ended with {done.returncode}'}")
    with np.load(folder / "answers.npz") as answers:
        return {name: answers[name] for name in ("scores", "features")}


def _tensorflow(running: Running, manifest: Manifest, folder: Path) -> tuple[dict[str, bytes], str]:
    """By onnx2tf in an environment of its own; what it made is compared there and here."""
    venv = running.context.settings.tensorflow_venv.absolute()
    predictor, images = _probe(running, manifest)
    (folder / "model.onnx").write_bytes(_bytes_of(running, manifest, "model.onnx"))
    np.save(folder / "probe.npy", images)
    done = subprocess.run(
        [str(venv / "bin" / "python"), str(Path(__file__).with_name("savedmodel.py")), str(folder)],
        env={
            "PATH": f"{venv / 'bin'}{os.pathsep}{os.defpath}",
            "HOME": str(folder),
            "CUDA_VISIBLE_DEVICES": "",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        },
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=TENSORFLOW_TIMEOUT_S,
    )
    if done.returncode != 0:
        lines = [x for x in (done.stdout + done.stderr).decode(errors="replace").splitlines() if "Error" in x]
        raise ModelError(
            f"tensorflow: onnx2tf cannot convert this network: {lines[0][:300] if lines else 'it stopped'}"
        )
    expected, parity = predictor.run(images).scores, 0.0
    with np.load(folder / "answers.npz") as answers:
        for name in ("saved", "small"):
            found = answers[name]
            turned = found.ndim == 3 and found.shape != expected.shape
            parity = max(parity, _difference("scores", expected, found.transpose(0, 2, 1) if turned else found))
    out = folder / "out"
    kept = [p for p in sorted(out.rglob("*")) if p.is_file() and "_float16" not in p.name]
    files = {
        "model.tflite" if p.suffix == ".tflite" else f"saved_model/{p.relative_to(out)}": p.read_bytes() for p in kept
    }
    told = "saved_model/ and model.tflite take one image (1, h, w, 3) float32, channels last, and give the scores"
    told += " (1, anchors, 4 + classes)" if turned else ""
    return files | _described(manifest), f"{told}; largest difference from the ONNX file {parity:.2g}."


FORMATS: dict[str, Callable[[Running, Manifest, Path], tuple[dict[str, bytes], str]]] = {
    "onnx": _onnx,
    "torchscript": _torchscript,
    "openvino": _openvino,
    "tensorflow": _tensorflow,
}
"""Format -> maker of (files, what to know about them)."""


def _probe(running: Running, manifest: Manifest) -> tuple[Predictor, Float32]:
    model, version = str(running.payload["model"]), int(running.payload["version"])
    predictor = Predictor.open(running.context.store, model, version, providers=["CPUExecutionProvider"])
    height, width = manifest.input.size_hw
    images = np.random.default_rng(0).random((PROBES, 3, height, width)).astype(np.float32)
    return predictor, images


def _compare(expected: Raw, scores: Float32, features: Float32) -> float:
    return max(_difference("scores", expected.scores, scores), _difference("features", expected.features, features))


def _difference(name: str, want: Float32, got: Float32) -> float:
    if want.shape != got.shape:
        raise ModelError(f"converted: expected {name} of shape {want.shape}, found {got.shape}")
    parity = float((np.abs(got - want) / np.maximum(np.abs(want), 1.0)).max(initial=0.0))
    if not parity <= PARITY_MAX:
        raise ModelError(f"converted: differs from the ONNX file by {parity:.2g}, allowed is {PARITY_MAX:g}")
    return parity


def _bytes_of(running: Running, manifest: Manifest, file: str) -> bytes:
    model, version = str(running.payload["model"]), int(running.payload["version"])
    return registry.read_file(running.context.store, model, version, manifest, file)


def _described(manifest: Manifest) -> dict[str, bytes]:
    return {"manifest.json": msgspec.json.format(msgspec.json.encode(manifest), indent=1)}


def _readme(model: str, version: int, manifest: Manifest, told: str) -> str:
    shape = manifest.input
    return (
        f"{model} version {version}, {manifest.task}\n\n{told}\n\n"
        f"An image becomes the input like this: EXIF orientation applied, RGB, brought to {shape.size_hw[1]} x "
        f"{shape.size_hw[0]} by `{shape.resize}`, divided by 255, minus {shape.mean}, divided by {shape.std}.\n"
        f"Scores are divided by the temperature {manifest.temperature:.4g} before they are confidences; classes in order: "
        f"{', '.join(manifest.classes)}.\nEverything else stands in manifest.json.\n"
    )


def _zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()
