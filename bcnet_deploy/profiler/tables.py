"""A latency table from a journal of measurements, with where it comes from and how wrong it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from bcnet_deploy.devices import DeviceProfile
from bcnet_deploy.errors import TableError
from bcnet_deploy.lut.fit import Granularity
from bcnet_deploy.lut.network import Network
from bcnet_deploy.lut.table import LatencyTable
from bcnet_deploy.profiler.assemble import calibrate, fit_layers, held_out_rounds, validate, without_keys
from bcnet_deploy.profiler.journal import Journal

if TYPE_CHECKING:
    from bcnet_deploy.space import WidthSpace

_FEWEST_TRAIN, _FEWEST_HELD_OUT = 3, 3
_UNVALIDATED_ERROR = 0.1  # relative error of a table that too few held-out networks judge


@dataclass(frozen=True)
class TableMaker:
    """Tables of one network on one device of this machine.

    Args:
        space: of the network that is profiled.
        network: its layers, at the device's precision and batch.
        device: the profile of the device.
        machine: what :func:`bcnet_deploy.lut.machine.describe_machine` says of it.
        reference: widths of the network that is measured again and again, to see the machine drift.
        seed: of the sampled networks.
        start: a table of the same device whose entries are taken over.
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
    granularity: Granularity = field(init=False)

    def __post_init__(self) -> None:
        granularity = granularity_of(self.device, self.machine["cpu_features"])
        object.__setattr__(self, "granularity", granularity)

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
        fitted = fit_layers(self.network, trains, self.granularity, self.start)
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
            table = table.merged(without_keys(fitted.known, fitted.entries))
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
        }


def _validated(table: LatencyTable, journal: Journal) -> LatencyTable:
    """With its error on the networks that it was not fitted to."""
    widths, rounds = held_out_rounds(journal.of("held-out"))
    if len(widths) < _FEWEST_HELD_OUT:
        return replace(table, networks=(replace(table.network, relative_error=_UNVALIDATED_ERROR),))
    validation = validate(table.predict(widths), rounds)
    network = replace(
        table.network,
        accuracy=validation.to_dict(),
        relative_error=max(validation.relative_error, validation.noise_floor / 2),
    )
    provenance = {**table.provenance, "noise_floor": round(validation.noise_floor, 5)}
    return replace(table, networks=(network,), provenance=provenance)


def granularity_of(device: DeviceProfile, cpu_features: Sequence[str] = ()) -> Granularity:
    """How the device's runtime rounds channels.

    ONNX Runtime's blocked layout wants counts divisible by four. Its blocks are as wide as this CPU's vector
    registers, whatever the profile says of CPUs in general: 8 channels with AVX2 but no AVX-512, else 16.
    """
    block = int(device.channel_granularity[device.precision].value)
    if device.runtime != "onnxruntime":
        return Granularity(block, block)
    if device.kind == "cpu" and "avx2" in cpu_features:
        block = 16 if "avx512f" in cpu_features else 8
    return Granularity(block, 4)


__all__ = ["TableMaker", "granularity_of"]
