"""NSGA-II (Deb et al. 2002) on accuracy and costs, through pymoo, with screened offspring.

Each generation pymoo's mating proposes several times more offspring than are evaluated; they are
repaired onto the budgets, joined by the neighbours of the best networks (in small spaces by every
feasible network), and a regression on the accuracies seen so far chooses which are worth
evaluating. One in ten is taken unscreened, so that a wrong regression cannot blind the search.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.evaluator import Evaluator as PymooEvaluator
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.pntx import TwoPointCrossover
from pymoo.problems.static import StaticProblem

from bcnet_deploy.search.baselines import Context, enumerate_feasible, exhaustive
from bcnet_deploy.search.lattice import Float, Int64
from bcnet_deploy.search.proposals import BudgetRepair, IntegerPolynomialMutation
from bcnet_deploy.search.regression import Surrogate

_POOL = 5
"""Offspring proposed for each one evaluated."""
_SMALL = 1 << 15
"""Spaces up to this size are screened as a whole."""
_MIN_FIT = 10
"""Accuracies needed before the regression is asked."""
_UNSCREENED = 0.1


def nsga2(context: Context) -> str:
    """Run until the evaluations are spent, nothing new is found, or ``patience`` generations do not help."""
    if enumerate_feasible(context, context.evaluator.remaining) is not None:
        return exhaustive(context)
    return _Run(context).run()


class _Run:
    def __init__(self, context: Context) -> None:
        self.context = context
        lattice = context.lattice
        self.size = min(context.population_size, context.evaluator.remaining)
        self.problem = Problem(
            n_var=lattice.length, n_obj=1 + max(1, len(context.constraints)),
            xl=np.zeros(lattice.length, dtype=np.int64), xu=lattice.top, vtype=int,
        )  # fmt: skip
        self.algorithm = NSGA2(
            pop_size=self.size,
            n_offsprings=_POOL * self.size if context.surrogate else self.size,
            crossover=TwoPointCrossover(prob=0.9),
            mutation=IntegerPolynomialMutation(prob=1.0, prob_var=1 / lattice.length, eta=3),
            repair=BudgetRepair(context.feasible),
        )
        # pymoo draws from a generator of its own, seeded from ours.
        seed = int(context.rng.integers(2**31))
        self.algorithm.setup(self.problem, termination=NoTermination(), seed=seed)
        self.algorithm.mating.n_max_iterations = 5
        self.surrogate = Surrogate(lattice.length)
        self.everything = (
            enumerate_feasible(context) if lattice.size <= _SMALL and context.surrogate else None
        )

    def run(self) -> str:
        context = self.context
        self._advance(self._first())
        context.record(context.feasible.take_share())
        idle, state = 0, self._state()
        while context.evaluator.remaining > 0:
            chosen = self._choose()
            if not len(chosen):
                return "no new networks"
            self._advance(chosen)
            context.record(context.feasible.take_share())
            before, state = state, self._state()
            idle = idle + 1 if state == before else 0
            if idle >= context.patience:
                return f"converged: {idle} generations without improvement"
        return "evaluations spent"

    def _first(self) -> Int64:
        context = self.context
        parts = [] if context.initial is None else [context.feasible.repair(context.initial, context.rng)]
        context.feasible.take_share()  # a prior's networks were chosen to keep the budgets: no proposals
        spread = context.feasible.spread(3 * self.size, context.rng)
        if not context.pareto:
            # With one budget the networks that use it up matter; a few cheaper ones keep the front.
            filled = context.feasible.fill(spread, context.rng)
            spread = np.where((np.arange(len(spread)) % 4 < 3)[:, None], filled, spread)
        parts += [spread, context.feasible.sample(self.size, context.rng)]
        return context.evaluator.fresh(np.concatenate(parts))[: self.size]

    def _advance(self, indices: Int64) -> None:
        """Evaluate and hand to NSGA-II those that can be had."""
        context = self.context
        accuracy = context.evaluator(indices)
        rows = np.isfinite(accuracy)
        if not rows.any():
            return
        costs = context.objectives(indices[rows])
        objectives = np.concatenate([-accuracy[rows, None], costs], axis=1)
        population = Population.new("X", indices[rows])
        PymooEvaluator().eval(StaticProblem(self.problem, F=objectives), population)
        self.algorithm.tell(infills=population)

    def _state(self) -> Any:
        """What must change for the search to count as improving."""
        accuracy = self.context.evaluator.accuracy
        if not self.context.pareto:
            return float(accuracy.max(initial=-np.inf))
        best = self.algorithm.opt
        return None if best is None else sorted(map(tuple, best.get("F").tolist()))

    def _choose(self) -> Int64:
        """The next generation's vectors, fresh and feasible."""
        context = self.context
        count = min(self.size, context.evaluator.remaining)
        offspring = self._offspring()
        if not context.surrogate:
            return self._unscreened(offspring, count)
        accuracy = context.evaluator.accuracy
        finite = np.isfinite(accuracy)
        if int(finite.sum()) < _MIN_FIT:
            pool = context.evaluator.fresh(np.concatenate([offspring, self._elsewhere(count)]))
            return pool[:count]
        indices = context.evaluator.indices[finite]
        if context.posterior is not None:
            context.posterior.fit_answers(context.evaluator)
            accuracy = context.posterior.predict(indices)[0]
        else:
            accuracy = accuracy[finite]
            self.surrogate.fit(context.lattice.scaled(indices), accuracy)
        free = offspring[: int(round(_UNSCREENED * count))]
        candidates = self._candidates(offspring, indices, accuracy)
        if not len(candidates):
            return self._elsewhere(count)
        screened = self._screen(candidates, count)
        merged = np.concatenate([screened[: count - len(free)], free, screened[count - len(free) :]])
        return context.evaluator.fresh(merged)[:count]

    def _unscreened(self, offspring: Int64, count: int) -> Int64:
        """Plain NSGA-II; with one budget every other offspring is widened to use it up."""
        context = self.context
        if len(offspring) and not context.pareto:
            filled = context.feasible.fill(offspring, context.rng)
            odd = np.arange(len(offspring))[:, None] % 2 == 1
            offspring = context.evaluator.fresh(np.where(odd, filled, offspring))
        return offspring[:count] if len(offspring) else self._elsewhere(count)

    def _offspring(self) -> Int64:
        if not self.algorithm.is_initialized or len(self.algorithm.pop) < 2:
            return np.zeros((0, self.context.lattice.length), dtype=np.int64)
        proposals = self.algorithm.ask()
        if proposals is None:
            return np.zeros((0, self.context.lattice.length), dtype=np.int64)
        return self.context.evaluator.fresh(proposals.get("X").astype(np.int64))

    def _elsewhere(self, count: int) -> Int64:
        """Fresh feasible vectors when mating has none to offer."""
        context = self.context
        draws = np.concatenate([
            context.feasible.spread(2 * count, context.rng),
            context.feasible.sample(2 * count, context.rng),
        ])  # fmt: skip
        return context.evaluator.fresh(draws)[:count]

    def _candidates(self, offspring: Int64, indices: Int64, accuracy: Float) -> Int64:
        context = self.context
        if self.everything is not None:
            self.everything = self.everything[~context.evaluator.known(self.everything)]
            return self.everything
        elite = indices[np.argsort(-accuracy, kind="stable")[:3]]
        parts = [offspring]
        if not context.pareto:
            half = offspring[: len(offspring) // 2]
            if len(half):
                parts.append(context.feasible.fill(half, context.rng))
        else:
            best = self.algorithm.opt
            if best is not None and len(best):
                front = best.get("X").astype(np.int64)
                elite = front[context.rng.permutation(len(front))[:3]]
        parts.append(context.feasible.neighbours(elite, context.rng, limit=4 * self.size))
        return context.evaluator.fresh(np.concatenate(parts))

    def _screen(self, candidates: Int64, count: int) -> Int64:
        """The most promising candidates: highest mean plus one standard deviation."""
        context = self.context
        if context.posterior is not None:
            mean, deviation = context.posterior.predict(candidates)
        else:
            mean, deviation = self.surrogate.predict(context.lattice.scaled(candidates))
        # Rounded, so that the last bits of a BLAS do not decide.
        promise = np.round(mean + deviation, 9)
        order = np.argsort(-promise, kind="stable")
        if not context.pareto:
            return candidates[order[:count]]
        # One pick for each of `count` budgets between the cheapest candidate and the limits.
        costs = context.objectives(candidates)
        chosen: list[int] = []
        free = np.ones(len(candidates), dtype=np.bool_)
        cheapest = costs.min(axis=0)
        for share in np.linspace(1.0, 0.0, count):
            inside = order[
                free[order] & (costs[order] <= cheapest + share * (1 - cheapest) + 1e-12).all(axis=1)
            ]
            if len(inside):
                chosen.append(int(inside[0]))
                free[inside[0]] = False
        return candidates[chosen]
