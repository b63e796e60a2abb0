"""Measures exported networks on every runtime present, interleaved, against a latency table.

In each round every network runs once on every runtime, in an order that rotates; between two, the
session and its threads are gone. So no network has a warmer machine than another, and the spread over
rounds holds what sessions differ by. Timing excludes copies and set-up (see ``runtime.base``).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bcnet_deploy.bench.result import (
    BenchResult,
    LayerTime,
    NetworkResult,
    Prediction,
    RuntimeResult,
    Throughput,
)
from bcnet_deploy.bench.stats import summarise
from bcnet_deploy.devices import DeviceProfile, load_device
from bcnet_deploy.errors import EngineError, ExportError, MissingEntryError, TableError, WidthError
from bcnet_deploy.export import metadata as meta
from bcnet_deploy.export.graph import with_batch
from bcnet_deploy.lut import LatencyTable
from bcnet_deploy.lut.machine import describe_machine
from bcnet_deploy.profiler.measure import low
from bcnet_deploy.runtime.base import NodeTime, Runner
from bcnet_deploy.runtime.layer_names import module_times
from bcnet_deploy.runtime.ort import OrtRunner, available_providers, check_threads
from bcnet_deploy.runtime.trt import TrtRunner
from bcnet_deploy.runtime.trt_build import gpu, installed_flavours

if TYPE_CHECKING:
    from bcnet_deploy.space import WidthSpace

CPU, CUDA, TRT = "onnxruntime-cpu", "onnxruntime-cuda", "tensorrt"


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """How to measure.

    Attributes:
        rounds: how often each network is loaded anew; 2 or more give a noise floor.
        runs: timed runs a round. warmup: untimed ones before them.
        threads: of the CPU runtime; None: the device profile's, or 1.
        batches: batch sizes of the throughput; empty: none.
        layers: profile by layer too.
        seed: of the inputs and of the split halves.
    """

    rounds: int = 8
    runs: int = 20
    warmup: int = 5
    threads: int | None = None
    batches: tuple[int, ...] = (1, 4, 16)
    layers: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rounds", "runs"):
            if getattr(self, name) < 1:
                raise EngineError(f"{name} is {getattr(self, name)}; give 1 or more")
        if self.warmup < 0 or any(batch < 1 for batch in self.batches):
            raise EngineError(
                f"warmup is {self.warmup}, batches are {self.batches}; give 0 or more, and 1 or more"
            )


@dataclass(frozen=True)
class _Subject:
    """A network to measure: its file and what the file says."""

    path: Path
    data: bytes
    metadata: meta.ModelMetadata
    nodes: tuple[str, ...]
    batch: int


def bench(
    networks: Mapping[str, str | Path],
    device: DeviceProfile | str,
    *,
    settings: BenchSettings | None = None,
    table: LatencyTable | None = None,
    space: WidthSpace | None = None,
    engines: Mapping[str, str | Path] | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> BenchResult:
    """Measure networks on every runtime of this machine, interleaved in one run.

    Args:
        networks: ONNX files by name, such as full, uniform and found; as ``export_onnx`` wrote them.
        device: the profile (or its name) whose threads are used.
        settings: how often, how long.
        table: predicts each network whose file names its widths; of whole networks and by layer.
        space: the full model's width space; with it, layers are the table's own, else modules.
        engines: TensorRT engines by the same names, measured where their GPU is.
        progress: told the share done and a note.

    Raises:
        ExportError: a file is missing or no ONNX file.
        EngineError: a runtime refuses a network, or a setting is out of range.
    """
    if not networks:
        raise ExportError("there is no network to measure; export one with 'bcnet-deploy export'")
    settings = settings or BenchSettings()
    profile = load_device(device) if isinstance(device, str) else device
    threads = check_threads(profile.threads or 1 if settings.threads is None else settings.threads)
    subjects = {name: _open(Path(path)) for name, path in networks.items()}
    factories, absent = _runtimes(subjects, engines or {}, threads)
    rng = np.random.default_rng(settings.seed)
    tell = progress or (lambda done, note: None)
    pairs = [(name, runtime) for runtime in factories for name in factories[runtime]]
    steps = len(pairs) * (settings.rounds + settings.layers + len(settings.batches))
    done = 0

    def step(note: str) -> None:
        nonlocal done
        done += 1
        tell(done / max(steps, 1), note)

    machine: dict[str, Any] = {**describe_machine("onnxruntime"), "clock_mhz_before": clock_mhz()}
    times: dict[tuple[str, str], list[Any]] = {pair: [] for pair in pairs}
    for index in range(settings.rounds):
        turn = index % len(pairs)
        for name, runtime in pairs[turn:] + pairs[:turn]:
            with factories[runtime][name](False, subjects[name].data) as runner:
                feeds = runner.random_feeds(np.random.default_rng(settings.seed))
                times[name, runtime].append(
                    runner.latencies(feeds, runs=settings.runs, warmup=settings.warmup)
                )
            step(f"{name} on {runtime}, round {index + 1} of {settings.rounds}")
    machine["clock_mhz_after"] = clock_mhz()

    notes = _elsewhere(profile)
    predictions = {name: _predict(table, subject, name, notes) for name, subject in subjects.items()}
    results: dict[str, dict[str, RuntimeResult]] = {name: {} for name in subjects}
    for name, runtime in pairs:
        subject, make = subjects[name], factories[runtime][name]
        stats = summarise(np.stack(times[name, runtime]), rng)
        prediction = predictions[name]
        comparable = prediction is not None and _comparable(table, subject, runtime, profile, threads)
        layers: tuple[LayerTime, ...] = ()
        if settings.layers:
            layers = _layers(make, subject, settings, table if comparable else None, space)
            step(f"{name} on {runtime}, by layer")
        throughput = []
        for batch in sorted(set(settings.batches)):
            found = _throughput(make, subject, batch, settings, notes, f"{name} on {runtime}")
            if found is not None:
                throughput.append(found)
            step(f"{name} on {runtime}, batch {batch}")
        error = stats.low_ms / prediction.milliseconds - 1 if prediction is not None and comparable else None
        results[name][runtime] = RuntimeResult(stats, error, layers, tuple(throughput))
    for flavour in installed_flavours():
        machine[flavour.name] = flavour.version
    return BenchResult(
        device=profile.name,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        settings={
            "rounds": settings.rounds, "runs": settings.runs, "warmup": settings.warmup, "threads": threads,
            "batches": list(settings.batches), "seed": settings.seed,
            "order": "every network once a round, order rotating, session closed in between",
        },
        machine=machine,
        networks={
            name: NetworkResult(
                subject.path.name, meta.sha256(subject.path), subject.metadata.precision,
                subject.metadata.widths, predictions[name], results[name],
            )
            for name, subject in subjects.items()
        },
        absent=absent,
        notes=tuple(dict.fromkeys(notes)),
    )  # fmt: skip


def _elsewhere(device: DeviceProfile) -> list[str]:
    """A note when the device is a GPU that is not this machine's."""
    present = gpu()
    if device.kind == "cpu" or (present is not None and device.matches_gpu(present[0])):
        return []
    here = "no GPU" if present is None else present[0]
    return [
        f"{device.description} is not here ({here}): only this machine's own runtimes were measured; "
        "run 'bcnet-deploy bench' on its host for its figures"
    ]


def clock_mhz() -> float | None:
    """The mean clock of the CPU's cores now, in MHz, as the kernel reports it; None where it does not."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    values = [float(value) for value in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", text, re.MULTILINE)]
    return round(float(np.mean(values)), 1) if values else None


_Make = Callable[[bool, bytes], Runner]


def _runtimes(
    subjects: Mapping[str, _Subject], engines: Mapping[str, str | Path], threads: int
) -> tuple[dict[str, dict[str, _Make]], dict[str, str]]:
    """What can be measured here: runtime -> network -> (profiling, model) -> runner; and what cannot, why."""
    providers = available_providers()
    found: dict[str, dict[str, _Make]] = {}
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


def _ort(provider: str, threads: int, name: str) -> _Make:
    return lambda profiling, model: OrtRunner(
        model, threads=threads, provider=provider, profiling=profiling, name=f"ONNX Runtime ({name})"
    )


def _trt(engine: str | Path) -> _Make:
    return lambda profiling, model: TrtRunner(engine)


def _open(path: Path) -> _Subject:
    import onnx

    try:
        data = path.read_bytes()
        model = onnx.load_from_string(data)
    except FileNotFoundError:
        raise ExportError(f"no ONNX file at {path}; export it with 'bcnet-deploy export'") from None
    except Exception as error:  # protobuf's decode errors share no base class with onnx's
        raise ExportError(f"{path} is not an ONNX file: {error}") from error
    shape = model.graph.input[0].type.tensor_type.shape.dim if model.graph.input else []
    return _Subject(
        path, data, meta.read(model), tuple(node.name for node in model.graph.node),
        shape[0].dim_value if shape else 0,
    )  # fmt: skip


def _vector(table: LatencyTable, subject: _Subject) -> list[int] | None:
    widths = subject.metadata.widths
    names = [variable.name for variable in table.network.variables]
    return [widths[name] for name in names] if set(names) == set(widths) else None


def _predict(table: LatencyTable | None, subject: _Subject, name: str, notes: list[str]) -> Prediction | None:
    if table is None:
        return None
    vector = _vector(table, subject)
    if vector is None:
        notes.append(f"{name}: its file names no widths of the table's network, so there is no prediction")
        return None
    try:
        return Prediction(float(table.predict(vector)[0]), float(table.uncertainty(vector)[0]), table.source)
    except (MissingEntryError, TableError, WidthError) as error:
        notes.append(f"{name}: no prediction: {error}")
        return None


def _comparable(
    table: LatencyTable | None, subject: _Subject, runtime: str, device: DeviceProfile, threads: int
) -> bool:
    """Whether the table speaks of this runtime, precision, batch and thread count."""
    if table is None or table.precision != subject.metadata.precision or table.batch != (subject.batch or 1):
        return False
    if device.name != table.device:
        return False
    if device.runtime == "tensorrt":
        return runtime == TRT
    return runtime == (CPU if device.kind == "cpu" else CUDA) and threads == (device.threads or threads)


def _layers(
    make: _Make,
    subject: _Subject,
    settings: BenchSettings,
    table: LatencyTable | None,
    space: WidthSpace | None,
) -> tuple[LayerTime, ...]:
    with make(True, subject.data) as runner:
        feeds = runner.random_feeds(np.random.default_rng(settings.seed))
        nodes = runner.node_times(feeds, runs=settings.runs, warmup=settings.warmup)
        described = runner.metadata() if isinstance(runner, TrtRunner) else {}
    by_layer = _table_layers(nodes, subject, space, settings) if space is not None else None
    if by_layer is None:
        return tuple(
            LayerTime(name, value) for name, value in module_times(nodes, subject.nodes, described).items()
        )
    predicted: dict[str, float] = {}
    vector = _vector(table, subject) if table is not None else None
    if table is not None and vector is not None:
        parts = table.breakdown(vector)
        predicted = dict(zip(parts.names, parts.milliseconds[0].tolist(), strict=True))
    return tuple(LayerTime(name, value, predicted.get(name)) for name, value in by_layer.items())


def _table_layers(
    nodes: Sequence[NodeTime], subject: _Subject, space: WidthSpace, settings: BenchSettings
) -> dict[str, float] | None:
    """Milliseconds by the latency table's layers, every node accounted for; None: of another model."""
    import onnx

    from bcnet_deploy.lut.layers import layers_of
    from bcnet_deploy.profiler.mapping import LayerMap

    if subject.metadata.fingerprint and subject.metadata.fingerprint != space.fingerprint:
        return None
    layers = layers_of(space, precision=subject.metadata.precision, batch=subject.batch or 1)
    try:
        times = LayerMap(onnx.load_from_string(subject.data), space, layers).layer_times(nodes)
    except (LookupError, ValueError):
        return None
    return dict(zip((layer.name for layer in layers), (low(times) / 1e3).tolist(), strict=True))


def _throughput(
    make: _Make, subject: _Subject, batch: int, settings: BenchSettings, notes: list[str], what: str
) -> Throughput | None:
    try:
        model = with_batch(subject.data, batch)
        with make(False, model) as runner:
            info = runner.inputs[0]
            if isinstance(runner, TrtRunner) and info.shape[0] not in (-1, batch):
                notes.append(
                    f"{what}: its engine has a fixed batch of {info.shape[0]}, {batch} was not measured"
                )
                return None
            image = np.random.default_rng(settings.seed).standard_normal((batch, *info.shape[1:]))
            times = runner.latencies(
                {info.name: image.astype(info.dtype)}, runs=max(4, settings.runs // 2), warmup=2
            )
    except (EngineError, ExportError) as error:
        notes.append(f"{what}: batch {batch} was not measured: {error}")
        return None
    latency = float(low(times))
    return Throughput(batch, latency, batch / latency * 1e3)
