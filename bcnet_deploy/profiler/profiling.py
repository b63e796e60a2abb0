"""A latency table of a network: measured on this machine within a time budget, or estimated.

Networks are measured one after another: corners first, then random ones, then those whose layers were
measured least and predicted worst. Held-out networks, which are never fitted, and a reference network
are measured in between, all the way through, so that a machine that drifts does so for all alike.
Every measurement is on disk before the next starts (:mod:`bcnet_deploy.profiler.journal`).
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bcnet_deploy import files, resources
from bcnet_deploy.devices import DeviceProfile, load_device
from bcnet_deploy.errors import BCNetError, TableError
from bcnet_deploy.lut.estimate import estimate_table
from bcnet_deploy.lut.network import Network
from bcnet_deploy.lut.table import LatencyTable
from bcnet_deploy.profiler.fitting import TableMaker, layer_matrix, without_keys
from bcnet_deploy.profiler.journal import Journal, Record
from bcnet_deploy.profiler.layer_map import LayerMap
from bcnet_deploy.profiler.measure import MakeRunner, Sample, Timing, measure
from bcnet_deploy.profiler.narrow import NetworkMaker
from bcnet_deploy.profiler.sampling import Novelty, held_out, next_network, structured
from bcnet_deploy.runtime.machine import describe_machine
from bcnet_deploy.runtime.pace import Pace

if TYPE_CHECKING:
    from torch import nn

    from bcnet_deploy.space import WidthSpace

Int64 = npt.NDArray[np.int64]

_log = logging.getLogger("bcnet_deploy")
_HELD_SHARE = 0.25
_REFERENCE_EVERY = 12
_MIN_TRAIN = 12
_ONE_NETWORK_S = 0.08  # what the timed runs of one network should take, more or less
_TIMED_SHARE = 0.3  # of what a network takes in all: the same where a runtime is slow to load one
_MOST_RUNS = 60
_DISTURBED = 0.12
_AGAIN = 2  # more measurements of a network after slow spells
_PATIENCE = 0.4  # of the budget, for waiting until the machine runs at its usual speed
_OVERTIME = 0.15  # of the budget: the last waits may exceed it by so much


@dataclass(frozen=True)
class ProfileProgress:
    """Where a profile is: for a progress bar."""

    done_s: float
    budget_s: float
    networks: int
    note: str


Report = Callable[[ProfileProgress], None]


class Profiler:
    """One profile of one network on one device.

    Args:
        model: the full network, in evaluation mode.
        space: its width space.
        device: the profile; its runtime is this machine's.
        make_runner: makes inactive runners of serialised ONNX networks.
        path: of the table; the journal lies beside it.
        budget_s: seconds of everything: export, measurements, fits.
        seed: of the sampled networks.
        start: a table of the same device whose entries are taken over (layers seen in another model).
        rebase: ``start`` is of another machine or runtime, whose speed is fitted by family of operators.
        report: called after every measurement.
        make_probe: makes the runner of the network that stays loaded, to see slow spells; as ``make_runner``
            if not given.
        clock, sleep: seconds; replaced in tests.

    Raises:
        TableError, ExportError, EngineError, RunDirError: see :meth:`run`.
    """

    def __init__(
        self,
        model: nn.Module,
        space: WidthSpace,
        device: DeviceProfile,
        *,
        make_runner: MakeRunner,
        path: Path,
        budget_s: float = 120.0,
        seed: int = 0,
        start: LatencyTable | None = None,
        rebase: bool = False,
        report: Report | None = None,
        make_probe: MakeRunner | None = None,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.space = space
        self.device = device
        self.make_runner = make_runner
        self.path = path
        self.budget_s = budget_s
        self.seed = seed
        self.start = start
        self.report = report
        self.make_probe = make_probe or make_runner
        self.clock = clock
        self.sleep = sleep
        self._began = clock()
        self.network = Network.of_space(space, precision=device.precision, batch=device.batch)
        self.maker = NetworkMaker(
            model, space, batch=device.batch,
            prepare=lambda network: device.run_by().prepared(network, device.precision),
        )  # fmt: skip
        self.layer_map = LayerMap(self.maker.exported, space, self.network.layers)
        rng = np.random.default_rng(seed)
        self.image = rng.standard_normal((device.batch, *space.input_size)).astype(np.float32)
        self.reference = tuple(int(width) for width in space.uniform(0.5))
        self.tables = TableMaker(
            space,
            self.network,
            device,
            describe_machine(device.run_by()),
            reference=self.reference,
            seed=seed,
            start=start,
            fast_export=self.maker.fast,
            rebase=rebase,
        )
        self.fit_seconds = 0.0
        self._spent = 0.0

    @property
    def journal_path(self) -> Path:
        return self.path.with_name(self.path.stem + ".samples.jsonl")

    def run(self) -> LatencyTable:
        """Measure until the budget is used, fit, validate, save.

        What an earlier, interrupted run has measured counts, and so does the time it took.

        Raises:
            EngineError: the runtime refuses a network.
            RunDirError: the folder cannot be written; measurements made before are kept.
            TableError: the budget is too small for the fewest networks that make a table.
        """
        journal = Journal(self.journal_path, self.tables.identity())
        self._spent = journal.seconds
        try:
            self._measure(journal)
        finally:
            journal.close()
        return self._table(journal, complete=True)

    # -- measuring -----------------------------------------------------------------------------

    def _measure(self, journal: Journal) -> None:
        references = [record.latency_ms for record in journal.of("reference")]
        with Pace(
            lambda: self.make_probe(self.maker(np.array(self.reference)), False),
            patience_s=_PATIENCE * max(0.0, self.budget_s - self._spent),
            seen_ms=references,
            clock=self.clock,
            sleep=self.sleep,
        ) as pace:
            self._measure_at(pace, journal)

    def _measure_at(self, pace: Pace, journal: Journal) -> None:
        spent = self._spent
        rng = np.random.default_rng([self.seed, len(journal.records)])
        corners = [tuple(row) for row in structured(self.space).tolist()]
        trained = {record.widths for record in journal.of("train")}
        novelty = Novelty(self.network.layers, self._known_dims())
        for record in journal.of("train"):
            novelty.add(np.array(record.widths))
        held: list[tuple[int, ...]] = list(dict.fromkeys(record.widths for record in journal.of("held-out")))
        resumed = bool(held)
        saved_at = 0.0
        while True:
            timing = self._timing(journal)
            left = self.budget_s - spent - (self.clock() - self._began) - self._reserve(journal)
            trains, tests = journal.of("train"), journal.of("held-out")
            enough = len(trains) >= max(_MIN_TRAIN, len(corners)) and held and len(tests) >= 2 * len(held)
            if left <= 0 and enough:
                break
            todo = [corner for corner in corners if corner not in trained]
            if todo:
                record = self._one(pace, journal, "train", todo[0], timing)
            elif len(journal.records) % _REFERENCE_EVERY == 0:
                record = self._one(pace, journal, "reference", self.reference, timing)
            elif (left <= 0 and len(trains) >= _MIN_TRAIN) or len(tests) < _HELD_SHARE * (
                len(trains) + len(tests)
            ):
                if not held or (resumed and len(tests) == len(held)):
                    # A kill in the first round leaves fewer than were chosen: choose the rest again.
                    more = self._choose_held(journal, left, trained | set(held), rng)
                    held += more[: max(0, len(more) - len(held))]
                    resumed = False
                record = self._one(pace, journal, "held-out", held[len(tests) % len(held)], timing)
            else:
                vector = next_network(self.space, novelty, trained | set(held), rng)
                record = self._one(pace, journal, "train", tuple(vector.tolist()), timing)
            if record.role == "train":
                trained.add(record.widths)
                novelty.add(np.array(record.widths))
            done = spent + self.clock() - self._began
            if done > saved_at + max(15.0, 0.2 * self.budget_s) and len(trained) >= _MIN_TRAIN:
                # In between: something to use after a kill, and where the error is.
                self._learn(novelty, journal)
                saved_at = spent + self.clock() - self._began
            self._tell(journal, done, "measuring")

    def _one(
        self, pace: Pace, journal: Journal, role: Any, widths: tuple[int, ...], timing: Timing
    ) -> Record:
        """Measure one network and write it down; again if something disturbed it."""
        started = self.clock()
        network = self.maker(np.array(widths))

        def once() -> Sample:
            return measure(self.make_runner, network, self.layer_map, timing, self.image)

        sample = once()
        uneven = abs(sample.layers_us.sum() / 1e3 / sample.latency_ms - self._ratio(journal)) > _DISTURBED
        if uneven and role == "train":
            sample = sample.fastest_of(once())
        for _ in range(_AGAIN):
            probe_ms = pace.probe()
            left = (1 + _OVERTIME) * self.budget_s - self._spent - (self.clock() - self._began)
            if pace.is_steady(probe_ms) or not pace.settle(max(0.0, left)):
                break
            sample = once() if pace.is_fast(probe_ms) else sample.fastest_of(once())
        now = self.clock()
        record = Record(
            role=role,
            widths=tuple(int(width) for width in widths),
            round=sum(other.widths == widths and other.role == role for other in journal.records),
            latency_ms=round(sample.latency_ms, 6),
            layers_us=tuple(round(float(value), 3) for value in sample.layers_us),
            nodes=tuple(int(count) for count in sample.nodes),
            seconds=round(now - started, 4),
            elapsed_s=round(self._spent + now - self._began, 4),
        )
        journal.add(record)
        return record

    @staticmethod
    def _ratio(journal: Journal) -> float:
        """The usual quotient of the layers' sum and the latency."""
        recent = [record for record in journal.records[-40:] if record.layers_us]
        if len(recent) < 5:
            return 1.0
        return float(np.median([sum(record.layers_us or ()) / 1e3 / record.latency_ms for record in recent]))

    def _timing(self, journal: Journal) -> Timing:
        """Fewer runs of slow networks: more networks teach more than more runs."""
        if len(journal.records) < 4:
            return Timing(warmup=2, profiled=5, plain=5)
        typical = float(np.median([record.latency_ms for record in journal.records])) / 1e3
        each = float(np.median([record.seconds for record in journal.records]))
        runs = int(np.clip(round(max(_ONE_NETWORK_S, _TIMED_SHARE * each) / 3 / typical), 4, _MOST_RUNS))
        # Layers are means of many runs, a whole network needs one without any disturbance: more of those.
        return Timing(warmup=2, profiled=runs, plain=2 * runs)

    def _choose_held(
        self, journal: Journal, left: float, trained: set[tuple[int, ...]], rng: np.random.Generator
    ) -> list[tuple[int, ...]]:
        """As many held-out networks as the budget can measure three to five times."""
        cost = float(np.median([record.seconds for record in journal.records]))
        measurements = _HELD_SHARE * max(left, 0.0) / max(cost, 1e-3)
        rounds = int(np.clip(measurements // 16, 3, 5))
        count = int(np.clip(measurements // rounds, 4, 60))
        rows = held_out(self.space, count, trained, rng)
        if not len(rows):
            rows = held_out(self.space, count, set(), rng)  # a space so small that all of it was measured
        return [tuple(row) for row in rows.tolist()]

    def _known_dims(self) -> dict[str, Int64]:
        known = self.start.entries if self.start is not None else {}
        return {key: entries.dims for key, entries in known.items()}

    def _reserve(self, journal: Journal) -> float:
        """Seconds to keep for the last fit: as the last one, in proportion to the measurements."""
        return max(1.0, 1.6 * self.fit_seconds) if self.fit_seconds else 0.05 * self.budget_s

    def _learn(self, novelty: Novelty, journal: Journal) -> None:
        started = self.clock()
        table = self._table(journal, complete=False)
        tests = journal.of("held-out")
        if tests:
            widths = np.array([record.widths for record in tests], dtype=np.int64)
            predicted = layer_matrix(self.network, table.models, widths)  # type: ignore[arg-type]
            node_us = float(table.provenance["node_overhead_us"])
            novelty.learn(predicted, np.stack([record.layers(node_us) for record in tests]))
        self.fit_seconds = self.clock() - started

    def _tell(self, journal: Journal, done: float, note: str) -> None:
        if self.report is not None:
            self.report(ProfileProgress(done, self.budget_s, len(journal.records), note))

    def _table(self, journal: Journal, *, complete: bool) -> LatencyTable:
        table = self.tables.table(journal, budget_s=self.budget_s, complete=complete)
        table.save(self.path)
        return table


def profile(
    model: nn.Module,
    space: WidthSpace,
    device: DeviceProfile | str,
    *,
    budget_s: float = 120.0,
    estimate: bool = False,
    seed: int = 0,
    progress: Report | None = None,
) -> LatencyTable:
    """The latency table of ``space`` on ``device``, without a run directory; nothing is kept on disk.

    Args:
        model: the full network.
        space: its width space.
        device: the profile, or its name or file.
        budget_s: seconds of everything together.
        estimate: from data sheets instead of measurements.
        seed: of the sampled networks.
        progress: called after every measurement.

    Raises:
        UnknownDeviceError, DeviceError, ExportError, EngineError, TableError: see :func:`profile_device`.
    """
    device = device if isinstance(device, DeviceProfile) else load_device(device)
    with tempfile.TemporaryDirectory(prefix="bcnet-profile-") as folder:
        return profile_device(
            model, space, device, Path(folder) / f"{device.name}.json", budget_s=budget_s,
            estimate=estimate, seed=seed, report=progress,
        )  # fmt: skip


def make_runner_of(device: DeviceProfile, *, threads_sleep: bool = False) -> MakeRunner:
    """How networks are run on ``device``.

    ``threads_sleep`` is for one that stays loaded while others are timed.
    """
    runtime = device.run_by()
    return lambda network, profiling: runtime.runner(
        network, device, profiling=profiling, threads_sleep=threads_sleep
    )


def profile_device(
    model: nn.Module,
    space: WidthSpace,
    device: DeviceProfile,
    path: Path,
    *,
    budget_s: float = 120.0,
    estimate: bool = False,
    seed: int = 0,
    fresh: bool = False,
    rebase: LatencyTable | None = None,
    report: Report | None = None,
) -> LatencyTable:
    """The latency table of ``space`` on ``device``, saved at ``path``.

    Args:
        model: the full network.
        space: its width space.
        device: whose table.
        path: where the table goes; the log of measurements lies beside it. An interrupted profile goes on.
        budget_s: seconds of everything together.
        estimate: from data sheets instead of measurements.
        seed: of the sampled networks.
        fresh: measure all anew: take over neither an interrupted profile nor shipped measurements.
        rebase: a table of the same precision and batch, of another machine, runtime or version. Its entries
            are kept; how fast each family of operators is here is measured, in seconds of ``budget_s``.
        report: called after every measurement.

    Raises:
        DeviceError: the device is not here and ``estimate`` is false, or its profile lacks the figures of an
            estimate.
        ExportError, EngineError: the network cannot be exported or run.
        TableError: the budget is too small, or ``rebase`` is of another precision or batch, or estimated.
        RunDirError: the folder cannot be written.
    """
    if rebase is not None:
        require_rebasable(rebase, device)
    if estimate:
        table = estimate_table(space, device)
        table.save(path)
        return table
    device.require_here()
    start = rebase if rebase is not None else None if fresh else starting_table(device, path)
    profiler = Profiler(
        model.eval(), space, device, make_runner=make_runner_of(device), path=path, budget_s=budget_s,
        seed=seed, start=start, rebase=rebase is not None, report=report,
        make_probe=make_runner_of(device, threads_sleep=True),
    )  # fmt: skip
    before = _before(path)
    if fresh:
        profiler.journal_path.unlink(missing_ok=True)
        before.unlink(missing_ok=True)
    elif _is_complete(path):
        files.write_bytes(before, path.read_bytes())
    table = profiler.run()
    before.unlink(missing_ok=True)
    return table


def _before(path: Path) -> Path:
    """Where the table that was at ``path`` is kept until a profile that began with it is complete.

    Meanwhile ``path`` has the unfinished one, which is no beginning: its measurements are in the log.
    """
    return path.with_suffix(".before")


def _is_complete(path: Path) -> bool:
    try:
        return path.exists() and LatencyTable.from_dict(_read(path), str(path)).complete
    except BCNetError:
        return False


def _read(path: Path) -> Any:
    return files.read_json(path, TableError, "latency table")


def require_rebasable(table: LatencyTable, device: DeviceProfile) -> None:
    """Raises :class:`TableError` unless a table can be rebased to ``device``."""
    if table.estimated:
        raise TableError(
            f"an estimated table of {table.device} cannot be rebased; measure with 'profile' alone"
        )
    if (table.precision, table.batch) != (device.precision, device.batch):
        raise TableError(
            f"a table in {table.precision} at batch {table.batch} cannot be rebased to {device.name!r}: "
            f"that is in {device.precision} at batch {device.batch}"
        )


def starting_table(device: DeviceProfile, path: Path) -> LatencyTable | None:
    """Measurements of the same device, machine and runtime to build on: shipped ones, and another
    network's at ``path``; None when there are none."""
    found: LatencyTable | None = None
    candidates = sorted(resources.shipped("luts").glob(f"{device.name}.*.json"))
    for candidate in [path, _before(path), *candidates]:
        if not candidate.exists():
            continue
        try:
            table = LatencyTable.from_dict(_read(candidate), str(candidate))
        except BCNetError as error:
            if candidate == path:
                _log.warning("%s; it is made again", error)
            continue
        usable = (
            table.source == "measured"
            and table.device == device.name
            and (table.precision, table.batch) == (device.precision, device.batch)
            and table.provenance.get("threads") == device.threads
            and not table.differences()
            and "node_overhead_us" in table.provenance  # else its layers hold what profiling adds
            and (candidate != path or table.complete)
        )
        if usable:
            # A table at `path` began with the shipped ones: only what it does not have joins it.
            if found is None:
                found = table
            else:
                more = replace(without_keys(table, found.entries), granularity=found.granularity)
                found = found.merged(more)
    return found
