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
import numpy.typing as npt

from bcnet_deploy.search.baselines import ENUMERABLE, Context
from bcnet_deploy.search.design import PER_TERM
from bcnet_deploy.search.evaluation import Evaluator
from bcnet_deploy.search.lattice import Float, Int64, Lattice, uniform_ladder
from bcnet_deploy.search.posterior import Posterior

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


def near_budgets(
    lattice: Lattice,
    fits: Callable[[Int64], npt.NDArray[np.bool_]],
    used: Callable[[Int64], Float],
    rng: np.random.Generator,
    count: int = POOL,
) -> Int64:
    """(n, L) distinct choice indices within the budgets that leave little of them; n is at most ``count``.

    Each is a uniform network, its widths times log-normal factors, as large as the budgets allow.

    Args:
        lattice: the choices.
        fits: (N, L) indices -> (N,) whether they keep all budgets.
        used: (N, L) indices -> (N,) share that they take of the budget that binds.
        rng: of the factors.
        count: networks drawn.
    """
    full = lattice.widths(lattice.top[None]).astype(np.float64)
    spread = rng.uniform(*_SPREAD, size=(count, 1))
    shape = full * np.exp(rng.normal(size=(count, lattice.length)) * spread)
    low, high = (np.full((count, 1), scale) for scale in _SCALES)
    for _ in range(_BISECTIONS):
        scale = np.sqrt(low * high)
        inside = fits(lattice.nearest(shape * scale))[:, None]
        low, high = np.where(inside, scale, low), np.where(inside, high, scale)
    rows = np.unique(lattice.nearest(shape * low), axis=0)
    rows = rows[fits(rows)]
    if not len(rows):
        return rows
    share = used(rows)
    # Steps of a latency may leave no network nearer than the largest of these.
    return np.asarray(rows[share >= min(_NEAR, float(np.quantile(share, 0.5)))])


def thompson(posterior: Posterior, rows: Int64, rng: np.random.Generator) -> Int64:
    """(L,): the best of (n, L) choice indices in one draw from the posterior."""
    mean, deviation = posterior.predict(rows)
    return np.asarray(rows[(mean + rng.normal() * deviation).argmax()])


def lower_bound(posterior: Posterior, rows: Int64) -> Float:
    """(n, L) choice indices -> (n,): mean less :data:`CAUTION` standard deviations."""
    mean, deviation = posterior.predict(rows)
    return mean - CAUTION * deviation


def search_near_budgets(context: Context, strategy: Callable[[Context], str]) -> str:
    """Score networks near the budgets, run ``strategy`` over the lower bound, and score what it chose."""
    evaluator, posterior, lattice = context.evaluator, context.posterior, context.lattice
    assert posterior is not None, "scores have noise"
    feasible = context.feasible
    pool = near_budgets(
        lattice, feasible.mask, lambda rows: context.objectives(rows).max(axis=1), context.rng
    )
    ladder = uniform_ladder(lattice)
    uniform = ladder[feasible.mask(ladder)][-1:]
    begin = [uniform, pool[context.rng.permutation(len(pool))]]
    if context.initial is not None:
        begin.insert(0, feasible.repair(context.initial, context.rng))
    if not any(map(len, begin)):  # budgets that neither uniform widths nor any near them keep
        begin = [feasible.anchor[None]]
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
        context.evaluate(thompson(posterior, fresh, context.rng)[None])
        context.record(None)
    drawn = evaluator.count
    posterior.fit_answers(evaluator)
    enumerable = lattice.size if lattice.size <= ENUMERABLE else 0
    model = Evaluator(
        lambda widths: lower_bound(posterior, lattice.nearest(widths)), lattice, max(2 * POOL, enumerable)
    )
    model(np.concatenate([rows for rows in (evaluator.indices, pool[:POOL]) if len(rows)]))
    strategy(replace(context, evaluator=model, posterior=None, initial=None, record=lambda share: None))
    rows = np.flatnonzero(feasible.mask(model.indices))
    for row in rows[np.argsort(-model.accuracy[rows], kind="stable")]:
        if evaluator.count >= drawn + kept or not evaluator.remaining:
            break
        context.evaluate(model.indices[row][None])
        context.record(None)
    posterior.fit_answers(evaluator)
    return f"{evaluator.count} networks near the budgets scored, {drawn} of them drawn"
