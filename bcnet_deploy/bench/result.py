"""What a benchmark found, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bcnet_deploy import files
from bcnet_deploy.bench.stats import LatencyStats
from bcnet_deploy.errors import RunDirError
from bcnet_deploy.validation import written_as

FORMAT = 1


@dataclass(frozen=True)
class LayerTime:
    """A layer's time within the whole network, measured by the runtime's own profile.

    ``measured_ms`` includes the profiler's own cost; ``predicted_ms`` is None without a table.
    """

    name: str
    measured_ms: float
    predicted_ms: float | None = None


@dataclass(frozen=True)
class Throughput:
    """Images a second at a batch size, from the low latency of that batch."""

    batch: int
    latency_ms: float
    images_per_second: float


@dataclass(frozen=True)
class RuntimeResult:
    """One network on one runtime.

    Attributes:
        kind: of the device, such as ``cpu``.
        precision: that it computed in.
        latency: at batch 1 (or the file's own batch).
        prediction_error: measured ``low_ms`` over the prediction, minus 1; None where the table is not
            of this runtime, precision and batch, or there is none.
        layers: in execution order. throughput: by batch size, ascending.
        departs: how it was measured otherwise than on the device and as its table; empty where it was not.
    """

    kind: str
    precision: str
    latency: LatencyStats
    prediction_error: float | None = None
    layers: tuple[LayerTime, ...] = ()
    throughput: tuple[Throughput, ...] = ()
    departs: str = ""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        return {
            "kind": self.kind,
            "precision": self.precision,
            "latency": self.latency.to_dict(),
            "prediction_error": self.prediction_error,
            "departs": self.departs,
            "layers": [asdict(layer) for layer in self.layers],
            "throughput": [asdict(entry) for entry in self.throughput],
        }


@dataclass(frozen=True)
class Prediction:
    """What a latency table says of a network; ``source`` is ``measured`` or ``estimated`` (the table's)."""

    milliseconds: float
    uncertainty_ms: float
    source: str


@dataclass(frozen=True)
class NetworkResult:
    """One network on every runtime; ``widths`` by variable name, empty when the file does not say."""

    file: str
    sha256: str
    precision: str
    widths: Mapping[str, int]
    prediction: Prediction | None
    runtimes: Mapping[str, RuntimeResult]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        return {
            "file": self.file, "sha256": self.sha256, "precision": self.precision,
            "widths": dict(self.widths),
            "prediction": asdict(self.prediction) if self.prediction else None,
            "runtimes": {name: result.to_dict() for name, result in self.runtimes.items()},
        }  # fmt: skip


@dataclass(frozen=True)
class BenchResult:
    """All networks, interleaved in one run.

    Attributes:
        device: name of the device profile. date: UTC, ISO.
        settings: rounds, runs, warm-up, threads, batches, seed, order.
        machine: CPU, GPU, governor, clocks before and after, versions.
        absent: runtimes that were not measured, and why. notes: for people.
    """

    device: str
    date: str
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    networks: Mapping[str, NetworkResult]
    absent: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        return {
            "format": FORMAT, "device": self.device, "date": self.date, "settings": dict(self.settings),
            "machine": dict(self.machine), "absent": dict(self.absent), "notes": list(self.notes),
            "networks": {name: network.to_dict() for name, network in self.networks.items()},
        }  # fmt: skip

    @classmethod
    def load(cls, path: str | Path) -> BenchResult:
        """What :meth:`save` wrote. Raises :class:`RunDirError`."""
        data = files.read_json(path, RunDirError, "benchmark")
        return written_as(cls, data, path, RunDirError, "run 'bcnet-deploy bench --fresh'")

    def save(self, path: str | Path) -> None:
        """Write as JSON, atomically. Raises :class:`RunDirError`."""
        files.write_json(path, self.to_dict())
