"""What is measured, and on which of this machine's runtimes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bcnet_deploy.errors import ExportError
from bcnet_deploy.export import metadata as meta
from bcnet_deploy.runtime.base import Runner
from bcnet_deploy.runtime.ort import OrtRunner, available_providers
from bcnet_deploy.runtime.trt import TrtRunner
from bcnet_deploy.runtime.trt_build import gpu, installed_flavours

CPU, CUDA, TRT = "onnxruntime-cpu", "onnxruntime-cuda", "tensorrt"


@dataclass(frozen=True)
class Subject:
    """A network to measure: its file and what the file says."""

    path: Path
    data: bytes
    metadata: meta.ModelMetadata
    nodes: tuple[str, ...]
    batch: int


def open_subject(path: Path) -> Subject:
    """Read an exported file. Raises :class:`ExportError` where it is missing or no ONNX file."""
    import onnx

    try:
        data = path.read_bytes()
        model = onnx.load_from_string(data)
    except FileNotFoundError:
        raise ExportError(f"no ONNX file at {path}; export it with 'bcnet-deploy export'") from None
    except Exception as error:  # protobuf's decode errors share no base class with onnx's
        raise ExportError(f"{path} is not an ONNX file: {error}") from error
    shape = model.graph.input[0].type.tensor_type.shape.dim if model.graph.input else []
    return Subject(
        path, data, meta.read(model), tuple(node.name for node in model.graph.node),
        shape[0].dim_value if shape else 0,
    )  # fmt: skip


Make = Callable[[bool, bytes], Runner]


def runtimes(
    subjects: Mapping[str, Subject], engines: Mapping[str, str | Path], threads: int
) -> tuple[dict[str, dict[str, Make]], dict[str, str]]:
    """What can be measured here: runtime -> network -> (profiling, model) -> runner; and what cannot, why."""
    providers = available_providers()
    found: dict[str, dict[str, Make]] = {}
    absent: dict[str, str] = {}
    for runtime, provider in ((CPU, "cpu"), (CUDA, "cuda")):
        if provider in providers:
            found[runtime] = {name: _ort(provider, threads, name) for name in subjects}
        else:
            absent[runtime] = f"this ONNX Runtime has no {provider.upper()} provider"
    present = gpu()
    if present is None:
        absent[TRT] = "no CUDA GPU on this machine"
    elif not installed_flavours():
        absent[TRT] = "TensorRT is not installed (pip install tensorrt, or tensorrt-rtx)"
    elif not engines:
        absent[TRT] = "no engine was exported ('bcnet-deploy export --engine trt')"
    else:
        found[TRT] = {name: _trt(engines[name]) for name in subjects if name in engines}
    return {runtime: makers for runtime, makers in found.items() if makers}, absent


def _ort(provider: str, threads: int, name: str) -> Make:
    return lambda profiling, model: OrtRunner(
        model, threads=threads, provider=provider, profiling=profiling, name=f"ONNX Runtime ({name})"
    )


def _trt(engine: str | Path) -> Make:
    return lambda profiling, model: TrtRunner(engine)
