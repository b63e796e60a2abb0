"""How exported networks are measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Interval

from bcnet_deploy.validation import Checked


@dataclass(frozen=True, kw_only=True)
class BenchSettings(Checked):
    """How to measure.

    Attributes:
        rounds: how often each network is loaded anew; 2 or more give a noise floor.
        runs: timed runs a round. warmup: untimed ones before them.
        threads: of the CPU runtime; None: the device profile's, or 1.
        batches: batch sizes of the throughput; empty: none.
        layers: profile by layer too.
        runtimes: names of those to measure on; None: all that are here.
        patience_s: seconds to wait in all until a machine in a slow spell recovers.
        seed: of the inputs and of the split halves.
    """

    noun: ClassVar[str] = "bench"

    rounds: Annotated[int, Interval(ge=1, le=100_000)] = 8
    runs: Annotated[int, Interval(ge=1, le=1_000_000)] = 20
    warmup: Annotated[int, Interval(ge=0, le=1_000_000)] = 5
    threads: Annotated[int, Interval(ge=1, le=1024)] | None = None
    batches: tuple[Annotated[int, Interval(ge=1, le=65536)], ...] = (1, 4, 16)
    layers: bool = True
    runtimes: tuple[str, ...] | None = None
    patience_s: Annotated[float, Interval(ge=0, le=86400)] = 30.0
    seed: Annotated[int, Interval(ge=0, lt=2**63)] = 0
