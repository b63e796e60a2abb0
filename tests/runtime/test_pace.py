"""Telling the machine's usual speed from spells."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from bcnet_deploy.runtime.base import Array, Floats
from bcnet_deploy.runtime.pace import Pace
from tests.profiler.fakes import FakeRunner


class Speed:
    """A machine whose speed is set by hand, and a clock that only sleeping moves."""

    def __init__(self) -> None:
        self.factor, self.now = 1.0, 0.0
        self.recovers_at = float("inf")

    def __call__(self) -> float:
        return 1.0 if self.now >= self.recovers_at else self.factor

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def pace(self, patience_s: float = 9.0, usual_ms: float | None = None) -> Pace:
        return Pace(
            lambda: OneMillisecond(self), patience_s=patience_s, usual_ms=usual_ms, clock=self.clock,
            sleep=self.sleep,
        )  # fmt: skip


class OneMillisecond(FakeRunner):
    """A network of 1 ms."""

    def __init__(self, speed: Speed) -> None:
        super().__init__(b"", False)
        self.speed = speed

    def _activate(self) -> None:
        self.input_name, self.shape = "x", (1,)

    def _latencies(self, feeds: Mapping[str, Array], runs: int, warmup: int) -> Floats:
        return np.full(runs, self.speed())


@pytest.mark.parametrize("factor", [0.8, 1.5])
def test_a_spell_of_another_speed_is_told_and_waited_for(factor: float) -> None:
    speed = Speed()
    with speed.pace() as pace:
        assert all(pace.is_steady(pace.probe()) for _ in range(5))
        speed.factor, speed.recovers_at = factor, 2.0
        probe_ms = pace.probe()
        assert not pace.is_steady(probe_ms)
        assert pace.is_fast(probe_ms) == (factor < 1)
        assert pace.settle()
        assert speed.now == pytest.approx(2.0, abs=0.05)
        assert pace.patience_s == pytest.approx(7.0, abs=0.05)


def test_a_profile_that_begins_in_a_fast_spell_finds_the_usual_speed() -> None:
    speed = Speed()
    speed.factor = 0.8
    with speed.pace() as pace:
        assert pace.is_steady(pace.probe())
        speed.factor = 1.0
        for _ in range(5):
            pace.probe()
        assert pace.usual_ms == pytest.approx(1.0)
        assert pace.patience_s == 9.0


def test_waiting_in_a_slow_spell_does_not_make_it_usual() -> None:
    speed = Speed()
    with speed.pace(patience_s=30.0) as pace:
        for _ in range(4):
            pace.probe()
        speed.factor = 1.5
        assert not pace.settle(at_most_s=8.0)  # hundreds of looks
        assert pace.usual_ms == pytest.approx(1.0)
        assert not pace.is_steady(pace.probe())


def test_one_wait_takes_a_share_of_the_patience_and_all_of_them_no_more_than_it() -> None:
    speed = Speed()
    with speed.pace(patience_s=9.0) as pace:
        pace.probe()
        speed.factor = 1.5
        assert not pace.settle()
        assert speed.now == pytest.approx(3.0, abs=0.05)
        waits = 1
        while not pace.is_steady(pace.probe()):
            pace.settle()
            waits += 1
        assert waits > 2
        assert speed.now <= 9.5
        assert pace.usual_ms == pytest.approx(1.5)  # slower for good: the speed that is measured now


def test_a_known_speed_outweighs_the_probes() -> None:
    speed = Speed()
    with speed.pace(patience_s=1.0, usual_ms=0.8) as pace:
        assert not any(pace.is_steady(pace.probe()) for _ in range(9))
        assert pace.usual_ms == 0.8
        assert not pace.settle()
        assert pace.is_steady(pace.probe())  # patience is gone
