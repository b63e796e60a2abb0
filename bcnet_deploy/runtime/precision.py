"""FP16 and INT8 forms of an exported FP32 network. Inputs and outputs stay float32 in all of them."""

from __future__ import annotations

import io
import logging
import math
import tempfile
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from bcnet_deploy.errors import ExportError

if TYPE_CHECKING:
    import onnx

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
Target = Literal["ort", "trt"]
Calibration = Literal["minmax", "percentile", "entropy"]
_METHODS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}

FLOAT16_MAX = 65504.0
_HISTOGRAM_BYTES = 2**30  # ONNX Runtime keeps the activations of all images for a histogram


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``model`` that computes in float16 behind float32 inputs and outputs.

    Raises:
        ExportError: a weight does not fit into float16.
    """
    import onnx
    from onnx import numpy_helper
    from onnxruntime.transformers.float16 import convert_float_to_float16

    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            largest = float(np.abs(numpy_helper.to_array(tensor)).max(initial=0.0))
            if not largest <= FLOAT16_MAX and not np.isinf(largest):
                raise ExportError(
                    f"{tensor.name!r} holds {largest:.4g}, float16 ends at {FLOAT16_MAX:g}; "
                    "export with --precision fp32, or recalibrate the batch norms"
                )
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with _quiet():
        # Tiny weights become the smallest float16 instead of 0; below that nothing is lost but the sign.
        converted = convert_float_to_float16(copy, keep_io_types=True, disable_shape_infer=False)
    sort_nodes(converted)
    return converted


def images_used(model: onnx.ModelProto, count: int, method: Calibration, *, batch: int = 8) -> int:
    """How many of ``count`` calibration images :func:`to_int8` sees: whole batches, within its memory."""
    size = _calibration_batch(model, batch)
    if method != "minmax":
        most = _HISTOGRAM_BYTES // max(1, _activation_bytes(model))
        count = min(count, max(size, most // size * size))
    return count if count < size else count // size * size


def _calibration_batch(model: onnx.ModelProto, batch: int) -> int:
    """Inputs a calibration step; a static batch of the model wins."""
    return int(model.graph.input[0].type.tensor_type.shape.dim[0].dim_value) or batch


def to_int8(
    model: onnx.ModelProto,
    calibration: NDArray[np.float32],
    *,
    target: Target = "ort",
    method: Calibration = "minmax",
    keep_fp32: Collection[str] = (),
    batch: int = 8,
) -> onnx.ModelProto:
    """A copy of ``model`` with explicit Q/DQ pairs, by ONNX Runtime's static quantisation.

    Weights are symmetric int8 per output channel. For ``"ort"`` activations are asymmetric uint8 and
    biases int32, which its CPU kernels run fastest. For ``"trt"`` activations are symmetric int8 and
    biases stay in floating point (TensorRT takes nothing else), and what is not quantised runs in FP16.

    Args:
        model: FP32 network.
        calibration: real inputs (N, C, H, W), N >= 1. Fewer of them are used where ``method`` needs all
            activations at once: as many as a GiB holds.
        target: the runtime the file is for.
        method: how ranges follow from the values seen on ``calibration``: their extremes, the extremes
            without outliers, or the ranges of least divergence.
        keep_fp32: names of nodes that are not quantised.
        batch: inputs a calibration step; a static batch of the model wins.

    Raises:
        ExportError: there is no calibration input, or the quantiser fails.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )  # fmt: skip

    if len(calibration) == 0 or not np.isfinite(calibration).all():
        raise ExportError(
            "INT8 needs finite calibration inputs, one or more; give images of the training data"
        )
    feed = model.graph.input[0]
    size = _calibration_batch(model, batch)
    calibration = calibration[: images_used(model, len(calibration), method, batch=batch)]
    if len(calibration) < size:
        calibration = np.resize(calibration, (size, *calibration.shape[1:]))

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.parts: Iterator[dict[str, Any]] = iter(
                {feed.name: np.ascontiguousarray(calibration[start : start + size], dtype=np.float32)}
                for start in range(0, len(calibration) - size + 1, size)
            )

        def get_next(self) -> dict[str, Any] | None:
            return next(self.parts, None)

    symmetric = target == "trt"
    operators = sorted({node.op_type for node in model.graph.node})
    with tempfile.TemporaryDirectory(prefix="bcnet-int8-") as folder, _quiet():
        source, result = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        try:
            quantize_static(
                source, result, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
                weight_type=QuantType.QInt8, nodes_to_exclude=list(keep_fp32),
                calibrate_method=getattr(CalibrationMethod, _METHODS[method]),
                extra_options={
                    "ActivationSymmetric": symmetric, "WeightSymmetric": True,
                    "QuantizeBias": not symmetric, "AddQDQPairToWeight": symmetric,
                    # Else the layer before one that is kept hands it eight bits all the same.
                    "OpTypesToExcludeOutputQuantization": operators if keep_fp32 else [],
                },
            )  # fmt: skip
        except Exception as error:  # the quantiser raises whatever its helpers raise
            raise ExportError(f"INT8 quantisation failed: {' '.join(str(error).split())[:300]}") from error
        quantised = onnx.load(result)
    return to_fp16(quantised) if symmetric else quantised


def _activation_bytes(model: onnx.ModelProto) -> int:
    """What the activations of one image take, all layers together."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    sizes = ([max(1, dim.dim_value) for dim in v.type.tensor_type.shape.dim[1:]] for v in graph.value_info)
    return 4 * sum(math.prod(size) for size in sizes)


def sort_nodes(model: onnx.ModelProto) -> None:
    """Put the nodes of ``model`` into an order in which each follows its inputs, stable otherwise."""
    graph = model.graph
    ready = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer} | {""}
    produced = {name for node in graph.node for name in node.output}
    waiting, ordered = list(graph.node), []
    while waiting:
        later = []
        for node in waiting:
            if all(name in ready or name not in produced for name in node.input):
                ordered.append(node)
                ready.update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):  # a cycle: leave it for the checker to report
            ordered.extend(later)
            break
        waiting = later
    del graph.node[:]
    graph.node.extend(ordered)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the converters' advice on their own earlier steps, which our pipeline has taken.

    Histograms are announced on standard output, where ``--json`` writes.
    """
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
