"""A version's ONNX file with smaller numbers: INT8 (static, QDQ, calibrated on images) and FP16. Needs no torch.

    float file + calibration tensors -> VARIANTS -> files of the same contract

INT8 comes in three variants, because which one is good depends on the network: `all` quantises every operator that can be,
`conv` only convolutions, `sensitive` convolutions without the tenth that loses most signal (measured on the calibration
images, per layer: signal to quantisation noise before it minus after it), the first one and what feeds the outputs.
None of them touches what comes behind the last layers: there a detector puts boxes (hundreds of pixels) and chances (below
one) into one tensor, of which 8 bits leave nothing but the boxes.
Weights per channel, symmetric; activations asymmetric, by their range over the calibration images.

Errors: ModelError when ONNX Runtime cannot quantise the file.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

from sutdol.errors import ModelError
from sutdol.runtime import run_outputs

Float32 = NDArray[np.float32]
CALIBRATION_IMAGES = 128
SENSITIVE_SHARE = 0.1
PROBES = 8
"""Images on which the signal that each layer loses is measured."""
SMALLEST_LAYER = 64
_INPUT = "images"


def int8(data: bytes, images: Sequence[Float32]) -> Iterator[tuple[str, bytes]]:
    """(name, file) of each variant, made one after the other.

    Args:
        images: tensors (3, h, w) as `Predictor.prepare` makes them, a hundred or so that look like the traffic.
    """
    prepared = _prepared(data)
    behind = nodes_behind_the_layers(prepared)
    only = {"op_types_to_quantize": ["Conv"]}
    yield "all", _quantised(prepared, images, {"nodes_to_exclude": behind})
    convolutions = _quantised(prepared, images, only | {"nodes_to_exclude": behind})
    yield "conv", convolutions
    left_out = list(dict.fromkeys([*behind, *sensitive_layers(prepared, convolutions, images)]))
    yield "sensitive", _quantised(prepared, images, only | {"nodes_to_exclude": left_out})


def fp16(data: bytes, images: Sequence[Float32]) -> Iterator[tuple[str, bytes]]:
    """(name, file): half precision inside, single precision outside; pays on GPUs, and a little on new CPUs."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with _quiet():
        model = convert_float_to_float16(
            onnx.load_model_from_string(data), keep_io_types=True, disable_shape_infer=False
        )
    yield "fp16", bytes(model.SerializeToString())


VARIANTS: dict[str, Callable[[bytes, Sequence[Float32]], Iterator[tuple[str, bytes]]]] = {"int8": int8, "fp16": fp16}
"""What a version can be made smaller by."""


def sensitive_layers(data: bytes, quantised: bytes, images: Sequence[Float32]) -> list[str]:
    """Names of the convolutions to leave alone; see the top of this file."""
    model = onnx.load_model_from_string(data)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    if len(convolutions) < 4:
        return []
    names = {node.input[0] for node in convolutions} | {node.output[0] for node in convolutions}
    batch = np.stack(list(images[:PROBES]))
    wanted = sorted(names - {_INPUT})
    clean, noisy = (_activations(part, wanted, batch) for part in (data, quantised))

    def decibel(name: str) -> float:
        if name == _INPUT or name not in clean or name not in noisy:
            return 60.0
        signal, noise = clean[name], noisy[name] - clean[name]
        return float(10 * np.log10((signal**2).mean() / max(float((noise**2).mean()), 1e-12) + 1e-12))

    lost = {node.name: decibel(node.input[0]) - decibel(node.output[0]) for node in convolutions}
    worst = sorted(lost, key=lambda name: -lost[name])[: max(1, round(SENSITIVE_SHARE * len(lost)))]
    return list(dict.fromkeys([*worst, convolutions[0].name, *_last_layers(model, convolutions)]))


def nodes_behind_the_layers(data: bytes) -> list[str]:
    """Names of the nodes from which no layer with learned weights is reached any more.

    A convolution of fewer than SMALLEST_LAYER weights is arithmetic (the decoding of box distances), not a layer.
    """
    model = onnx.load_model_from_string(data)
    sizes = {w.name: int(np.prod(w.dims)) for w in model.graph.initializer}
    leads: set[str] = set()
    behind = []
    for node in reversed(model.graph.node):
        learned = max((sizes.get(name, 0) for name in node.input), default=0)
        is_layer = node.op_type in ("Conv", "Gemm", "MatMul") and learned >= SMALLEST_LAYER
        if is_layer or any(name in leads for name in node.output):
            leads.update(node.input)
        else:
            behind.append(node.name)
    return behind


def _last_layers(model: onnx.ModelProto, convolutions: list[Any]) -> list[str]:
    """Convolutions with no other convolution between them and the scores."""
    made_by = {name: node for node in model.graph.node for name in node.output}
    found, seen, waiting = [], set(), ["scores"]
    while waiting:
        name = waiting.pop()
        node = made_by.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.op_type == "Conv":
            found.append(node.name)
        else:
            waiting += list(node.input)
    return found


def _prepared(data: bytes) -> bytes:
    """Batch norms folded into convolutions, shapes inferred, every node named: what the quantiser wants to start from."""
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, target = Path(folder) / "float.onnx", Path(folder) / "prepared.onnx"
        source.write_bytes(data)
        try:
            quant_pre_process(str(source), str(target), skip_symbolic_shape=True)
        except Exception as error:  # onnxruntime raises a dozen unrelated classes; each means "not this file"
            raise ModelError(f"quantise: {str(error).splitlines()[0][:200]}") from error
        model = onnx.load(target)
    for i, node in enumerate(model.graph.node):
        node.name = node.name or f"node{i}"
    return bytes(model.SerializeToString())


def _quantised(data: bytes, images: Sequence[Float32], options: dict[str, Any]) -> bytes:
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(data)
        try:
            quantization.quantize_static(
                str(source),
                str(target),
                _Reader(images[:CALIBRATION_IMAGES]),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
                **options,
            )
        except Exception as error:  # as above
            raise ModelError(f"quantise: {str(error).splitlines()[0][:200]}") from error
        return target.read_bytes()


class _Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Hands the calibration images over, one at a time."""

    def __init__(self, images: Sequence[Float32]) -> None:
        self._images = iter(images)

    def get_next(self) -> dict[str, Float32] | None:
        image = next(self._images, None)
        return None if image is None else {_INPUT: image[None]}


def _activations(data: bytes, names: list[str], batch: Float32) -> dict[str, Float32]:
    """Inner tensors of a model for a batch; those that it does not have are missing."""
    model = onnx.load_model_from_string(data)
    there = {name for node in model.graph.node for name in node.output} - {o.name for o in model.graph.output}
    for name in names:
        if name in there:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return run_outputs(bytes(model.SerializeToString()), {_INPUT: batch})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser prints and warns about what cannot be helped."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
