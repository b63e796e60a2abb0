"""Every strategy by the suite that users run on theirs; strategies from outside of the package."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

import bcnet_deploy as bd
from bcnet_deploy import registry
from bcnet_deploy.search import STRATEGIES, Context
from bcnet_deploy.search.strategies import Strategy
from bcnet_deploy.testing.strategies import SmallSpace, StrategyConformance
from tests.search.fakes import Hashed


class TestNsga2(StrategyConformance):
    def strategy(self) -> str | Strategy:
        return "nsga2"


class TestRandom(StrategyConformance):
    def strategy(self) -> str | Strategy:
        return "random"


class TestGreedy(StrategyConformance):
    def strategy(self) -> str | Strategy:
        return "greedy"


class TestUniform(StrategyConformance):
    def strategy(self) -> str | Strategy:
        return "uniform"


class TestExhaustive(StrategyConformance):
    def strategy(self) -> str | Strategy:
        return "exhaustive"

    def limits(self) -> tuple[SmallSpace, int]:
        return SmallSpace(((1, 2, 3, 4),) * 4), 256


def narrowing(context: Context) -> str:
    """One variable narrower at a time, from the widest feasible network."""
    current = context.feasible.repair(context.lattice.top[None], context.rng)
    while context.evaluator.remaining and current.any():
        context.evaluate(current)
        context.record(None)
        wide = np.flatnonzero(current[0])
        current = current.copy()
        current[0, wide[0]] -= 1
        current = context.feasible.repair(current, context.rng)
    context.evaluate(context.feasible.anchor[None])
    context.record(None)
    return "as narrow as can be"


class TestCallable(StrategyConformance):
    def strategy(self) -> str | Strategy:
        return narrowing


def test_a_strategy_that_breaks_the_rules_does_not_pass() -> None:
    class Restless(StrategyConformance):
        def strategy(self) -> str | Strategy:
            return lambda context: (np.random.rand(), narrowing(context))[1]  # noqa: NPY002

    with pytest.raises(AssertionError, match="global generator"):
        Restless().test_same_seed_same_result_and_no_other_chance()


def test_an_installed_packages_strategy_is_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("narrowing", "tests.search.test_strategies:narrowing", "bcnet_deploy.strategies")
    monkeypatch.setattr(registry, "entry_points", lambda group: (point,) if group == point.group else ())
    space = SmallSpace(((1, 2, 3), (4, 5)))
    try:
        assert STRATEGIES.names() == ["nsga2", "random", "greedy", "uniform", "exhaustive", "narrowing"]
        result = bd.search(space, Hashed(), {"macs": "0.9x"}, 9, strategy="narrowing")
    finally:
        STRATEGIES._known.pop("narrowing", None)
    assert (result.strategy, result.stopped) == ("narrowing", "as narrow as can be")
    assert bd.search(space, Hashed(), {"macs": "0.9x"}, 9, strategy=narrowing).strategy == "narrowing"


@pytest.mark.parametrize("budget", [{}, {"macs": "1x"}])
def test_greedy_begins_with_the_full_network(budget: dict[str, str]) -> None:
    space = SmallSpace(((4, 8, 12),) * 3)
    result = bd.search(space, lambda w: np.asarray(w).sum(axis=1), budget, 50, strategy="greedy")
    assert result.widths.tolist() == [12] * 3 and result.evaluations == 1


def test_the_exhaustive_strategy_itself_evaluates_as_much_as_its_name() -> None:
    space = SmallSpace((tuple(range(4, 33, 4)),) * 4)
    by_name = bd.search(space, Hashed(), {"macs": "1x"}, strategy="exhaustive")
    itself = bd.search(space, Hashed(), {"macs": "1x"}, strategy=STRATEGIES.get("exhaustive"))
    assert itself.evaluations == by_name.evaluations == 8**4
    assert itself.widths.tolist() == by_name.widths.tolist()


@pytest.mark.parametrize("given", ["nsga3", 7, None])
def test_what_is_no_strategy_is_refused(given: object) -> None:
    with pytest.raises(bd.ConfigError, match="nsga2, random, greedy, uniform, exhaustive"):
        bd.search(SmallSpace(((1, 2),)), Hashed(), {"macs": "1x"}, 2, strategy=given)  # type: ignore[arg-type]


def test_names_are_known_without_loading_a_search() -> None:
    code = (
        "import sys; from bcnet_deploy.search import STRATEGIES; assert 'nsga2' in STRATEGIES; "
        "assert not {'numpy', 'scipy', 'pymoo'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
