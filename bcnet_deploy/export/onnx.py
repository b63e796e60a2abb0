"""A PyTorch module to an ONNX file: traced, cleaned, converted, checked, compared, then put in place.

The exporter is PyTorch's TorchScript-based one. Over all torchvision CNNs it is several times faster
than the torch.export-based one, folds batch norms and names each node by its module path, which the
per-layer times of every runtime are mapped back by. A module that it cannot export goes to the
torch.export-based one.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bcnet_deploy import files
from bcnet_deploy.errors import ExportError
from bcnet_deploy.export import metadata as meta
from bcnet_deploy.export.graph import tidy
from bcnet_deploy.export.metadata import ModelMetadata
from bcnet_deploy.export.parity import Parity, compare, named_tensors, outputs_of_onnx, outputs_of_torch
from bcnet_deploy.export.quantise import Quantised, Score, nodes_of, quantise
from bcnet_deploy.models.checkpoints import check_finite
from bcnet_deploy.runtime.precision import PRECISIONS, Calibration, Precision, Target, to_fp16, to_int8

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import nn

DEFAULT_OPSET = 19
"""The first opset whose QuantizeLinear takes float16, which INT8 engines with FP16 around need."""

OPSETS = range(17, 21)
"""17 brought LayerNormalization (ConvNeXt); the exporter ends at 20."""

INPUT = "input"
_PROTOBUF_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class ExportResult:
    """A network that was written.

    Attributes:
        path: the ONNX file.
        precision: of the computation; inputs and outputs are float32 always.
        batch: fixed batch size, or None when it is dynamic.
        opset: ONNX operator set.
        sha256: of the file.
        size_bytes: of the file.
        operators: how many nodes of each operator.
        parity: comparison with PyTorch; None when no inputs were given for it.
        exporter: ``torchscript`` or ``dynamo``.
        seconds: wall time of the export, checks included.
        quantised: what INT8 loses; None for other precisions, or where no ``score`` was given.
    """

    path: Path
    precision: Precision
    batch: int | None
    opset: int
    sha256: str
    size_bytes: int
    operators: Mapping[str, int]
    parity: Parity | None
    exporter: str
    seconds: float
    quantised: Quantised | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form; the path is the file's name alone, so that folders can move."""
        return {
            "file": self.path.name, "precision": self.precision, "batch": self.batch, "opset": self.opset,
            "sha256": self.sha256, "size_bytes": self.size_bytes, "operators": dict(self.operators),
            "parity": self.parity.to_dict() if self.parity else None,
            "exporter": self.exporter, "seconds": round(self.seconds, 3),
            "quantised": self.quantised.to_dict() if self.quantised else None,
        }  # fmt: skip


def export_onnx(
    module: nn.Module,
    path: str | Path,
    input_size: tuple[int, int, int],
    *,
    parity_inputs: NDArray[np.float32] | torch.Tensor | None,
    precision: Precision = "fp32",
    batch: int | None = 1,
    opset: int = DEFAULT_OPSET,
    calibration_inputs: NDArray[np.float32] | torch.Tensor | None = None,
    target: Target = "ort",
    score: Score | None = None,
    methods: Sequence[Calibration] = ("minmax",),
    counts: Sequence[int] = (),
    keep_fp32: Collection[str] = (),
    max_loss: float | None = None,
    chance: float = 0.0,
    metadata: ModelMetadata | None = None,
    tolerance: float | None = None,
    minimum_top1: float | None = None,
    parity_threads: int = 1,
) -> ExportResult:
    """Write ``module`` to ``path`` as ONNX, checked; a former file stays if anything fails.

    The module is copied, put into evaluation mode and exported with batch norms folded. The result
    passes the ONNX checker with strict shape inference and, on ``parity_inputs``, the comparison of
    :mod:`bcnet_deploy.export.parity`.

    Args:
        module: takes (N, C, H, W) float32 and returns a tensor, or a mapping or tuple of tensors, each of
            which becomes an output (:func:`bcnet_deploy.export.parity.named_tensors`).
        path: the file to write.
        input_size: (C, H, W).
        parity_inputs: real, preprocessed inputs (N, C, H, W); None skips the comparison.
        precision: ``fp32``, ``fp16`` or ``int8``.
        batch: fixed batch size, or None for a dynamic one.
        opset: 17 to 20.
        calibration_inputs: for INT8; ``parity_inputs`` when None (better: other images).
        target: the runtime an INT8 file is for, see :func:`to_int8`.
        score: accuracy of a network on held-out images, measured before and after INT8, see
            :func:`bcnet_deploy.export.quantise.accuracy_on`.
        methods, counts, keep_fp32, max_loss, chance: of INT8, see
            :func:`bcnet_deploy.export.quantise.quantise`.
        metadata: kept in the file; its precision is overwritten.
        tolerance: largest admissible relative error instead of the precision's.
        minimum_top1: smallest admissible top-1 agreement instead of the precision's.
        parity_threads: threads of ONNX Runtime for the comparison.

    Raises:
        ExportError: an argument is out of range, the module cannot be exported, or a check fails.
        NonFiniteWeightError: a weight is NaN or infinite.
        EngineError: ONNX Runtime lacks an operator.
        RunDirError: the file cannot be written.
    """
    start = time.perf_counter()
    if precision not in PRECISIONS:
        raise ExportError(f"unknown precision {precision!r}; allowed are {', '.join(PRECISIONS)}")
    if opset not in OPSETS:
        raise ExportError(f"opset {opset} is out of range; allowed are {OPSETS[0]} to {OPSETS[-1]}")
    if batch is not None and batch < 1:
        raise ExportError(f"a batch of {batch} was asked for; give 1 or more, or a dynamic batch")
    if precision == "int8" and target == "trt" and opset < 19:
        raise ExportError(f"INT8 for TensorRT needs opset 19 or newer (float16 scales); given {opset}")
    images = _images(parity_inputs, input_size, "parity")
    calibration = _images(calibration_inputs, input_size, "calibration")
    if precision == "int8" and calibration is None:
        calibration = images
        if calibration is None:
            raise ExportError("INT8 needs calibration inputs; give images of the training data")

    check_finite(module, "the network to export")
    model, exporter = trace(module, input_size, batch=batch, opset=opset)
    quantised: Quantised | None = None
    if precision == "fp16":
        model = to_fp16(model)
    elif precision == "int8":
        assert calibration is not None
        if score is not None:
            quantised = quantise(
                model, calibration, score, target=target, methods=methods, counts=counts,
                keep_fp32=keep_fp32, max_loss=max_loss, chance=chance,
            )  # fmt: skip
            model = quantised.model
        else:
            nodes = nodes_of(model, keep_fp32)
            model = to_int8(model, calibration, target=target, method=methods[0], keep_fp32=nodes)
    described = replace(metadata or ModelMetadata(), precision=precision)
    if precision == "int8":
        described = replace(described, extra={**described.extra, "int8_target": target})
    meta.attach(model, described)
    model = check(model)
    data = model.SerializeToString()
    parity = None
    if images is not None:
        import onnxruntime

        optimise = not (precision == "int8" and target == "trt")
        runtime = f"ONNX Runtime {onnxruntime.__version__}, CPU{'' if optimise else ', graph as written'}"
        parity = compare(
            outputs_of_torch(module, images),
            outputs_of_onnx(data, images, threads=parity_threads, optimise=optimise),
            precision=precision, runtime=runtime, tolerance=tolerance, minimum_top1=minimum_top1,
        )  # fmt: skip
        if not parity.passed:
            raise ExportError(
                f"the {precision.upper()} export does not compute what PyTorch does: {parity.summary()}; "
                f"allowed: error {parity.tolerance:g}, agreement {parity.minimum_top1:.0%}. "
                "Nothing was written; try another --precision, or more representative calibration data"
            )
    files.write_bytes(path, data)
    return ExportResult(
        path=Path(path), precision=precision, batch=batch, opset=opset, sha256=meta.sha256(path),
        size_bytes=len(data), operators=dict(Counter(node.op_type for node in model.graph.node)),
        parity=parity, exporter=exporter, seconds=time.perf_counter() - start,
        quantised=quantised,
    )  # fmt: skip


def trace(
    module: nn.Module, input_size: tuple[int, int, int], *, batch: int | None = 1, opset: int = DEFAULT_OPSET
) -> tuple[onnx.ModelProto, str]:
    """``module`` as a tidy FP32 ONNX model, and the name of the exporter that made it.

    Raises:
        ExportError: neither exporter can, or the file would be over protobuf's 2 GiB.
    """
    import onnx
    import torch
    from torch.nn.utils import parametrize

    from bcnet_deploy.space.patching import copied

    parameters = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    if parameters > _PROTOBUF_LIMIT:
        raise ExportError(
            f"the network's weights take {parameters / 2**30:.1f} GiB; one ONNX file holds 2 GiB: "
            "choose smaller widths"
        )
    plain = copied(module).to("cpu", torch.float32).eval()
    for parameter in plain.parameters():
        parameter.requires_grad_(False)
    # With a dynamic batch the example has 2: a size of 1 would be taken for a constant.
    example = torch.zeros((2 if batch is None else batch, *input_size))
    with torch.inference_mode():
        try:
            result = plain(example)
        except (RuntimeError, ValueError, IndexError) as error:
            raise ExportError(
                f"the module does not run on inputs of {input_size}: {str(error).strip().splitlines()[0]}"
            ) from error
    names = list(named_tensors(result))
    if not isinstance(result, torch.Tensor):
        # A hook, no module around it: nodes are named by module paths. Sizes that the network returns are
        # tensors in a trace; they are no outputs.
        plain.register_forward_hook(
            lambda _, __, outputs: tuple(t for name, t in named_tensors(outputs).items() if name in names)
        )
    dynamic = batch is None
    try:
        model, exporter = _torchscript(plain, example, names, dynamic=dynamic, opset=opset), "torchscript"
    except Exception as first:  # the exporter raises many kinds, RuntimeError among them
        if any(map(parametrize.is_parametrized, module.modules())):
            return trace(_without_parametrizations(module), input_size, batch=batch, opset=opset)
        try:
            model, exporter = _dynamo(plain, example, names, dynamic=dynamic, opset=opset), "dynamo"
        except Exception as second:
            raise ExportError(
                "PyTorch cannot export the module to ONNX: "
                f"{' '.join(str(first).split())[:200]}; "
                f"and by torch.export: {' '.join(str(second).split())[:200]}"
            ) from second
    tidy(model)
    model.producer_name = "bcnet-deploy"
    assert isinstance(model, onnx.ModelProto)
    return model, exporter


def _without_parametrizations(module: nn.Module) -> nn.Module:
    """A copy with the weights that parametrizations compute (an orthogonal one, say) in their place."""
    from torch import nn
    from torch.nn.utils import parametrize

    from bcnet_deploy.space.patching import copied

    plain = copied(module).eval()
    for part in [part for part in plain.modules() if parametrize.is_parametrized(part)]:
        weights = {name: getattr(part, name).detach() for name in part.parametrizations}  # type: ignore[union-attr]
        # PyTorch's own way takes the property off the class, which the original shares.
        part.__class__ = type(part).__bases__[0]
        del part.parametrizations
        for name, weight in weights.items():
            part.register_parameter(name, nn.Parameter(weight, requires_grad=False))
    return plain


def check(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with all shapes inferred, after the ONNX checker and strict shape inference.

    Raises:
        ExportError: a check fails, or a node's output has no inferred type.
    """
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        text = " ".join(str(error).split())[:400]
        raise ExportError(f"the exported network is not valid ONNX: {text}") from error
    known = {value.name for value in [*inferred.graph.value_info, *inferred.graph.output]}
    unknown = [name for node in inferred.graph.node for name in node.output if name and name not in known]
    if unknown:
        raise ExportError(f"shape inference finds no type for {unknown[0]!r} of the exported network")
    return inferred


def _torchscript(
    module: nn.Module, example: torch.Tensor, names: list[str], *, dynamic: bool, opset: int
) -> onnx.ModelProto:
    import onnx
    import torch

    axes = {name: {0: "batch"} for name in (INPUT, *names)} if dynamic else None
    with (
        tempfile.TemporaryDirectory(prefix="bcnet-export-") as folder,
        warnings.catch_warnings(),
        _without_graph_dump(),
    ):
        path = str(Path(folder) / "network.onnx")
        # Deprecated in favour of the other exporter, which is slower and loses the module paths.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (example,), path, dynamo=False, opset_version=opset, do_constant_folding=True,
            input_names=[INPUT], output_names=names, dynamic_axes=axes,
        )  # fmt: skip
        return onnx.load(path)


@contextlib.contextmanager
def _without_graph_dump() -> Iterator[None]:
    """The exporter that fails prints the whole graph on standard output, where ``--json`` writes.

    It switches its log on whatever the caller says; so the log goes to standard error (unbuffered), and
    that, for the time, nowhere. The error itself is raised and not lost.
    """
    import torch

    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    torch._C._jit_set_onnx_log_output_stream("stderr")
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
        torch._C._jit_set_onnx_log_output_stream("stdout")


def _dynamo(
    module: nn.Module, example: torch.Tensor, names: list[str], *, dynamic: bool, opset: int
) -> onnx.ModelProto:
    import torch

    shapes = ({0: torch.export.Dim.AUTO},) if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, (example,), dynamo=True, opset_version=opset, input_names=[INPUT], output_names=names,
            dynamic_shapes=shapes, verbose=False,
        )  # fmt: skip
    assert program is not None
    return program.model_proto


def _images(
    given: NDArray[np.float32] | torch.Tensor | None, input_size: tuple[int, int, int], what: str
) -> NDArray[np.float32] | None:
    if given is None:
        return None
    images = np.asarray(given.detach().cpu().numpy() if hasattr(given, "detach") else given, dtype=np.float32)
    if images.ndim != 4 or images.shape[1:] != tuple(input_size) or len(images) == 0:
        raise ExportError(
            f"{what} inputs have shape {images.shape}; the network takes N x {input_size}, N 1 or more"
        )
    return images
