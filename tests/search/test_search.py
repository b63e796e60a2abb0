"""``bd.search`` as a whole: fronts against brute force, budgets, seeds, errors."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bcnet_deploy as bd
from tests.search.fakes import FakeSpace, Hashed, Staircase, brute_front

LADDER = tuple(range(4, 33, 4))


class Named(Staircase):
    """A table of a device of that name."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device


@st.composite
def small_spaces(draw: st.DrawFn) -> FakeSpace:
    length = draw(st.integers(1, 5))
    choices = []
    for _ in range(length):
        choices.append(tuple(sorted(draw(st.sets(st.integers(1, 40), min_size=1, max_size=6)))))
    coefficients = draw(st.lists(st.integers(0, 9), min_size=length + 1, max_size=length + 1))
    return FakeSpace(tuple(choices), (*coefficients[:-1], coefficients[-1] + 1))


@settings(max_examples=100, deadline=None)
@given(
    space=small_spaces(),
    seed=st.integers(0, 10**6),
    absent=st.sampled_from([0.0, 0.3]),
    distinct=st.sampled_from([4, 1 << 30]),
    share=st.floats(0.05, 1.0),
    two=st.booleans(),
)
def test_front_of_a_small_space_is_brute_forces(space, seed, absent, distinct, share, two):
    accuracy = Hashed(seed, absent, distinct)
    vectors = space.all()
    values = np.array([accuracy.value(row) for row in vectors])
    costs = {"macs": space.macs(vectors)}
    if two:
        costs["latency_ms"] = Staircase().predict(vectors)
    limits = {key: float(v.min() + share * (v.max() - v.min())) for key, v in costs.items()}
    inside = np.isfinite(values)
    for key in costs:
        inside &= costs[key] <= limits[key]
    constraints = {"macs": limits["macs"]}
    if two:
        constraints["latency_ms"] = (Staircase(), limits["latency_ms"])
    if not inside.any():
        with pytest.raises((bd.EvaluationError, bd.InfeasibleError)):
            bd.search(space, accuracy, constraints, evaluations=len(vectors))
        return
    result = bd.search(space, accuracy, constraints, evaluations=len(vectors), seed=3)
    objectives = np.stack([-values, *costs.values()], axis=1)[inside]
    expected = {tuple(row) for row in vectors[inside][brute_front(objectives)].tolist()}
    assert {tuple(row) for row in result.front.tolist()} == expected
    assert len(result.front) == len(expected)
    assert result.accuracy == values[inside].max()
    assert len(set(accuracy.asked)) == len(accuracy.asked), "a vector was asked twice"


@pytest.mark.parametrize("strategy", ["nsga2", "random", "greedy", "uniform"])
@pytest.mark.parametrize("pareto", [False, True])
def test_every_strategy_keeps_budgets_and_evaluations(strategy, pareto):
    space = FakeSpace((LADDER,) * 9)
    accuracy = Hashed(1, absent=0.2 if strategy in ("nsga2", "random") else 0.0)
    table = Staircase(dip=0.02)
    limit = float(table.predict([[16] * 9])[0])
    result = bd.search(
        space, accuracy, {"macs": "0.4x", "latency_ms": (table, limit), "params": 10**4},
        evaluations=300, seed=5, strategy=strategy, pareto=pareto, population_size=20,
    )  # fmt: skip
    assert len(accuracy.asked) == len(set(accuracy.asked)) <= 300
    assert result.evaluations == len(accuracy.asked)
    full = space.macs([[32] * 9])[0]
    assert (space.macs(result.front.widths) <= 0.4 * full).all()
    assert (table.predict(result.front.widths) <= limit).all()
    assert result.costs["macs"] == space.macs(result.widths[None])[0]
    assert result.accuracy == accuracy.value(result.widths) == result.front.accuracy.max()
    # The front is that of all evaluated networks within the budgets.
    widths, values = result.evaluated, result.evaluated_accuracy
    inside = np.isfinite(values) & (space.macs(widths) <= 0.4 * full) & (table.predict(widths) <= limit)
    inside &= space.params(widths) <= 10**4
    objectives = np.stack([-values, space.macs(widths), table.predict(widths), space.params(widths)], axis=1)
    expected = widths[inside][brute_front(objectives[inside])]
    assert sorted(result.front.tolist()) == sorted(expected.tolist())
    assert result.generations[-1].evaluations == result.evaluations


def test_nsga2_evaluates_nothing_outside_of_the_budgets():
    space = FakeSpace((LADDER,) * 9)
    result = bd.search(space, Hashed(), {"macs": "0.1x"}, evaluations=200, seed=0)
    assert (space.macs(result.evaluated) <= 0.1 * space.macs([[32] * 9])[0]).all()


def smooth(space: FakeSpace):
    full = np.array([v.channels for v in space.variables])
    weights = np.linspace(1, 3, len(full))
    return lambda widths: (np.log(np.asarray(widths) / full) * weights).sum(axis=1)


def test_search_beats_the_baselines_on_a_smooth_accuracy():
    space = FakeSpace((LADDER,) * 9)
    found = {
        name: bd.search(
            space, smooth(space), {"macs": "0.3x"}, evaluations=400, seed=2, strategy=name
        ).accuracy
        for name in ("nsga2", "random", "uniform")
    }
    assert found["nsga2"] > max(found["random"], found["uniform"])
    plain = bd.search(space, smooth(space), {"macs": "0.3x"}, evaluations=400, seed=2, surrogate=False)
    assert plain.accuracy > found["random"]


def test_pareto_mode_serves_tight_budgets_better_than_a_search_at_the_widest():
    space = FakeSpace((LADDER,) * 9)
    accuracy = smooth(space)
    wide = bd.search(space, accuracy, {"macs": "0.5x"}, evaluations=400, seed=2, pareto=True)
    full = float(space.macs([[32] * 9])[0])
    for share in (0.1, 0.2, 0.4):
        row = wide.front.best_within(macs=share * full)
        assert row is not None
        alone = bd.search(space, accuracy, {"macs": share * full}, evaluations=400, seed=2, strategy="random")
        assert wide.front.accuracy[row] > alone.accuracy
        assert space.macs(wide.best_within(macs=share * full)[None])[0] <= share * full
    assert (np.diff(wide.front.costs["macs"]) > 0).all() and (np.diff(wide.front.accuracy) > 0).all()


def test_stops_when_converged_and_says_so():
    space = FakeSpace((LADDER,) * 9)
    accuracy = lambda widths: np.zeros(len(widths))  # noqa: E731
    result = bd.search(space, accuracy, {"macs": "0.5x"}, evaluations=2000, patience=3)
    assert "converged" in result.stopped and result.evaluations < 300


def test_front_is_an_array_of_widths():
    space = FakeSpace((LADDER,) * 5)
    front = bd.search(space, smooth(space), {"macs": "0.5x"}, evaluations=200).front
    assert np.asarray(front).shape == front.shape == (len(front), 5)
    assert front[0].shape == (5,) and [row.tolist() for row in front] == front.tolist()
    assert front.accuracy.shape == front.costs["macs"].shape == (len(front),)
    np.testing.assert_array_equal(space.macs(front), front.costs["macs"])


@pytest.mark.parametrize("first", ["import bcnet_deploy.search", "bd.search"])
def test_search_is_a_function_and_a_package(first):
    code = f"""
import bcnet_deploy as bd
{first}
from bcnet_deploy.search import Front
from tests.search.fakes import FakeSpace, Hashed
result = bd.search(FakeSpace(((1, 2, 3), (4, 5))), Hashed(), {{"macs": "0.9x"}}, evaluations=9)
assert isinstance(result.front, Front)
import sys
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize(
    ("constraints", "words"),
    [
        ({"macs": "fast"}, ["'fast'", "300M", "0.5x"]),
        ({"macs": -5}, ["-5", "300M"]),
        ({"macs": "-5M"}, ["-5M", "300M"]),
        ({"macs": math.nan}, ["nan", "300M"]),
        ({"macs": None}, ["None", "300M"]),
        ({"flops": 5}, ["flops", "macs"]),
        ({"latency_ms": 5.0}, ["table", "5.0"]),
        ({"latency_ms": (Staircase(), "5")}, ["'5ms'"]),
        ({"latency_ms": (Staircase(), "5Mb")}, ["5ms"]),
        ({"latency_ms": ("cpu", 5.0)}, ["predict", "str"]),
        ({"latency_ms": [(Staircase(), 5.0), (Staircase(), 6.0)]}, ["two latency", "stair", "5.0", "6.0"]),
        (
            {"latency_ms": [(Named("a"), 5.0), (Named("b"), 6.0), (Named("a"), 7.0)]},
            ["two latency", "'a': 5.0 and 7.0"],
        ),
        ({"peak_activation_bytes": 1e6}, ["peak_activation_bytes"]),
    ],
)  # fmt: skip
def test_bad_budgets_say_what_is_accepted(constraints, words):
    space = FakeSpace((LADDER,) * 3)
    with pytest.raises(bd.ConstraintError) as caught:
        bd.search(space, Hashed(), constraints)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"population_size": 1}, "population_size is 1"),
        ({"evaluations": 0}, "evaluations is 0"),
        ({"seed": -1}, "seed"),
        ({"strategy": "nsga3"}, "nsga2"),
        ({"on_error": "ignore"}, "skip"),
        ({"patience": 0}, "patience"),
        ({"initial": [[4, 4]]}, "initial"),
        ({"confidence": 95}, "0.95"),
    ],
)
def test_bad_arguments_say_what_is_allowed(arguments, word):
    space = FakeSpace((LADDER,) * 3)
    with pytest.raises((bd.ConfigError, bd.ConstraintError), match=word):
        bd.search(space, Hashed(), {"macs": "0.5x"}, **arguments)


def test_confidence_holds_the_upper_bound_against_the_budget():
    space = FakeSpace((LADDER,) * 6)
    table = Staircase(relative_error=0.1)
    limit = float(table.predict([[16] * 6])[0])
    sure = bd.search(space, smooth(space), {"latency_ms": (table, limit)}, 300, confidence=0.95)
    plain = bd.search(space, smooth(space), {"latency_ms": (table, limit)}, 300)
    # 1.6449: the normal distribution's 95% quantile, from tables.
    assert (table.predict(sure.front.widths) * (1 + 0.1 * 1.6449) <= limit * 1.0001).all()
    assert plain.costs["latency_ms"] > sure.costs["latency_ms"]
    assert sure.bounds["latency_ms"] == pytest.approx(sure.costs["latency_ms"] * 1.16449, rel=1e-4)
    with pytest.raises(bd.ConstraintError, match="uncertainty"):
        bd.search(space, smooth(space), {"latency_ms": (table.predict, limit)}, 300, confidence=0.95)


def test_several_devices_are_all_kept_and_reported():
    space = FakeSpace((LADDER,) * 6)
    fast, slow = Staircase(tile=16), Staircase(tile=4)
    constraints = {"latency_ms": {"t4": (fast, "0.5x"), "cpu": (slow, "0.3x")}}
    result = bd.search(space, smooth(space), constraints, 200)
    assert set(result.front.costs) == {"latency_ms[t4]", "latency_ms[cpu]", "macs", "params"}
    assert (fast.predict(result.front) <= 0.5 * fast.predict([[32] * 6])[0]).all()
    assert (slow.predict(result.front) <= 0.3 * slow.predict([[32] * 6])[0]).all()


def test_tight_budgets_take_no_longer_than_wide_ones():
    space = FakeSpace((tuple(range(1, 33)),) * 20)
    narrowest = float(space.macs([[1] * 20])[0])
    started = time.process_time()
    result = bd.search(space, smooth(space), {"macs": narrowest + 4}, evaluations=400)
    assert time.process_time() - started < 10
    assert (space.macs(result.evaluated) <= narrowest + 4).all()
