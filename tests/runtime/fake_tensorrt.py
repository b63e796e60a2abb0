"""A stand-in for TensorRT and for PyTorch's CUDA calls, so that the runner's own code runs without a GPU.

It keeps to the interface: the test beside it holds every name used here against the real package. An
"engine" is the conformance network's weights; the context reads and writes memory by address.
"""

from __future__ import annotations

import ctypes
import io
import json
import time
from typing import Any

import numpy as np

VERSION = "10.9.0"


def pack(weight: np.ndarray, bias: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, weight=weight, bias=bias)
    return stream.getvalue()


def _memory(address: int, shape: tuple[int, ...]) -> np.ndarray:
    count = int(np.prod(shape))
    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address)).reshape(shape)


class ILogger:
    class Severity:
        ERROR, INTERNAL_ERROR, WARNING = range(3)

    def log(self, severity: int, message: str) -> None:
        raise NotImplementedError


class IProfiler:
    def report_layer_time(self, layer_name: str, ms: float) -> None:
        raise NotImplementedError


class TensorIOMode:
    INPUT, OUTPUT = "in", "out"


class LayerInformationFormat:
    JSON = "json"


class IRuntimeCache:
    def __init__(self) -> None:
        self.entries = b""

    def deserialize(self, blob: bytes) -> bool:
        self.entries = bytes(blob)
        return True

    def serialize(self) -> bytes:
        return self.entries + b"+"


class IRuntimeConfig:
    cache: IRuntimeCache | None = None

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> None:
        self.cache = cache


class IExecutionContext:
    profiler: Any = None

    def __init__(self, engine: ICudaEngine) -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return shape == self.engine.get_tensor_shape(name)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.engine.get_tensor_shape(name)

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        x = _memory(self.addresses["x"], (1, 6))
        _memory(self.addresses["y"], (1, 4))[:] = np.maximum(x @ self.engine.weight + self.engine.bias, 0)
        if self.profiler is not None:
            self.profiler.report_layer_time("Reformatting CopyNode for Input Tensor 0 to layer.matmul", 0.25)
            self.profiler.report_layer_time("layer.matmul + layer.add", 0.5)
            self.profiler.report_layer_time("__myl_Relu_myl0_1", 0.125)
        return True


class EngineInspector:
    def get_engine_information(self, form: str) -> str:
        return json.dumps(
            {
                "Layers": [
                    {"Name": "layer.matmul + layer.add", "LayerType": "gemm"},
                    {
                        "Name": "__myl_Relu_myl0_1",
                        "LayerType": "kgen",
                        "Metadata": "[ONNX Layer: layer.relu]",
                    },
                ]
            }
        )


class ICudaEngine:
    num_io_tensors = 2
    shapes = {"x": (1, 6), "y": (1, 4)}

    def __init__(self, weight: np.ndarray, bias: np.ndarray) -> None:
        self.weight, self.bias = weight, bias

    def get_tensor_name(self, index: int) -> str:
        return ("x", "y")[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def get_tensor_dtype(self, name: str) -> str:
        return "FLOAT"

    def get_tensor_mode(self, name: str) -> str:
        return TensorIOMode.INPUT if name == "x" else TensorIOMode.OUTPUT

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, config: IRuntimeConfig | None = None) -> IExecutionContext:
        return IExecutionContext(self)

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector()


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> ICudaEngine | None:
        try:
            arrays = np.load(io.BytesIO(plan))
            return ICudaEngine(arrays["weight"], arrays["bias"])
        except (ValueError, OSError):
            self.logger.log(ILogger.Severity.ERROR, "Error Code 4: not an engine")
            return None


def nptype(dtype: str) -> type:
    return {"FLOAT": np.float32}[dtype]


class Stream:
    """In the place of torch.cuda.Stream."""

    cuda_stream = 0

    def synchronize(self) -> None:
        pass


class Event:
    """In the place of torch.cuda.Event."""

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing
        self.at = 0.0

    def record(self, stream: Stream) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        return (end.at - self.at) * 1e3
