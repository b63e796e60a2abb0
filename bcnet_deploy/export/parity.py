"""Does an exported network compute what the PyTorch module computes?

Conventions. ``max_abs_error`` is the largest absolute difference of any output of any input.
``max_relative_error`` divides, input by input, the largest difference by the largest magnitude of
PyTorch's outputs for that input, and takes the worst input: near-zero single outputs do not inflate
it, and an input with small outputs is not hidden behind one with large outputs. Of several outputs the worst
counts. ``top1_agreement`` is the share of decisions that are the same: which of the classes is largest, of
each input, or for outputs (N, classes, H, W) of each pixel; ties go to the first. Where there are several
outputs, those called ``logits`` or ``out`` decide; without one nothing is decided.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bcnet_deploy.errors import EngineError, ExportError

if TYPE_CHECKING:
    from torch import nn

Outputs = Mapping[str, NDArray[Any]]
"""What a network computes for N inputs: arrays (N, ...) by name."""

_DECIDING = ("logits", "out")

TOLERANCE = {"fp32": 1e-4, "fp16": 5e-2, "bf16": 1e-1, "int8": math.inf}
"""Largest admissible ``max_relative_error`` by precision; INT8 is judged by its top-1 alone."""

UNDECIDED_INT8 = 0.5
"""The same for INT8 where no output decides between classes: then nothing else could fail."""

MINIMUM_TOP1 = {"fp32": 1.0, "fp16": 0.99, "bf16": 0.95, "int8": 0.9}
"""Smallest admissible ``top1_agreement`` by precision. Below 100% one disagreement is always admitted,
since one of a few inputs would be more than the share allows."""


DENSE_TOP1 = 0.999
"""At most this is asked of decisions by the pixel: among so many some are ties but for rounding."""

TIE_ULPS = 32
"""Units in the last place of float32, at the largest output, within which two outputs are a tie.

Summed in another order, the demo's logits differ by up to 7 of them, and either of two may: their order is
open within 14. Deeper networks differ by more.
"""


@dataclass(frozen=True)
class Parity:
    """Outcome of a comparison; see the module for the conventions."""

    inputs: int
    max_abs_error: float
    max_relative_error: float
    top1_agreement: float
    tolerance: float
    minimum_top1: float
    runtime: str
    decisions: int | None = None
    """How many the agreement is of; None: one an input."""

    @property
    def disagreements(self) -> int:
        return round((1.0 - self.top1_agreement) * self._decided)

    @property
    def _decided(self) -> int:
        return self.inputs if self.decisions is None else self.decisions

    @property
    def passed(self) -> bool:
        """Whether both errors are within their bars; NaN never is."""
        spare = (
            0 if self.minimum_top1 >= 1.0 else max(1, math.floor((1.0 - self.minimum_top1) * self._decided))
        )
        return self.max_relative_error <= self.tolerance and self.disagreements <= spare

    def summary(self) -> str:
        """One line for people."""
        agreed = ""
        if self._decided:
            agreed = f", top-1 agreement {self.top1_agreement:.{2 if self.decisions is None else 4}%}"
        return (
            f"max abs error {self.max_abs_error:.3g}, max relative error {self.max_relative_error:.3g}"
            f"{agreed} on {self.inputs} inputs ({self.runtime})"
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form; an absent tolerance and non-finite errors are None."""

        def finite(value: float) -> float | None:
            return value if math.isfinite(value) else None

        return {
            "inputs": self.inputs,
            **({} if self.decisions is None else {"decisions": self.decisions}),
            "max_abs_error": finite(self.max_abs_error),
            "max_relative_error": finite(self.max_relative_error),
            "top1_agreement": self.top1_agreement,
            "tolerance": finite(self.tolerance),
            "minimum_top1": self.minimum_top1,
            "passed": self.passed,
            "runtime": self.runtime,
            "summary": self.summary(),
        }


def compare(
    reference: Outputs | NDArray[np.floating], outputs: Outputs | NDArray[np.floating], *, precision: str,
    runtime: str, tolerance: float | None = None, minimum_top1: float | None = None,
) -> Parity:  # fmt: skip
    """Compare outputs (N, ...) with references of the same names and shapes.

    Args:
        reference, outputs: by name; an array alone stands for logits (N, classes) or (N, classes, H, W).
        precision: whose bars hold where none are given.
        runtime: that computed the outputs, for people.

    Raises:
        ExportError: names or shapes differ, or there is no input.
    """
    expected = reference if isinstance(reference, Mapping) else {"logits": reference}
    given = outputs if isinstance(outputs, Mapping) else {"logits": outputs}
    shapes = {name: one.shape for name, one in expected.items()}
    theirs = {name: one.shape for name, one in given.items()}
    if shapes != theirs or not shapes or 0 in next(iter(shapes.values()))[:1]:
        shown = [", ".join(f"{name} {shape}" for name, shape in both.items()) for both in (theirs, shapes)]
        raise ExportError(
            f"the exported network's outputs have shape {shown[0]}, PyTorch's {shown[1]}; "
            "parity needs the same shape and at least one input"
        )
    errors = [_errors(expected[name], given[name]) for name in expected]
    largest, relative = (float(worst) for worst in np.max(errors, axis=0))  # NaN, where there is one
    decides = _deciding(expected)
    agreed: NDArray[np.floating] = np.ones(0)
    dense = False
    if decides is not None and expected[decides].reshape(len(expected[decides]), -1).shape[1] > 1:
        agreed, dense = _agreements(expected[decides], given[decides])
    if dense and expected[decides or ""].shape[1] == 1:
        agreed, dense = np.ones(0), False  # one class at each pixel
    usual = UNDECIDED_INT8 if precision == "int8" and not agreed.size else TOLERANCE[precision]
    bar = MINIMUM_TOP1[precision] if minimum_top1 is None else minimum_top1
    return Parity(
        inputs=len(next(iter(expected.values()))),
        max_abs_error=largest,
        max_relative_error=relative,
        top1_agreement=float(agreed.mean()) if agreed.size else 1.0,
        tolerance=usual if tolerance is None else tolerance,
        minimum_top1=min(bar, DENSE_TOP1) if dense and minimum_top1 is None else bar,
        runtime=runtime,
        decisions=agreed.size if dense or not agreed.size else None,
    )


def _errors(reference: NDArray[np.floating], outputs: NDArray[np.floating]) -> tuple[float, float]:
    """Largest absolute and relative difference, see the module."""
    exact = np.asarray(reference, dtype=np.float64).reshape(len(reference), -1)
    given = np.asarray(outputs, dtype=np.float64).reshape(len(outputs), -1)
    difference = np.abs(exact - given).max(axis=1, initial=0.0)
    scale = np.abs(exact).max(axis=1, initial=0.0)
    relative = np.divide(difference, scale, out=np.where(difference > 0, np.inf, 0.0), where=scale > 0)
    relative[~np.isfinite(difference)] = np.nan
    return float(difference.max()), float(relative.max())


def _agreements(
    reference: NDArray[np.floating], outputs: NDArray[np.floating]
) -> tuple[NDArray[np.floating], bool]:
    """Of each decision whether it is the same, and whether there is one for each pixel."""
    exact, given = np.asarray(reference, dtype=np.float64), np.asarray(outputs, dtype=np.float64)
    dense = exact.ndim == 4 and exact.shape[2] * exact.shape[3] > 1
    if dense:
        exact, given = (np.moveaxis(one, 1, -1).reshape(-1, one.shape[1]) for one in (exact, given))
    else:
        exact, given = (one.reshape(len(one), -1) for one in (exact, given))
    return np.asarray(_agrees(exact, given, np.abs(exact).max(axis=1)), dtype=float), dense


def _agrees(exact: NDArray[np.float64], given: NDArray[np.float64], scale: NDArray[np.float64]) -> Any:
    """(N,) whether both name the same class, or classes that the reference cannot tell apart in float32.

    Which of two such outputs is larger depends on the order of summation: PyTorch itself may name one class
    for an image alone and the other within a batch.
    """
    rows = np.arange(len(exact))
    best, named = exact.argmax(axis=1), given.argmax(axis=1)
    return exact[rows, best] - exact[rows, named] <= TIE_ULPS * np.finfo(np.float32).eps * scale


def run_torch(module: nn.Module, inputs: NDArray[np.float32], batch: int = 32) -> NDArray[np.float32]:
    """The first output of ``module`` (in evaluation mode, on its own device) for inputs (N, C, H, W)."""
    return next(iter(outputs_of_torch(module, inputs, batch).values()))


def outputs_of_torch(module: nn.Module, inputs: NDArray[np.float32], batch: int = 32) -> Outputs:
    """All the outputs of ``module`` for inputs (N, C, H, W), by the names they are exported under."""
    import torch

    parameter = next(module.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        with torch.inference_mode():
            parts: list[Outputs] = []
            for start in range(0, len(inputs), batch):
                part = torch.from_numpy(np.ascontiguousarray(inputs[start : start + batch])).to(device)
                found = named_tensors(module(part))
                parts.append({name: one.float().cpu().numpy() for name, one in found.items()})
    finally:
        for each, training in modes:  # a part may be frozen in evaluation mode
            each.training = training
    return _joined(parts)


def named_tensors(outputs: Any) -> dict[str, Any]:
    """The tensors of a network's outputs by the names they are exported under, in order.

    One tensor is called ``logits``, those of a mapping by their keys, of a tuple ``output_0`` and so on.

    Raises:
        ExportError: there is none.
    """
    import torch
    from torch.utils import _pytree as pytree

    if isinstance(outputs, torch.Tensor):
        return {"logits": outputs}
    named: dict[str, Any] = {}
    for path, leaf in pytree.tree_flatten_with_path(outputs)[0]:
        if isinstance(leaf, torch.Tensor):
            words = [
                re.sub(r"\W+", "_", str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))))
                for key in path
            ]
            name = "_".join(words)
            name = f"output_{name}" if name[:1].isdecimal() else name
            named[f"{name}_{len(named)}" if name in named or name == "input" else name] = leaf
    if not named:
        raise ExportError(
            f"the module returns a {type(outputs).__name__} without a tensor; export takes modules that "
            "return tensors, alone or in mappings and tuples"
        )
    return named


def _joined(parts: Sequence[Outputs]) -> Outputs:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _deciding(outputs: Mapping[str, object]) -> str | None:
    """The output that says what a network decides: the only one, or the one of that name; None: none does."""
    if len(outputs) == 1:
        return next(iter(outputs))
    return next((name for name in _DECIDING if name in outputs), None)


def run_onnx(
    model: bytes, inputs: NDArray[np.float32], *, batch: int = 32, threads: int = 1, optimise: bool = True
) -> NDArray[np.float32]:
    """The output of a serialised ONNX model that decides, or else its first; see :func:`outputs_of_onnx`."""
    found = outputs_of_onnx(model, inputs, batch=batch, threads=threads, optimise=optimise)
    return found[_deciding(found) or next(iter(found))]


def outputs_of_onnx(
    model: bytes, inputs: NDArray[np.float32], *, batch: int = 32, threads: int = 1, optimise: bool = True
) -> Outputs:
    """Outputs of a serialised ONNX model under ONNX Runtime on the CPU for inputs (N, C, H, W), by name.

    A static batch of the model wins over ``batch``; the last part is filled up with its first input.
    ``optimise=False`` runs the graph as it is written: the fusions of ONNX Runtime 1.32 give wrong results,
    or refuse, where Q/DQ scales are float16, which only files for TensorRT have.

    Raises:
        EngineError: the runtime lacks an operator or cannot load or run the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        feed = session.get_inputs()[0]
        fixed = feed.shape[0] if isinstance(feed.shape[0], int) else None
        size = fixed or batch
        parts = []
        for start in range(0, len(inputs), size):
            part = np.ascontiguousarray(inputs[start : start + size], dtype=np.float32)
            missing = (fixed or 0) - len(part)
            if missing > 0:
                part = np.concatenate([part, np.repeat(part[:1], missing, axis=0)])
            kept = size if missing <= 0 else size - missing
            names = [one.name for one in session.get_outputs()]
            found = session.run(None, {feed.name: part})
            parts.append({name: one[:kept] for name, one in zip(names, found, strict=True)})
    except Exception as error:  # onnxruntime's own exceptions share no public base class
        raise EngineError(ort_message(error)) from error
    return _joined(parts)


def ort_message(error: BaseException) -> str:
    """One line from an ONNX Runtime exception, with what to do next."""
    import onnxruntime

    text = " ".join(str(error).split())
    version = f"ONNX Runtime {onnxruntime.__version__}"
    lacking = re.search(
        r"Could not find an implementation for (\S+?)(?:\((\d+)\))? node with name '([^']*)'", text
    )
    if lacking:
        operator, opset, node = lacking.groups()
        return (
            f"{version} has no CPU kernel for operator {operator}{f' of opset {opset}' if opset else ''} "
            f"(node {node!r}); export with another --opset or --precision, or use a newer onnxruntime"
        )
    unknown = re.search(r"No Op registered for (\S+)|Unrecognized operator[: ]+(\S+)", text)
    if unknown:
        return (
            f"{version} does not know operator {next(g for g in unknown.groups() if g)}; "
            "export with another --opset, or use a newer onnxruntime"
        )
    return f"{version} refuses the network: {text[:400]}"
