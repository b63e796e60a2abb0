"""OpenVINO: Intel's and other x86 and Arm CPUs, and Intel's GPUs and NPUs where it finds them.

One stream, a stated number of threads, no cache of compiled networks. The precision is stated too: left to
itself, OpenVINO computes in BF16 where the CPU can, whatever the file says.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bcnet_deploy.errors import EngineError, RunDirError
from bcnet_deploy.runtime.base import Array, EngineBuild, Floats, NodeTime, Runner, Runtime, TensorInfo
from bcnet_deploy.runtime.engine_file import read_engine, sidecar_path
from bcnet_deploy.runtime.machine import cpu_flags, lacks_vnni
from bcnet_deploy.runtime.ort import check_threads

if TYPE_CHECKING:
    from bcnet_deploy.devices import DeviceProfile

_HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "f32"}
_BLOCKS = 6  # of profiled runs: see OpenVinoRunner._node_times
_DISTURBED = 0.05  # more than the fastest block's time: such a block is left out
_CUT_US = 2.0  # what cutting to whole microseconds does to one node's time in a short block
_IR_VERSIONS = ("10", "11")  # that OpenVINO has read and written since 2021


def _openvino() -> Any:
    """The package, imported without its telemetry: that writes into the user's home and sends an event.

    Raises:
        EngineError: it is not installed.
    """
    quiet = "openvino" not in sys.modules and _TELEMETRY not in sys.modules
    if quiet:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as error:
        raise EngineError("OpenVINO is not installed; install it with 'pip install openvino'") from error
    finally:
        if quiet:
            del sys.modules[_TELEMETRY]
    return openvino


_TELEMETRY = "openvino_telemetry"


class OpenVinoRunner(Runner):
    """A network on OpenVINO.

    Args:
        model: the path of an ONNX file or of an IR (``.xml``), or a serialised ONNX model.
        device: OpenVINO's name of it: ``CPU``, ``GPU``, ``NPU``, ``AUTO``.
        threads: of a CPU, 1 or more; stated, never guessed.
        precision: that it computes in; of an INT8 network, what is not quantised is in FP32.
        profiling: allow :meth:`node_times`. That is a second, counting copy of the network, gone when it
            returns: counters cannot be turned off again, and cost about 2 us a node.
        name: shown in messages.

    Raises:
        EngineError: on activation, when OpenVINO or the device is missing or the model is refused.
    """

    def __init__(
        self,
        model: str | Path | bytes,
        *,
        device: str = "CPU",
        threads: int = 1,
        precision: str = "fp32",
        profiling: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(name or (f"OpenVINO ({Path(model).name})" if isinstance(model, (str, Path)) else
                                  "OpenVINO"))  # fmt: skip
        self.model = model
        self.device = device
        self.threads = check_threads(threads)
        self.precision = precision
        self.profiling = profiling
        self._compiled: Any = None
        self._request: Any = None

    def _activate(self) -> None:
        ov = _openvino()
        if str(self.model).endswith(".xml"):
            _check_version(Path(str(self.model)))
        try:
            self._compiled = self._compile(ov.Core())
            self._request = self._compiled.create_infer_request()
        except Exception as error:  # OpenVINO raises RuntimeError with a stack of source lines
            self._deactivate()
            raise EngineError(f"{self.name} refuses the model: {_reason(error)}") from error

    def _compile(self, core: Any, counting: bool = False) -> Any:
        network = core.read_model(self.model if isinstance(self.model, bytes) else str(self.model))
        return core.compile_model(network, self.device, self._config(counting))

    def _config(self, counting: bool) -> dict[str, Any]:
        config = {
            "INFERENCE_PRECISION_HINT": _HINTS[self.precision], "PERF_COUNT": counting, "CACHE_DIR": "",
        }  # fmt: skip
        if self.device == "CPU":
            config |= {"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": self.threads}
        return config

    def _counting(self) -> Any:
        """The network once more, with counters at 0; of the compiled one, which saves most of the time."""
        core = _openvino().Core()
        try:
            return core.import_model(self._compiled.export_model(), self.device, self._config(True))
        except Exception:  # a device that cannot export
            return self._compile(core, counting=True)

    def _deactivate(self) -> None:
        self._request = None
        self._compiled = None

    def _inputs(self) -> tuple[TensorInfo, ...]:
        return tuple(map(_info, self._compiled.inputs))

    def _outputs(self) -> tuple[TensorInfo, ...]:
        return tuple(map(_info, self._compiled.outputs))

    def _infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        _bind(self._request, feeds)
        self._run(self._request)
        return {
            output.get_any_name(): np.array(self._request.get_tensor(output).data)
            for output in self._compiled.outputs
        }

    def _run(self, request: Any) -> None:
        try:
            request.infer()
        except Exception as error:
            raise EngineError(f"{self.name} failed: {_reason(error)}") from error

    def _latencies(self, feeds: Mapping[str, Array], runs: int, warmup: int) -> Floats:
        _bind(self._request, feeds)
        for _ in range(warmup):
            self._run(self._request)
        run, clock = self._request.infer, time.perf_counter_ns
        times = np.empty(runs, dtype=np.int64)
        for index in range(runs):
            start = clock()
            run()
            times[index] = clock() - start
        return times / 1e6

    def _node_times(self, feeds: Mapping[str, Array], runs: int, warmup: int) -> list[NodeTime]:
        """Each of the runs is given the mean of the undisturbed ones: see :func:`undisturbed_means`."""
        if not self.profiling:
            raise EngineError(f"{self.name} has no profile; construct it with profiling=True")
        try:
            request = self._counting().create_infer_request()
        except Exception as error:
            raise EngineError(f"{self.name} cannot be profiled: {_reason(error)}") from error
        _bind(request, feeds)
        for _ in range(warmup):
            self._run(request)
        done, counters = [warmup], [_counters(request) if warmup else {}]
        for block in np.array_split(np.arange(runs), min(_BLOCKS, runs)):
            for _ in block:
                self._run(request)
            done.append(done[-1] + len(block))
            counters.append(_counters(request))
        origins = self._origins()
        return [
            NodeTime(name, operator, (), (), (mean,) * runs, made_of)
            for name, mean in undisturbed_means(done, counters).items()
            for operator, made_of in [origins.get(name, ("", ()))]
        ]

    def _origins(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Each node's operator, and the network's own operators that were fused into it."""
        makers = self._makers()
        found = {}
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            described = {key: str(value.astype(str)) for key, value in node.get_rt_info().items()}
            names = tuple(filter(None, described.get("originalLayersNames", "").split(",")))
            names = tuple(makers.get(name, name) for name in names)
            found[node.get_friendly_name()] = (described.get("layerType", ""), names)
        return found

    def _makers(self) -> dict[str, str]:
        """By output of the network: the ONNX node that makes it, which OpenVINO calls by the output."""
        import onnx

        if str(self.model).endswith(".xml"):
            return {}
        model = onnx.load_from_string(self.model) if isinstance(self.model, bytes) else onnx.load(self.model)
        outputs = {value.name for value in model.graph.output}
        return {name: node.name for node in model.graph.node for name in node.output if name in outputs}


class OpenVino(Runtime):
    """OpenVINO."""

    name = "openvino"
    title = "OpenVINO"
    packages = ("openvino",)
    precisions = {"cpu": ("fp32", "bf16", "int8"), "gpu": ("fp32", "fp16", "int8"), "npu": ("fp16", "int8")}
    converts = ("bf16", "fp16")
    engine = "openvino"
    suffix = ".xml"

    def lacking(self, kind: str, precision: str | None = None) -> str:
        if reason := super().lacking(kind, precision):
            return reason
        if kind != "cpu":
            return "" if self.device_name(kind) else f"OpenVINO finds no {kind.upper()} here"
        flags = cpu_flags()
        if precision == "bf16" and "avx2" in flags and not flags & {"avx512_bf16", "amx_bf16"}:
            return "this CPU has no instructions for BF16 (avx512_bf16 or amx_bf16); use FP32"
        return lacks_vnni() if precision == "int8" else ""

    def device_name(self, kind: str) -> str | None:
        if kind == "cpu" or self.installed() is None:
            return None
        core = _openvino().Core()
        found = [device for device in core.available_devices if device.split(".")[0] == kind.upper()]
        return str(core.get_property(found[0], "FULL_DEVICE_NAME")) if found else None

    def rounding(self, device: DeviceProfile, cpu_features: Sequence[str]) -> tuple[int, int]:
        block, _ = super().rounding(device, cpu_features)
        return block, min(block, 4)

    def runner(
        self, network: bytes, device: DeviceProfile, *, profiling: bool = False,
        threads_sleep: bool = False, name: str | None = None,
    ) -> Runner:  # fmt: skip
        return self._runner(network, device, device.precision, profiling, name and f"{self.title} ({name})")

    def _runner(
        self, model: bytes | Path, device: DeviceProfile, precision: str, profiling: bool = False,
        name: str | None = None,
    ) -> Runner:  # fmt: skip
        return OpenVinoRunner(
            model, device=device.kind.upper(), threads=device.threads or 1, precision=precision,
            profiling=profiling, name=name,
        )  # fmt: skip

    def engine_files(self, path: Path) -> tuple[Path, ...]:
        return (*super().engine_files(path), path.with_suffix(".bin"))

    def build_engine(
        self, network: bytes, path: Path, device: DeviceProfile, precision: str,
        *, batch: tuple[int, int, int],
    ) -> EngineBuild:  # fmt: skip
        """OpenVINO's IR: ``.xml``, and ``.bin`` beside it with the weights in their own precision."""
        ov = _openvino()
        try:
            model = ov.Core().read_model(network)
        except Exception as error:
            raise EngineError(f"OpenVINO refuses the network: {_reason(error)}") from error
        model.set_rt_info(precision, ["bcnet", "precision"])
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
                written = Path(folder) / path.name
                ov.save_model(model, str(written), compress_to_fp16=False)
                loaded = not self.lacking(device.kind, precision)
                if loaded:
                    with self._runner(written, device, precision):
                        pass
                os.replace(written.with_suffix(".bin"), path.with_suffix(".bin"))
                os.replace(written, path)
        except OSError as error:
            raise RunDirError(f"cannot write {path}: {error.strerror or error}") from error
        checked = ("loaded by OpenVINO",) if loaded else ()
        return EngineBuild("openvino", str((self.installed() or ("", ""))[1]), checked, loaded=loaded)

    def engine_runner(self, path: Path, device: DeviceProfile) -> Runner:
        precision = read_engine(path)[1].precision if sidecar_path(path).exists() else device.precision
        return self._runner(path, device, precision)


def _bind(request: Any, feeds: Mapping[str, Array]) -> None:
    """Copy the inputs into the request's own tensors, before anything is timed."""
    for name, value in feeds.items():
        request.set_tensor(name, _openvino().Tensor(np.array(value, order="C")))


def _counters(request: Any) -> dict[str, float]:
    """Each node's mean of all runs so far, in whole microseconds and execution order, of those that run."""
    found: dict[str, float] = {}
    for node in request.get_profiling_info():
        if node.status.name == "EXECUTED":
            found[node.node_name] = found.get(node.node_name, 0.0) + 1e6 * node.real_time.total_seconds()
    return found


def undisturbed_means(done: Sequence[int], counters: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Microseconds of each node, from counters that OpenVINO keeps since a network was compiled.

    A counter is the mean of all runs, cut to whole microseconds; the difference of two sums is that of a
    block of runs, uncertain by some microseconds where the block is short. So only blocks that something
    disturbed are left out, and the mean is taken over all others: the cut ends of neighbouring ones cancel.

    Args:
        done: how many runs were made before the first block, and after each.
        counters: what they said then, by node. A short node may be counted in some alone: in the others
            it took no time that was seen.
    """
    names = list(dict.fromkeys(name for counted in counters for name in counted))
    counted = np.array([[counted.get(name, 0.0) for name in names] for counted in counters])
    sums = np.diff(counted * np.asarray(done)[:, None], axis=0)
    lengths = np.diff(done)
    totals = sums.sum(axis=1) / lengths
    allowed = max(_DISTURBED * totals.min(), _CUT_US * np.sqrt(len(names)))
    kept = totals <= totals.min() + allowed
    means = np.maximum(0.0, sums[kept].sum(axis=0) / lengths[kept].sum())
    return dict(zip(names, means.tolist(), strict=True))


def _info(port: Any) -> TensorInfo:
    shape = tuple(size.get_length() if size.is_static else -1 for size in port.get_partial_shape())
    return TensorInfo(port.get_any_name(), shape, np.dtype(port.get_element_type().to_dtype()).name)


def _check_version(path: Path) -> None:
    """OpenVINO takes an IR of a version that it does not read for a file of some other framework.

    Raises :class:`EngineError` for one of an unknown version, or where the file cannot be read.
    """
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            head = file.read(2048)
    except OSError as error:
        raise EngineError(f"cannot read {path}: {error.strerror or error}") from error
    found = re.search(r'<net\b[^>]*\bversion="([^"]*)"', head)
    if found is None or found[1] not in _IR_VERSIONS:
        is_what = f"an IR of version {found[1]}" if found else "no IR"
        raise EngineError(
            f"{path} is {is_what}; OpenVINO reads versions {' and '.join(_IR_VERSIONS)}: export it again "
            "with 'bcnet-deploy export --engine openvino --force'"
        )


def _reason(error: Exception) -> str:
    """The last line that says something: OpenVINO puts source files and line numbers before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("Exception from", "Check '"))] or lines
    return (said[-1] if said else type(error).__name__)[:300]
