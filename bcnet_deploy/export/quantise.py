"""INT8 with its accuracy known: what is lost, which layers lose most, and which stay in FP32 for it.

Quantisation is ONNX Runtime's (``onnxruntime.quantization``). What is chosen here, calibration method and
layers kept in FP32, is chosen by the accuracy of the quantised network on held-out images.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bcnet_deploy.errors import ExportError, nearest
from bcnet_deploy.export.parity import run_onnx
from bcnet_deploy.runtime.layer_names import module_of
from bcnet_deploy.runtime.precision import Calibration, Target, images_used, sort_nodes, to_int8
from bcnet_deploy.tasks import has_learned

if TYPE_CHECKING:
    import onnx

Score = Callable[[bytes], float]
"""Accuracy of a serialised ONNX network, 0 to 1; higher is better."""

_QUANTISED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_SHOWN = 5
_MOST_KEPT = 0.25  # of the layers: with more in FP32 there is little left to gain
_ERROR_IMAGES = 16
_ENOUGH = 0.001  # of accuracy lost: no other calibration is tried for less
_AT_CHANCE = 0.1  # of what FP32 has above chance: with less left, a network guesses


@dataclass(frozen=True)
class Quantised:
    """An INT8 network and what it loses.

    Attributes:
        model: with Q/DQ pairs.
        score, fp32_score: accuracy of it, and of the FP32 network, on the same images.
        method: of the calibration. images: how many it saw.
        weakest: the layers that lose most, and the relative error of the outputs by each of them alone.
        kept_fp32: layers that are not quantised.
    """

    model: onnx.ModelProto
    score: float
    fp32_score: float
    method: Calibration
    weakest: tuple[tuple[str, float], ...]
    kept_fp32: tuple[str, ...]
    images: int

    @property
    def loss(self) -> float:
        return self.fp32_score - self.score

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form, without the network."""
        return {
            "accuracy": self.score, "fp32_accuracy": self.fp32_score, "calibration": self.method,
            "calibration_images": self.images,
            "weakest": [{"layer": name, "output_error": round(value, 5)} for name, value in self.weakest],
            "kept_fp32": list(self.kept_fp32), "summary": self.summary(),
        }  # fmt: skip

    def summary(self) -> str:
        """One line for people."""
        kept = f"; in FP32: {', '.join(self.kept_fp32)}" if self.kept_fp32 else ""
        worst = ", ".join(f"{name} ({value:.1%})" for name, value in self.weakest[:3])
        return (
            f"accuracy {self.score:.2%} in INT8, {self.fp32_score:.2%} in FP32; "
            f"layers that lose most: {worst}{kept}"
        )


def accuracy_on(
    images: NDArray[np.float32], labels: NDArray[np.int64], *, target: Target = "ort", threads: int = 1
) -> Score:
    """Top-1 accuracy on held-out ``images`` (N, C, H, W) with ``labels`` (N,), by ONNX Runtime.

    ``target``: the runtime that INT8 files are for; those for TensorRT are run as they are written.

    Raises:
        ExportError: there are no images, or not one label for each.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise ExportError(f"accuracy needs one label an image; given {len(images)} and {len(labels)}")

    def score(network: bytes) -> float:
        outputs = run_onnx(network, images, threads=threads, optimise=target == "ort")
        return float((outputs.reshape(len(outputs), -1).argmax(axis=1) == labels).mean())

    return score


def quantise(
    model: onnx.ModelProto,
    calibration: NDArray[np.float32],
    score: Score,
    *,
    target: Target = "ort",
    methods: Sequence[Calibration] = ("minmax",),
    counts: Sequence[int] = (),
    keep_fp32: Collection[str] = (),
    max_loss: float | None = None,
    chance: float = 0.0,
) -> Quantised:
    """``model`` in INT8, measured.

    Of each method with each number of images, in that order, the one with the highest score is taken; none
    is tried after one that loses a tenth of a point or less. Where it loses more than ``max_loss``, the
    layers that lose most stay in FP32, more and more of them, until it does not.

    Args:
        model: FP32 network.
        calibration: images of the training data (N, C, H, W).
        score: accuracy on held-out images.
        target: the runtime that the file is for.
        methods: of calibration.
        counts: how many of the images; all of them if empty.
        keep_fp32: modules that stay in FP32 in any case.
        max_loss: accuracy that may be lost, as a share: 0.005 is half a point. None: whatever is lost.
        chance: the accuracy of guessing.

    Raises:
        ExportError: a module is unknown, there is no calibration input, ``max_loss`` is not reached with a
            quarter of the layers in FP32, or the quantised network guesses where the FP32 one does not; the
            layers that lose most are named.
    """
    layers = _layers(model)
    nodes_of(model, keep_fp32)
    before = score(model.SerializeToString())
    kept = list(keep_fp32)
    tried: list[tuple[float, Calibration, int, onnx.ModelProto]] = []
    for method, wanted in product(methods, counts or (len(calibration),)):
        count = images_used(model, min(wanted, len(calibration)), method)
        if any((method, count) == (by, of) for _, by, of, _ in tried):
            continue  # there are no more images, or no memory for them
        quantised, after = _once(model, calibration[:count], score, target, method, kept)
        tried.append((after, method, count, quantised))
        if before - after <= _ENOUGH:
            break
    after, method, count, quantised = max(tried, key=lambda entry: entry[0])
    calibration = calibration[:count]
    # Files for TensorRT have FP16 around, which is not what is asked here.
    plain = quantised if target == "ort" else to_int8(model, calibration, method=method)
    errors = layer_errors(model, plain, calibration[:_ERROR_IMAGES])
    order = sorted((name for name in errors if name not in kept), key=errors.__getitem__, reverse=True)
    weakest = tuple((name, errors[name]) for name in order[:_SHOWN])
    # One layer stays in INT8 at least, or the file would be one of FP32.
    most = min(max(1, int(_MOST_KEPT * len(layers))), len(order) - 1)
    more = 0
    while max_loss is not None and before - after > max_loss:
        if more >= most:
            raise ExportError(
                f"INT8 loses {before - after:.2%} of accuracy ({after:.2%} after {before:.2%}), allowed is "
                f"{max_loss:.2%}, and {len(kept)} layers in FP32 do not help; those that lose most: "
                f"{', '.join(name for name, _ in weakest)}; allow more, or export FP32"
            )
        more = min(max(1, 2 * more), most)
        kept = [*keep_fp32, *order[:more]]
        quantised, after = _once(model, calibration, score, target, method, kept)
    if has_learned(before, chance) and after - chance <= _AT_CHANCE * (before - chance):
        raise ExportError(
            f"INT8 leaves an accuracy of {after:.2%}, about what chance gives ({chance:.2%}); FP32 has "
            f"{before:.2%}; layers that lose most: {', '.join(name for name, _ in weakest)}; keep them in "
            "FP32 (--keep-fp32, or --max-loss), give more representative calibration images, or export FP32"
        )
    return Quantised(quantised, after, before, method, weakest, tuple(kept), len(calibration))


def layer_errors(
    model: onnx.ModelProto, quantised: onnx.ModelProto, images: NDArray[np.float32]
) -> dict[str, float]:
    """By module: the error of the network's outputs where that layer alone is in INT8.

    The error is a root mean square, relative to that of the FP32 outputs.

    Args:
        model: FP32 network.
        quantised: the same, of :func:`to_int8` with target ``ort``.
        images: (N, C, H, W) that outputs are compared on.
    """
    exact = run_onnx(model.SerializeToString(), images)
    scale = float(np.sqrt(np.mean(np.square(exact)))) or 1.0
    found = {}
    for name in _layers(model):
        outputs = run_onnx(_only(model, quantised, name).SerializeToString(), images)
        found[name] = float(np.sqrt(np.mean(np.square(outputs - exact)))) / scale
    return found


def _only(model: onnx.ModelProto, quantised: onnx.ModelProto, module: str) -> onnx.ModelProto:
    """``model`` with the inputs of one module's layers quantised as in ``quantised``."""
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(model)
    twins = {node.name: node for node in quantised.graph.node}
    makers = {name: node for node in quantised.graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in quantised.graph.initializer}
    added: list[onnx.NodeProto] = []
    for node in result.graph.node:
        if node.op_type not in _QUANTISED or module_of(node.name) != module:
            continue
        for index, name in enumerate(node.input):
            last = makers.get(twins[node.name].input[index])
            if last is None or last.op_type != "DequantizeLinear":
                continue
            # A parameter is quantised already; what comes from another layer has a QuantizeLinear before it.
            first = makers.get(last.input[0])
            for step in filter(None, (first, last)):
                pair = onnx.NodeProto()
                pair.CopyFrom(step)
                pair.name = f"{node.name}/{index}/{step.op_type}"
                if step is first:
                    pair.input[0] = name
                elif first is not None:
                    pair.input[0] = f"{node.name}/{index}/QuantizeLinear"
                pair.output[0] = pair.name
                added.append(pair)
            node.input[index] = added[-1].name
    needed = {name for pair in added for name in pair.input} & set(constants)
    result.graph.initializer.extend(constants[name] for name in sorted(needed))
    result.graph.node.extend(added)
    sort_nodes(result)
    return result


def _once(
    model: onnx.ModelProto, calibration: NDArray[np.float32], score: Score, target: Target,
    method: Calibration, kept: Collection[str],
) -> tuple[onnx.ModelProto, float]:  # fmt: skip
    nodes = nodes_of(model, kept)
    quantised = to_int8(model, calibration, target=target, method=method, keep_fp32=nodes)
    return quantised, score(quantised.SerializeToString())


def nodes_of(model: onnx.ModelProto, modules: Collection[str]) -> list[str]:
    """The names of all nodes of some modules with weights. Raises :class:`ExportError` for unknown ones."""
    layers = _layers(model)
    for name in modules:
        if name not in layers:
            raise ExportError(
                f"the network has no layer {name!r}{nearest(name, layers)}; 'bcnet-deploy inspect' lists them"
            )
    return [node for name in modules for node in layers[name]]


def _layers(model: onnx.ModelProto) -> dict[str, list[str]]:
    """By module with weights: all of its nodes, in order."""
    found: dict[str, list[str]] = {}
    weighted = {module_of(node.name) for node in model.graph.node if node.op_type in _QUANTISED}
    for node in model.graph.node:
        if (module := module_of(node.name)) in weighted:
            found.setdefault(module, []).append(node.name)
    return found
