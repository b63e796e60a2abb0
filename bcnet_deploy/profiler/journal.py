"""The log of a profile: one line a measurement, on disk before the next one starts.

A profile that is killed at any moment goes on from here and measures nothing twice. A line that the
kill cut short is dropped; a log of another network, device, machine or format is put aside.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt

from bcnet_deploy.errors import RunDirError
from bcnet_deploy.profiler.measure import without_stamps

FORMAT = 2  # 1: layers' fastest times, without their nodes
Role = Literal["train", "held-out", "reference"]


@dataclass(frozen=True)
class Record:
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

    role: Role
    widths: tuple[int, ...]
    round: int
    latency_ms: float
    layers_us: tuple[float, ...] | None
    seconds: float
    elapsed_s: float = 0.0
    nodes: tuple[int, ...] | None = None

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
        RunDirError: the folder cannot be written, or the disk is full.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self.records: list[Record] = []
        header = {"format": FORMAT, **identity}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = self._read(header)
            if not kept and path.exists():
                os.replace(path, path.with_name(path.name + ".old"))
            self._file: IO[str] = path.open("a", encoding="utf-8")
            if not kept:
                self._line(header)
        except OSError as error:
            raise RunDirError(f"cannot write {path}: {error.strerror}; choose a writable folder") from error

    def _read(self, header: dict[str, Any]) -> bool:
        """Take over the records of a former run; cut off what a kill left of the last line."""
        if not self.path.exists():
            return False
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        lines = list(_lines(whole))
        if not lines or lines[0] != json.loads(json.dumps(header)):
            return False
        if len(whole) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        for line in lines[1:]:
            try:
                self.records.append(
                    Record(
                        **{
                            **line,
                            "widths": tuple(line["widths"]),
                            "layers_us": _tuple(line["layers_us"]),
                            "nodes": _tuple(line["nodes"]),
                        }
                    )
                )
            except (KeyError, TypeError):
                continue
        return True

    def add(self, record: Record) -> None:
        """Write one record to disk. Raises :class:`RunDirError`."""
        self.records.append(record)
        try:
            self._line(asdict(record))
        except OSError as error:
            raise RunDirError(
                f"cannot write {self.path}: {error.strerror}; what was measured before is kept"
            ) from error

    def _line(self, data: dict[str, Any]) -> None:
        self._file.write(json.dumps(data, allow_nan=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def of(self, role: Role) -> list[Record]:
        return [record for record in self.records if record.role == role]

    @property
    def seconds(self) -> float:
        """What the profile has cost so far."""
        return max((record.elapsed_s for record in self.records), default=0.0)

    def close(self) -> None:
        self._file.close()


def _lines(content: bytes) -> Iterator[Any]:
    for line in content.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _tuple(values: Any) -> tuple[Any, ...] | None:
    return None if values is None else tuple(values)
