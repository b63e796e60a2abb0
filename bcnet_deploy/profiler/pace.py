"""Whether the machine runs at its usual speed: one network, timed between all others.

CPUs with neighbours, or short of power, fall for seconds at a time to two thirds of their speed. What is
measured then is not the device, and a table of both speeds mixed predicts neither. So measurements are
followed by a probe; after a slow one the profile waits, and measures the same network again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import numpy as np

from bcnet_deploy.runtime.base import Array, Runner

STEADY = 1.12  # of the fastest probe: beyond what probes of an undisturbed machine differ by
_RUNS = 3
_POLL_S = 0.02


class Pace:
    """Probes of one network, loaded at the first one.

    Args:
        make_runner: makes the inactive runner of a network that takes about as long as the ones measured.
        patience_s: seconds to wait in all. Once they are gone, nothing waits any more: a machine that has
            become slower for good is measured as it is now.
        fastest_ms: of an earlier run of the same profile, if there was one.
        clock, sleep: seconds; replaced in tests.
    """

    def __init__(
        self,
        make_runner: Callable[[], Runner],
        *,
        patience_s: float,
        fastest_ms: float = float("inf"),
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.make_runner = make_runner
        self.patience_s = patience_s
        self.fastest_ms = fastest_ms
        self.clock = clock
        self.sleep = sleep
        self._runner: Runner | None = None
        self._feeds: dict[str, Array] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._runner is not None:
            self._runner.deactivate()

    def steady(self) -> bool:
        """Whether a probe now is about as fast as the fastest one. Raises :class:`EngineError`."""
        return self.is_steady(self.probe())

    def is_steady(self, probe_ms: float) -> bool:
        """Whether a probe was about as fast as the fastest one, up to now."""
        return probe_ms <= STEADY * self.fastest_ms

    def settle(self, at_most_s: float = float("inf")) -> bool:
        """Wait for a steady probe, at most as long as told and as there is patience; False if none came."""
        began = self.clock()
        while not self.steady():
            waited = self.clock() - began
            if waited >= min(self.patience_s, at_most_s):
                self.patience_s = max(0.0, self.patience_s - waited)
                if not self.patience_s:
                    self.fastest_ms = float("inf")
                    self.probe()
                return False
            self.sleep(_POLL_S)
        self.patience_s = max(0.0, self.patience_s - (self.clock() - began))
        return True

    def probe(self) -> float:
        """Milliseconds of the network now. Raises :class:`EngineError`."""
        if self._runner is None:
            self._runner = self.make_runner()
            self._runner.activate()
            self._feeds = self._runner.random_feeds(np.random.default_rng(0))
            # The first runs of a network are slow ones.
            self._time(self._runner)
        now = self._time(self._runner)
        self.fastest_ms = min(self.fastest_ms, now)
        return now

    def _time(self, runner: Runner) -> float:
        return float(runner.latencies(self._feeds, runs=_RUNS, warmup=1).min())
