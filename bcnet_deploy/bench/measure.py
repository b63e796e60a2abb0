"""Measures exported networks on every runtime present, interleaved, against a latency table.

In each round every network runs once on every runtime, in an order that rotates; between two, the
session and its threads are gone (the probe's sleeps). So no network has a warmer machine than another,
and the spread over rounds holds what sessions differ by. What was measured in a slow spell of the
machine is measured again (:mod:`bcnet_deploy.runtime.pace`). Timing excludes copies and set-up (see
``runtime.base``).
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bcnet_deploy.bench.against_table import departures, layer_times, predict
from bcnet_deploy.bench.places import Place, Subject, open_subject, places_here
from bcnet_deploy.bench.result import (
    BenchResult,
    LayerTime,
    NetworkResult,
    RuntimeResult,
    Throughput,
)
from bcnet_deploy.bench.settings import BenchSettings
from bcnet_deploy.bench.stats import summarise
from bcnet_deploy.devices import DeviceProfile, load_device
from bcnet_deploy.errors import EngineError, ExportError
from bcnet_deploy.export import metadata as meta
from bcnet_deploy.export.graph import with_batch
from bcnet_deploy.lut import LatencyTable
from bcnet_deploy.profiler.measure import low
from bcnet_deploy.runtime.base import Floats, Runner
from bcnet_deploy.runtime.machine import describe_machine
from bcnet_deploy.runtime.ort import check_threads
from bcnet_deploy.runtime.pace import FAST, STEADY, Pace

if TYPE_CHECKING:
    from bcnet_deploy.space import WidthSpace

_AGAIN = 3


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
        engines: engine files of the device's runtime by the same names, for a runtime that needs them.
        reference: the ONNX network by which the table knows this machine's speed (``reference_ms``). Given,
            a machine slower than when the table was made is waited for; else one slower than at its best.
        progress: told the share done and a note.

    Raises:
        ExportError: a file is missing or no ONNX file.
        EngineError: a runtime refuses a network, none is here, or a setting is out of range.
    """
    if not networks:
        raise ExportError("there is no network to measure; export one with 'bcnet-deploy export'")
    settings = settings or BenchSettings()
    profile = load_device(device) if isinstance(device, str) else device
    threads = check_threads(profile.threads or 1 if settings.threads is None else settings.threads)
    subjects = {name: open_subject(Path(path)) for name, path in networks.items()}
    places, absent = places_here(profile, threads, engines or {}, settings.runtimes)
    pairs = [(name, place) for place in places for name in subjects if place.runs(name)]
    if not pairs:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in absent.items())
        raise EngineError(f"there is no runtime here to measure on ({reasons})")
    steps = _Steps(progress, len(pairs) * (settings.rounds + settings.layers + len(set(settings.batches))))
    machine: dict[str, Any] = {**describe_machine(profile.run_by()), "clock_mhz_before": clock_mhz()}
    own = profile.run_by().place(profile.kind)
    here = pairs[0][1].name == own
    usual_ms = _usual_ms(table, threads) if reference is not None and here else None
    rounds = _Rounds(
        pairs, own, subjects, settings, reference if usual_ms is not None else None, usual_ms
    ).measure(steps)  # fmt: skip
    machine["clock_mhz_after"] = clock_mhz()
    machine["runtimes"] = {place.name: " ".join(place.runtime.installed() or ()) for place in places}

    notes = [*_elsewhere(profile), *rounds.notes()]
    predictions = {name: predict(table, subject, name, notes) for name, subject in subjects.items()}
    results: dict[str, dict[str, RuntimeResult]] = {name: {} for name in subjects}
    rng = np.random.default_rng(settings.seed)
    for name, place in rounds.pairs:
        stats = summarise(np.stack(rounds.times[name, place.name]), rng)
        departs = departures(table, name, subjects[name], place, profile, threads, machine)
        compared = None if departs else predictions[name]
        results[name][place.name] = RuntimeResult(
            kind=place.device.kind,
            precision=place.precision(name, subjects[name]),
            latency=stats,
            prediction_error=None if compared is None else stats.low_ms / compared.milliseconds - 1,
            layers=_layers(
                place, name, subjects[name], table if compared is not None else None, space, settings, steps
            ),
            throughput=_throughputs(place, name, subjects[name], settings, notes, steps),
            departs=departs,
        )
    return BenchResult(
        device=profile.name,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        settings={
            "rounds": settings.rounds, "runs": settings.runs, "warmup": settings.warmup, "threads": threads,
            "batches": list(settings.batches), "seed": settings.seed, "measured_again": rounds.again,
            "speed": None if rounds.speed is None else round(rounds.speed, 4),
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


class _Steps:
    """Tells how much of the whole is done."""

    def __init__(self, progress: Callable[[float, str], None] | None, total: int) -> None:
        self.progress = progress or (lambda done, note: None)
        self.total = max(total, 1)
        self.done = 0

    def __call__(self, note: str) -> None:
        self.done += 1
        self.progress(self.done / self.total, note)


@dataclass
class _Rounds:
    """The interleaved rounds of all networks on all runtimes.

    Attributes:
        pairs: networks and where they are run; those that are refused elsewhere than at ``own``, the place
            of the device that the benchmark is for, are left out.
        reference, usual_ms: the network that is timed in between, and its time at the speed that is wanted;
            None: the first network, at its best.
        times: for each network and place, the milliseconds of each round: (runs,) each.
        again: how many measurements were made again, since they were disturbed.
        refused: why a network is not measured at a place, for people.
        speed: the median time of the reference over the usual one; None without.
    """

    pairs: list[tuple[str, Place]]
    own: str
    subjects: Mapping[str, Subject]
    settings: BenchSettings
    reference: bytes | None
    usual_ms: float | None
    times: dict[tuple[str, str], list[Floats]] = field(default_factory=dict)
    again: int = 0
    refused: list[str] = field(default_factory=list)
    speed: float | None = None

    def measure(self, steps: _Steps) -> _Rounds:
        """Run them. Raises :class:`EngineError`."""
        self.times = {(name, place.name): [] for name, place in self.pairs}
        probes: dict[tuple[str, str], list[float]] = {key: [] for key in self.times}
        with Pace(
            self._probe_runner, patience_s=self.settings.patience_s, usual_ms=self.usual_ms
        ) as pace:  # fmt: skip
            self._leave_out_refused()
            for index in range(self.settings.rounds):
                turn = index % len(self.pairs)
                for name, place in self.pairs[turn:] + self.pairs[:turn]:
                    self.times[name, place.name].append(self._once(name, place))
                    probes[name, place.name].append(pace.probe())
                    steps(f"{name} on {place.name}, round {index + 1} of {self.settings.rounds}")
            self._repeat_disturbed(pace, probes)
        if self.usual_ms is not None:
            seen = [milliseconds for of_pair in probes.values() for milliseconds in of_pair]
            self.speed = float(np.median(seen)) / self.usual_ms
        return self

    def _leave_out_refused(self) -> None:
        """Of other runtimes than the device's own, what they do not run: that must not end a benchmark."""
        others = [pair for pair in self.pairs if pair[1].name != self.own]
        for name, place in others:
            try:
                with place.runner(name, self.subjects[name].data) as runner:
                    feeds = runner.random_feeds(np.random.default_rng(self.settings.seed))
                    runner.latencies(feeds, runs=1, warmup=0)
            except (EngineError, ExportError) as error:
                if len(self.pairs) == 1:
                    raise
                self.refused.append(f"{name} was not measured on {place.name}: {error}")
                self.pairs.remove((name, place))

    def _repeat_disturbed(self, pace: Pace, probes: dict[tuple[str, str], list[float]]) -> None:
        """Measure again what was measured at another speed, in the same order, while the patience lasts."""
        disturbed = [
            (index, name, place)
            for index in range(self.settings.rounds)
            for name, place in self.pairs
            if not pace.is_steady(probes[name, place.name][index])
        ]
        for index, name, place in disturbed:
            key = name, place.name
            for _ in range(_AGAIN):
                if pace.is_steady(probes[key][index]) or not pace.settle():
                    break
                self.times[key][index] = self._once(name, place)
                probes[key][index] = pace.probe()
                self.again += 1

    def _once(self, name: str, place: Place) -> Floats:
        with place.runner(name, self.subjects[name].data) as runner:
            feeds = runner.random_feeds(np.random.default_rng(self.settings.seed))
            return runner.latencies(feeds, runs=self.settings.runs, warmup=self.settings.warmup)

    def _probe_runner(self) -> Runner:
        name, place = self.pairs[0]
        return place.runner(name, self.reference or self.subjects[name].data, threads_sleep=True)

    def notes(self) -> list[str]:
        """What must be said of networks that were refused and of the machine's speed."""
        if self.speed is None or FAST <= self.speed <= STEADY:
            return self.refused
        return [
            *self.refused,
            f"the machine took {self.speed:.2f} times as long as when the table was made, and did not come "
            "back to that while this waited: predictions are of the machine as it was then",
        ]


def _elsewhere(device: DeviceProfile) -> list[str]:
    """A note when the device is not this machine's."""
    found = device.run_by().device_name(device.kind)
    if device.kind == "cpu" or (found is not None and device.matches(found)):
        return []
    here = f"no {device.kind.upper()}" if found is None else found
    return [
        f"{device.description or device.name} is not here ({here}): only this machine's own runtimes were "
        "measured; run 'bcnet-deploy bench' on its host for its figures"
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


def _layers(
    place: Place, name: str, subject: Subject, table: LatencyTable | None, space: WidthSpace | None,
    settings: BenchSettings, steps: _Steps,
) -> tuple[LayerTime, ...]:  # fmt: skip
    if not settings.layers:
        return ()
    steps(f"{name} on {place.name}, by layer")
    return layer_times(
        place, name, subject, table, space,
        runs=settings.runs, warmup=settings.warmup, seed=settings.seed,
    )  # fmt: skip


def _throughputs(
    place: Place, name: str, subject: Subject, settings: BenchSettings, notes: list[str], steps: _Steps
) -> tuple[Throughput, ...]:
    """By batch size, ascending; a note for each that the network or the runtime does not take."""
    found = []
    for batch in sorted(set(settings.batches)):
        steps(f"{name} on {place.name}, batch {batch}")
        try:
            with place.runner(name, with_batch(subject.data, batch)) as runner:
                info = runner.inputs[0]
                if info.shape[0] not in (-1, batch):
                    raise EngineError(f"its engine has a fixed batch of {info.shape[0]}")
                image = np.random.default_rng(settings.seed).standard_normal((batch, *info.shape[1:]))
                times = runner.latencies(
                    {info.name: image.astype(info.dtype)}, runs=max(4, settings.runs // 2), warmup=2
                )
        except (EngineError, ExportError) as error:
            notes.append(f"{name} on {place.name}: batch {batch} was not measured: {error}")
            continue
        latency = float(low(times))
        found.append(Throughput(batch, latency, batch / latency * 1e3))
    return tuple(found)
