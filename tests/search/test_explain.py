"""What the result is compared with, and how far a confidence can be held."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import bcnet_deploy as bd
from bcnet_deploy.search.constraints import build_constraints
from bcnet_deploy.search.explain import explain, uniform_to_compare
from bcnet_deploy.search.feasibility import with_attainable_confidence
from bcnet_deploy.testing.strategies import HashedAccuracy, SmallSpace

SPACE = SmallSpace(((2, 4, 6, 8),) * 3)
RUNGS = (6, 12, 18, 24)


class Channels:
    """Milliseconds are the number of channels; the error is a share of them."""

    def __init__(self, error: float = 0.5) -> None:
        self.error = error

    def predict(self, widths: object) -> np.ndarray:
        return np.asarray(widths, dtype=float).sum(axis=1)

    def uncertainty(self, widths: object) -> np.ndarray:
        return self.error * self.predict(widths)


SURE = 0.8413447  # one standard deviation: the bound is 1.5 times the prediction


@pytest.mark.parametrize(
    ("limit", "macs", "width", "margin"),
    [
        (1.5 * RUNGS[1], "1x", 4, "kept"),
        (1.4 * RUNGS[0], "1x", 2, "expected"),
        (0.5 * RUNGS[0], "1x", 2, "exceeded"),
        (1.5 * RUNGS[3], float(SPACE.macs([[4] * 3])[0]), 4, "kept"),
        (1.4 * RUNGS[0], float(SPACE.macs([[8] * 3])[0]), 2, "expected"),
        (1.5 * RUNGS[3], float(SPACE.macs([[2] * 3])[0]) - 1, 2, "exceeded"),
    ],
)
def test_what_uniform_is_compared_with_any_mix_of_budgets(limit, macs, width, margin):
    constraints = build_constraints(SPACE, {"latency_ms": (Channels(), limit), "macs": macs}, SURE)
    widths, found = uniform_to_compare(constraints)
    assert (widths.tolist(), found) == ([width] * 3, margin)


def test_without_a_budget_uniform_is_the_full_network():
    assert uniform_to_compare(build_constraints(SPACE, {}))[0].tolist() == [8] * 3


@pytest.mark.parametrize(("error", "margin"), [(0.0, "kept"), (0.5, "expected")])
def test_the_margin_is_written_with_the_uniform_network(error, margin):
    result = bd.search(
        SmallSpace(((2, 4), (2, 4, 5))), HashedAccuracy(), {"latency_ms": (Channels(error), 5)}, 6
    )
    # 2 + 2 channels keep 5 ms, and 1.5 times them do not.
    constraints = build_constraints(result.constraints.space, {"latency_ms": (Channels(error), 5)}, SURE)
    told = explain(replace(result, constraints=constraints))["compared_with"]["uniform"]
    assert told["budget"] == margin and told["widths"] == {"layer0": 2, "layer1": 2}


def test_only_noise_lowers_a_confidence_and_only_of_relative_latencies():
    def held(latency: object, macs: str = "1x", confidence: float | None = 0.95) -> list[float | None]:
        given = {"latency_ms": (Channels(), latency), "macs": macs}
        constraints = with_attainable_confidence(build_constraints(SPACE, given, confidence))
        assert constraints.feasible(SPACE.all()).any()
        return [budget.confidence for budget in constraints.budgets]

    # The narrowest network takes a quarter of the full one; with the margin 1.82 times as much.
    assert held("0.3x") == [0.5, None] and held("30%") == [0.5, None]
    assert held("0.5x") == [0.95, None] and held("0.3x", confidence=None) == [None, None]
    for latency, macs in (("0.2x", "1x"), (0.3 * 24, "1x"), ("7.2ms", "1x"), ("0.3x", "0.01x")):
        with pytest.raises(bd.InfeasibleError):
            held(latency, macs)
    # A share that no table's noise stands in the way of stays as hard as it was asked for.
    both = {"latency_ms": {"quiet": (Channels(0.01), "0.3x"), "noisy": (Channels(), "0.3x")}}
    constraints = with_attainable_confidence(build_constraints(SPACE, both, 0.95))
    assert [budget.confidence for budget in constraints.budgets] == [0.95, 0.5]
    # What cannot be had is told at the confidence asked for, and its nearest budget is one that works.
    with pytest.raises(bd.InfeasibleError, match=r"0\.95") as caught:
        held("0.2x")
    assert held(f"{caught.value.nearest['latency_ms']}ms") == [0.95, None]
    two = {"latency_ms": {"a": (Channels(), "0.3x"), "b": (Channels(0.0), 24.0)}}
    constraints = with_attainable_confidence(build_constraints(SPACE, two, 0.95))
    assert [budget.confidence for budget in constraints.budgets] == [0.5, 0.95]
    found = bd.search(SPACE, HashedAccuracy(), constraints, 20)
    assert found.constraints is constraints and found.costs["latency_ms[a]"] <= 0.3 * 24
    with pytest.raises(bd.ConfigError, match="built already"):
        bd.search(SPACE, HashedAccuracy(), constraints, 20, confidence=0.9)
