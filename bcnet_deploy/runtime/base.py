"""What a runtime is to this package: a :class:`Runtime` that makes :class:`Runner` objects.

A runner has one life cycle: activate, infer (any number of times), deactivate.
A runner is cheap to construct and holds nothing; ``activate`` loads the network onto the device and
``deactivate`` frees it again, threads and device memory included. Used as a context manager it
cannot be left active by an exception. Timing follows one convention everywhere: milliseconds of one
inference with its inputs already in place, warm-up runs dropped, every timed run returned (the
caller chooses the statistic).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import numpy.typing as npt

from bcnet_deploy.errors import EngineError

if TYPE_CHECKING:
    import onnx

    from bcnet_deploy.devices import DeviceProfile

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a network: name, shape (-1: any size) and numpy dtype name."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class NodeTime:
    """What the runtime's own profile says of one of its nodes.

    ``name`` and ``op`` are the runtime's (fused names included); shapes are those of the tensors that
    entered and left the node, weights included where the runtime reports them; ``durations_us`` has one
    value for each profiled run, in microseconds. ``origins`` names the ONNX nodes that it was made of, where
    the runtime says so and its name does not.
    """

    name: str
    op: str
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    durations_us: tuple[float, ...]
    origins: tuple[str, ...] = ()


class Runner(ABC):
    """A network on a runtime. Subclasses implement the ``_`` methods; the checks live here.

    Args:
        name: shown in messages.

    All methods raise :class:`EngineError` for a wrong state, wrong feeds or a failure of the runtime.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._active = False

    @property
    def is_active(self) -> bool:
        return self._active

    def activate(self) -> None:
        """Load the network. Raises :class:`EngineError` when it is active already or refused."""
        if self._active:
            raise EngineError(f"{self.name} is active already; deactivate it before activating it again")
        self._activate()
        self._active = True

    def deactivate(self) -> None:
        """Free everything. Does nothing when inactive, so that it is safe in ``finally``."""
        if self._active:
            self._active = False
            self._deactivate()

    def __enter__(self) -> Self:
        self.activate()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.deactivate()

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The inputs of the active network, in order."""
        self._require_active("inputs")
        return self._inputs()

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """The outputs of the active network, in order."""
        self._require_active("outputs")
        return self._outputs()

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once: input arrays by name to output arrays by name."""
        self._require_active("infer")
        self.check_feeds(feeds)
        return self._infer(feeds)

    def latencies(self, feeds: Mapping[str, Array], *, runs: int, warmup: int = 2) -> Floats:
        """Time ``runs`` inferences after ``warmup`` untimed ones: milliseconds, shape (runs,)."""
        self._require_active("latencies")
        self._check_counts(runs, warmup)
        self.check_feeds(feeds)
        return self._latencies(feeds, runs, warmup)

    def node_times(self, feeds: Mapping[str, Array], *, runs: int, warmup: int = 2) -> list[NodeTime]:
        """Profile ``runs`` inferences after ``warmup`` dropped ones: the runtime's nodes in execution order.

        A runtime may allow this only once in an activation, and only if it was constructed for it.
        """
        self._require_active("node_times")
        self._check_counts(runs, warmup)
        self.check_feeds(feeds)
        return self._node_times(feeds, runs, warmup)

    def random_feeds(self, rng: np.random.Generator) -> dict[str, Array]:
        """Standard normal inputs of the right shapes (sizes of -1 become 1)."""
        return {
            info.name: rng.standard_normal([size if size > 0 else 1 for size in info.shape]).astype(
                info.dtype
            )
            for info in self.inputs
        }

    def check_feeds(self, feeds: Mapping[str, Array]) -> None:
        """Raises :class:`EngineError` naming the input whose name, shape or dtype is wrong."""
        expected = {info.name: info for info in self._inputs()}
        if set(feeds) != set(expected):
            raise EngineError(
                f"{self.name} was given the inputs {sorted(feeds)}; it takes exactly {sorted(expected)}"
            )
        for name, info in expected.items():
            value = feeds[name]
            fits = len(value.shape) == len(info.shape) and all(
                want in (-1, have) for want, have in zip(info.shape, value.shape, strict=True)
            )
            if not fits or value.dtype.name != info.dtype:
                raise EngineError(
                    f"{self.name}: input {name!r} has shape {tuple(value.shape)} and type "
                    f"{value.dtype.name}; the network takes {info.shape} and {info.dtype}"
                )

    def _require_active(self, what: str) -> None:
        if not self._active:
            raise EngineError(
                f"{self.name} is not active, so there is no {what!r}; "
                "use it as 'with runner:' or call activate()"
            )

    def _check_counts(self, runs: int, warmup: int) -> None:
        if runs < 1 or warmup < 0:
            raise EngineError(
                f"{self.name}: runs must be 1 or more and warmup 0 or more; given {runs} and {warmup}"
            )

    @abstractmethod
    def _activate(self) -> None: ...

    @abstractmethod
    def _deactivate(self) -> None: ...

    @abstractmethod
    def _inputs(self) -> tuple[TensorInfo, ...]: ...

    @abstractmethod
    def _outputs(self) -> tuple[TensorInfo, ...]: ...

    @abstractmethod
    def _infer(self, feeds: Mapping[str, Array]) -> dict[str, Array]: ...

    @abstractmethod
    def _latencies(self, feeds: Mapping[str, Array], runs: int, warmup: int) -> Floats: ...

    @abstractmethod
    def _node_times(self, feeds: Mapping[str, Array], runs: int, warmup: int) -> list[NodeTime]: ...


@dataclass(frozen=True)
class EngineBuild:
    """What a runtime says of an engine that it wrote.

    Attributes:
        package, version: that built it.
        checked: what was checked of it.
        capability: compute capability that it is for; empty where there is no such thing.
        built_on: the GPU it was built on; empty where there was none.
        loaded: whether it was also loaded on the device.
    """

    package: str
    version: str
    checked: tuple[str, ...] = ()
    capability: str = ""
    built_on: str = ""
    loaded: bool = False


class Runtime(ABC):
    """A runtime: whether it is here, what it can compute, and how it runs a network.

    To add one, write a subclass. Name it in the entry-point group ``bcnet_deploy.runtimes``, or write
    ``runtime: my_file.py:MyRuntime`` into a device profile. Only :meth:`runner` must be written.
    :mod:`bcnet_deploy.testing.runtimes` has the tests that its runners must pass.

    Attributes:
        name: in device profiles, tables and benchmarks.
        title: for people.
        packages: distributions that hold it. The first that is installed counts.
        precisions: by kind of device (``cpu``, ``gpu``, ``npu``), what it can compute in.
        converts: those precisions that it makes by itself of an FP32 network while loading.
        quantised_for: the form of INT8 networks that it wants, see :func:`precision.to_int8`.
        engine: its word for ``export --engine``; None: it has no files of its own.
        suffix: of its engine files.
        needs_engine: whether loading an ONNX network takes so long that benchmarks run engine files alone.
    """

    name: str
    title: str
    packages: tuple[str, ...] = ()
    precisions: Mapping[str, tuple[str, ...]]
    converts: tuple[str, ...] = ()
    quantised_for: Literal["ort", "trt"] = "ort"
    engine: str | None = None
    suffix: str = ""
    needs_engine: bool = False

    # -- what is here ------------------------------------------------------------------------------

    def installed(self) -> tuple[str, str] | None:
        """Package and version that networks run with here; None when there is none."""
        from bcnet_deploy.runtime.machine import package_version

        for package in self.packages:
            if (version := package_version(package)) is not None:
                return package, version
        return None

    def lacking(self, kind: str, precision: str | None = None) -> str:
        """Why this machine's software or CPU cannot run ``kind`` at ``precision``; empty when it can."""
        if self.installed() is None:
            hint = f" (pip install {self.packages[0]})" if self.packages else ""
            return f"{self.title} is not installed{hint}"
        allowed = self.precisions.get(kind, ())
        if not allowed:
            return f"{self.title} does not run on a {kind.upper()}"
        if precision is not None and precision not in allowed:
            return f"{self.title} does not compute in {precision.upper()} on a {kind.upper()}"
        return ""

    def device_name(self, kind: str) -> str | None:
        """What the driver calls this machine's device of a kind other than ``cpu``; None: there is none."""
        from bcnet_deploy.runtime.machine import gpu_name

        return gpu_name() if kind == "gpu" else None

    def place(self, kind: str) -> str:
        """The name of this runtime on a kind of device, in benchmarks."""
        return f"{self.name}-{kind}"

    def describe(self) -> dict[str, Any]:
        """What a latency table says of the runtime: ``runtime`` and ``runtime_version``."""
        package, version = self.installed() or (self.name, None)
        return {"runtime": package, "runtime_version": version}

    # -- running networks --------------------------------------------------------------------------

    @abstractmethod
    def runner(
        self,
        network: bytes,
        device: DeviceProfile,
        *,
        profiling: bool = False,
        threads_sleep: bool = False,
        name: str | None = None,
    ) -> Runner:
        """An inactive runner of a serialised ONNX network.

        Args:
            network: in the device's precision, see :meth:`prepared`.
            device: its threads and precision are used.
            profiling: :meth:`Runner.node_times` will be called.
            threads_sleep: idle threads must not spin: the runner stays loaded while others are timed.
            name: shown in messages.
        """

    def prepared(self, model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
        """An FP32 network in the form in which it is run at ``precision``, for timing.

        INT8 ranges are those of random images: they do not change how long a kernel takes.

        Raises:
            ExportError: the network cannot be converted.
        """
        from bcnet_deploy.runtime.precision import to_fp16, to_int8

        if precision == "fp32" or precision in self.converts:
            return model
        if precision == "fp16":
            return to_fp16(model)
        size = tuple(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim)
        images = np.random.default_rng(0).standard_normal(size).astype(np.float32)
        return to_int8(model, images, target=self.quantised_for)

    def rounding(self, device: DeviceProfile, cpu_features: Sequence[str]) -> tuple[int, int]:
        """How channels are rounded: up to blocks of so many, and counts divisible by the second are fast.

        Latency tables use it as a first guess of where steps are.
        """
        figure = device.channel_granularity.get(device.precision)
        block = int(figure.value) if figure is not None else 16 if "avx512f" in cpu_features else 8
        return block, block

    # -- engine files ------------------------------------------------------------------------------

    def check_engine(self, device: DeviceProfile, precision: str) -> None:
        """Refuse, before any work, what :meth:`build_engine` cannot build. Raises :class:`EngineError`."""
        if self.engine is None:
            raise EngineError(f"{self.title} has no engine files; choose --engine onnx")
        if reason := self.lacking(device.kind, precision):
            raise EngineError(reason)

    def build_engine(
        self,
        network: bytes,
        path: Path,
        device: DeviceProfile,
        precision: str,
        *,
        batch: tuple[int, int, int],
    ) -> EngineBuild:
        """Write a network as an engine file of this runtime, atomically.

        Args:
            network: serialised ONNX, in ``precision`` or in FP32 where the runtime converts.
            path: of the engine.
            device: that the engine is for.
            precision: that it computes in.
            batch: smallest, best and largest batch size, used where the network's is dynamic.

        Raises:
            EngineError: the runtime refuses the network, the device or the precision.
            RunDirError: the file cannot be written.
        """
        raise EngineError(f"{self.title} has no engine files; choose --engine onnx")

    def engine_files(self, path: Path) -> tuple[Path, ...]:
        """Every file of the engine at ``path``: that, its sidecar, and what else there is."""
        return path, Path(f"{path}.json")

    def engine_runner(self, path: Path, device: DeviceProfile) -> Runner:
        """An inactive runner of an engine that :meth:`build_engine` wrote. Raises :class:`EngineError`."""
        raise EngineError(f"{self.title} has no engine files; run the ONNX file")
