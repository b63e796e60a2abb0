"""From a journal of measurements to a latency table: layers fitted, its error and its origin known."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bcnet_deploy.devices import DeviceProfile
from bcnet_deploy.errors import TableError
from bcnet_deploy.lut.entries import Entries
from bcnet_deploy.lut.fit import Fit, Granularity, fit
from bcnet_deploy.lut.network import UNVALIDATED_ERROR, Network, layer_dims
from bcnet_deploy.lut.table import LatencyTable
from bcnet_deploy.profiler.journal import Journal, Record

if TYPE_CHECKING:
    from bcnet_deploy.space import WidthSpace

Int64 = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_OVERHEAD_US = 3.0  # of each layer: how far a run's time may lie from its layers' sum
_SPEED_PRIOR = 0.1
_NODE_US, _RUN_US, _SLOWER = 5.0, 20.0, 0.02  # how large the parts of a profile's excess may be
_SCALE_PRIOR = 0.02  # how far the sums of whole networks may move a layer's own measurements
_COMPARABLE = 8
_EVIDENCE = 4  # measurements of a kind of layer that count as much as what is known of its family
_UNFIT = 1.08
_SUM_ERROR = 0.03  # relative error of one whole-network latency on a machine with neighbours
_FEWEST_TRAIN, _FEWEST_HELD_OUT = 3, 3


@dataclass(frozen=True)
class Fitted:
    """Entries and models of all layers of a network.

    ``known``: the table that was taken over, at today's speed. ``node_us``: what profiling added to every
    node, not in entries and models.
    """

    entries: dict[str, Entries]
    models: dict[str, Fit]
    known: LatencyTable | None = None
    node_us: float = 0.0


def fit_layers(
    network: Network,
    train: Sequence[Record],
    granularity: Granularity,
    known: LatencyTable | None = None,
    *,
    by_family: bool = False,
) -> Fitted:
    """Entries and fits of every key of ``network``.

    Args:
        train: profiled networks.
        known: an earlier table. Its entries are brought to the speed of today's measurements, since a
            machine's speed drifts between hours, and fill in what today has not measured.
        by_family: the table is of another machine or runtime: each family of operators has its own speed.
    """
    widths = np.array([record.widths for record in train], dtype=np.int64)
    times, node_us = layer_times(train)
    by_key: dict[str, list[int]] = {}
    for index, layer in enumerate(network.layers):
        by_key.setdefault(layer.key, []).append(index)
    entries: dict[str, Entries] = {}
    for key, indices in by_key.items():
        dims = np.concatenate([layer_dims(network.layers[index], widths) for index in indices])
        entries[key] = Entries.from_samples(dims, np.concatenate([times[:, index] for index in indices]))
    if known is not None:
        known = at_speed(known, relative_speeds(entries, known, by_family=by_family))
        earlier = known.entries
        entries = {
            # Rows of both are today's alone: the table may have come from this very log.
            key: measured.merged(earlier[key].without(measured.dims)) if key in earlier else measured
            for key, measured in entries.items()
        }
    models = {key: fit(e.dims, e.median_us, e.count, granularity) for key, e in entries.items()}
    return Fitted(entries, models, known, node_us)


@dataclass(frozen=True)
class Speeds:
    """How many times as long layers take now as when a table was made: all, families of operators, and kinds
    of layers by their keys."""

    overall: float = 1.0
    families: Mapping[str, float] = field(default_factory=dict)
    keys: Mapping[str, float] = field(default_factory=dict)

    def of(self, key: str) -> float:
        """The factor of one key."""
        return self.keys.get(key, self.families.get(family_of(key), self.overall))


def family_of(key: str) -> str:
    """Operator, form and kernel of a layer's key: what one machine may do better than another."""
    words = key.split(" ")
    return " ".join(words[:3]) if words[0].startswith("conv") else words[0]


def relative_speeds(now: Mapping[str, Entries], then: LatencyTable, *, by_family: bool = False) -> Speeds:
    """How much longer layers take now than ``then`` predicts: the median, each layer weighed by its time.

    1.0 where fewer than :data:`_COMPARABLE` layers lie within what was measured then. ``by_family``: a family
    of that many has its own speed. So has each kind of layer, but the fewer measurements it has, the nearer
    to its family's.
    """
    quotients: dict[str, Floats] = {}
    weights: dict[str, Floats] = {}
    for key in sorted(now.keys() & then.entries.keys() & then.models.keys()):
        covered = then.entries[key].covers(now[key].dims)
        expected = then.models[key].time_us(now[key].dims[covered])
        quotients[key] = now[key].median_us[covered] / expected
        weights[key] = expected

    def median(keys: Sequence[str]) -> float | None:
        return _weighted_median([quotients[key] for key in keys], [weights[key] for key in keys])

    overall = median(list(quotients))
    if overall is None or sum(map(len, quotients.values())) < _COMPARABLE:
        return Speeds()
    if not by_family:
        return Speeds(overall)
    members: dict[str, list[str]] = {}
    for key in quotients:
        members.setdefault(family_of(key), []).append(key)

    def count(keys: Sequence[str]) -> int:
        return sum(len(quotients[key]) for key in keys)

    families = {
        family: float(median(keys) or overall)
        for family, keys in members.items()
        if count(keys) >= _COMPARABLE
    }
    own = {}
    for key in quotients:
        if (speed := median([key])) is not None:
            share = count([key]) / (count([key]) + _EVIDENCE)
            known = families.get(family_of(key), overall)
            # A runtime that fuses what it did not takes no time for it.
            own[key] = speed**share * known ** (1 - share) if speed > 0 else (1 - share) * known
    return Speeds(overall, families, own)


def _weighted_median(values: Sequence[Floats], weights: Sequence[Floats]) -> float | None:
    """None for no values."""
    value, weight = np.concatenate([np.zeros(0), *values]), np.concatenate([np.zeros(0), *weights])
    if not len(value):
        return None
    order = np.argsort(value)
    half = np.searchsorted(np.cumsum(weight[order]), weight.sum() / 2)
    return float(value[order][half])


def at_speed(table: LatencyTable, speeds: Speeds) -> LatencyTable:
    """``table`` as it were where its layers take so many times as long."""
    return replace(
        table,
        entries={key: entries.slowed(speeds.of(key)) for key, entries in table.entries.items()},
        models={
            key: m.slowed(speeds.of(key)) if isinstance(m, Fit) else m for key, m in table.models.items()
        },
        networks=tuple(replace(n, overhead_us=speeds.overall * n.overhead_us) for n in table.networks),
    )


def without_keys(table: LatencyTable, keys: Container[str]) -> LatencyTable:
    """``table`` without the entries and models of ``keys``."""
    return replace(
        table,
        entries={key: value for key, value in table.entries.items() if key not in keys},
        models={key: value for key, value in table.models.items() if key not in keys},
    )


def layer_matrix(network: Network, models: Mapping[str, Fit], widths: Int64) -> Floats:
    """(N, L) widths -> (N, layers) microseconds before calibration."""
    result = np.empty((len(widths), len(network.layers)))
    for index, layer in enumerate(network.layers):
        unique, inverse = np.unique(layer_dims(layer, widths), axis=0, return_inverse=True)
        result[:, index] = models[layer.key].time_us(unique)[inverse.ravel()]
    return result


def calibrate(network: Network, fitted: Fitted, train: Sequence[Record]) -> Network:
    """Fit the overhead and the layers' scales to the latencies of the whole training networks.

    Ridge regression towards "the sum of the layers and nothing else": a layer's scale moves by a few
    percent only, and only if many networks say so (profiled nodes run a little slower, conversions
    between layouts depend on the neighbours).
    """
    widths = np.array([record.widths for record in train], dtype=np.int64)
    latency = np.array([record.latency_ms for record in train]) * 1e3
    layers = layer_matrix(network, fitted.models, widths)
    # Columns: overhead, one factor for all layers (the machine's speed that day), then each layer's own.
    design = np.concatenate([np.ones((len(train), 1)), layers.sum(axis=1, keepdims=True), layers], axis=1)
    target = latency - layers.sum(axis=1)
    shared = [(_OVERHEAD_US * layers.shape[1]) ** -2, _SPEED_PRIOR**-2]
    prior = np.concatenate([shared, np.full(layers.shape[1], _SCALE_PRIOR**-2)])
    solution = _robust_ridge(design, target, _SUM_ERROR * latency, prior)
    scales = np.clip(1 + solution[1] + solution[2:], 0.5, 2.0)
    return replace(network, overhead_us=float(solution[0]), scales=tuple(float(scale) for scale in scales))


@dataclass(frozen=True)
class Excess:
    """What a profile's sum has beyond the whole network's time: microseconds for each node and for a run,
    and a share of the time itself."""

    node_us: float
    run_us: float
    slower: float


def profiling_excess(train: Sequence[Record]) -> Excess:
    """What profiling adds, by what the nodes' sum exceeds the whole network's time.

    A runtime stamps every node, and splits unaligned layers into more nodes than aligned ones: left in the
    layers, these stamps would count against networks that have none of them.
    """
    latency = np.array([record.latency_ms for record in train]) * 1e3
    excess = np.array([record.layers().sum() for record in train]) - latency
    nodes = np.array([sum(record.nodes or ()) for record in train], dtype=np.float64)
    # Columns: each node, a run, and layers that are slower in a profile.
    design = np.stack([nodes, np.ones(len(train)), latency], axis=1)
    prior = np.array([_NODE_US, _RUN_US, _SLOWER]) ** -2.0
    node_us, run_us, slower = _robust_ridge(design, excess, _SUM_ERROR * latency, prior)
    return Excess(max(0.0, float(node_us)), float(run_us), float(slower))


def layer_times(train: Sequence[Record]) -> tuple[Floats, float]:
    """(networks, layers) microseconds without what profiling adds, and what it adds to a node.

    A spell of the machine may last for the profiled runs and be over in the unprofiled ones: where the two
    do not fit together, the layers are brought to the whole network's time.
    """
    excess = profiling_excess(train)
    times = np.stack([record.layers(excess.node_us) for record in train])
    latency = np.array([record.latency_ms for record in train]) * 1e3
    quotient = times.sum(axis=1) / np.maximum(latency * (1 + excess.slower) + excess.run_us, 1e-3)
    unfit = (quotient > _UNFIT) | (quotient < 1 / _UNFIT)
    times[unfit] /= np.maximum(quotient[unfit], 1e-3)[:, None]
    return times, excess.node_us


def _robust_ridge(design: Floats, target: Floats, deviation: Floats, prior: Floats) -> Floats:
    """Least squares with a normal prior around 0 (``prior``: inverse variances)."""
    solution: Floats = np.zeros(design.shape[1])
    for _ in range(6):
        # A network that the machine disturbed must not bend the rest.
        weight = 1 / np.maximum(deviation, np.abs(target - design @ solution))
        weighted = design * weight[:, None]
        right = weighted.T @ (target * weight)
        solution = np.asarray(np.linalg.solve(weighted.T @ weighted + np.diag(prior), right))
    return solution


@dataclass(frozen=True)
class Validation:
    """Prediction against measurement on networks that were not fitted.

    Attributes:
        networks, rounds: how many, and how often each was measured.
        mape: mean absolute relative error.
        within_5, within_10: share of networks predicted within 5% and 10%.
        kendall: rank correlation.
        bias: mean relative error.
        noise_floor: mean relative difference of two halves of the rounds: what the machine itself repeats to.
        kendall_floor: rank correlation of the two halves.
        relative_error: root mean square relative error.
    """

    networks: int
    rounds: int
    mape: float
    within_5: float
    within_10: float
    kendall: float
    bias: float
    noise_floor: float
    kendall_floor: float
    relative_error: float

    def to_dict(self) -> dict[str, Any]:
        return {
            name: round(value, 5) if isinstance(value, float) else value for name, value in vars(self).items()
        }

    def summary(self) -> str:
        return (
            f"{self.networks} held-out networks x {self.rounds} rounds: mean error {self.mape:.2%} "
            f"(noise floor {self.noise_floor:.2%}), within 5% {self.within_5:.1%}, within 10% "
            f"{self.within_10:.1%}, Kendall {self.kendall:.3f} (floor {self.kendall_floor:.3f})"
        )


def validate(predicted_ms: Floats, rounds_ms: Floats, *, fastest_round: bool = False) -> Validation:
    """Compare (N,) predictions with (N, R) measurements.

    A round is the fastest of its runs, a network's latency the median of its rounds: spikes and slow
    minutes of the machine both go. Every network has its first two rounds; missing ones are NaN. The
    noise floor is that of half as many rounds, so it overstates the noise of all of them a little.

    ``fastest_round``: the fastest round in place of the median, for machines that others slow down all the
    while. That is the undisturbed time, as near as one comes to it.
    """
    from scipy.stats import kendalltau

    combine = np.nanmin if fastest_round else np.nanmedian
    measured = combine(rounds_ms, axis=1)
    first, second = combine(rounds_ms[:, 0::2], axis=1), combine(rounds_ms[:, 1::2], axis=1)
    error = predicted_ms / measured - 1
    return Validation(
        networks=len(measured),
        rounds=int(np.isfinite(rounds_ms).sum(axis=1).min()),
        mape=float(np.abs(error).mean()),
        within_5=float((np.abs(error) <= 0.05).mean()),
        within_10=float((np.abs(error) <= 0.10).mean()),
        kendall=_rank(kendalltau(predicted_ms, measured).statistic),
        bias=float(error.mean()),
        noise_floor=float((2 * np.abs(first - second) / (first + second)).mean()),
        kendall_floor=_rank(kendalltau(first, second).statistic),
        relative_error=float(np.sqrt((error**2).mean())),
    )


def held_out_rounds(records: Sequence[Record]) -> tuple[Int64, Floats]:
    """Networks measured twice or more: (N, L) widths and (N, R) milliseconds, padded with NaN."""
    by_widths: dict[tuple[int, ...], list[float]] = {}
    for record in records:
        by_widths.setdefault(record.widths, []).append(record.latency_ms)
    kept = {widths: values for widths, values in by_widths.items() if len(values) >= 2}
    if not kept:
        return np.zeros((0, 0), dtype=np.int64), np.zeros((0, 0))
    rounds = max(map(len, kept.values()))
    padded = [[*values, *[np.nan] * (rounds - len(values))] for values in kept.values()]
    return np.array(list(kept), dtype=np.int64), np.array(padded)


def _rank(value: float) -> float:
    return 0.0 if np.isnan(value) else float(value)


@dataclass(frozen=True)
class TableMaker:
    """Tables of one network on one device of this machine.

    Args:
        space: of the network that is profiled.
        network: its layers, at the device's precision and batch.
        device: the profile of the device.
        machine: what :func:`bcnet_deploy.runtime.machine.describe_machine` says of it.
        reference: widths of the network that is measured again and again, to see the machine drift.
        seed: of the sampled networks.
        start: a table whose entries are taken over.
        rebase: whether ``start`` is of another machine or runtime, whose speed is fitted by family.
        fast_export: whether networks were narrowed from one export; kept as provenance.
    """

    space: WidthSpace
    network: Network
    device: DeviceProfile
    machine: dict[str, Any]
    reference: tuple[int, ...]
    seed: int
    start: LatencyTable | None
    fast_export: bool
    rebase: bool = False
    granularity: Granularity = field(init=False)

    def __post_init__(self) -> None:
        rounding = self.device.run_by().rounding(self.device, self.machine["cpu_features"])
        object.__setattr__(self, "granularity", Granularity(*rounding))

    def identity(self) -> dict[str, Any]:
        """What a journal must have been made with for its measurements to count."""
        return {
            "device": self.device.name,
            "threads": self.device.threads,
            "precision": self.device.precision,
            "batch": self.device.batch,
            "network": self.space.fingerprint,
            "levels": [list(variable.choices) for variable in self.space.variables],
            "seed": self.seed,
            "cpu_model": self.machine["cpu_model"],
            "gpu": self.machine["gpu"],
            "runtime": self.machine["runtime"],
            "runtime_version": self.machine["runtime_version"],
            **({"rebased_from": self.start.fingerprint} if self.rebase and self.start else {}),
        }

    def table(self, journal: Journal, *, budget_s: float, complete: bool) -> LatencyTable:
        """The table of what ``journal`` has so far.

        Args:
            budget_s: seconds the profile was given; kept as provenance.
            complete: whether the profile has ended.

        Raises:
            TableError: too few networks were measured.
        """
        trains = journal.of("train")
        if len(trains) < _FEWEST_TRAIN:
            raise TableError(
                f"{len(trains)} networks were measured, too few for a table; give a --budget of more than "
                f"{budget_s:g} s"
            )
        fitted = fit_layers(self.network, trains, self.granularity, self.start, by_family=self.rebase)
        provenance = {
            **self._provenance(journal),
            "budget_s": budget_s,
            "node_overhead_us": round(fitted.node_us, 4),
        }
        table = LatencyTable(
            device=self.device.name,
            source="measured",
            precision=self.device.precision,
            batch=self.device.batch,
            granularity=self.granularity,
            provenance=provenance,
            entries=fitted.entries,
            models=dict(fitted.models),
            networks=(calibrate(self.network, fitted, trains),),
            complete=complete,
        )
        table = _validated(table, journal)
        if fitted.known is not None:
            known = without_keys(fitted.known, fitted.entries)
            if not self.rebase:
                # A table's rounding is what fits begin with; each model has its own.
                table = table.merged(replace(known, granularity=self.granularity))
            elif known.granularity == self.granularity:
                # Its other layers are at this machine's speed now, as far as one can tell.
                table = table.merged(replace(known, device=table.device, provenance=table.provenance))
        return table

    def _provenance(self, journal: Journal) -> dict[str, Any]:
        references = np.array([record.latency_ms for record in journal.of("reference")])
        return {
            **self.machine,
            "threads": self.device.threads,
            "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "measured_s": round(journal.seconds, 1),
            "networks_measured": len({record.widths for record in journal.records}),
            "measurements": len(journal.records),
            "reference_widths": list(self.reference),
            "reference_ms": round(float(np.median(references)), 5) if len(references) else None,
            "drift": round(float(np.ptp(references) / references.min()), 4) if len(references) > 1 else None,
            "fast_export": self.fast_export,
            **({"rebased_from": _origin(self.start)} if self.rebase and self.start else {}),
        }


def _origin(table: LatencyTable) -> dict[str, Any]:
    """Where a table that is rebased was made."""
    kept = ("cpu_model", "gpu", "runtime", "runtime_version", "threads", "date")
    return {"fingerprint": table.fingerprint, **{key: table.provenance.get(key) for key in kept}}


def _validated(table: LatencyTable, journal: Journal) -> LatencyTable:
    """With its error on the networks that it was not fitted to."""
    widths, rounds = held_out_rounds(journal.of("held-out"))
    if len(widths) < _FEWEST_HELD_OUT:
        return replace(table, networks=(replace(table.network, relative_error=UNVALIDATED_ERROR),))
    validation = validate(table.predict(widths), rounds)
    network = replace(
        table.network,
        accuracy=validation.to_dict(),
        relative_error=max(validation.relative_error, validation.noise_floor / 2),
    )
    provenance = {**table.provenance, "noise_floor": round(validation.noise_floor, 5)}
    return replace(table, networks=(network,), provenance=provenance)
