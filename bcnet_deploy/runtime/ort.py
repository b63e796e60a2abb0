"""ONNX Runtime: the CPU provider, and the CUDA provider where its package is installed.

The thread count is always explicit: a session that takes all cores by default hides half of what a
latency means. A session's thread pool ends with :meth:`deactivate`; two live pools would spin
against each other and ruin both timings.
"""

from __future__ import annotations

import gc
import json
import os
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bcnet_deploy import files
from bcnet_deploy.errors import EngineError
from bcnet_deploy.runtime.base import (
    Array,
    EngineBuild,
    Floats,
    NodeTime,
    Runner,
    Runtime,
    TensorInfo,
)  # fmt: skip
from bcnet_deploy.runtime.machine import lacks_vnni

if TYPE_CHECKING:
    from bcnet_deploy.devices import DeviceProfile

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

_DTYPES = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64",
    "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(uint8)": "uint8", "tensor(int8)": "int8",
}  # fmt: skip


def available_providers() -> tuple[str, ...]:
    """Our names of the providers of the installed ONNX Runtime; empty when it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return ()
    installed = onnxruntime.get_available_providers()
    return tuple(name for name, full in PROVIDERS.items() if full in installed)


def check_threads(threads: int) -> int:
    """``threads`` if it can be used; warns when there are fewer cores.

    Raises:
        EngineError: fewer than one thread.
    """
    if threads < 1:
        raise EngineError(f"{threads} threads were asked for; a runtime needs at least 1")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads > cores:
        warnings.warn(
            f"{threads} threads on {cores} cores: they wait for one another, and the latency "
            "will not be that of a machine with enough cores",
            stacklevel=2,
        )
    return threads


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(
            "ONNX Runtime is not installed; install it with 'pip install onnxruntime'"
            " (or 'onnxruntime-gpu' for the CUDA provider)"
        ) from error
    return onnxruntime


class OrtRunner(Runner):
    """An ONNX model on ONNX Runtime.

    Args:
        model: a path, or the serialised model.
        threads: intra-operator threads, 1 or more; stated, never guessed.
        provider: ``"cpu"`` or ``"cuda"``.
        profiling: construct the session for one :meth:`node_times` call. Runs after that call
            are not profiled.
        threads_sleep: idle threads sleep at once, in place of spinning for a while: for a session that stays
            open while another is timed.
        name: shown in messages.

    Raises:
        EngineError: on activation, when ONNX Runtime or the provider is missing or the model is refused.
    """

    def __init__(
        self,
        model: str | Path | bytes,
        *,
        threads: int = 1,
        provider: str = "cpu",
        profiling: bool = False,
        threads_sleep: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(name or (f"ONNX Runtime ({Path(model).name})" if isinstance(model, (str, Path)) else
                                  "ONNX Runtime"))  # fmt: skip
        if provider not in PROVIDERS:
            raise EngineError(f"unknown ONNX Runtime provider {provider!r}; known are {sorted(PROVIDERS)}")
        self.model = model
        self.threads = check_threads(threads)
        self.provider = provider
        self.profiling = profiling
        self.threads_sleep = threads_sleep
        self._session: Any = None
        self._profile_dir: tempfile.TemporaryDirectory[str] | None = None
        self._profile_open = False

    def _activate(self) -> None:
        ort = _onnxruntime()
        full = PROVIDERS[self.provider]
        if full not in ort.get_available_providers():
            raise EngineError(
                f"this ONNX Runtime has no {full} (it has {ort.get_available_providers()}); "
                "install 'onnxruntime-gpu' for CUDA"
            )
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if self.threads_sleep:
            options.add_session_config_entry("session.force_spinning_stop", "1")
        if self.profiling:
            self._profile_dir = tempfile.TemporaryDirectory(prefix="bcnet-ort-")
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(self._profile_dir.name) / "profile")
        source = self.model if isinstance(self.model, bytes) else str(self.model)
        try:
            self._session = ort.InferenceSession(source, options, providers=[full])
        except Exception as error:  # ONNX Runtime has no common base class of its own
            self._close_profile_dir()
            raise EngineError(f"{self.name} refuses the model: {_first_line(error)}") from error
        if full not in self._session.get_providers():
            # ONNX Runtime falls back to the CPU with a log line only; a timing would be of the wrong device.
            self._session = None
            self._close_profile_dir()
            raise EngineError(f"{self.name}: {full} could not be started on this machine (is a GPU visible?)")
        self._profile_open = self.profiling

    def _deactivate(self) -> None:
        if self._profile_open:
            self._session.end_profiling()
            self._profile_open = False
        self._session = None
        gc.collect(0)
        self._close_profile_dir()

    def _close_profile_dir(self) -> None:
        if self._profile_dir is not None:
            self._profile_dir.cleanup()
            self._profile_dir = None

    def _inputs(self) -> tuple[TensorInfo, ...]:
        return tuple(_info(arg) for arg in self._session.get_inputs())

    def _outputs(self) -> tuple[TensorInfo, ...]:
        return tuple(_info(arg) for arg in self._session.get_outputs())

    def _infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        names = [arg.name for arg in self._session.get_outputs()]
        try:
            return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))
        except Exception as error:
            raise EngineError(f"{self.name} failed: {_first_line(error)}") from error

    def _latencies(self, feeds: Mapping[str, Array], runs: int, warmup: int) -> Floats:
        run = self._bound_run(feeds)
        clock = time.perf_counter_ns
        times = np.empty(runs, dtype=np.int64)
        try:
            for _ in range(warmup):
                run()
            for index in range(runs):
                start = clock()
                run()
                times[index] = clock() - start
        except Exception as error:
            raise EngineError(f"{self.name} failed: {_first_line(error)}") from error
        return times / 1e6

    def _bound_run(self, feeds: Mapping[str, Array]) -> Any:
        if self.provider == "cpu":
            return partial(self._session.run, None, dict(feeds))
        # On a GPU the copies of run() would be timed too: bind device memory once.
        ort = _onnxruntime()
        binding = self._session.io_binding()
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value, "cuda", 0))
        for arg in self._session.get_outputs():
            binding.bind_output(arg.name, "cuda")

        def run() -> None:
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return run

    def _node_times(self, feeds: Mapping[str, Array], runs: int, warmup: int) -> list[NodeTime]:
        if not self._profile_open:
            raise EngineError(
                f"{self.name} has no open profile; construct it with profiling=True and call node_times once"
            )
        run = self._bound_run(feeds)
        try:
            for _ in range(warmup + runs):
                run()
        except Exception as error:
            raise EngineError(f"{self.name} failed: {_first_line(error)}") from error
        self._profile_open = False
        path = Path(self._session.end_profiling())
        try:
            return parse_profile(path.read_bytes(), skip=warmup)
        finally:
            path.unlink(missing_ok=True)


def parse_profile(data: bytes, *, skip: int = 0) -> list[NodeTime]:
    """The kernel times in an ONNX Runtime profile, in the order of the first run.

    Args:
        data: the profile (Chrome trace JSON).
        skip: how many leading runs to drop of each node.

    Raises:
        EngineError: the profile is not valid JSON or holds no kernel.
    """
    try:
        events = json.loads(data)
    except ValueError as error:
        raise EngineError(f"ONNX Runtime wrote a profile that is not JSON: {error}") from error
    suffix = "_kernel_time"
    durations: dict[str, list[float]] = {}
    first: dict[str, dict[str, Any]] = {}
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith(suffix):
            continue
        name = event["name"][: -len(suffix)]
        durations.setdefault(name, []).append(float(event["dur"]))
        first.setdefault(name, event["args"])
    nodes = [
        NodeTime(
            name,
            str(first[name].get("op_name", "")),
            _shapes(first[name].get("input_type_shape", [])),
            _shapes(first[name].get("output_type_shape", [])),
            tuple(values[skip:]),
        )
        for name, values in durations.items()
    ]
    if not nodes:
        raise EngineError("ONNX Runtime's profile holds no node; was the network run at least once?")
    return nodes


def _shapes(described: list[dict[str, list[int]]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(size) for size in shape) for entry in described for shape in entry.values())


def _info(arg: Any) -> TensorInfo:
    shape = tuple(size if isinstance(size, int) else -1 for size in arg.shape)
    return TensorInfo(arg.name, shape, _DTYPES.get(arg.type, arg.type))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


class OnnxRuntime(Runtime):
    """ONNX Runtime on the CPU, and on NVIDIA's GPUs where ``onnxruntime-gpu`` is installed."""

    name = "onnxruntime"
    title = "ONNX Runtime"
    packages = ("onnxruntime", "onnxruntime-gpu")
    precisions = {"cpu": ("fp32", "int8"), "gpu": ("fp32", "fp16", "int8")}
    engine = "ort"
    suffix = ".ort"

    def lacking(self, kind: str, precision: str | None = None) -> str:
        providers = available_providers()
        if not providers:
            return f"{self.title} is not installed (pip install onnxruntime)"
        if kind == "gpu" and "cuda" not in providers:
            return f"{self.title} has no CUDA provider (pip install onnxruntime-gpu)"
        if kind == "cpu" and precision == "int8" and (reason := lacks_vnni()):
            return reason
        return super().lacking(kind, precision)

    def place(self, kind: str) -> str:
        return f"{self.name}-{'cuda' if kind == 'gpu' else kind}"

    def rounding(self, device: DeviceProfile, cpu_features: Sequence[str]) -> tuple[int, int]:
        """Blocks are as wide as this CPU's vector registers, whatever the profile says of CPUs in general:
        8 channels with AVX2 but no AVX-512, else 16. The blocked layout wants counts divisible by four."""
        block, _ = super().rounding(device, cpu_features)
        if device.kind == "cpu" and "avx2" in cpu_features:
            block = 16 if "avx512f" in cpu_features else 8
        return block, 4

    def runner(
        self, network: bytes, device: DeviceProfile, *, profiling: bool = False,
        threads_sleep: bool = False, name: str | None = None,
    ) -> Runner:  # fmt: skip
        return OrtRunner(
            network, threads=device.threads or 1, provider="cpu" if device.kind == "cpu" else "cuda",
            profiling=profiling, threads_sleep=threads_sleep, name=name and f"{self.title} ({name})",
        )  # fmt: skip

    def check_engine(self, device: DeviceProfile, precision: str) -> None:
        """A file in ONNX Runtime's own format is for any device and precision."""
        _onnxruntime()

    def build_engine(
        self, network: bytes, path: Path, device: DeviceProfile, precision: str,
        *, batch: tuple[int, int, int],
    ) -> EngineBuild:  # fmt: skip
        """ONNX Runtime's own format, portable graph optimisations done."""
        ort = _onnxruntime()
        with files.replacing(path) as temporary:
            options = ort.SessionOptions()
            options.log_severity_level = 3
            # The highest level would fix layouts for this CPU; this one is right on every machine.
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            options.optimized_model_filepath = str(temporary)
            options.add_session_config_entry("session.save_model_format", "ORT")
            try:
                ort.InferenceSession(network, options, providers=["CPUExecutionProvider"])
            except Exception as error:  # ONNX Runtime has no common base class of its own
                raise EngineError(f"ONNX Runtime refuses the network: {_first_line(error)}") from error
        return EngineBuild("onnxruntime", str(ort.__version__), ("loaded by ONNX Runtime",), loaded=True)

    def engine_runner(self, path: Path, device: DeviceProfile) -> Runner:
        return OrtRunner(path, threads=device.threads or 1)
