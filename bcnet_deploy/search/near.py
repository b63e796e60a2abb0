"""Networks that nearly use up the budgets are scored, and a search runs over what these scores say.

For scores of networks themselves, before or after a training of their own. A population that evolves by them
goes where they err most, and with a few dozen there is none to spare for networks that nobody wants. So all
that is scored takes nearly the whole of the budgets: first networks drawn around uniform widths, then those
that the posterior of all scores so far draws (Thompson sampling). What is returned is the best by the
posterior's lower bound, since with so few scores a mean promises most where nothing was scored. With scores
of CIFAR-10 networks it is far above an evolutionary search of as many (docs/trained.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from bcnet_deploy.search.baselines import ENUMERABLE, Context
from bcnet_deploy.search.design import PER_TERM
from bcnet_deploy.search.evaluation import Evaluator
from bcnet_deploy.search.lattice import Int64, uniform_ladder

TRAINED_EVALUATIONS = 32
"""Networks that get such a score where nobody says how many: on average more were hardly better."""
POOL = 3000
"""Networks drawn near the budgets, to choose from."""
_SPREAD = (0.1, 0.5)
"""Standard deviations of their log widths around uniform ones."""
_NEAR = 0.96
"""Share of the budget that binds which they take at least."""
_SCALES, _BISECTIONS = (0.01, 4.0), 14
_DRAWN = 0.5
"""Share of the evaluations for networks drawn without regard to scores."""
_MOST = 400
"""Networks that are scored at most."""
_CHOSEN = 8
"""One evaluation in so many is kept for the networks of the highest lower bounds."""
CAUTION = 2.0
"""Standard deviations below the mean: the lower bound."""


def near_budgets(context: Context, count: int = POOL) -> Int64:
    """(n, L) distinct choice indices within the budgets that leave little of them; n is at most ``count``.

    Each is a uniform network, its widths times log-normal factors, as large as the budgets allow.
    """
    lattice, rng = context.lattice, context.rng
    full = lattice.widths(lattice.top[None]).astype(np.float64)
    spread = rng.uniform(*_SPREAD, size=(count, 1))
    shape = full * np.exp(rng.normal(size=(count, lattice.length)) * spread)
    low, high = (np.full((count, 1), scale) for scale in _SCALES)
    for _ in range(_BISECTIONS):
        scale = np.sqrt(low * high)
        fits = context.feasible.mask(lattice.nearest(shape * scale))[:, None]
        low, high = np.where(fits, scale, low), np.where(fits, high, scale)
    rows = np.unique(lattice.nearest(shape * low), axis=0)
    rows = rows[context.feasible.mask(rows)]
    if not len(rows):
        return rows
    used = context.objectives(rows).max(axis=1)
    # Steps of a latency may leave no network nearer than the largest of these.
    return np.asarray(rows[used >= min(_NEAR, float(np.quantile(used, 0.5)))])


def search_near_budgets(context: Context, strategy: Callable[[Context], str]) -> str:
    """Score networks near the budgets, run ``strategy`` over the lower bound, and score what it chose."""
    evaluator, posterior, lattice = context.evaluator, context.posterior, context.lattice
    assert posterior is not None, "scores have noise"
    pool = near_budgets(context)
    ladder = uniform_ladder(lattice)
    uniform = ladder[context.feasible.mask(ladder)][-1:]
    begin = [rows for rows in (context.initial, uniform) if rows is not None]
    if len(pool):
        begin.append(pool[context.rng.permutation(len(pool))])
    count = min(evaluator.remaining, _MOST, max(TRAINED_EVALUATIONS, PER_TERM * posterior.most_terms))
    kept = max(count // _CHOSEN, 1)
    first = max(int(count * _DRAWN), 1)
    for row in np.concatenate(begin):
        if evaluator.count >= first:
            break
        context.evaluate(row[None])
        context.record(None)
    while len(pool) and evaluator.count < count - kept:
        fresh = evaluator.fresh(pool)
        if not len(fresh):
            break
        posterior.fit_answers(evaluator)
        mean, deviation = posterior.predict(fresh)
        context.evaluate(fresh[(mean + context.rng.normal() * deviation).argmax()][None])
        context.record(None)
    drawn = evaluator.count
    posterior.fit_answers(evaluator)
    enumerable = lattice.size if lattice.size <= ENUMERABLE else 0

    def lower_bound(widths: Int64) -> np.ndarray:
        mean, deviation = posterior.predict(lattice.nearest(widths))
        return mean - CAUTION * deviation

    model = Evaluator(lower_bound, lattice, max(2 * POOL, enumerable))
    model(np.concatenate([rows for rows in (evaluator.indices, pool[:POOL]) if len(rows)]))
    strategy(replace(context, evaluator=model, posterior=None, initial=None, record=lambda share: None))
    rows = np.flatnonzero(context.feasible.mask(model.indices))
    for row in rows[np.argsort(-model.accuracy[rows], kind="stable")]:
        if evaluator.count >= drawn + kept or not evaluator.remaining:
            break
        context.evaluate(model.indices[row][None])
        context.record(None)
    posterior.fit_answers(evaluator)
    return f"{evaluator.count} networks near the budgets scored, {drawn} of them drawn"
