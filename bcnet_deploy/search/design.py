"""Scores of networks drawn over the whole space, and a search over what they say together.

Networks scored where a search wants to go are alike in size and chosen for their luck: a regression on them
takes the supernet's own artefacts for effects. On Channel-Bench-Macro, judged by other supernets, a hundred
networks drawn over all sizes have less than half the regret of four hundred that a search went to
(docs/search.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from bcnet_deploy.search.baselines import ENUMERABLE, Context, uniform_scaling
from bcnet_deploy.search.branches import CONCENTRATION, Prefixes, branched
from bcnet_deploy.search.evaluation import Evaluator
from bcnet_deploy.search.lattice import Int64, Lattice, distinct
from bcnet_deploy.search.result import nondominated

PER_TERM = 3
"""Networks drawn for each term of the regression."""
_ALONG_A_FRONT, _AT_ONE_BUDGET = 5, 20
"""One evaluation in so many is kept for networks that the search chooses."""
_OVER_MODEL = 2000
"""Networks that the search over the posterior looks at in a space too large to enumerate."""


def drawn(lattice: Lattice, count: int, rng: np.random.Generator, prefixes: Prefixes = ()) -> Int64:
    """(n, L) distinct choice indices of all sizes; n is ``count``, or the whole space where it is smaller.

    Sizes are stratified. Around its size a network's layers scatter as beta variables. With ``prefixes``
    networks share beginnings (:mod:`bcnet_deploy.search.branches`) and those that do follow one another.
    """
    if lattice.size <= count:
        return lattice.all()
    found = (
        branched(lattice, count, rng, prefixes)
        if len(prefixes)
        else np.zeros((0, lattice.length), dtype=np.int64)
    )
    while len(found) < count:
        size = (rng.permutation(count) + rng.random(count))[:, None] / count
        shape = (count, lattice.length)
        share = rng.beta(CONCENTRATION * size + 1e-3, CONCENTRATION * (1 - size) + 1e-3, shape)
        rows = np.minimum((share * (lattice.top + 1)).astype(np.int64), lattice.top)
        found = distinct(np.concatenate([found, rows]))
    return np.asarray(found[:count], dtype=np.int64)


def search_by_design(context: Context, strategy: Callable[[Context], str]) -> str:
    """Score a design, run ``strategy`` over the posterior mean, and score what it chose.

    The posterior is fitted to the design alone: what is chosen must not bend it.
    """
    evaluator, posterior, lattice = context.evaluator, context.posterior, context.lattice
    assert posterior is not None, "scores have noise"
    if evaluator.remaining == 1:  # what one score says of other networks is nothing
        uniform_scaling(context)
        posterior.fit_answers(evaluator)
        return "evaluations spent"
    kept = max(evaluator.remaining // (_ALONG_A_FRONT if context.pareto else _AT_ONE_BUDGET), 1)
    count = max(min(evaluator.remaining - kept, PER_TERM * posterior.most_terms), 1)
    design = drawn(lattice, count, context.rng, evaluator.prefixes)
    for start in range(0, len(design), context.population_size):
        evaluator(design[start : start + context.population_size])
        context.record(None)
    fitted = posterior.fit_answers(evaluator)
    enumerable = lattice.size if lattice.size <= ENUMERABLE else 0
    model = Evaluator(
        lambda widths: posterior.predict(lattice.nearest(widths))[0], lattice, max(_OVER_MODEL, enumerable)
    )
    strategy(replace(context, evaluator=model, posterior=None, record=lambda share: None))
    _score_the_best(context, model)
    if not fitted:  # no network of the design could be had
        posterior.fit_answers(evaluator)
    context.record(context.feasible.take_share())
    return f"{evaluator.count} networks scored: {len(design)} drawn over all sizes, and the best by them"


def _score_the_best(context: Context, model: Evaluator) -> None:
    """The network with the highest mean, or the front's, as many as may be scored still."""
    rows = np.flatnonzero(context.feasible.mask(model.indices))
    ranked = rows[np.argsort(-model.accuracy[rows], kind="stable")]
    if context.pareto:
        costs = context.objectives(model.indices[ranked])
        ranked = ranked[nondominated(np.column_stack([-model.accuracy[ranked], costs]))]
        count = min(len(ranked), context.evaluator.remaining)
        ranked = ranked[np.unique(np.linspace(0, len(ranked) - 1, count).round().astype(np.int64))]
        context.evaluate(model.indices[ranked])
        return
    for row in ranked:
        best = model.indices[row][None]
        if not context.evaluator.remaining and not context.evaluator.known(best)[0]:
            return
        if np.isfinite(context.evaluator(best)[0]):
            return
