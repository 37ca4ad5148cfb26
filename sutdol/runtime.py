"""ONNX Runtime sessions: which provider, how many threads, which inputs and outputs. The only file that knows onnxruntime.

A provider is never replaced silently: what was asked for by name and is not there is a SetupError, and `Runtime.provider`
tells what really runs (ONNX Runtime itself falls back to the CPU without a word, even when only CUDA was asked for).

Errors: ModelError for a file that cannot be loaded or does not keep the contract of `types.Manifest`.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from sutdol.errors import ModelError, NotFiniteError, SetupError

Float32 = NDArray[np.float32]
ort.set_default_logger_severity(4)


class Runtime:
    """One loaded model; `run` may be called from many threads at once.

    Attributes:
        provider: the execution provider really in use.
        input_hw: height and width of the input in pixels, or None where the model leaves them open.
    """

    def __init__(self, onnx: bytes, *, providers: list[str] | None = None, threads: int = 1) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        wanted = choose_providers(providers)
        try:
            self._session = ort.InferenceSession(onnx, options, providers=wanted)
        except Exception as error:  # onnxruntime raises a dozen unrelated classes; each means "this file does not load"
            raise ModelError(f"model.onnx cannot be loaded: {_first_line(error)}") from error
        self._session._model_bytes = None  # kept for a fallback that we refuse below; the file's size in memory
        self.provider = str(self._session.get_providers()[0])
        if self.provider != wanted[0]:
            raise SetupError(
                f"provider {wanted[0]}: asked for, but ONNX Runtime fell back to {self.provider}",
                hint="run `sutdol doctor`, or set SUTDOL_PROVIDERS=CPUExecutionProvider",
            )
        inputs = self._session.get_inputs()
        outputs = {o.name for o in self._session.get_outputs()}
        if len(inputs) != 1 or not {"scores", "features"} <= outputs:
            raise ModelError(
                "model.onnx: expected one input `images` and outputs `scores` and `features`, "
                f"found {[i.name for i in inputs]} and {sorted(outputs)}"
            )
        shape = inputs[0].shape
        if len(shape) != 4 or inputs[0].type != "tensor(float)":
            raise ModelError(f"model.onnx: expected float32 images (n, 3, h, w), found {inputs[0].type} {shape}")
        self._input = inputs[0].name
        self.input_hw = (shape[2], shape[3]) if isinstance(shape[2], int) and isinstance(shape[3], int) else None

    def run(self, images: Float32) -> tuple[Float32, Float32]:
        """(scores, features) for images (n, 3, h, w) float32; see `types.Manifest` for their shapes.

        Raises:
            ModelError: the model failed, answered for another number of images, or with something not finite.
        """
        try:
            scores, features = self._session.run(["scores", "features"], {self._input: images})
        except Exception as error:  # as above: a dozen unrelated classes
            raise ModelError(f"the model failed on images {images.shape}: {_first_line(error)}") from error
        if len(scores) != len(images) or len(features) != len(images):
            raise ModelError(f"the model answered for {len(scores)} of {len(images)} images")
        if not (np.isfinite(scores).all() and np.isfinite(features).all()):
            raise NotFiniteError("the model answered with numbers that are not finite")
        return scores, features


def give_memory_back() -> None:
    """Return what loading has left free to the system (glibc keeps it otherwise); some milliseconds."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


class Foreign:
    """A model as it came, whatever it takes and gives, on the CPU; opened only inside the child of `selftest`.

    Attributes:
        inputs, outputs: (name, element type, shape) each.
    """

    def __init__(self, onnx: bytes) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # as in Runtime
            raise ModelError(f"model.onnx cannot be loaded: {_first_line(error)}") from error
        self.inputs = [(i.name, i.type, list(i.shape)) for i in self._session.get_inputs()]
        self.outputs = [(o.name, o.type, list(o.shape)) for o in self._session.get_outputs()]

    def run(self, feed: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Every output by name.

        Raises:
            ModelError: the model failed, or answered with something that is no array of numbers.
        """
        try:
            found = self._session.run(None, feed)
        except Exception as error:  # as in Runtime
            raise ModelError(f"the model failed: {_first_line(error)}") from error
        for (name, kind, _), value in zip(self.outputs, found, strict=True):
            if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
                raise ModelError(f"output {name!r}: expected an array of numbers, found {kind}")
        return {name: value for (name, _, _), value in zip(self.outputs, found, strict=True)}


def run_outputs(onnx: bytes, feed: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Every output of a trusted file for one feed, on the CPU and not optimised: for a look inside."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))


def choose_providers(wanted: list[str] | None) -> list[Any]:
    """Providers for a session, best first, the CPU always last.

    Raises:
        SetupError: a wanted provider is not part of this installation.
    """
    available = ort.get_available_providers()
    for name in wanted or []:
        if name not in available:
            raise SetupError(f"provider {name!r} is not installed", hint=f"there are: {', '.join(available)}")
    names = list(wanted or [])
    if not names and "CUDAExecutionProvider" in available and has_gpu():
        names = ["CUDAExecutionProvider"]
    if "CUDAExecutionProvider" in names:
        ort.preload_dlls()
    return [*names, *(["CPUExecutionProvider"] if "CPUExecutionProvider" not in names else [])]


def has_gpu() -> bool:
    """Whether this machine shows an NVIDIA device; onnxruntime's own `get_device` says GPU even without one."""
    return Path("/dev/nvidiactl").exists()


def check_self_contained(onnx: bytes) -> None:
    """Refuse what must not be adopted: external data, foreign operator domains, broken structure.

    Raises:
        ModelError: with the reason.
    """
    import onnx as onnx_library
    from google.protobuf.message import DecodeError

    try:
        model = onnx_library.load_model_from_string(onnx)
    except DecodeError as error:
        raise ModelError("model.onnx: not an ONNX file, or cut off") from error
    if not model.graph.node:
        raise ModelError("model.onnx: not an ONNX file, or one without a single operator")
    for tensor in [*_tensors(model.graph), *(t for f in model.functions for t in _of_nodes(f.node))]:
        if tensor.data_location == onnx_library.TensorProto.EXTERNAL or tensor.external_data:
            raise ModelError(
                f"model.onnx: {tensor.name!r} lies in another file", hint="export with external_data=False"
            )
    local = {function.domain for function in model.functions}
    known = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"} | local
    foreign = {node.domain for graph in (model.graph, *model.functions) for node in _nodes(graph)} - known
    if foreign:
        raise ModelError(f"model.onnx: operators of unknown domains {sorted(foreign)}")
    try:
        onnx_library.checker.check_model(model)
    except onnx_library.checker.ValidationError as error:
        raise ModelError(f"model.onnx: {_first_line(error)}") from error


def _tensors(graph: Any) -> Any:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Any) -> Any:
    """Every tensor that stands in an attribute, however deep."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in [attribute.sparse_tensor, *attribute.sparse_tensors]:
                yield sparse.values
                yield sparse.indices
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
            for inner in attribute.graphs:
                yield from _tensors(inner)


def _nodes(graph: Any) -> Any:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from _nodes(inner)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
