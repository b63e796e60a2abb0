"""Whether any network keeps the budgets, told before anything is evaluated.

Multiply-accumulates, parameters and memory grow with every width, so the narrowest network has the
least of them: that is a proof. A latency is a staircase that may fall as a width grows; its least
value is found exactly by elimination where the table is a sum over layers, and by coordinate
descent otherwise. The message says which of the two it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import NormalDist

import numpy as np

from bcnet_deploy import units
from bcnet_deploy.errors import ConstraintError, InfeasibleError
from bcnet_deploy.search.constraints import Budget, Constraints, CostFunction
from bcnet_deploy.search.lattice import Float, Int64, Lattice
from bcnet_deploy.search.pairwise import EXACT, PairwiseCost, decompose, interacting_pairs, readable

_RESTARTS = 4
_SWEEPS = 12
_MOST_CALLS = 1500
_MARGIN = 10 * EXACT
"""A proof allows for sums of terms that are off by rounding."""


class BudgetInfeasibleError(InfeasibleError):
    """No network keeps the budgets.

    Attributes:
        nearest: key of the budget -> the smallest value with which the search would go on.
        proven: whether no smaller value can work, or only none was found.
    """

    def __init__(self, message: str, nearest: dict[str, float], proven: bool) -> None:
        super().__init__(message)
        self.nearest = nearest
        self.proven = proven


class BudgetConflictError(BudgetInfeasibleError, ConstraintError):
    """Each budget can be kept, but two of them not by one network."""


@dataclass(frozen=True)
class _Least:
    """The least bound of one budget."""

    value: float
    indices: Int64
    proven: bool
    how: str


def round_up(value: float, digits: int = 4) -> float:
    """``value`` rounded up to so many significant digits: a budget that may be given as printed."""
    if value <= 0 or not math.isfinite(value):
        return value
    step = 10.0 ** (math.floor(math.log10(value)) + 1 - digits)
    rounded = math.ceil(value / step - 1e-9) * step
    return float(f"{rounded:.{digits}g}") if rounded >= value else float(f"{rounded + step:.{digits}g}")


def require_feasible(lattice: Lattice, constraints: Constraints, rng: np.random.Generator) -> Int64:
    """(L,) indices of a network that keeps all budgets, as wide a start as the budgets need.

    Raises:
        BudgetInfeasibleError: a budget that no network keeps; with the nearest that one does.
        BudgetConflictError: two budgets that no network keeps together.
    """
    narrowest = lattice.narrowest
    if constraints.feasible(lattice.widths(narrowest[None]))[0]:
        return narrowest
    least = [_least(lattice, constraints, i, rng) for i in range(len(constraints))]
    impossible = [
        i for i, (b, m) in enumerate(zip(constraints.budgets, least, strict=True)) if m.value > b.limit
    ]
    if impossible:
        raise _infeasible(lattice, constraints, least, impossible)
    everything = tuple(range(len(constraints)))
    starts = [m.indices for m in least]
    anchor, excess = _descend(lattice, constraints, everything, starts, rng)
    if excess <= 0:
        return anchor
    raise _conflict(lattice, constraints, least, anchor, rng)


def with_attainable_confidence(constraints: Constraints, seed: int = 0) -> Constraints:
    """The same budgets; relative latencies at confidence 0.5 where only their tables' noise rules them out.

    A share of the full network is no promise to anybody: a machine that was busy while it was profiled
    should not end a run. A budget in milliseconds stays as hard as it was asked for.

    First those that no network keeps at their confidence; all, where that is not enough.

    Raises:
        InfeasibleError: no network keeps the budgets; of the confidence that was asked for.
    """
    lattice = Lattice(constraints.space.variables)
    try:
        require_feasible(lattice, constraints, np.random.default_rng(seed))
        return constraints
    except InfeasibleError as error:
        refused = error
    yielding = [i for i, budget in enumerate(constraints.budgets) if _yields(budget)]
    rng = np.random.default_rng(seed)
    alone = [i for i in yielding if _least(lattice, constraints, i, rng).value > constraints.budgets[i].limit]
    for loosened in filter(None, (alone, yielding)):
        budgets = [
            replace(budget, bound=budget.cost, confidence=0.5) if i in loosened else budget
            for i, budget in enumerate(constraints.budgets)
        ]
        expected = Constraints(constraints.space, budgets)
        try:
            require_feasible(lattice, expected, np.random.default_rng(seed))
            return expected
        except InfeasibleError:
            continue
    raise refused


def _yields(budget: Budget) -> bool:
    return budget.kind == "latency_ms" and budget.relative and (budget.confidence or 0.5) > 0.5


def _least(lattice: Lattice, constraints: Constraints, index: int, rng: np.random.Generator) -> _Least:
    budget = constraints.budgets[index]
    narrowest = lattice.narrowest
    value = float(np.asarray(budget.bound(lattice.widths(narrowest[None])))[0])
    if budget.kind != "latency_ms":
        return _Least(value, narrowest, True, "the narrowest network")
    starts = [narrowest]
    # Tables whose uncertainty is a share of the prediction have a bound of the same form.
    found = _exact_minimum(lattice, constraints, budget.bound, rng)
    if found is not None:
        bound = float(np.asarray(budget.bound(lattice.widths(found[1][None])))[0])
        return _Least(bound, found[1], True, "the fastest of all networks")
    found = _exact_minimum(lattice, constraints, budget.cost, rng)
    if found is not None:
        starts.append(found[1])
    best, _ = _descend(lattice, constraints, (index,), starts, rng)
    value = float(np.asarray(budget.bound(lattice.widths(best[None])))[0])
    # The expected latency never exceeds the bound: if its exact minimum is too slow, so is everything.
    proven = found is not None and found[0] * (1 - _MARGIN) > budget.limit
    return _Least(value, best, proven, "the fastest network found")


def _form(
    lattice: Lattice, constraints: Constraints, cost: CostFunction, rng: np.random.Generator
) -> PairwiseCost | None:
    pairs = interacting_pairs(constraints.space, lattice.length)
    return None if not readable(lattice, pairs) else decompose(cost, lattice, pairs, rng)


def _exact_minimum(
    lattice: Lattice, constraints: Constraints, cost: CostFunction, rng: np.random.Generator
) -> tuple[float, Int64] | None:
    """The least of a cost and a vector that has it; None where it is no sum of terms, or has too many."""
    form = _form(lattice, constraints, cost, rng)
    return form.minimum() if form is not None and form.exact else None


def _descend(
    lattice: Lattice,
    constraints: Constraints,
    which: tuple[int, ...],
    starts: list[Int64],
    rng: np.random.Generator,
) -> tuple[Int64, float]:
    """The least overshoot of some budgets by coordinate descent from several starts."""

    def excess(indices: Int64) -> Float:
        widths = lattice.widths(indices)
        columns = [
            np.asarray(constraints.budgets[i].bound(widths), dtype=np.float64) / constraints.limits[i]
            for i in which
        ]
        return np.asarray(np.max(columns, axis=0) - 1)

    best, best_excess = starts[0], math.inf
    low = np.minimum(lattice.top, np.maximum(lattice.counts // 4, 1))
    extra = [rng.integers(0, low + 1) for _ in range(_RESTARTS)]
    calls = 0
    for start in (*starts, *extra):
        if calls > _MOST_CALLS:
            break
        current = start.copy()
        value = float(excess(current[None])[0])
        for _ in range(_SWEEPS):
            before = value
            for column in rng.permutation(lattice.length):
                trial = np.repeat(current[None], lattice.counts[column], axis=0)
                trial[:, column] = np.arange(lattice.counts[column])
                values, calls = excess(trial), calls + 1
                choice = int(values.argmin())
                if values[choice] < value:
                    current, value = trial[choice], float(values[choice])
            if value >= before or calls > _MOST_CALLS:
                break
        if value < best_excess:
            best, best_excess = current, value
        if best_excess <= 0 and len(which) == len(constraints):
            break
    return best, best_excess


def _infeasible(
    lattice: Lattice, constraints: Constraints, least: list[_Least], impossible: list[int]
) -> BudgetInfeasibleError:
    parts, nearest = [], {}
    narrowest = lattice.widths(lattice.narrowest[None])
    for i in impossible:
        budget, found = constraints.budgets[i], least[i]
        smallest = round_up(found.value)
        nearest[budget.key] = smallest
        narrow = float(np.asarray(budget.bound(narrowest))[0])
        at = f" at confidence {budget.confidence}" if budget.confidence is not None else ""
        text = f"{budget.label()} cannot be met: the narrowest network needs {budget.format(narrow)}{at}"
        if found.value < narrow:
            text += f", {found.how} {budget.format(found.value)}"
        text += f" (proven). " if found.proven else " (none faster was found; not proven). "  # noqa: F541
        text += _margin_alone(lattice, budget, found)
        parts.append(text + f"Nearest feasible budget: {exactly(budget.kind, smallest)}")
    proven = all(least[i].proven for i in impossible)
    stiff = [
        budget for budget in (constraints.budgets[i] for i in impossible) if _is_stiff(budget, narrowest)
    ]
    ways = "allow narrower networks with more levels"
    if stiff:
        share = float(np.asarray(stiff[0].cost(narrowest))[0]) / stiff[0].full
        ways = (
            f"take another network or device: widths change little here, the narrowest network still takes "
            f"{share:.0%} of the full one's time (launches of kernels, and parts that are not narrowed)"
        )
    return BudgetInfeasibleError(f"{'; '.join(parts)}. Raise the budget, or {ways}", nearest, proven)


def _is_stiff(budget: Budget, narrowest: Int64) -> bool:
    """Whether a latency is mostly of what no width changes."""
    return budget.kind == "latency_ms" and float(np.asarray(budget.cost(narrowest))[0]) > 0.5 * budget.full


def _margin_alone(lattice: Lattice, budget: Budget, least: _Least) -> str:
    """What to say where the prediction keeps the budget and only the margin of the confidence breaks it."""
    if budget.confidence is None:
        return ""
    row = lattice.widths(least.indices[None])
    predicted = float(np.asarray(budget.cost(row))[0])
    deviation = float(np.asarray(budget.table.uncertainty(row))[0])
    if predicted > budget.limit or deviation <= 0:
        return ""
    # Rounded down, so that the confidence named does keep the budget.
    allowed = math.floor(100 * NormalDist().cdf((budget.limit - predicted) / deviation) - 1e-9) / 100
    profile = f"'bcnet-deploy profile --device {budget.device}'"
    if getattr(budget.table, "estimated", False):
        why, better = "; the table is an estimate, so the margin is wide", f"measuring the device ({profile})"
    else:
        why, better = "", f"a more accurate table ({profile} with a longer --budget)"
    return (
        f"The prediction alone, {budget.format(predicted)}, keeps the budget{why}: {better} or a lower "
        f"confidence (--confidence {max(allowed, 0.5):g}) would allow it. "
    )


def exactly(kind: str, value: float) -> str:
    """``value`` as people write it (``1.696M``), in a form that the command line reads back to no less."""
    kind = kind.partition("[")[0]
    if kind == "latency_ms":
        forms, read = [f"{value:.6g}ms", f"{value!r}ms"], units.parse_latency
    elif kind.endswith("bytes"):
        forms, read = [_decimal_bytes(value), f"{math.ceil(value)}B"], units.parse_bytes
    else:
        forms, read = [units.format_count(value), f"{math.ceil(value)}"], units.parse_count
    return next((form for form in forms if read(form).value >= value), forms[-1])


def _decimal_bytes(value: float) -> str:
    for factor, suffix in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= factor:
            return f"{value / factor:.4g}{suffix}"
    return f"{value:.4g}B"


def _conflict(
    lattice: Lattice, constraints: Constraints, least: list[_Least], anchor: Int64, rng: np.random.Generator
) -> BudgetConflictError:
    budgets = constraints.budgets
    for a, b in combinations(range(len(budgets)), 2):
        network, excess = _descend(
            lattice, constraints, (a, b), [least[a].indices, least[b].indices, anchor], rng
        )
        if excess > 0:
            proven = _proof_of_conflict(lattice, constraints, budgets[a], budgets[b], rng)
            return _conflict_of(lattice, constraints, (a, b), network, proven)
    return _conflict_of(lattice, constraints, tuple(range(len(budgets))), anchor, False)


def _conflict_of(
    lattice: Lattice, constraints: Constraints, which: tuple[int, ...], network: Int64, proven: bool
) -> BudgetConflictError:
    bounds = constraints.bounds(lattice.widths(network[None]))[0]
    chosen = [constraints.budgets[i] for i in which]
    nearest = {b.key: round_up(max(float(bounds[i]), b.limit)) for i, b in zip(which, chosen, strict=True)}
    how = "proven" if proven else "none was found; not proven"
    together = " together with ".join(exactly(b.kind, nearest[b.key]) for b in chosen)
    return BudgetConflictError(
        f"{' and '.join(b.label() for b in chosen)} conflict: each can be met, but not by one network "
        f"({how}). Nearest feasible budgets: {together}. Relax one of them",
        nearest,
        proven,
    )


def _proof_of_conflict(
    lattice: Lattice, constraints: Constraints, a: Budget, b: Budget, rng: np.random.Generator
) -> bool:
    """Lagrangian bound: a weighted sum of the costs that exceeds that of the limits in every network."""
    first, second = (_form(lattice, constraints, budget.cost, rng) for budget in (a, b))
    if first is None or second is None or not (first.exact and second.exact):
        return False
    for weight in np.linspace(0.05, 0.95, 19):
        joint = first.combined(float(weight / a.limit), second, float((1 - weight) / b.limit))
        least = joint.minimum()
        if least is None:
            return False
        if least[0] > 1 + _MARGIN:
            return True
    return False
