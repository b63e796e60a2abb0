"""What a strategy works with, and the plain strategies to compare with; NSGA-II has a module of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bcnet_deploy.errors import ConfigError
from bcnet_deploy.search.constraints import Constraints
from bcnet_deploy.search.evaluation import Evaluator
from bcnet_deploy.search.lattice import Float, Int64, Lattice, uniform_ladder
from bcnet_deploy.search.posterior import Posterior
from bcnet_deploy.search.proposals import Feasible

ENUMERABLE = 1 << 17
"""Spaces up to this size are enumerated where that helps: costs are cheap."""


@dataclass
class Context:
    """What a strategy works with.

    Attributes:
        feasible: repair and sampling within the budgets.
        evaluator: asks accuracies; ``remaining`` of them are left.
        rng: the only source of chance.
        population_size: vectors a generation.
        initial: (n, L) indices of a first population, or None.
        pareto: whether every budget up to the limits matters, not only the limits.
        patience: generations without improvement after which the search has converged.
        record: called after each generation with the share of its proposals that kept the budgets
            before repair, None where it proposed nothing.
        surrogate: whether candidates are screened.
        posterior: what noisy accuracies say, to be fitted by :meth:`Posterior.fit_answers`; None where they
            are exact.
    """

    lattice: Lattice
    constraints: Constraints
    feasible: Feasible
    evaluator: Evaluator
    rng: np.random.Generator
    population_size: int
    record: Callable[[float | None], None]
    initial: Int64 | None = None
    pareto: bool = False
    patience: int = 15
    surrogate: bool = True
    posterior: Posterior | None = None

    def evaluate(self, indices: Int64) -> Float:
        """Accuracies of the first fresh rows that the evaluator still allows."""
        fresh = self.evaluator.fresh(indices)[: self.evaluator.remaining]
        return self.evaluator(fresh) if len(fresh) else np.zeros(0)

    def objectives(self, indices: Int64) -> Float:
        """(N, L) -> (N, number of costs) expected costs relative to the limits (or to the full network)."""
        widths = self.lattice.widths(indices)
        if not self.constraints.budgets:
            macs = self.constraints.space.macs
            return np.asarray(macs(widths) / macs(self.lattice.widths(self.lattice.top[None])))[:, None]
        columns = [np.asarray(b.cost(widths), dtype=np.float64) / b.limit for b in self.constraints.budgets]
        return np.stack(columns, axis=1)


def enumerate_feasible(context: Context, at_most: int | None = None) -> Int64 | None:
    """Every feasible vector, or None when the space is too large or they are more than ``at_most``."""
    if context.lattice.size > ENUMERABLE:
        return None
    parts, count = [], 0
    for block in context.lattice.blocks():
        good = block[context.feasible.mask(block)]
        count += len(good)
        if at_most is not None and count > at_most:
            return None
        parts.append(good)
    return np.concatenate(parts)


def exhaustive(context: Context) -> str:
    """Every feasible vector of a small space."""
    vectors = enumerate_feasible(context, context.evaluator.remaining)
    assert vectors is not None, "require_enumerable was not called"
    share = len(vectors) / context.lattice.size
    for start in range(0, len(vectors), max(context.population_size, 256)):
        context.evaluate(vectors[start : start + max(context.population_size, 256)])
        context.record(share)
    return "every feasible network evaluated"


def require_enumerable(
    lattice: Lattice, constraints: Constraints | None = None, evaluations: int | None = None
) -> None:
    """Refuse an exhaustive search that cannot be one, before anything is evaluated.

    Without constraints or a number of evaluations only the size of the space is looked at.

    Raises:
        ConfigError: the space is too large, or more networks keep the budgets than may be evaluated.
    """
    if lattice.size > ENUMERABLE:
        raise ConfigError(
            f"strategy 'exhaustive': the space has 10^{math.log10(lattice.size):.1f} networks, at most "
            f"{ENUMERABLE:,} are enumerated whatever the evaluations; use strategy 'nsga2', or a space of "
            "fewer levels"
        )
    if evaluations is None or constraints is None:
        return
    count = sum(int(constraints.feasible(lattice.widths(block)).sum()) for block in lattice.blocks())
    if count > evaluations:
        raise ConfigError(
            f"strategy 'exhaustive': {count:,} networks keep the budgets and {evaluations:,} evaluations are "
            f"allowed; allow {count:,}, tighten the budgets, or use strategy 'nsga2'"
        )


def random_search(context: Context) -> str:
    """Distinct feasible vectors, uniformly where the space is small enough to know them all."""
    known = enumerate_feasible(context)
    if known is not None:
        chosen = context.rng.permutation(len(known))[: context.evaluator.remaining]
        for start in range(0, len(chosen), context.population_size):
            context.evaluate(known[chosen[start : start + context.population_size]])
            context.record(len(known) / context.lattice.size)
        return "evaluations spent" if len(known) > len(chosen) else "every feasible network evaluated"
    idle = 0
    context.feasible.take_share()
    while context.evaluator.remaining and idle < context.patience:
        before = context.evaluator.count
        context.evaluate(context.feasible.sample(context.population_size, context.rng))
        idle = idle + 1 if context.evaluator.count == before else 0
        context.record(context.feasible.take_share())
    return "evaluations spent" if not context.evaluator.remaining else "no new networks"


def uniform_scaling(context: Context) -> str:
    """All layers at one share of their channels: every such network within the budgets, widest first."""
    ladder = uniform_ladder(context.lattice)
    feasible = ladder[context.feasible.mask(ladder)][::-1]
    context.evaluate(feasible if len(feasible) else context.feasible.anchor[None])
    context.record(len(feasible) / len(ladder))
    return "every uniformly scaled network evaluated"


def greedy(context: Context) -> str:
    """AutoSlim's greedy slimming (Yu & Huang 2019): from the full network, one step at a time.

    Each step tries one level less in every layer and keeps the try with the highest accuracy, until
    all budgets are kept. With the evaluations spent, the layers go on shrinking in the order of the
    last tries, so that it always ends within the budgets.
    """
    current, accuracy = context.lattice.top.copy(), -np.inf
    order = np.arange(context.lattice.length)
    if context.feasible.mask(current[None])[0]:
        accuracy = float(context.evaluator(current[None])[0])
    while True:
        inside = bool(context.feasible.mask(current[None])[0])
        movable = np.flatnonzero(current > 0)
        if inside and (np.isfinite(accuracy) or not context.evaluator.remaining or not len(movable)):
            break
        if not len(movable):
            current = context.feasible.anchor.copy()
            break
        tries = np.repeat(current[None], len(movable), axis=0)
        tries[np.arange(len(movable)), movable] -= 1
        # One evaluation is kept for the network it ends with.
        if len(context.evaluator.fresh(tries)) <= context.evaluator.remaining - 1:
            values = context.evaluator(tries)
            context.record(float(context.feasible.mask(tries).mean()))
            order = movable[np.argsort(-values, kind="stable")]
            if not np.isfinite(values).any():
                # None of the tries can be had: take the one that saves least.
                order = movable[np.argsort(-context.objectives(tries).sum(axis=1), kind="stable")]
            current = tries[int(np.flatnonzero(movable == order[0])[0])]
            accuracy = float(values.max())
        else:
            column = next((int(c) for c in order if current[c] > 0), int(movable[0]))
            current[column] -= 1
            order, accuracy = np.roll(order, -1), -np.inf
            if context.feasible.mask(current[None])[0]:
                break
    context.evaluate(current[None])
    context.record(1.0)
    return "budget reached"


def best_row(accuracy: Float, costs: Float, indices: Int64) -> int:
    """Row of the best vector: by accuracy, then total cost, then lexicographic order."""
    return int(np.lexsort((*indices.T[::-1], costs.sum(axis=1), -accuracy))[0])
