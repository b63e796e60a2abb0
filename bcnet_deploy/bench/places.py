"""What is measured, and where: on which of this machine's runtimes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from bcnet_deploy.devices import DeviceProfile
from bcnet_deploy.errors import ExportError
from bcnet_deploy.export import metadata as meta
from bcnet_deploy.runtime.base import Runner, Runtime
from bcnet_deploy.runtime.engine_file import read_info
from bcnet_deploy.runtime.registry import RUNTIMES, find_runtime


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


@dataclass(frozen=True)
class Place:
    """A runtime on a kind of device of this machine.

    Attributes:
        name: such as ``onnxruntime-cpu``.
        device: what its runners are made with: threads, precision.
        engines: by network, for a runtime that benchmarks run engine files of.
    """

    name: str
    runtime: Runtime
    device: DeviceProfile
    engines: Mapping[str, str | Path]

    def runs(self, network: str) -> bool:
        """Whether it can run the network of that name."""
        return not self.runtime.needs_engine or network in self.engines

    def precision(self, network: str, subject: Subject) -> str:
        """What ``subject``, which is called ``network``, is computed in here."""
        if self.runtime.needs_engine:
            return read_info(Path(self.engines[network])).precision
        given = subject.metadata.precision
        converted = given == "fp32" and self.device.precision in self.runtime.converts
        return self.device.precision if converted else given

    def runner(
        self, network: str, model: bytes, *, profiling: bool = False, threads_sleep: bool = False
    ) -> Runner:
        """An inactive runner of ``model``, which is called ``network``."""
        if self.runtime.needs_engine:
            return self.runtime.engine_runner(Path(self.engines[network]), self.device)
        return self.runtime.runner(
            model, self.device, profiling=profiling, threads_sleep=threads_sleep, name=network
        )


def places_here(
    profile: DeviceProfile, threads: int, engines: Mapping[str, str | Path], only: Collection[str] | None
) -> tuple[list[Place], dict[str, str]]:
    """Where networks can be measured here, the place of ``profile`` first; and where not, with the reason.

    Args:
        profile: the device that the benchmark is for.
        threads: of runtimes on the CPU.
        engines: engine files of the profile's runtime, by network.
        only: names of runtimes; None: all.
    """
    found: list[Place] = []
    absent: dict[str, str] = {}
    names = dict.fromkeys((profile.runtime, *RUNTIMES.names()))
    for name in names:
        runtime = find_runtime(name)
        for kind in runtime.precisions:
            own = (name, kind) == (profile.runtime, profile.kind)
            if (only is not None and name not in only) or (kind == "npu" and not own):
                continue
            device = _device(profile, name, kind, threads, own=own)
            place = Place(runtime.place(kind), runtime, device, engines if own else {})
            reason = runtime.lacking(kind, device.precision if own else None)
            if kind != "cpu" and runtime.device_name(kind) is None:
                reason = reason or f"no {kind.upper()} on this machine"
            if not reason and runtime.needs_engine and not place.engines:
                reason = f"no engine was exported ('bcnet-deploy export --engine {runtime.engine}')"
            if reason:
                absent[place.name] = reason
            else:
                found.insert(0 if own else len(found), place)
    return found, absent


def _device(profile: DeviceProfile, runtime: str, kind: str, threads: int, *, own: bool) -> DeviceProfile:
    """``profile`` where the place is its own, else a stand-in of this machine in FP32."""
    if own:
        return profile.replace(threads=threads) if kind == "cpu" else profile
    return DeviceProfile(
        name="this-machine", kind=kind, runtime=runtime, batch=profile.batch,  # type: ignore[arg-type]
        threads=threads if kind == "cpu" else None,
        device_names=() if kind == "cpu" else ("any",),
        compute_capability=None if kind == "cpu" else profile.compute_capability or "0.0",
    )  # fmt: skip
