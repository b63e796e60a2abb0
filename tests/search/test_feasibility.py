"""Budgets that no network keeps: proofs and nearest budgets against brute force."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bcnet_deploy as bd
from bcnet_deploy import units
from bcnet_deploy.search.constraints import build_constraints
from bcnet_deploy.search.feasibility import BudgetConflictError, require_feasible, round_up
from bcnet_deploy.search.lattice import Lattice
from tests.search.fakes import FakeSpace, Staircase


class Terms:
    """A latency of random terms of one and of two neighbouring variables: falls and rises at will."""

    device = "terms"

    def __init__(self, space: FakeSpace, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.space = space
        sizes = [len(c) for c in space.choices]
        self.single = [rng.uniform(0.5, 2, n) for n in sizes]
        self.double = [rng.uniform(0.5, 2, (a, b)) for a, b in zip(sizes[:-1], sizes[1:], strict=True)]

    def predict(self, widths: np.ndarray) -> np.ndarray:
        columns = [np.searchsorted(c, np.asarray(widths)[:, i]) for i, c in enumerate(self.space.choices)]
        total = sum(t[x] for t, x in zip(self.single, columns, strict=True))
        for i, table in enumerate(self.double):
            total = total + table[columns[i], columns[i + 1]]
        return total


def refuse(space, constraints, confidence=None):
    with pytest.raises(bd.InfeasibleError) as caught:
        bd.search(space, lambda w: np.zeros(len(w)), constraints, 50, confidence=confidence)
    return caught.value


@given(seed=st.integers(0, 10**6), lengths=st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_least_latency_of_a_falling_staircase_is_brute_forces(seed, lengths):
    space = FakeSpace(tuple(tuple(range(2, 2 + n)) for n in lengths))
    table = Terms(space, seed)
    least = float(table.predict(space.all()).min())
    error = refuse(space, {"latency_ms": (table, least * 0.999)})
    assert error.proven and "proven" in str(error)
    assert least <= error.nearest["latency_ms"] <= least * 1.001
    # The budget named does work, and so does the least itself.
    for budget in (error.nearest["latency_ms"], least * (1 + 1e-9)):
        assert bd.search(space, lambda w: np.zeros(len(w)), {"latency_ms": (table, budget)}, 5).evaluations


def test_narrowest_network_is_the_proof_and_nearest_budget_works():
    space = FakeSpace((tuple(range(4, 33, 4)),) * 8)
    least = {"macs": float(space.macs([[4] * 8])[0]), "params": float(space.params([[4] * 8])[0])}
    for key, value in least.items():
        error = refuse(space, {key: 0.9 * value})
        assert error.proven and "narrowest network" in str(error) and "Nearest feasible budget" in str(error)
        assert value <= error.nearest[key] <= 1.001 * value
    both = refuse(space, {key: 0.9 * value for key, value in least.items()})
    assert set(both.nearest) == set(least)
    result = bd.search(space, lambda w: np.zeros(len(w)), both.nearest, 5)
    assert result.widths.tolist() == [4] * 8


def test_devices_are_named_each_with_its_nearest_budget():
    space = FakeSpace((tuple(range(4, 33, 4)),) * 8)
    constraints = {"latency_ms": {"cpu": (Staircase(4), 1e-3), "t4": (Staircase(16), 2e-3)}}
    error = refuse(space, constraints)
    assert "latency on cpu" in str(error) and "latency on t4" in str(error)
    assert set(error.nearest) == {"latency_ms[cpu]", "latency_ms[t4]"}


def test_confidence_raises_the_nearest_budget():
    space = FakeSpace((tuple(range(4, 33, 4)),) * 8)
    table = Staircase(relative_error=0.1)
    least = float(table.predict([[4] * 8])[0])
    error = refuse(space, {"latency_ms": (table, 1.05 * least)}, confidence=0.95)
    assert error.nearest["latency_ms"] == pytest.approx(least * 1.16449, rel=1e-3)
    assert "0.95" in str(error)


def test_a_table_of_single_precision_is_proven_too_slow_at_a_confidence():
    """Real tables predict in float32: their rounding must not cost the proof."""
    space = FakeSpace(((2, 3, 4), (2, 3), (5, 6, 7)))
    exact = Terms(space, 4)

    class Single:
        device = "single"

        def predict(self, widths):
            return np.float32(exact.predict(widths)).astype(np.float64)

        def uncertainty(self, widths):
            return 0.1 * self.predict(widths)

    least = 1.1644854 * exact.predict(space.all()).min()
    error = refuse(space, {"latency_ms": (Single(), 0.999 * least)}, confidence=0.95)
    assert error.proven and "(proven)" in str(error)
    assert error.nearest["latency_ms"] == pytest.approx(least, rel=1e-3)


def test_a_latency_that_widths_hardly_change_is_not_told_to_take_more_levels():
    space = FakeSpace((tuple(range(4, 33, 4)),) * 8)
    table = Staircase()
    full, least = (float(table.predict([[width] * 8])[0]) for width in (32, 4))

    class Launches(Staircase):
        def predict(self, widths):
            return super().predict(widths) + 5 * full

    stiff = str(refuse(space, {"latency_ms": (Launches(), "0.5x")}))
    share = (5 * full + least) / (6 * full)
    assert f"the narrowest network still takes {share:.0%} of the full one's time" in stiff
    assert "more levels" not in stiff and "more levels" in str(
        refuse(space, {"latency_ms": (table, 0.9 * least)})
    )


def test_two_devices_that_want_opposite_networks_conflict():
    space = FakeSpace((tuple(range(1, 9)),) * 4)

    class Opposite(Staircase):
        def predict(self, widths):
            return 100 - 2.0 * np.asarray(widths).sum(axis=1)

    rising = lambda widths: 1.0 * np.asarray(widths).sum(axis=1)  # noqa: E731
    constraints = {"latency_ms": {"a": (rising, 10.0), "b": (Opposite(), 60.0)}, "params": "0.9x"}
    with pytest.raises(BudgetConflictError) as caught:
        bd.search(space, lambda w: np.zeros(len(w)), constraints, 50)
    message = str(caught.value)
    assert "latency on a" in message and "latency on b" in message and "parameters" not in message
    assert caught.value.proven and isinstance(caught.value, (bd.ConstraintError, bd.InfeasibleError))
    # sum <= 10 and 100 - 2 sum <= 60 (sum >= 20): relaxing as told makes both possible.
    a, b = caught.value.nearest["latency_ms[a]"], caught.value.nearest["latency_ms[b]"]
    relaxed = {"latency_ms": {"a": (rising, a), "b": (Opposite(), b)}}
    assert bd.search(space, lambda w: np.zeros(len(w)), relaxed, 50).evaluations


def test_refusals_are_fast_on_a_large_space():
    space = FakeSpace((tuple(range(10, 201, 10)),) * 30)
    started = time.process_time()
    refuse(space, {"latency_ms": (Staircase(16, dip=0.05), 0.2), "macs": 10})
    assert time.process_time() - started < 2


def test_start_is_within_the_budgets_where_the_narrowest_network_is_not():
    space = FakeSpace((tuple(range(1, 9)),) * 4)
    falling = lambda widths: 100 - 1.0 * np.asarray(widths).sum(axis=1)  # noqa: E731
    constraints = build_constraints(space, {"latency_ms": (falling, 75.0), "params": "0.95x"})
    anchor = require_feasible(Lattice(space.variables), constraints, np.random.default_rng(0))
    assert constraints.feasible(Lattice(space.variables).widths(anchor[None]))[0]
    result = bd.search(space, lambda w: -1.0 * w.sum(axis=1), {"latency_ms": (falling, 75.0)}, 200)
    assert result.widths.sum() >= 25 and (falling(result.evaluated) <= 75).all()


@given(st.floats(1e-9, 1e15))
def test_round_up_never_rounds_down(value):
    assert value <= round_up(value) <= value * 1.0011


@given(st.integers(1, 10**13), st.sampled_from(["macs", "params", "peak_activation_bytes", "latency_ms[t4]"]))
def test_nearest_budgets_read_back_to_no_less(value, kind):
    from bcnet_deploy.search.feasibility import exactly

    if kind.startswith("latency"):
        value %= 3_000_000  # an hour is the most that a budget of latency may be
    smallest = round_up(float(value) or 1.0)
    read = {"l": units.parse_latency, "p": units.parse_bytes}.get(kind[0], units.parse_count)
    read = units.parse_count if kind == "params" else read
    text = exactly(kind, smallest)
    assert smallest <= read(text).value <= 1.001 * smallest, text


def test_nearest_budgets_are_written_as_people_do():
    from bcnet_deploy.search.feasibility import exactly

    assert exactly("macs", 1696000.0) == "1.696M"
    assert exactly("weight_bytes", 2.5e6) == "2.5MB"
    assert exactly("latency_ms[t4]", 0.3611) == "0.3611ms"


class Estimate(Staircase):
    estimated = True


def test_a_share_on_an_estimated_table_is_of_predictions():
    """Its error is mostly one factor for all networks: a margin of 50% would refuse the full network."""
    space = FakeSpace((tuple(range(4, 33, 4)),) * 5)
    table = Estimate(relative_error=0.5)
    full = float(table.predict([[32] * 5])[0])
    result = bd.search(space, lambda w: w.sum(axis=1), {"latency_ms": (table, "0.5x")}, 200, confidence=0.95)
    assert 0.4 * full < result.costs["latency_ms"] == result.bounds["latency_ms"] <= 0.5 * full
    assert result.to_dict()["budgets"][0]["confidence"] is None
    whole = bd.search(space, lambda w: w.sum(axis=1), {"latency_ms": (table, "100%")}, 50, confidence=0.95)
    assert whole.widths.tolist() == [32] * 5
    # Milliseconds keep the margin (1.6449 deviations), and so does a share on a measured table.
    least = float(table.predict([[4] * 5])[0])
    error = refuse(space, {"latency_ms": (table, 1.4 * least)}, confidence=0.95)
    assert error.nearest["latency_ms"] == pytest.approx(least * (1 + 0.5 * 1.6449), rel=1e-3)
    message = str(error)
    # 0.4 of the prediction is 0.8 deviations: 0.788 in tables of the normal distribution.
    assert "prediction alone" in message and "estimate" in message and "--confidence 0.78)" in message
    refuse(space, {"latency_ms": (Staircase(relative_error=0.5), f"{1.4 * least / full}x")}, confidence=0.95)
    assert "prediction alone" not in str(refuse(space, {"latency_ms": (table, 0.9 * least)}, confidence=0.95))


@pytest.mark.parametrize(
    ("length", "evaluations", "words"),
    [
        (9, None, ["10^8.1", "131,072", "nsga2"]),
        (400, None, ["10^361.2", "nsga2"]),
        (3, 100, ["512 networks", "100 evaluations", "512"]),
    ],
)
def test_an_exhaustive_search_that_cannot_be_one_evaluates_nothing(length, evaluations, words):
    space = FakeSpace((tuple(range(4, 33, 4)),) * length)

    def accuracy(widths):
        raise AssertionError("evaluated")

    with pytest.raises(bd.ConfigError) as caught:
        bd.search(space, accuracy, {"macs": "1x"}, evaluations, strategy="exhaustive")
    assert all(word in str(caught.value) for word in words), caught.value
