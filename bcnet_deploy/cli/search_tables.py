"""The latency tables of a search: of the right device, resolution and model, or refused by name."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from bcnet_deploy.errors import BCNetError, MissingStepError, TableError
from bcnet_deploy.flow.checks import require_device
from bcnet_deploy.flow.run_space import last_space
from bcnet_deploy.rundir import ModelRef, RunConfig, RunDir

if TYPE_CHECKING:
    from bcnet_deploy.lut import LatencyTable
    from bcnet_deploy.space import WidthSpace

_log = logging.getLogger("bcnet_deploy")


def load(run: RunDir, config: RunConfig, device: str) -> LatencyTable:
    """A device's table in the run directory.

    Raises:
        MissingStepError: there is none; names the command that makes it.
        TableError: it is damaged, of another device or of another resolution.
    """
    from bcnet_deploy.lut import LatencyTable

    path = run.latency_table(device)
    if not path.exists():
        known = sorted(p.stem for p in path.parent.glob("*.json")) if path.parent.is_dir() else []
        there = f"; there are tables of {', '.join(known)}" if known else ""
        raise MissingStepError(
            f"no latency table of device {device!r} in {run.path}{there}; "
            f"run 'bcnet-deploy profile --device {device}' first"
        )
    table = LatencyTable.load(path)
    require_device(path, table, device)
    if all(tuple(n.input_size) != tuple(config.model.input_size) for n in table.networks):
        size = "x".join(map(str, config.model.input_size))
        raise TableError(
            f"{path}, the table of device {device!r}, is of {table.network.description}, the run's model "
            f"{config.model.name} is at {size}; run 'bcnet-deploy profile --device {device}' again"
        )
    return table


def told_table(run: RunDir, config: RunConfig, asked: Collection[str]) -> dict[str, LatencyTable]:
    """The table of the run's own device, to tell latencies that have no budget; a bad one stops nothing."""
    if config.device in asked or not run.latency_table(config.device).exists():
        return {}
    try:
        return {config.device: load(run, config, config.device)}
    except TableError as error:
        _log.warning("latency is left out of the result: %s", error)
        return {}


def bind(run: RunDir, config: RunConfig, device: str, table: LatencyTable, space: WidthSpace) -> LatencyTable:
    """The table bound to the run's space. Raises :class:`TableError` that names device and file."""
    try:
        return table.for_space(space)
    except TableError as error:
        raise TableError(
            f"{run.latency_table(device)}, the table of device {device!r}, is not of the run's model "
            f"{config.model.name}: {error}"
        ) from error


def of_the_model(
    run: RunDir, ref: ModelRef, tables: dict[str, LatencyTable]
) -> dict[str, LatencyTable] | None:
    """The tables with the run's network first, or None where one is not known to be of the run's model."""
    prints = set()
    last = last_space(run, ref)
    if last is not None:
        prints.add(last.fingerprint)
    with contextlib.suppress(BCNetError):  # said when the supernet is needed
        prints.add(str(run.supernet()["space"]))
    found = {}
    for device, table in tables.items():
        network = next((n for n in table.networks if n.fingerprint in prints), None)
        if network is None:
            return None
        others = tuple(n for n in table.networks if n is not network)
        found[device] = replace(table, networks=(network, *others))
    return found


def latency_of_full(table: LatencyTable, confidence: float) -> str:
    """A budget that the full network just keeps."""
    from bcnet_deploy.search.constraints import upper_bound
    from bcnet_deploy.search.feasibility import exactly, round_up

    if table.estimated:
        return "1x"
    full = [[variable.channels for variable in table.network.variables]]
    return exactly("latency_ms", round_up(float(upper_bound(table, full, confidence)[0]), 6))
