"""Racing: few images for every network, more for those that may still be the best.

Successive halving (Jamieson & Talwalkar 2016) on the overlap of posteriors: a network whose posterior is
clear of the best one's gets no more images. What more images cannot settle, how far one supernet's effects
hold for networks in general, does not count as overlap.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bcnet_deploy.search.constraints import Constraints
from bcnet_deploy.search.evaluation import Evaluator, RacingAccuracy
from bcnet_deploy.search.lattice import Int64
from bcnet_deploy.search.posterior import Posterior
from bcnet_deploy.search.result import nondominated

FEWEST = 256
"""Images that a first score is made of at least."""
FIRST_SHARE = 3
"""A first score is of one in so many images."""
_LARGEST_SHARE = 2
"""All scores together take one in so many of the images that full evaluations would."""
_OVERLAP = 0.05
"""Probability of being the better one, from which on a network contends."""


def first_images(accuracy: Any) -> int:
    """Images of a first score; 0, a full evaluation, where the accuracy cannot race or has few images."""
    if not isinstance(accuracy, RacingAccuracy):
        return 0
    first = max(FEWEST, int(accuracy.images) // FIRST_SHARE)
    return first if 2 * first <= accuracy.images else 0


def race(
    evaluator: Evaluator, posterior: Posterior, constraints: Constraints, images: int, pareto: bool
) -> None:
    """Ask contenders again on twice as many images, until the best is settled or the images are used up.

    Args:
        evaluator: whose answers are of few images each.
        posterior: fitted to the answers after every round.
        constraints: only networks within them contend.
        images: of a full evaluation.
        pareto: the networks of the front contend, not those near the best.
    """
    widths = evaluator.widths
    rows = np.flatnonzero(np.isfinite(evaluator.accuracy) & constraints.feasible(widths))
    if not len(rows):
        return
    left = evaluator.count * images // _LARGEST_SHARE - evaluator.images_used(images)
    most = max(len(rows) // 2, 1)
    while most:
        indices = evaluator.indices[rows]
        posterior.fit_answers(evaluator)
        used = np.array([evaluator.images[row] or images for row in rows])
        mean, _ = posterior.predict(indices)
        if pareto:
            costs = constraints.costs(widths[rows])
            contend = nondominated(np.stack([-mean, *(costs[k] for k in constraints.objective_keys)], axis=1))
        else:
            contend = posterior.overlap(indices, indices[int(mean.argmax())]) >= _OVERLAP
        chosen = np.flatnonzero(contend & (used < images))
        chosen = chosen[np.argsort(-mean[chosen], kind="stable")][:most]
        asked = np.minimum(2 * used[chosen], images)
        affordable = np.cumsum(asked - used[chosen]) <= left
        chosen, asked = chosen[affordable], asked[affordable]
        if not len(chosen):
            return
        left -= int((asked - used[chosen]).sum())
        for count in np.unique(asked):
            evaluator.again(indices[chosen[asked == count]], 0 if count >= images else int(count))
        most = len(chosen) // 2


def settle(evaluator: Evaluator, posterior: Posterior, constraints: Constraints, tries: int = 8) -> None:
    """Evaluate in full what would be chosen, so that what is reported of it is no guess."""
    for _ in range(tries):
        posterior.fit_answers(evaluator)
        best = _best(evaluator, posterior, constraints)
        if best is None or evaluator.images_of(best) == 0:
            return
        evaluator.again(best[None], 0)
    posterior.fit_answers(evaluator)


def _best(evaluator: Evaluator, posterior: Posterior, constraints: Constraints) -> Int64 | None:
    rows = np.flatnonzero(np.isfinite(evaluator.accuracy) & constraints.feasible(evaluator.widths))
    if not len(rows):
        return None
    indices = evaluator.indices[rows]
    return np.asarray(indices[int(posterior.predict(indices)[0].argmax())])
