"""What a search strategy must keep to, as tests; with a small space whose costs can be written down."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from bcnet_deploy.errors import EvaluationError
from bcnet_deploy.search import SearchResult, search
from bcnet_deploy.search.strategies import Strategy

Int64 = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]


@dataclass
class SmallSpace:
    """Variables with given choices; MACs couple neighbours as dense layers do, parameters are a sum."""

    choices: Sequence[tuple[int, ...]]
    coefficients: tuple[int, ...] = ()

    @property
    def variables(self) -> list[Any]:
        return [
            SimpleNamespace(name=f"layer{i}", channels=c[-1], choices=c) for i, c in enumerate(self.choices)
        ]

    @property
    def weights(self) -> Int64:
        return np.array(self.coefficients or [1 + i % 3 for i in range(len(self.choices) + 1)])

    def macs(self, widths: Any) -> Int64:
        w = np.asarray(widths, dtype=np.int64)
        inputs = np.concatenate([np.full((len(w), 1), 3), w], axis=1)
        outputs = np.concatenate([w, np.full((len(w), 1), 10)], axis=1)
        return np.asarray((inputs * outputs * self.weights[: w.shape[1] + 1]).sum(axis=1))

    def params(self, widths: Any) -> Int64:
        return np.asarray(7 + 5 * np.asarray(widths, dtype=np.int64).sum(axis=1))

    def all(self) -> Int64:
        """(size, L) every width vector."""
        return np.array(list(itertools.product(*self.choices)), dtype=np.int64)


class HashedAccuracy:
    """A repeatable random accuracy a vector, to 9 decimals as a search keeps; remembers what it is asked.

    Args:
        seed: another seed, other accuracies.
        absent: share of vectors that cannot be had (-inf).
        distinct: number of different accuracies.
    """

    def __init__(self, seed: int = 0, absent: float = 0.0, distinct: int = 1 << 30) -> None:
        self.seed, self.absent, self.distinct = seed, absent, distinct
        self.asked: list[tuple[int, ...]] = []

    def value(self, row: Any) -> float:
        rng = np.random.default_rng([self.seed, *(int(w) for w in row)])
        if rng.random() < self.absent:
            return -np.inf
        return round(float(rng.integers(self.distinct)) / self.distinct, 9)

    def __call__(self, widths: Any) -> Float:
        self.asked += [tuple(int(w) for w in row) for row in widths]
        return np.array([self.value(row) for row in widths])


class Staircase:
    """A latency that rises in steps of ``tile`` channels; widths off the steps cost ``dip`` more."""

    device = "stair"

    def __init__(self, tile: int = 8, dip: float = 0.0, relative_error: float = 0.05) -> None:
        self.tile, self.dip, self.relative_error = tile, dip, relative_error

    def predict(self, widths: Any) -> Float:
        w = np.asarray(widths, dtype=np.float64)
        tiles = np.ceil(w / self.tile)
        misaligned = (w % self.tile != 0) * self.dip
        inputs = np.concatenate([np.ones((len(w), 1)), tiles[:, :-1]], axis=1)
        return np.asarray(0.1 + (0.01 * inputs * tiles + misaligned).sum(axis=1))

    def uncertainty(self, widths: Any) -> Float:
        return self.relative_error * self.predict(widths)


class StrategyConformance:
    """Subclass it in a test module, override :meth:`strategy`, and pytest runs the tests::

    class TestAnnealing(StrategyConformance):
        def strategy(self):
            return anneal
    """

    def strategy(self) -> str | Strategy:
        """The strategy, or its registered name."""
        raise NotImplementedError("override strategy() with a registered name or a callable Context -> str")

    def limits(self) -> tuple[SmallSpace, int]:
        """A space, and how many evaluations are allowed in it."""
        return SmallSpace((tuple(range(4, 33, 4)),) * 7), 150

    def run(self, accuracy: Any, constraints: Any, **more: Any) -> SearchResult:
        space, evaluations = self.limits()
        settings = {"evaluations": evaluations, "seed": 5, "population_size": 20, **more}
        return search(space, accuracy, constraints, strategy=self.strategy(), **settings)

    def test_keeps_every_budget_and_the_evaluations(self) -> None:
        space, evaluations = self.limits()
        full = np.array([[c[-1] for c in space.choices]])
        middle = np.array([[c[len(c) // 2] for c in space.choices]])
        table = Staircase(dip=0.02)
        latency = float(table.predict(middle)[0])
        for pareto in (False, True):
            accuracy = HashedAccuracy(1)
            result = self.run(accuracy, {"macs": "0.4x", "latency_ms": (table, latency)}, pareto=pareto)
            assert 1 <= len(accuracy.asked) <= evaluations
            assert len(set(accuracy.asked)) == len(accuracy.asked), "a network was asked twice"
            assert result.evaluations == len(accuracy.asked)
            assert (space.macs(result.front.widths) <= 0.4 * space.macs(full)[0]).all()
            assert (table.predict(result.front.widths) <= latency).all()
            assert result.accuracy == accuracy.value(result.widths)

    def test_same_seed_same_result_and_no_other_chance(self) -> None:
        state = np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
        first = self.run(HashedAccuracy(3), {"macs": "0.4x"}).to_dict()
        assert (np.random.get_state()[1] == state).all(), "the global generator was used"  # type: ignore[index]  # noqa: NPY002
        np.random.seed(9)  # noqa: NPY002
        assert self.run(HashedAccuracy(3), {"macs": "0.4x"}).to_dict() == first

    def test_says_why_it_stopped_and_logs_generations(self) -> None:
        result = self.run(HashedAccuracy(), {"macs": "0.4x"})
        assert isinstance(result.stopped, str) and result.stopped
        assert result.generations, "call context.record after each generation"
        assert result.generations[-1].evaluations == result.evaluations

    def test_ends_where_all_networks_are_alike(self) -> None:
        result = self.run(lambda widths: np.zeros(len(widths)), {"macs": "0.4x"})
        assert result.accuracy == 0

    def test_finds_the_only_network_within_the_budget(self) -> None:
        space, _ = self.limits()
        narrowest = np.array([[c[0] for c in space.choices]])
        result = self.run(HashedAccuracy(), {"macs": float(space.macs(narrowest)[0])})
        assert result.widths.tolist() == narrowest[0].tolist()

    def test_networks_that_cannot_be_had_are_never_returned(self) -> None:
        accuracy = HashedAccuracy(2, absent=0.3)
        try:
            result = self.run(accuracy, {"macs": "0.4x"})
        except EvaluationError as error:
            assert "-inf" in str(error)
        else:
            assert np.isfinite(result.accuracy) and np.isfinite(result.front.accuracy).all()

    def test_goes_on_after_a_kill_where_it_stopped(self) -> None:
        expected = self.run(HashedAccuracy(4), {"macs": "0.4x"}).to_dict()
        inner, left = HashedAccuracy(4), max(1, expected["evaluations"] // 2)

        def killed(widths: Int64) -> Float:
            if len(inner.asked) >= left:
                raise KeyboardInterrupt
            return inner(widths)

        with tempfile.TemporaryDirectory() as folder:
            journal = Path(folder) / "journal.jsonl"
            try:
                self.run(killed, {"macs": "0.4x"}, checkpoint=journal, batch_size=1)
            except KeyboardInterrupt:
                pass
            else:
                assert expected["evaluations"] <= left, "the kill was swallowed"
            rest = HashedAccuracy(4)
            result = self.run(rest, {"macs": "0.4x"}, checkpoint=journal, batch_size=1)
        assert result.to_dict() == expected
        assert len(rest.asked) == expected["evaluations"] - len(inner.asked)
