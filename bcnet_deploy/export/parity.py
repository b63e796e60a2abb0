"""Does an exported network compute what the PyTorch module computes?

Conventions. ``max_abs_error`` is the largest absolute difference of any output of any input.
``max_relative_error`` divides, input by input, the largest difference by the largest magnitude of
PyTorch's outputs for that input, and takes the worst input: near-zero single outputs do not inflate
it, and an input with small outputs is not hidden behind one with large outputs. ``top1_agreement`` is
the share of inputs whose largest output is the same one; ties go to the first.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bcnet_deploy.errors import EngineError, ExportError

if TYPE_CHECKING:
    from torch import nn

TOLERANCE = {"fp32": 1e-4, "fp16": 5e-2, "bf16": 1e-1, "int8": math.inf}
"""Largest admissible ``max_relative_error`` by precision; INT8 is judged by its top-1 alone."""

MINIMUM_TOP1 = {"fp32": 1.0, "fp16": 0.99, "bf16": 0.95, "int8": 0.9}
"""Smallest admissible ``top1_agreement`` by precision. Below 100% one disagreement is always admitted,
since one of a few inputs would be more than the share allows."""


TIE_ULPS = 8
"""Units in the last place of float32, at the largest output, within which two outputs are a tie."""


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

    @property
    def disagreements(self) -> int:
        return round((1.0 - self.top1_agreement) * self.inputs)

    @property
    def passed(self) -> bool:
        """Whether both errors are within their bars; NaN never is."""
        spare = 0 if self.minimum_top1 >= 1.0 else max(1, math.floor((1.0 - self.minimum_top1) * self.inputs))
        return self.max_relative_error <= self.tolerance and self.disagreements <= spare

    def summary(self) -> str:
        """One line for people."""
        return (
            f"max abs error {self.max_abs_error:.3g}, max relative error {self.max_relative_error:.3g}, "
            f"top-1 agreement {self.top1_agreement:.2%} on {self.inputs} inputs ({self.runtime})"
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form; an absent tolerance and non-finite errors are None."""

        def finite(value: float) -> float | None:
            return value if math.isfinite(value) else None

        return {
            "inputs": self.inputs,
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
    reference: NDArray[np.floating], outputs: NDArray[np.floating], *, precision: str, runtime: str,
    tolerance: float | None = None, minimum_top1: float | None = None,
) -> Parity:  # fmt: skip
    """Compare outputs (N, classes) with a reference of the same shape.

    Raises:
        ExportError: shapes differ, or there is no input.
    """
    if reference.shape != outputs.shape or len(reference) == 0:
        raise ExportError(
            f"the exported network's outputs have shape {outputs.shape}, PyTorch's {reference.shape}; "
            "parity needs the same shape and at least one input"
        )
    exact = np.asarray(reference, dtype=np.float64).reshape(len(reference), -1)
    given = np.asarray(outputs, dtype=np.float64).reshape(len(outputs), -1)
    difference = np.abs(exact - given).max(axis=1)
    scale = np.abs(exact).max(axis=1)
    relative = np.divide(difference, scale, out=np.where(difference > 0, np.inf, 0.0), where=scale > 0)
    relative[~np.isfinite(difference)] = np.nan
    return Parity(
        inputs=len(exact),
        max_abs_error=float(difference.max()),
        max_relative_error=float(relative.max()),
        top1_agreement=float(_agrees(exact, given, scale).mean()),
        tolerance=TOLERANCE[precision] if tolerance is None else tolerance,
        minimum_top1=MINIMUM_TOP1[precision] if minimum_top1 is None else minimum_top1,
        runtime=runtime,
    )


def _agrees(exact: NDArray[np.float64], given: NDArray[np.float64], scale: NDArray[np.float64]) -> Any:
    """(N,) whether both name the same class, or classes that the reference cannot tell apart in float32.

    Which of two such outputs is larger depends on the order of summation: PyTorch itself may name one class
    for an image alone and the other within a batch.
    """
    rows = np.arange(len(exact))
    best, named = exact.argmax(axis=1), given.argmax(axis=1)
    return exact[rows, best] - exact[rows, named] <= TIE_ULPS * np.finfo(np.float32).eps * scale


def run_torch(module: nn.Module, inputs: NDArray[np.float32], batch: int = 32) -> NDArray[np.float32]:
    """Outputs of ``module`` (in evaluation mode, on its own device) for inputs (N, C, H, W)."""
    import torch

    parameter = next(module.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    training = module.training
    module.eval()
    try:
        with torch.inference_mode():
            parts = []
            for start in range(0, len(inputs), batch):
                part = torch.from_numpy(np.ascontiguousarray(inputs[start : start + batch])).to(device)
                parts.append(module(part).float().cpu().numpy())
    finally:
        module.train(training)
    return np.concatenate(parts)


def run_onnx(
    model: bytes, inputs: NDArray[np.float32], *, batch: int = 32, threads: int = 1, optimise: bool = True
) -> NDArray[np.float32]:
    """Outputs of a serialised ONNX model under ONNX Runtime on the CPU for inputs (N, C, H, W).

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
            parts.append(session.run(None, {feed.name: part})[0][: size if missing <= 0 else size - missing])
    except Exception as error:  # onnxruntime's own exceptions share no public base class
        raise EngineError(ort_message(error)) from error
    return np.concatenate(parts)


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
