"""Budgets: what a network may cost, and which networks keep within all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from bcnet_deploy import units
from bcnet_deploy.errors import ConstraintError, TableError, UnitError, nearest
from bcnet_deploy.search.lattice import Float, Space

CostFunction = Callable[[Any], Any]

_PARSERS = {
    "macs": units.parse_count,
    "params": units.parse_count,
    "latency_ms": units.parse_latency,
    "peak_activation_bytes": units.parse_bytes,
    "weight_bytes": units.parse_bytes,
}
_ACCEPTED = {
    "macs": "50e6, '300M', '0.5x' or '50%' (of the full network)",
    "params": "2e6, '2M', '0.5x' or '50%' (of the full network)",
    "latency_ms": "(table, 5.0), (table, '5ms'), (table, '0.5x') or {device: (table, 5.0), ...}",
    "peak_activation_bytes": "1e6, '64MiB', '0.5x' or '50%' (of the full network)",
    "weight_bytes": "1e6, '10MB', '0.5x' or '50%' (of the full network)",
}
KINDS = tuple(_PARSERS)


@dataclass(frozen=True)
class Budget:
    """One hard budget: ``bound(widths) <= limit``.

    Attributes:
        key: ``macs``, ``params``, ``latency_ms``, ``latency_ms[t4]``, ...
        kind: the key without its device.
        limit: in base units (count, milliseconds, bytes).
        cost: widths (N, L) -> (N,) the expected cost, which results report.
        bound: widths (N, L) -> (N,) what is held against the limit: the cost, or for a latency with a
            confidence the value that the true latency stays below with that probability.
        full: cost of the full network.
        device: of a latency.
        table: the latency table.
        confidence: of ``bound``, or None when it is the cost itself.
        given: the budget as it was written.
        relative: whether it was given as a share of the full network.
    """

    key: str
    kind: str
    limit: float
    cost: CostFunction
    bound: CostFunction
    full: float
    device: str | None = None
    table: Any = None
    confidence: float | None = None
    given: str = ""
    relative: bool = False

    def format(self, value: float) -> str:
        """``value`` of this cost as people write it."""
        return format_cost(self.kind, value)

    def label(self) -> str:
        """``latency on t4 <= 1.2 ms``."""
        where = f" on {self.device}" if self.device else ""
        return f"{_NOUNS[self.kind]}{where} <= {self.format(self.limit)}"


_NOUNS = {
    "macs": "MACs",
    "params": "parameters",
    "latency_ms": "latency",
    "peak_activation_bytes": "peak activation memory",
    "weight_bytes": "weights",
}


def format_cost(kind: str, value: float) -> str:
    """A cost of this kind as people write it. ``kind`` may be a key with a device."""
    kind = kind.partition("[")[0]
    if kind == "latency_ms":
        return units.format_milliseconds(value)
    return units.format_bytes(value) if kind.endswith("bytes") else units.format_count(value)


class Constraints:
    """All budgets of a search together, on widths (N, L)."""

    def __init__(self, space: Space, budgets: Sequence[Budget]) -> None:
        self.space = space
        self.budgets = tuple(budgets)
        self.limits: Float = np.array([b.limit for b in budgets], dtype=np.float64)

    def __len__(self) -> int:
        return len(self.budgets)

    def bounds(self, widths: Any) -> Float:
        """(N, L) -> (N, number of budgets): what is held against the limits."""
        columns = [np.asarray(b.bound(widths), dtype=np.float64) for b in self.budgets]
        return np.stack(columns, axis=1) if columns else np.zeros((len(widths), 0))

    def feasible(self, widths: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """(N, L) -> (N,) whether every budget is kept."""
        return np.asarray((self.bounds(widths) <= self.limits).all(axis=1))

    def excess(self, widths: Any) -> Float:
        """(N, L) -> (N,) the largest relative overshoot; <= 0 where all budgets are kept."""
        if not self.budgets:
            return np.full(len(widths), -1.0)
        return np.asarray((self.bounds(widths) / self.limits - 1).max(axis=1))

    def costs(self, widths: Any) -> dict[str, Float]:
        """(N, L) -> every budget's expected cost (N,), and always ``macs`` and ``params``."""
        found = {b.key: np.asarray(b.cost(widths), dtype=np.float64) for b in self.budgets}
        for key in ("macs", "params"):
            if key not in found:
                found[key] = np.asarray(getattr(self.space, key)(widths), dtype=np.float64)
        return found

    @property
    def objective_keys(self) -> tuple[str, ...]:
        """The costs of the Pareto front: all budgets', or MACs where there is no budget."""
        return tuple(b.key for b in self.budgets) or ("macs",)


def build_constraints(
    space: Space, given: Mapping[str, Any] | None, confidence: float | None = None
) -> Constraints:
    """Read the budgets of a search.

    Args:
        space: the width space.
        given: kind -> budget; see :data:`KINDS`. A latency is a pair (table, budget), or one pair a
            device. ``peak_activation_bytes`` and ``weight_bytes`` take 4 bytes an element.
        confidence: probability with which a latency budget shall be met, using the uncertainty of the
            tables; None holds the predictions themselves against the budgets. A share of the full network
            on an *estimated* table holds the prediction too: the error of an estimate is mostly one factor
            common to all networks, which a share of the full network does not see; a margin of its 50%
            would refuse even ``1x``.

    Raises:
        ConstraintError: an unknown kind, an unreadable or negative budget, or two for one cost.
        TableError: a table of another network or resolution.
    """
    check_confidence(confidence)
    full = np.array([[int(v.channels) for v in space.variables]], dtype=np.int64)
    budgets: list[Budget] = []
    for kind, value in (given or {}).items():
        if kind not in _PARSERS:
            raise ConstraintError(
                f"unknown constraint {kind!r}{nearest(str(kind), KINDS)}; allowed: {', '.join(KINDS)}"
            )
        if kind == "latency_ms":
            budgets += _latencies(space, value, confidence, full)
            continue
        cost = getattr(space, kind, None)
        if cost is None and kind == "weight_bytes":
            cost = _weight_bytes(space)
        if cost is None:
            raise ConstraintError(f"this space does not know {kind}; use one of macs, params, latency_ms")
        cost_of_full = float(np.asarray(cost(full))[0])
        limit = _limit(kind, value, cost_of_full)
        budgets.append(Budget(kind, kind, limit, cost, cost, cost_of_full, given=str(value)))
    return Constraints(space, budgets)


def _weight_bytes(space: Space) -> CostFunction:
    return lambda widths: 4 * space.params(widths)


def check_confidence(confidence: float | None) -> None:
    """Raise :class:`ConstraintError` unless 0.5 <= confidence < 1, or None."""
    if confidence is not None and not 0.5 <= confidence < 1:
        raise ConstraintError(
            f"confidence is {confidence!r}; allowed: 0.5 <= confidence < 1, for example 0.95; 0.5 "
            "holds the prediction itself against the budget"
        )


def check_budget(kind: str, text: str) -> None:
    """Raise :class:`ConstraintError` where the text of a budget cannot be read, before any space is known."""
    _limit(kind, text, 1.0)


def _quantity(kind: str, text: str) -> units.Quantity:
    """The text of a budget, read. Raises :class:`ConstraintError`."""
    try:
        return _PARSERS[kind](text)
    except UnitError as error:
        raise ConstraintError(f"budget of {kind}: {error}") from error


def _limit(kind: str, value: Any, full: float, accepted: str | None = None) -> float:
    accepted = accepted or _ACCEPTED[kind]
    if isinstance(value, units.Quantity):
        limit = value.resolve(full)
    elif isinstance(value, str):
        limit = _quantity(kind, value).resolve(full)
    elif isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        limit = float(value)
    else:
        raise ConstraintError(f"budget of {kind} is {value!r}; accepted forms: {accepted}")
    if not math.isfinite(limit) or limit <= 0:
        raise ConstraintError(f"budget of {kind} is {value!r}, not positive; accepted forms: {accepted}")
    return limit


def _latencies(space: Space, value: Any, confidence: float | None, full: Any) -> list[Budget]:
    named: list[tuple[str | None, Any]]
    if isinstance(value, Mapping):
        named = [(str(device), pair) for device, pair in value.items()]
    elif isinstance(value, list):
        named = [(None, pair) for pair in value]
    else:
        named = [(None, value)]
    budgets: list[Budget] = []
    for name, pair in named:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise ConstraintError(
                f"budget of latency_ms is {pair!r}; accepted forms: {_ACCEPTED['latency_ms']}. "
                "A latency needs the table of its device: bcnet_deploy.LatencyTable.load(path)"
            )
        table, limit = pair
        table = _bound_table(space, table)
        device = name if name is not None else getattr(table, "device", None)
        device = None if device is None else str(device)
        held = confidence
        relative = _relative(limit)
        if getattr(table, "estimated", False) and relative:
            held = None
        cost, bound = _latency_functions(table, held)
        key = "latency_ms" if len(named) == 1 else f"latency_ms[{device}]"
        for former in budgets:
            if former.key == key:
                raise ConstraintError(
                    f"two latency budgets for device {device!r}: {former.given} and {limit}; give one"
                )
        cost_of_full = float(np.asarray(cost(full))[0])
        if not math.isfinite(cost_of_full) or cost_of_full <= 0:
            raise TableError(
                f"the latency table of {device or 'the device'} predicts {cost_of_full!r} ms for the full "
                "network; make the table again with 'bcnet-deploy profile'"
            )
        budgets.append(
            Budget(
                key, "latency_ms", _limit("latency_ms", limit, cost_of_full), cost, bound, cost_of_full,
                device, table, held, str(limit), relative,
            )
        )  # fmt: skip
    return budgets


def _relative(limit: Any) -> bool:
    """Whether a latency budget is a share of the full network. Raises as :func:`_quantity`."""
    quantity = _quantity("latency_ms", limit) if isinstance(limit, str) else limit
    return isinstance(quantity, units.Quantity) and quantity.relative


def _bound_table(space: Space, table: Any) -> Any:
    """The table bound to this space's network; callables and other predictors are taken as they are."""
    if hasattr(table, "for_space") and hasattr(space, "fingerprint"):
        return table.for_space(space)
    if hasattr(table, "predict") or callable(table):
        return table
    raise ConstraintError(
        f"a latency budget needs a latency table with predict(widths); given: {type(table).__name__}"
    )


def upper_bound(table: Any, widths: Any, confidence: float | None) -> Float:
    """(N, L) -> (N,) milliseconds that the latencies stay below with this probability, by the table."""
    _, bound = _latency_functions(table, confidence)
    return np.asarray(bound(np.asarray(widths)), dtype=np.float64)


def _latency_functions(table: Any, confidence: float | None) -> tuple[CostFunction, CostFunction]:
    predict = table.predict if hasattr(table, "predict") else table
    if confidence is None:
        return predict, predict
    uncertainty = getattr(table, "uncertainty", None)
    if uncertainty is None:
        raise ConstraintError(
            f"confidence {confidence} needs a table that knows its uncertainty; "
            f"{type(table).__name__} does not; leave confidence out"
        )
    # One-sided: the latency stays below the bound with this probability if errors are normal.
    quantile = NormalDist().inv_cdf(confidence)
    return predict, lambda widths: predict(widths) + quantile * uncertainty(widths)
