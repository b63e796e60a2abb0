"""Whether the machine runs at its usual speed: one network, timed between all others.

CPUs with neighbours, or short of power, fall for seconds at a time to two thirds of their speed; others
clock up for a moment when their other cores idle. What is measured then is not the device, and a table of
several speeds mixed predicts none. So measurements are followed by a probe; after one that was not of the
usual speed the profile waits, and measures the same network again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import numpy as np

from bcnet_deploy.runtime.base import Array, Runner

STEADY = 1.12  # of the usual probe: beyond what probes of an undisturbed machine differ by
FAST = 0.93  # the same on the other side, where probes scatter less
_USUAL = 0.25  # quantile of the probes: spells are mostly slow ones, and may be most of the time
_AT_ONCE = 1 / 3  # of the patience that is left, for one wait: the usual speed may be misjudged yet
_RUNS = 3
_POLL_S = 0.02
_SHORTEST_S = 1.0  # of a wait, while there is so much patience


class Pace:
    """Probes of one network, loaded at the first one.

    Args:
        make_runner: makes the inactive runner of a network that takes about as long as the ones measured.
        patience_s: seconds to wait in all. Once they are gone, the speed is judged anew: a machine that has
            become slower for good is measured as it is now.
        usual_ms: the probe's time at the speed that is wanted, where it is known.
        seen_ms: probes of an earlier run of the same profile, if there was one.
        clock, sleep: seconds; replaced in tests.
    """

    def __init__(
        self,
        make_runner: Callable[[], Runner],
        *,
        patience_s: float,
        usual_ms: float | None = None,
        seen_ms: Sequence[float] = (),
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.make_runner = make_runner
        self.patience_s = patience_s
        self.known_ms = usual_ms
        self._seen = list(seen_ms)
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

    @property
    def usual_ms(self) -> float:
        """The probe's time at the machine's usual speed, as far as one can tell; NaN before any probe."""
        if self.known_ms is not None:
            return self.known_ms
        return float(np.quantile(self._seen, _USUAL, method="lower")) if self._seen else float("nan")

    def is_steady(self, probe_ms: float) -> bool:
        """Whether a probe was about as fast as usual, as far as that is known."""
        return not (self.is_fast(probe_ms) or probe_ms > STEADY * self.usual_ms)

    def is_fast(self, probe_ms: float) -> bool:
        """Whether a probe was of a machine that runs faster than usual."""
        return probe_ms < FAST * self.usual_ms

    def settle(self, at_most_s: float = float("inf")) -> bool:
        """Wait for a steady probe, for a share of the patience and as long as told; False if none came."""
        began = self.clock()
        limit = min(max(_AT_ONCE * self.patience_s, _SHORTEST_S), self.patience_s, at_most_s)
        while not self.is_steady(self._timed()):
            waited = self.clock() - began
            if waited >= limit:
                self.patience_s = max(0.0, self.patience_s - waited)
                if not self.patience_s:
                    self.known_ms, self._seen = None, []
                    self.probe()
                return False
            self.sleep(_POLL_S)
        self.patience_s = max(0.0, self.patience_s - (self.clock() - began))
        return True

    def probe(self) -> float:
        """Milliseconds of the network now; counts for the usual speed. Raises :class:`EngineError`."""
        now = self._timed()
        self._seen.append(now)
        return now

    def _timed(self) -> float:
        if self._runner is None:
            self._runner = self.make_runner()
            self._runner.activate()
            self._feeds = self._runner.random_feeds(np.random.default_rng(0))
            # The first runs of a network are slow ones.
            self._time(self._runner)
        return self._time(self._runner)

    def _time(self, runner: Runner) -> float:
        return float(runner.latencies(self._feeds, runs=_RUNS, warmup=1).min())
