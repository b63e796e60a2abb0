"""``bcnet_deploy.search(...)``: the search as one function."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bcnet_deploy.errors import ConfigError, EvaluationError
from bcnet_deploy.search.baselines import ENUMERABLE, Context, best_row, exhaustive, require_enumerable
from bcnet_deploy.search.constraints import Constraints, build_constraints
from bcnet_deploy.search.design import search_by_design
from bcnet_deploy.search.evaluation import Accuracy, AnswerJournal, Evaluator, OnError
from bcnet_deploy.search.explain import uniform_to_compare
from bcnet_deploy.search.feasibility import require_feasible
from bcnet_deploy.search.lattice import Float, Int64, Lattice, Space
from bcnet_deploy.search.near import search_near_budgets
from bcnet_deploy.search.posterior import BETWEEN_SUPERNETS, Belief, Posterior, Transfer
from bcnet_deploy.search.prior import prior_population
from bcnet_deploy.search.proposals import Feasible
from bcnet_deploy.search.race import first_images, race, settle
from bcnet_deploy.search.records import Records
from bcnet_deploy.search.result import Generation, SearchResult, front_of
from bcnet_deploy.search.strategies import Strategy, strategy_of

DEFAULT_EVALUATIONS = 2000
DEFAULT_POPULATION = 40


def search(
    space: Space,
    accuracy: Accuracy,
    constraints: Mapping[str, Any] | Constraints | None = None,
    evaluations: int | None = None,
    seed: int = 0,
    *,
    strategy: str | Strategy = "nsga2",
    population_size: int = DEFAULT_POPULATION,
    confidence: float | None = None,
    records: Any = None,
    initial: Any = None,
    pareto: bool = False,
    patience: int = 15,
    surrogate: bool = True,
    racing: bool = True,
    design: bool = True,
    on_error: OnError = "stop",
    checkpoint: str | Path | None = None,
    evaluator_id: str = "",
    batch_size: int | None = None,
    progress: Callable[[Generation], None] | None = None,
    answered: Callable[[int], None] | None = None,
) -> SearchResult:
    """The most accurate widths within hard budgets.

    Args:
        space: a :class:`bcnet_deploy.WidthSpace`, or anything with ``variables``, ``macs`` and ``params``.
        accuracy: widths (N, L) of channels -> (N,) floats, more is better; ``-inf`` marks a network
            that cannot be had. Asked at most once for each vector; kept to 9 decimals. One that knows its
            noise (see :data:`bcnet_deploy.search.evaluation.Accuracy`) is searched by its posterior mean.
        constraints: ``macs``, ``params``, ``latency_ms``, ``peak_activation_bytes``, ``weight_bytes`` ->
            budget: a number, or text such as ``'300M'`` or ``'0.5x'``. A latency is (table, budget), or
            {device: (table, budget), ...}. Or what :func:`build_constraints` made of them.
        evaluations: at most so many distinct vectors; 2000 by default (``exhaustive``: the whole space).
        seed: same seed, same result.
        strategy: ``nsga2``, a baseline (``random``, ``uniform``, ``greedy``, ``exhaustive``), another name
            of :data:`bcnet_deploy.search.STRATEGIES`, or a callable ``Context -> str``.
        population_size: vectors a generation, at least 2.
        confidence: probability with which latency budgets shall be met, for example 0.95; None holds
            the tables' predictions themselves against the budgets.
        records: loss records of the supernet for the prior population: a path to ``records.jsonl``,
            (widths, loss) arrays, or mappings with these keys.
        initial: (n, L) widths to start from, repaired where they break a budget.
        pareto: look for the best network at every budget up to the given ones, not only at these.
        patience: generations without improvement after which the search stops.
        surrogate: screen candidates by a regression on the accuracies seen; False is plain NSGA-II.
        racing: few images for all networks and more for contenders, where the accuracy can do so (see
            :class:`bcnet_deploy.search.evaluation.RacingAccuracy`); False evaluates each in full.
        design: with a supernet's scores and ``nsga2``, score networks drawn over the whole space and search
            over what these say (:mod:`bcnet_deploy.search.design`): a few hundred evaluations at most, on
            all images. With scores of slices before or after a training of their own, and unless
            ``pareto``, score networks that nearly use up the budgets (:mod:`bcnet_deploy.search.near`).
            False scores where the search goes.
        on_error: ``stop`` raises when an evaluation fails, ``skip`` goes on without that network.
        checkpoint: a file that keeps every accuracy as it comes; run again to resume. Of a callable with
            ``bounds`` (least, largest), an accuracy outside of them is taken for damage of the file.
        evaluator_id: what the accuracies come from; a checkpoint of another one is refused.
        batch_size: vectors a call of ``accuracy``; None passes whole generations.
        progress: called after each generation.
        answered: called with the number of vectors answered, after each batch.

    Raises:
        ConstraintError, TableError: a budget cannot be read, or a table is of another network.
        InfeasibleError: no network keeps the budgets; names the nearest budget that one keeps.
        EvaluationError: an evaluation failed, or no network within the budgets could be had.
        CheckpointError: the checkpoint is of another space, of other choices or of another evaluator.
        ConfigError: another argument is out of range, or there is no such strategy.
    """
    check_settings(evaluations, seed, strategy, population_size, patience, on_error, batch_size)
    name, run = strategy_of(strategy)
    if not len(space.variables):
        raise ConfigError("the space has no width variable: there is nothing to search")
    started = time.monotonic()
    rng = np.random.default_rng(seed)
    lattice = Lattice(space.variables)
    if isinstance(constraints, Constraints):
        if confidence is not None:
            raise ConfigError("confidence is part of constraints that are built already; leave it out")
        budgets = constraints
    else:
        budgets = build_constraints(space, constraints, confidence)
    anchor = require_feasible(lattice, budgets, rng)
    feasible = Feasible(lattice, budgets, anchor)
    if run is exhaustive:
        require_enumerable(lattice, budgets, evaluations)
    limit = evaluations or (min(lattice.size, ENUMERABLE) if run is exhaustive else DEFAULT_EVALUATIONS)
    journal = None
    if checkpoint is not None:
        identity = {
            "space": str(getattr(space, "fingerprint", "")),
            "choices": str(getattr(space, "choices_fingerprint", "")),
            "evaluator": evaluator_id,
        }
        journal = AnswerJournal(checkpoint, identity, getattr(accuracy, "bounds", None))
    try:
        first, prior_costs = _initial(lattice, feasible, records, initial, population_size, rng)
        shared = bool(getattr(accuracy, "shares_weights", False))
        untrained = bool(getattr(accuracy, "before_training", False))
        alone = untrained or bool(getattr(accuracy, "trains_each", False))
        near = design and alone and not pareto and name == "nsga2"
        design = design and shared and name == "nsga2"
        evaluator = Evaluator(
            accuracy, lattice, limit, on_error=on_error, journal=journal, batch_size=batch_size,
            answered=answered, images=first_images(accuracy) if racing and not design and not near else 0,
        )  # fmt: skip
        # What no term explains before training is no sign of what a training brings.
        transfer = BETWEEN_SUPERNETS if shared else Transfer(own=0.0 if untrained else 1.0)
        posterior = Posterior(lattice, transfer) if evaluator.noisy else None
        log: list[Generation] = []

        def record(proposed_feasible: float | None) -> None:
            generation = _generation(lattice, budgets, evaluator, len(log), limit, proposed_feasible, started)
            log.append(generation)
            if progress is not None:
                progress(generation)

        context = Context(
            lattice=lattice, constraints=budgets, feasible=feasible, evaluator=evaluator, rng=rng,
            population_size=population_size, record=record, initial=first, pareto=pareto,
            patience=patience, surrogate=surrogate, posterior=posterior,
        )  # fmt: skip
        images = int(getattr(accuracy, "images", 0))
        design = design and posterior is not None
        if near and posterior is not None:
            stopped = search_near_budgets(context, run)
        else:
            stopped = search_by_design(context, run) if design else run(context)
        if posterior is not None and not design:
            if any(evaluator.images):
                race(evaluator, posterior, budgets, images, pareto)
            settle(evaluator, posterior, budgets)
        between = getattr(accuracy, "bounds", None)
        return _result(
            lattice, budgets, evaluator, log, name, seed, stopped, prior_costs, posterior, images, between
        )
    finally:
        if journal is not None:
            journal.close()


def check_settings(
    evaluations: Any,
    seed: Any,
    strategy: Any,
    population_size: Any,
    patience: Any,
    on_error: str,
    batch_size: Any = None,
) -> None:
    """Raise :class:`ConfigError` for a setting of :func:`search` that is out of range."""
    strategy_of(strategy)
    if on_error not in ("stop", "skip"):
        raise ConfigError(f"on_error is {on_error!r}; allowed: 'stop', 'skip'")
    for name, value, least in (
        ("population_size", population_size, 2),
        ("evaluations", evaluations, 1),
        ("patience", patience, 1),
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
    ):
        if value is None and name in ("evaluations", "batch_size"):
            continue
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ConfigError(f"{name} is {value!r}; allowed: whole numbers from {least}")


def _initial(
    lattice: Lattice,
    feasible: Feasible,
    records: Any,
    initial: Any,
    population_size: int,
    rng: np.random.Generator,
) -> tuple[Int64 | None, dict[str, float] | None]:
    parts: list[Int64] = []
    costs: dict[str, float] | None = None
    if initial is not None:
        vectors = np.atleast_2d(np.asarray(initial))
        if vectors.shape[1] != lattice.length:
            raise ConfigError(f"initial has shape {vectors.shape}; allowed: (n, {lattice.length})")
        parts.append(lattice.nearest(vectors))
    if records is not None:
        vectors, prior = prior_population(Records.of(records, lattice), feasible, population_size, rng)
        parts.append(vectors)
        keys = [b.key for b in feasible.constraints.budgets]
        costs = dict(zip(keys, (float(c) for c in prior.expected_costs), strict=True))
    return (np.concatenate(parts) if parts else None), costs


def _within(lattice: Lattice, budgets: Constraints, indices: Int64) -> Any:
    return budgets.feasible(lattice.widths(indices)) if len(indices) else np.zeros(0, dtype=np.bool_)


def _relative_costs(budgets: Constraints, widths: Int64) -> Float:
    costs = budgets.costs(widths)
    return np.stack(
        [costs[key] / max(float(costs[key].max()), 1e-300) for key in budgets.objective_keys], axis=1
    )


def _generation(
    lattice: Lattice,
    budgets: Constraints,
    evaluator: Evaluator,
    index: int,
    limit: int,
    proposed: float | None,
    started: float,
) -> Generation:
    accuracy, indices = evaluator.accuracy, evaluator.indices
    # Only the best few need their budgets checked: this runs every generation.
    order = np.argsort(-accuracy, kind="stable")
    best = -np.inf
    widths: tuple[int, ...] = ()
    for start in range(0, len(order), 256):
        rows = order[start : start + 256]
        good = rows[_within(lattice, budgets, indices[rows]) & np.isfinite(accuracy[rows])]
        if len(good):
            best = float(accuracy[good[0]])
            widths = tuple(int(w) for w in lattice.widths(indices[good[0]]))
            break
    seconds = time.monotonic() - started
    left = seconds / evaluator.calls * evaluator.remaining if evaluator.calls else None
    share = float(np.isfinite(accuracy).mean()) if len(accuracy) else 0.0
    return Generation(index, evaluator.count, limit, best, widths, share, proposed, seconds, left)


def _result(
    lattice: Lattice, budgets: Constraints, evaluator: Evaluator, log: list[Generation], strategy: str,
    seed: int, stopped: str, prior_costs: dict[str, float] | None, posterior: Posterior | None, images: int,
    between: tuple[float, float] | None,
) -> SearchResult:  # fmt: skip
    indices, accuracy = evaluator.indices, evaluator.accuracy
    widths = lattice.widths(indices)
    within = _within(lattice, budgets, indices)
    usable = within & np.isfinite(accuracy)
    if not usable.any():
        failures = f"; the first failure: {evaluator.failures[0][1]}" if evaluator.failures else ""
        raise EvaluationError(
            f"none of the {int(within.sum())} networks evaluated within the budgets could be had (all -inf)"
            f"{failures}; allow more evaluations, raise the budget, or check the accuracy callable"
        )
    rows = np.flatnonzero(usable)
    costs = budgets.costs(widths[rows])
    value = accuracy[rows] if posterior is None else np.round(posterior.predict(indices[rows])[0], 9)
    row = best_row(value, _relative_costs(budgets, widths[rows]), indices[rows])
    bounds = budgets.bounds(widths[rows[row]][None])[0]
    front = front_of(widths[rows], value, costs, budgets.objective_keys)
    if between is not None:  # a regression's means may lie beyond what there can be
        front.accuracy = np.clip(front.accuracy, *between)
    return SearchResult(
        widths=widths[rows[row]],
        accuracy=float(accuracy[rows[row]]),
        costs={key: float(values[row]) for key, values in costs.items()},
        bounds={b.key: float(v) for b, v in zip(budgets.budgets, bounds, strict=True)},
        front=front,
        evaluated=widths,
        evaluated_accuracy=accuracy,
        generations=tuple(log),
        strategy=strategy,
        seed=seed,
        stopped=stopped,
        constraints=budgets,
        failures=tuple(evaluator.failures),
        prior_costs=prior_costs,
        belief=None if posterior is None else _belief(lattice, budgets, posterior, indices[rows[row]]),
        images=evaluator.images_used(images) if images else None,
        posterior=posterior,
    )


def _belief(lattice: Lattice, budgets: Constraints, posterior: Posterior, found: Int64) -> Belief:
    uniform = lattice.nearest(uniform_to_compare(budgets)[0])
    return Belief.of(posterior, found, uniform)
