"""TensorRT engines on the GPU, one runner over ``tensorrt`` and ``tensorrt_rtx``.

Device memory, streams and events are PyTorch's, which a machine with a GPU has anyway. Inputs are
copied once, before anything is timed; each run is timed by a pair of CUDA events on one stream, so that
neither copies nor the host's launch loop count. Per-layer times come from TensorRT's own profiler in a
separate execution context (it serialises layers, so their sum is larger than the network's latency).
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bcnet_deploy import files
from bcnet_deploy.errors import EngineError, RunDirError
from bcnet_deploy.runtime.base import Array, EngineBuild, Floats, NodeTime, Runner, Runtime, TensorInfo
from bcnet_deploy.runtime.engine_file import EngineInfo, check_head, read_engine, write_sidecar
from bcnet_deploy.runtime.layer_names import named_nodes
from bcnet_deploy.runtime.trt_build import (
    Flavour,
    build_plan,
    capabilities,
    check_target,
    find_flavour,
    gpu,
    installed_flavours,
    is_malformed,
    logger_of,
    reason_of,
)

if TYPE_CHECKING:
    from bcnet_deploy.devices import DeviceProfile

_DEVICE = "cuda"


class TrtRunner(Runner):
    """An engine that ``bcnet-deploy export --engine trt`` wrote, on the first CUDA GPU.

    Args:
        engine: path of the plan; its JSON sidecar lies beside it.
        runtime_cache: file of kernels compiled on this device (``tensorrt_rtx`` only), read on activation
            and extended on deactivation; ``<engine>.<GPU>.cache`` beside the engine when None.
        name: shown in messages.

    Raises:
        EngineError: on activation, when the engine is damaged, TensorRT or the GPU is missing, or
            either is not the one that the engine was built for.
    """

    def __init__(
        self, engine: str | Path, *, runtime_cache: str | Path | None = None, name: str | None = None
    ) -> None:
        super().__init__(name or f"TensorRT ({Path(engine).name})")
        self.path = Path(engine)
        self.runtime_cache = None if runtime_cache is None else Path(runtime_cache)
        self.info: EngineInfo | None = None
        self._flavour: Flavour | None = None
        self._engine: Any = None
        self._context: Any = None
        self._cache: Any = None
        self._cache_file: Path | None = None
        self._stream: Any = None
        self._buffers: dict[str, Any] = {}

    def _activate(self) -> None:
        plan, info = read_engine(self.path)
        flavour = find_flavour(info.flavour)
        present = gpu()
        if present is None:
            raise EngineError(
                f"{self.name} needs a CUDA GPU of compute capability {info.capability}; there is none here"
            )
        if present[1] != info.capability:
            raise EngineError(
                f"{self.name} was built for compute capability {info.capability}; "
                f"{present[0]} here has {present[1]}: build the engine for it "
                "with 'bcnet-deploy export --engine trt --device DEVICE'"
            )
        if info.flavour == "tensorrt" and flavour.version != info.version:
            raise EngineError(
                f"{self.name} was built by {info.flavour} {info.version}, "
                f"installed is {flavour.version}; build it again"
            )
        import torch

        trt, logger = flavour.module, logger_of(flavour)
        logger.messages.clear()
        engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(f"{flavour} refuses {self.path}: {reason_of(logger)}")
        self.info, self._flavour, self._engine = info, flavour, engine
        try:
            self._context = self._new_context(present[0])
        except BaseException:
            self._deactivate()
            raise
        self._stream = torch.cuda.Stream()

    def _new_context(self, gpu_name: str) -> Any:
        assert self._flavour is not None
        config: Any = None
        if hasattr(self._engine, "create_runtime_config"):
            config = self._engine.create_runtime_config()
            if hasattr(config, "create_runtime_cache"):
                safe = "".join(letter if letter.isalnum() else "-" for letter in gpu_name)
                self._cache_file = self.runtime_cache or self.path.with_name(f"{self.path.name}.{safe}.cache")
                self._cache = config.create_runtime_cache()
                if self._cache_file.exists():
                    # A cache of another driver or version is refused by TensorRT and grows anew.
                    self._cache.deserialize(self._cache_file.read_bytes())
                config.set_runtime_cache(self._cache)
        context = (
            self._engine.create_execution_context(config)
            if config
            else self._engine.create_execution_context()
        )
        if context is None:
            raise EngineError(
                f"{self._flavour} cannot run {self.path}: {reason_of(logger_of(self._flavour))}"
            )
        return context

    def _deactivate(self) -> None:
        if self._cache is not None and self._cache_file is not None:
            with contextlib.suppress(RunDirError):  # a cache that cannot be kept costs time, not correctness
                files.write_bytes(self._cache_file, bytes(self._cache.serialize()))
        self._buffers.clear()
        self._context = self._cache = self._cache_file = self._engine = self._stream = None
        self._flavour = None

    def _inputs(self) -> tuple[TensorInfo, ...]:
        return self._tensors("INPUT")

    def _outputs(self) -> tuple[TensorInfo, ...]:
        return self._tensors("OUTPUT")

    def _tensors(self, mode: str) -> tuple[TensorInfo, ...]:
        assert self._flavour is not None
        trt, engine = self._flavour.module, self._engine
        infos = []
        for name in (engine.get_tensor_name(index) for index in range(engine.num_io_tensors)):
            if engine.get_tensor_mode(name) == getattr(trt.TensorIOMode, mode):
                dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name
                infos.append(TensorInfo(name, tuple(engine.get_tensor_shape(name)), dtype))
        return tuple(infos)

    def _bind(self, context: Any, feeds: Mapping[str, Array]) -> None:
        """Copy the inputs to the device and point ``context`` at all buffers."""
        import torch

        buffers: dict[str, Any] = {}
        for name, value in feeds.items():
            if not context.set_input_shape(name, tuple(value.shape)):
                raise EngineError(
                    f"{self.name} does not take {tuple(value.shape)} for {name!r}; "
                    f"its batch sizes are {self.info.batch if self.info else 'fixed'}"
                )
            buffers[name] = torch.from_numpy(np.array(value, order="C")).to(_DEVICE)
        for info in self._outputs():
            shape = tuple(context.get_tensor_shape(info.name))
            buffers[info.name] = torch.empty(shape, dtype=getattr(torch, info.dtype), device=_DEVICE)
        for name, buffer in buffers.items():
            context.set_tensor_address(name, buffer.data_ptr())
        torch.cuda.synchronize()
        self._buffers = buffers

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(self._stream.cuda_stream):
            assert self._flavour is not None
            raise EngineError(f"{self.name} failed: {reason_of(logger_of(self._flavour))}")

    def _infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self._bind(self._context, feeds)
        self._enqueue(self._context)
        self._stream.synchronize()
        return {info.name: self._buffers[info.name].cpu().numpy() for info in self._outputs()}

    def _latencies(self, feeds: Mapping[str, Array], runs: int, warmup: int) -> Floats:
        import torch

        self._bind(self._context, feeds)
        for _ in range(warmup):
            self._enqueue(self._context)
        self._stream.synchronize()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        times = np.empty(runs)
        for index in range(runs):
            start.record(self._stream)
            self._enqueue(self._context)
            end.record(self._stream)
            end.synchronize()
            times[index] = start.elapsed_time(end)
        return times

    def _node_times(self, feeds: Mapping[str, Array], runs: int, warmup: int) -> list[NodeTime]:
        assert self._flavour is not None
        context = self._engine.create_execution_context()
        if context is None:
            raise EngineError(f"{self.name} cannot be profiled: {reason_of(logger_of(self._flavour))}")
        profiler = _profiler(self._flavour)
        self._bind(context, feeds)
        for _ in range(warmup):
            self._enqueue(context)
        self._stream.synchronize()
        context.profiler = profiler
        for _ in range(runs):
            self._enqueue(context)
            self._stream.synchronize()
        return collect_times(
            profiler.records, runs, {layer["Name"]: layer for layer in self.layers() if "Name" in layer}
        )

    def layers(self) -> list[dict[str, Any]]:
        """The engine inspector's layers (``Name``, ``LayerType``, ``Metadata``, ...), in order."""
        self._require_active("layers")
        assert self._flavour is not None
        text = self._engine.create_engine_inspector().get_engine_information(
            self._flavour.module.LayerInformationFormat.JSON
        )
        return parse_layers(text)


def parse_layers(text: str) -> list[dict[str, Any]]:
    """The layers in the inspector's JSON: objects, or bare names in engines of little verbosity."""
    try:
        layers = json.loads(text).get("Layers", [])
    except (ValueError, AttributeError):
        return []
    return [layer if isinstance(layer, dict) else {"Name": str(layer)} for layer in layers]


def collect_times(
    records: list[tuple[str, float]], runs: int, layers: Mapping[str, Mapping[str, Any]]
) -> list[NodeTime]:
    """Layer times of ``runs`` profiled runs, from the profiler's flat list of (name, milliseconds).

    Each run reports every layer once, in order; a name that a run reports several times is one node
    whose times add up. ``layers`` are the inspector's, by name: they say which ONNX nodes a kernel is of.

    Raises:
        EngineError: the list does not divide into that many equal runs.
    """
    if not records or len(records) % runs:
        raise EngineError(
            f"the profiler reported {len(records)} layer times for {runs} runs; "
            "was the engine built with layer names (profiling verbosity)?"
        )
    step = len(records) // runs
    durations: dict[str, list[float]] = {name: [0.0] * runs for name, _ in records[:step]}
    for index, (name, milliseconds) in enumerate(records):
        if name not in durations:
            raise EngineError(f"the profiler reported layer {name!r} in some runs only")
        durations[name][index // step] += milliseconds * 1e3
    return [
        NodeTime(
            name, str(layers.get(name, {}).get("LayerType", "")), (), (), tuple(values),
            named_nodes(str(layers.get(name, {}).get("Metadata", ""))),
        )
        for name, values in durations.items()
    ]  # fmt: skip


def _profiler(flavour: Flavour) -> Any:
    trt = flavour.module

    class Profiler(trt.IProfiler):  # type: ignore[name-defined]  # a class of an untyped module
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.records: list[tuple[str, float]] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.records.append((layer_name, ms))

    return Profiler()


class FreshEngine(Runner):
    """An ONNX network as an engine of this machine's GPU, built when activated, gone when deactivated."""

    def __init__(self, network: bytes, device: DeviceProfile, runtime: TensorRT) -> None:
        super().__init__(f"TensorRT ({device.name})")
        self.network = network
        self.device = device
        self.runtime = runtime
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._runner: Runner | None = None

    def _activate(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="bcnet-trt-")
        try:
            path, batch = Path(self._folder.name) / "network.engine", (1, 8, 32)
            built = self.runtime.build_engine(
                self.network, path, self.device, self.device.precision, batch=batch
            )
            write_sidecar(path, self.network, built, self.device, self.device.precision, batch=batch)
            self._runner = TrtRunner(path)
            self._runner.activate()
        except BaseException:
            self._deactivate()
            raise

    def _deactivate(self) -> None:
        if self._runner is not None:
            self._runner.deactivate()
            self._runner = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _inner(self) -> Runner:
        assert self._runner is not None
        return self._runner

    def _inputs(self) -> tuple[TensorInfo, ...]:
        return self._inner().inputs

    def _outputs(self) -> tuple[TensorInfo, ...]:
        return self._inner().outputs

    def _infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return self._inner().infer(feeds)

    def _latencies(self, feeds: Mapping[str, Array], runs: int, warmup: int) -> Floats:
        return self._inner().latencies(feeds, runs=runs, warmup=warmup)

    def _node_times(self, feeds: Mapping[str, Array], runs: int, warmup: int) -> list[NodeTime]:
        return self._inner().node_times(feeds, runs=runs, warmup=warmup)


class TensorRT(Runtime):
    """TensorRT on NVIDIA's GPUs; ``tensorrt-rtx`` builds engines without one."""

    name = "tensorrt"
    title = "TensorRT"
    packages = ("tensorrt", "tensorrt-rtx")
    precisions = {"gpu": ("fp32", "fp16", "int8")}
    quantised_for = "trt"
    engine = "trt"
    suffix = ".engine"
    needs_engine = True

    def lacking(self, kind: str, precision: str | None = None) -> str:
        if not installed_flavours():
            return "TensorRT is not installed (pip install tensorrt, or tensorrt-rtx)"
        return super().lacking(kind, precision)

    def place(self, kind: str) -> str:
        return self.name

    def runner(
        self, network: bytes, device: DeviceProfile, *, profiling: bool = False,
        threads_sleep: bool = False, name: str | None = None,
    ) -> Runner:  # fmt: skip
        return FreshEngine(network, device, self)

    def flavour_for(self, device: DeviceProfile) -> Flavour:
        """What builds for ``device``: ``tensorrt`` where the GPU is present, else TensorRT-RTX.

        Raises:
            EngineError: none is installed; the message names the packages.
        """
        present = gpu()
        found = {flavour.name: flavour for flavour in installed_flavours()}
        if present is not None and present[1] == device.compute_capability and "tensorrt" in found:
            return found["tensorrt"]
        return found.get("tensorrt_rtx") or find_flavour()

    def builders(self, device: DeviceProfile) -> list[str]:
        """The installed flavours that build engines for ``device`` on this machine."""
        present = gpu()
        here = present is not None and present[1] == device.compute_capability
        return [
            flavour.name
            for flavour in installed_flavours()
            if device.compute_capability in (known := capabilities(flavour)) or (here and not known)
        ]

    def check_engine(self, device: DeviceProfile, precision: str) -> None:
        if precision not in self.precisions["gpu"]:
            raise EngineError(
                f"unknown precision {precision!r}; allowed are {', '.join(self.precisions['gpu'])}"
            )
        if device.compute_capability is None:
            raise EngineError(
                f"device {device.name!r} is no GPU, which TensorRT needs; choose --engine onnx or ort"
            )
        if device.peak_tflops and precision not in device.peak_tflops:
            raise EngineError(
                f"device {device.name!r} has no {precision.upper()}; "
                f"its profile lists {', '.join(device.peak_tflops)}"
            )
        check_target(self.flavour_for(device), device.compute_capability, precision)

    def build_engine(
        self, network: bytes, path: Path, device: DeviceProfile, precision: str,
        *, batch: tuple[int, int, int],
    ) -> EngineBuild:  # fmt: skip
        self.check_engine(device, precision)
        flavour, capability = self.flavour_for(device), str(device.compute_capability)
        cache = path.with_name(f"timing-{flavour.version}-sm{capability}.cache")
        plan = build_plan(network, flavour, capability, batch=batch, timing_cache=cache)
        checked = ["size", "hash", *check_head(plan, flavour.name, flavour.version, capability, str(path))]
        if flavour.name == "tensorrt_rtx":
            if is_malformed(plan, flavour):
                raise EngineError(f"{flavour} does not take its own engine for one; the build is broken")
            checked.append("TensorRT's own format check")
        files.write_bytes(path, plan)
        present = gpu()
        return EngineBuild(
            flavour.name, flavour.version, tuple(checked), capability, present[0] if present else "",
            loaded=present is not None and present[1] == capability,
        )  # fmt: skip

    def engine_runner(self, path: Path, device: DeviceProfile) -> Runner:
        return TrtRunner(path)
