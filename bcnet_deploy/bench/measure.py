"""Measures exported networks on every runtime present, interleaved, against a latency table.

In each round every network runs once on every runtime, in an order that rotates; between two, the
session and its threads are gone (the probe's sleeps). So no network has a warmer machine than another,
and the spread over rounds holds what sessions differ by. What was measured in a slow spell of the
machine is measured again (:mod:`bcnet_deploy.profiler.pace`). Timing excludes copies and set-up (see
``runtime.base``).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bcnet_deploy.bench.against_table import departures, layer_times, predict
from bcnet_deploy.bench.result import (
    BenchResult,
    LayerTime,
    NetworkResult,
    RuntimeResult,
    Throughput,
)
from bcnet_deploy.bench.runtimes import CPU, Make, Subject, open_subject, runtimes
from bcnet_deploy.bench.stats import summarise
from bcnet_deploy.devices import DeviceProfile, load_device
from bcnet_deploy.errors import EngineError, ExportError
from bcnet_deploy.export import metadata as meta
from bcnet_deploy.export.graph import with_batch
from bcnet_deploy.lut import LatencyTable
from bcnet_deploy.lut.machine import describe_machine
from bcnet_deploy.profiler.measure import low
from bcnet_deploy.profiler.pace import FAST, STEADY, Pace
from bcnet_deploy.runtime.base import Runner
from bcnet_deploy.runtime.ort import OrtRunner, check_threads
from bcnet_deploy.runtime.trt import TrtRunner
from bcnet_deploy.runtime.trt_build import gpu, installed_flavours

if TYPE_CHECKING:
    from bcnet_deploy.space import WidthSpace

_AGAIN = 3


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """How to measure.

    Attributes:
        rounds: how often each network is loaded anew; 2 or more give a noise floor.
        runs: timed runs a round. warmup: untimed ones before them.
        threads: of the CPU runtime; None: the device profile's, or 1.
        batches: batch sizes of the throughput; empty: none.
        layers: profile by layer too.
        patience_s: seconds to wait in all until a machine in a slow spell recovers.
        seed: of the inputs and of the split halves.
    """

    rounds: int = 8
    runs: int = 20
    warmup: int = 5
    threads: int | None = None
    batches: tuple[int, ...] = (1, 4, 16)
    layers: bool = True
    patience_s: float = 30.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rounds", "runs"):
            if getattr(self, name) < 1:
                raise EngineError(f"{name} is {getattr(self, name)}; give 1 or more")
        if self.warmup < 0 or any(batch < 1 for batch in self.batches):
            raise EngineError(
                f"warmup is {self.warmup}, batches are {self.batches}; give 0 or more, and 1 or more"
            )


def bench(
    networks: Mapping[str, str | Path],
    device: DeviceProfile | str,
    *,
    settings: BenchSettings | None = None,
    table: LatencyTable | None = None,
    space: WidthSpace | None = None,
    engines: Mapping[str, str | Path] | None = None,
    reference: bytes | None = None,
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
        reference: the ONNX network by which the table knows this machine's speed (``reference_ms``). Given,
            a machine slower than when the table was made is waited for; else one slower than at its best.
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
    subjects = {name: open_subject(Path(path)) for name, path in networks.items()}
    factories, absent = runtimes(subjects, engines or {}, threads)
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

    def once(name: str, runtime: str) -> Any:
        with factories[runtime][name](False, subjects[name].data) as runner:
            feeds = runner.random_feeds(np.random.default_rng(settings.seed))
            return runner.latencies(feeds, runs=settings.runs, warmup=settings.warmup)

    probed, probed_on = pairs[0]
    probe_data, usual_ms = subjects[probed].data, None
    if reference is not None and probed_on == CPU and (usual_ms := _usual_ms(table, threads)) is not None:
        probe_data = reference

    def probe_runner() -> Runner:
        if probed_on == CPU:
            return OrtRunner(probe_data, threads=threads, threads_sleep=True)
        return factories[probed_on][probed](False, probe_data)

    with Pace(probe_runner, patience_s=settings.patience_s, usual_ms=usual_ms) as pace:
        probes: dict[tuple[str, str], list[float]] = {pair: [] for pair in pairs}
        for index in range(settings.rounds):
            turn = index % len(pairs)
            for pair in pairs[turn:] + pairs[:turn]:
                times[pair].append(once(*pair))
                probes[pair].append(pace.probe())
                step(f"{pair[0]} on {pair[1]}, round {index + 1} of {settings.rounds}")
        # What was measured at another speed is measured again, in the same order, while the patience lasts.
        disturbed = [
            (index, pair)
            for index in range(settings.rounds)
            for pair in pairs
            if not pace.is_steady(probes[pair][index])
        ]
        for index, pair in disturbed:
            tries = 0
            while tries < _AGAIN and not pace.is_steady(probes[pair][index]) and pace.settle():
                times[pair][index] = once(*pair)
                probes[pair][index] = pace.probe()
                tries += 1
    machine["clock_mhz_after"] = clock_mhz()

    notes = _elsewhere(profile)
    speed = (
        float(np.median([ms for of_pair in probes.values() for ms in of_pair])) / usual_ms
        if usual_ms
        else None
    )
    if speed is not None and not FAST <= speed <= STEADY:
        notes.append(
            f"the machine took {speed:.2f} times as long as when the table was made, and did not come back "
            "to that while this waited: predictions are of the machine as it was then"
        )
    predictions = {name: predict(table, subject, name, notes) for name, subject in subjects.items()}
    results: dict[str, dict[str, RuntimeResult]] = {name: {} for name in subjects}
    for name, runtime in pairs:
        subject, make = subjects[name], factories[runtime][name]
        stats = summarise(np.stack(times[name, runtime]), rng)
        prediction = predictions[name]
        departs = departures(table, subject, runtime, profile, threads, machine)
        matches = prediction is not None and not departs
        layers: tuple[LayerTime, ...] = ()
        if settings.layers:
            layers = layer_times(
                make, subject, table if matches else None, space,
                runs=settings.runs, warmup=settings.warmup, seed=settings.seed,
            )  # fmt: skip
            step(f"{name} on {runtime}, by layer")
        throughput = []
        for batch in sorted(set(settings.batches)):
            found = _throughput(make, subject, batch, settings, notes, f"{name} on {runtime}")
            if found is not None:
                throughput.append(found)
            step(f"{name} on {runtime}, batch {batch}")
        error = stats.low_ms / prediction.milliseconds - 1 if prediction is not None and matches else None
        results[name][runtime] = RuntimeResult(stats, error, layers, tuple(throughput), departs)
    for flavour in installed_flavours():
        machine[flavour.name] = flavour.version
    return BenchResult(
        device=profile.name,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        settings={
            "rounds": settings.rounds, "runs": settings.runs, "warmup": settings.warmup, "threads": threads,
            "batches": list(settings.batches), "seed": settings.seed, "measured_again": len(disturbed),
            "speed": None if speed is None else round(speed, 4),
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


def _usual_ms(table: LatencyTable | None, threads: int) -> float | None:
    """The reference network's latency when the table was made, if that was on this machine; else None."""
    if table is None or table.estimated or table.differences() or table.provenance.get("threads") != threads:
        return None
    usual = table.provenance.get("reference_ms")
    return None if usual is None else float(usual)


def clock_mhz() -> float | None:
    """The mean clock of the CPU's cores now, in MHz, as the kernel reports it; None where it does not."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    values = [float(value) for value in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", text, re.MULTILINE)]
    return round(float(np.mean(values)), 1) if values else None


def _throughput(
    make: Make, subject: Subject, batch: int, settings: BenchSettings, notes: list[str], what: str
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
