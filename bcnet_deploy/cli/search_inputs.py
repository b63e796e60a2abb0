"""What ``bcnet-deploy search`` asks for, read and refused before PyTorch is even imported.

Everything that can be wrong is found in the cheapest order: texts, table files, the kept width space or the
tables' own networks, and only then a trace of the model.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcnet_deploy.cli.search_tables import bind, latency_of_full, load, of_the_model, told_table
from bcnet_deploy.errors import ConstraintError, TableError
from bcnet_deploy.flow.run_space import cached_space, space_of_run
from bcnet_deploy.rundir import SUPERNET, ModelRef, RunConfig, RunDir

if TYPE_CHECKING:
    from bcnet_deploy.lut import LatencyTable
    from bcnet_deploy.lut.network import Network
    from bcnet_deploy.search import Constraints
    from bcnet_deploy.search.evaluation import OnError
    from bcnet_deploy.search.records import Records
    from bcnet_deploy.space import WidthSpace

_log = logging.getLogger("bcnet_deploy")

COUNTED = {
    "macs": "macs",
    "params": "params",
    "peak_memory": "peak_activation_bytes",
    "weights": "weight_bytes",
}
"""Option -> kind of budget."""


@dataclass(frozen=True)
class Request:
    """The options of one call.

    Attributes:
        latency: device -> budget as text.
        counted: kind -> budget as text.
    """

    latency: dict[str, str]
    counted: dict[str, str]
    confidence: float
    strategy: str
    evaluations: int | None
    population_size: int
    seed: int
    pareto: bool
    prior: bool
    patience: int
    on_error: OnError
    fresh: bool
    val_images: int | None


@dataclass(frozen=True)
class Inputs:
    """What a search's budgets are about.

    Attributes:
        space: of the run's model; None where it was not needed yet.
        tables: device -> table, of the devices with a budget; bound to the space where that is known.
        told: the run's device and its table where it has one but no budget.
        records: loss records for the prior population, where they were read already.
    """

    space: WidthSpace | None
    tables: dict[str, LatencyTable]
    told: dict[str, LatencyTable]
    records: Records | None = None


def read_latencies(config: RunConfig, texts: tuple[str, ...]) -> dict[str, str]:
    """Device -> budget. Raises :class:`ConstraintError` for an unreadable budget, or two for one device."""
    from bcnet_deploy.search.constraints import check_budget

    found: dict[str, str] = {}
    for text in texts:
        device, _, budget = text.rpartition("=")
        device = device.strip() or config.device
        if device in found:
            raise ConstraintError(
                f"two latency budgets for device {device!r} conflict: {found[device]!r} and {budget!r}; "
                "give one"
            )
        check_budget("latency_ms", budget)
        found[device] = budget
    return found


def read_counted(given: dict[str, tuple[str, ...]]) -> dict[str, str]:
    """Kind -> budget, from option -> texts. Raises as :func:`read_latencies`."""
    from bcnet_deploy.search.constraints import check_budget

    found: dict[str, str] = {}
    for option, texts in given.items():
        if len(texts) > 1:
            raise ConstraintError(
                f"{len(texts)} budgets of --{option.replace('_', '-')} conflict: "
                f"{' and '.join(map(repr, texts))}; give one"
            )
        for text in texts:
            check_budget(COUNTED[option], text)
            found[COUNTED[option]] = text
    return found


def load_inputs(run: RunDir, config: RunConfig, request: Request, *, evaluating: bool) -> Inputs:
    """Read the tables, and refuse budgets that cannot be had, in seconds wherever that is possible.

    Args:
        run, config: the run.
        request: with budgets that can be read.
        evaluating: whether the supernet will be needed.

    Raises:
        MissingStepError: no table of a device, or nothing was trained.
        TableError: a table of another device, model or resolution.
        InfeasibleError: no network keeps the budgets.
        CheckpointError: the supernet is of another model or other levels.
        DataError: the loss records are damaged.
        ConfigError: the space is too large for the strategy.
    """
    ref = config.model
    tables = {device: load(run, config, device) for device in request.latency}
    told = told_table(run, config, request.latency)
    if evaluating and (run.train / SUPERNET).exists():
        run.require_levels(ref)
    inputs = Inputs(cached_space(run, ref), tables, told)
    if inputs.space is None:
        known = of_the_model(run, ref, tables)
        if known:
            # The tables' own network is the run's: latencies need no trace to be refused.
            outline = _Outline([table.network for table in known.values()], ref)
            _require(outline, _pairs(known, request.latency), request)
            if request.strategy == "exhaustive":
                _require_enumerable(outline)
        if request.counted or known is None or not evaluating:
            inputs = replace(inputs, space=space_of_run(run))
    space = inputs.space
    if space is not None:
        inputs = bound(inputs, run, config, space)
        constraints = _require(space, constraints_of(inputs, request), request)
        if request.strategy == "exhaustive":
            _require_enumerable(space, constraints, request.evaluations)
    if evaluating:
        run.require(run.train, "supernet", "bcnet-deploy train")
        run.supernet()
        if space is not None:
            run.require_supernet_of(space)
            path = records_of(run, request)
            inputs = replace(inputs, records=None if path is None else _read_records(path, space))
    return inputs


def bound(inputs: Inputs, run: RunDir, config: RunConfig, space: WidthSpace) -> Inputs:
    """The same with the tables bound to ``space``.

    Raises:
        TableError: a table of another model that lacks layers of this one; names device and file.
    """
    tables = {device: bind(run, config, device, table, space) for device, table in inputs.tables.items()}
    told = {}
    for device, table in inputs.told.items():
        try:
            told[device] = bind(run, config, device, table, space)
        except TableError as error:
            _log.warning("latency is left out of the result: %s", error)
    return replace(inputs, space=space, tables=tables, told=told)


def constraints_of(inputs: Inputs, request: Request) -> dict[str, Any]:
    """The budgets as :func:`bcnet_deploy.search.search` takes them.

    Without any budget, which only Pareto mode allows, they are the full network's own latency and MACs where
    the run's device has a table: limits that leave nothing out, so that the front has both.
    """
    if not request.latency and not request.counted and inputs.told:
        ((device, table),) = inputs.told.items()
        return {"latency_ms": (table, latency_of_full(table, request.confidence)), "macs": "1x"}
    return {**request.counted, **_pairs(inputs.tables, request.latency)}


def records_of(run: RunDir, request: Request) -> Path | None:
    """The loss records for the prior population, where one is asked for and there are some."""
    path = run.train / "records.jsonl"
    return path if request.prior and request.strategy == "nsga2" and path.exists() else None


def _pairs(tables: dict[str, LatencyTable], budgets: dict[str, str]) -> dict[str, Any]:
    pairs = {device: (tables[device], text) for device, text in budgets.items()}
    if len(pairs) == 1:
        return {"latency_ms": next(iter(pairs.values()))}
    return {"latency_ms": pairs} if pairs else {}


# -- refusals ----------------------------------------------------------------------------------


class _Outline:
    """The network of some tables as a space that knows no other cost: enough to refuse a latency at once."""

    def __init__(self, networks: list[Network], ref: ModelRef) -> None:
        from bcnet_deploy.space import level_choices

        # The run's levels, whichever the table was measured with.
        self.variables = [
            replace(v, choices=level_choices(v.channels // v.step, v.step, ref.levels, ref.min_level))
            for v in networks[0].variables
        ]
        self.interacting_pairs = sorted(
            {
                (a, b)
                for network in networks
                for layer in network.layers
                for a in layer.variables
                for b in layer.variables
                if a < b
            }
        )

    def macs(self, widths: Any) -> Any:
        raise NotImplementedError

    params = macs


def _require(space: Any, given: dict[str, Any], request: Request) -> Constraints:
    """All budgets in one go, so that every impossible one is named."""
    import numpy as np

    from bcnet_deploy.search.constraints import build_constraints
    from bcnet_deploy.search.feasibility import require_feasible
    from bcnet_deploy.search.lattice import Lattice

    constraints = build_constraints(space, given, request.confidence)
    require_feasible(Lattice(space.variables), constraints, np.random.default_rng(request.seed))
    return constraints


def _require_enumerable(
    space: Any, constraints: Constraints | None = None, evaluations: int | None = None
) -> None:
    from bcnet_deploy.search.baselines import require_enumerable
    from bcnet_deploy.search.lattice import Lattice

    require_enumerable(Lattice(space.variables), constraints, evaluations)


def _read_records(path: Path, space: WidthSpace) -> Records:
    from bcnet_deploy.search.lattice import Lattice
    from bcnet_deploy.search.records import Records

    return Records.of(path, Lattice(space.variables))
