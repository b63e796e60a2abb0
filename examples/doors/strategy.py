"""A search strategy of one's own: simulated annealing.

    bd.search(space, accuracy, {"latency_ms": (table, "0.5x")}, strategy=anneal)

An installed package names it as well, and `bcnet-deploy search --strategy annealing` finds it::

    [project.entry-points."bcnet_deploy.strategies"]
    annealing = "my_package.strategy:anneal"
"""

from __future__ import annotations

import math

import numpy as np

from bcnet_deploy.search import Context


def anneal(context: Context, hot: float = 0.05, cold: float = 0.001) -> str:
    """Walk to a neighbour where it is better, and now and then where it is worse.

    Args:
        context: the space, its budgets and what evaluations are left. Networks are rows of indices into each
            variable's choices.
        hot, cold: the loss of accuracy that is accepted with a chance of 1/e, at first and at last.
    """
    here = context.feasible.sample(1, context.rng)
    value = -math.inf
    allowed, idle = context.evaluator.remaining, 0
    while context.evaluator.remaining and idle < 20 * context.patience:
        spent = 1 - context.evaluator.remaining / allowed
        step = context.rng.integers(-2, 3, here.shape) * (context.rng.random(here.shape) < 0.3)
        there = context.feasible.repair(np.clip(here + step, 0, context.lattice.top), context.rng)
        accuracy = context.evaluate(there)
        if not len(accuracy):  # known already: look elsewhere
            idle += 1
            continue
        idle = 0
        context.record(None)
        change = float(accuracy[0]) - value
        if change >= 0 or context.rng.random() < math.exp(change / (hot * (cold / hot) ** spent)):
            here, value = there, float(accuracy[0])
    return "evaluations spent" if idle == 0 else "no new neighbours"
