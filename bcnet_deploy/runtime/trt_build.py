"""TensorRT: which flavour is installed, and a plan from an ONNX model.

Two packages share one interface. ``tensorrt`` times kernels on the GPU that is present and builds for
it alone. ``tensorrt_rtx`` builds ahead of time for any compute capability it knows, without a GPU;
kernels are compiled on the device when the engine is loaded there. Networks are strongly typed: each
tensor has the type that the ONNX file gives it, so the precision is chosen at export.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bcnet_deploy import files
from bcnet_deploy.errors import EngineError, RunDirError

PACKAGES = {"tensorrt_rtx": "tensorrt-rtx", "tensorrt": "tensorrt"}
"""Module names and the packages that hold them, in the order of preference for building without a GPU."""

_TURING = "7.5"


@dataclass(frozen=True)
class Flavour:
    """An installed TensorRT: module name, version, and the module itself."""

    name: str
    version: str
    module: Any

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@cache
def _load(name: str) -> Flavour:
    module = importlib.import_module(name)
    return Flavour(name, str(module.__version__), module)


def installed_flavours() -> tuple[Flavour, ...]:
    """The flavours that can be imported here, in the order of :data:`PACKAGES`."""
    found = []
    for name in PACKAGES:
        if importlib.util.find_spec(name) is not None:
            try:
                found.append(_load(name))
            except (ImportError, OSError, RuntimeError, AttributeError):
                continue  # a package whose libraries do not load is as good as none
    return tuple(found)


def find_flavour(name: str | None = None) -> Flavour:
    """The installed flavour ``name``, or the preferred one.

    Raises:
        EngineError: it is not installed, or its libraries do not load; the message names the package.
    """
    if name is not None and name not in PACKAGES:
        raise EngineError(f"unknown TensorRT flavour {name!r}; known are {', '.join(PACKAGES)}")
    if name is None:
        found = installed_flavours()
        if found:
            return found[0]
        raise EngineError(
            "no TensorRT is installed; 'pip install tensorrt-rtx' builds engines for RTX-class GPUs "
            "on any machine, 'pip install tensorrt' for the GPU of the machine it is on"
        )
    try:
        return _load(name)
    except ImportError as error:
        raise EngineError(
            f"{name} is not installed; install it with 'pip install {PACKAGES[name]}'"
        ) from error
    except (OSError, RuntimeError, AttributeError) as error:
        raise EngineError(f"{name} is installed but does not load: {error}") from error


def capabilities(flavour: Flavour) -> tuple[str, ...]:
    """Compute capabilities the flavour builds for without such a GPU; empty: only for the GPU present."""
    enum = getattr(flavour.module, "ComputeCapability", None)
    names = [name[2:] for name in dir(enum) if name.startswith("SM") and name[2:].isdecimal()] if enum else []
    return tuple(f"{int(name) // 10}.{int(name) % 10}" for name in sorted(names, key=int))


def gpu() -> tuple[str, str] | None:
    """Name and compute capability of the first CUDA GPU, or None."""
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability(0)
    return torch.cuda.get_device_name(0), f"{major}.{minor}"


def check_target(flavour: Flavour, capability: str, precision: str) -> None:
    """Refuse what the flavour cannot build, before any work.

    Raises:
        EngineError: with the reason and what to use instead.
    """
    known = capabilities(flavour)
    if not known:
        present = gpu()
        if present is None:
            raise EngineError(
                f"{flavour} builds on the target GPU only and this machine has none; run the command "
                "on the target's host, or 'pip install tensorrt-rtx' to build here"
            )
        if present[1] != capability:
            raise EngineError(
                f"{flavour} builds for the GPU that is present, {present[0]} "
                f"of compute capability {present[1]}, not for {capability}; "
                "run the command on the target's host"
            )
        return
    if capability not in known:
        raise EngineError(
            f"{flavour} builds for compute capabilities {', '.join(known)}, not {capability}; "
            "install 'tensorrt' on the target's host and run the command there"
        )
    if capability == _TURING and precision == "fp32":
        raise EngineError(
            f"{flavour} has no FP32 matrix kernels for compute capability {capability} (Turing); "
            "use --precision fp16, or build FP32 with the 'tensorrt' package on the device itself"
        )


def build_plan(
    onnx_model: bytes,
    flavour: Flavour,
    capability: str,
    *,
    batch: tuple[int, int, int] = (1, 8, 32),
    timing_cache: Path | None = None,
) -> bytes:
    """Build a serialised engine from an ONNX model.

    Args:
        onnx_model: serialised; its types are the engine's.
        flavour: the package to build with.
        capability: compute capability to build for, such as ``7.5``.
        batch: smallest, best and largest batch size, used where the model's is dynamic.
        timing_cache: file of kernel timings to read and extend (``tensorrt`` only; the other times nothing).

    Raises:
        EngineError: an operator is not supported, or the build fails; with TensorRT's own reason.
    """
    trt = flavour.module
    logger = logger_of(flavour)
    logger.messages.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # flags that newer versions always set
        builder = trt.Builder(logger)
        if builder is None:
            raise EngineError(f"{flavour} cannot start a builder: {reason_of(logger)}")
        flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx_model):
        raise EngineError(_parser_message(flavour, parser, logger))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    feed = network.get_input(0)
    if feed.shape[0] == -1:
        profile = builder.create_optimization_profile()
        profile.set_shape(feed.name, *((size, *tuple(feed.shape)[1:]) for size in batch))
        config.add_optimization_profile(profile)
    if capabilities(flavour):
        config.num_compute_capabilities = 1
        member = getattr(trt.ComputeCapability, "SM" + capability.replace(".", ""))
        if not config.set_compute_capability(member, 0):
            raise EngineError(f"{flavour} refuses compute capability {capability}: {reason_of(logger)}")
        timing_cache = None
    if timing_cache is not None:
        known = timing_cache.read_bytes() if timing_cache.exists() else b""
        cache = config.create_timing_cache(known)
        config.set_timing_cache(cache, ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"{flavour} cannot build for compute capability {capability}: {reason_of(logger)}")
    if timing_cache is not None:
        try:
            files.write_bytes(timing_cache, bytes(config.get_timing_cache().serialize()))
        except RunDirError as error:
            warnings.warn(f"the timing cache is not kept: {error}", stacklevel=2)
    return bytes(plan)


def is_malformed(plan: bytes, flavour: Flavour) -> bool:
    """Whether TensorRT-RTX itself says that ``plan`` is no engine, which it can without a GPU."""
    trt = flavour.module
    if not hasattr(trt, "EngineInvalidityDiagnostics"):
        return False
    runtime = trt.Runtime(logger_of(flavour))
    _, diagnostics = runtime.get_engine_validity(plan)
    return bool(int(diagnostics) & int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE))


@cache
def logger_of(flavour: Flavour) -> Any:
    """The logger of a flavour. One a process: TensorRT keeps the first it is given for good."""
    trt = flavour.module

    class Collector(trt.ILogger):  # type: ignore[name-defined]  # a class of an untyped module
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.messages.append(message)

    return Collector()


def reason_of(logger: Any) -> str:
    """TensorRT's own first error in one line."""
    # On a machine without a driver every step also complains of that; it is not the reason.
    real = [text for text in logger.messages if "cudaError 35" not in text] or logger.messages
    return " ".join(real[0].split())[:300] if real else "it gives no reason"


def _parser_message(flavour: Flavour, parser: Any, logger: Any) -> str:
    if parser.num_errors == 0:
        return f"{flavour} cannot read the ONNX model: {reason_of(logger)}"
    first = parser.get_error(0)
    operator = first.node_operator() if hasattr(first, "node_operator") else ""
    if not operator:
        return f"{flavour} cannot read the ONNX model: {' '.join(first.desc().split())[:300]}"
    return (
        f"{flavour} does not support operator {operator} as node {first.node_name()!r} uses it "
        f"({' '.join(first.desc().split())[:120]}); export with another --opset, or replace the layer"
    )
