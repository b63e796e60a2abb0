"""The log of a profile: one line a measurement, on disk before the next one starts.

A profile that is killed at any moment goes on from here and measures nothing twice. A line that the
kill cut short is dropped; a log of another network, device, machine or format is put aside.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from annotated_types import Ge, Gt, Le

from bcnet_deploy import files
from bcnet_deploy.errors import BCNetError, RunDirError
from bcnet_deploy.profiler.measure import without_stamps
from bcnet_deploy.validation import Checked

FORMAT = 2  # 1: layers' fastest times, without their nodes
Role = Literal["train", "held-out", "reference"]


Count = Annotated[int, Ge(0), Le(2**31)]
Time = Annotated[float, Ge(0), Le(1e12)]


@dataclass(frozen=True)
class Record(Checked):
    """One measurement.

    Attributes:
        role: ``train``: its layers become entries; ``held-out``: never fitted, only compared;
            ``reference``: the same network again and again, to see the machine drift.
        round: how often this network had been measured before.
        latency_ms: of a whole unprofiled run.
        layers_us: of each layer; None when the network was not profiled.
        seconds: what the measurement cost, set-up included.
        nodes: of each layer, how many nodes the runtime ran for it; None when it was not profiled.
        elapsed_s: what the profile had cost by then, earlier runs included: its clock.
    """

    error: ClassVar[type[BCNetError]] = RunDirError
    noun: ClassVar[str] = "a measurement"

    role: Role
    widths: tuple[Count, ...]
    round: Count
    latency_ms: Annotated[float, Gt(0), Le(1e9)]
    layers_us: tuple[Time, ...] | None
    seconds: Time
    elapsed_s: Time = 0.0
    nodes: tuple[Count, ...] | None = None

    def layers(self, node_us: float = 0.0) -> npt.NDArray[np.float64]:
        """Microseconds of each layer, less what profiling adds to each of its nodes."""
        times = np.array(self.layers_us or (), dtype=np.float64)
        return without_stamps(times, self.nodes or 0, node_us)


class Journal:
    """Append-only records beside a table.

    Args:
        path: the file.
        identity: what the records are of; records of anything else are put aside (``.old``).

    Raises:
        RunDirError: the file is damaged, the folder cannot be written, or the disk is full.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self._log = files.JsonLines(
            path, "profile's log", header={"format": FORMAT, **identity}, put_aside=True, error=RunDirError,
            remedy="restore a copy, or delete it to measure anew",
        )  # fmt: skip
        self.records = [
            Record.from_dict(row, f"profile's log {path}, line {number}") for number, row in self._log.read()
        ]

    def add(self, record: Record) -> None:
        """Write one record to disk. Raises :class:`RunDirError`; what was measured before is kept."""
        self._log.append([record.to_dict()])
        self.records.append(record)

    def of(self, role: Role) -> list[Record]:
        return [record for record in self.records if record.role == role]

    @property
    def seconds(self) -> float:
        """What the profile has cost so far."""
        return max((record.elapsed_s for record in self.records), default=0.0)

    def close(self) -> None:
        self._log.close()
