"""Whether the machine runs at its usual speed: one network, timed between all others.

CPUs with neighbours, or short of power, fall for seconds at a time to two thirds of their speed. What is
measured then is not the device, and a table of both speeds mixed predicts neither. So each measurement is
followed by a probe; after a slow one the profile waits, and measures the same network again.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from bcnet_deploy.runtime.base import Array, Runner

_STEADY = 1.12  # of the fastest probe: beyond what probes of an undisturbed machine differ by
_RUNS = 3
_POLL_S = 0.02


class Pace:
    """Probes of one active runner.

    Args:
        runner: active; of a network that takes about as long as the ones measured.
        image: its input.
        patience_s: seconds to wait in all. Once they are gone, nothing waits any more: a machine that has
            become slower for good is measured as it is now.
        clock, sleep: seconds; replaced in tests.
    """

    def __init__(
        self,
        runner: Runner,
        image: Array,
        *,
        patience_s: float,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.runner = runner
        self.feeds = {runner.inputs[0].name: image}
        self.patience_s = patience_s
        self.clock = clock
        self.sleep = sleep
        self.fastest_ms = min(self._probe() for _ in range(5))

    def steady(self) -> bool:
        """Whether a probe now is about as fast as the fastest one."""
        now = self._probe()
        self.fastest_ms = min(self.fastest_ms, now)
        return now <= _STEADY * self.fastest_ms

    def settle(self) -> bool:
        """Wait until a probe is steady; False when the patience went first."""
        began = self.clock()
        while not self.steady():
            if self.clock() - began >= self.patience_s:
                self.patience_s = 0.0
                return False
            self.sleep(_POLL_S)
        self.patience_s = max(0.0, self.patience_s - (self.clock() - began))
        return True

    def _probe(self) -> float:
        return float(self.runner.latencies(self.feeds, runs=_RUNS, warmup=1).min())
