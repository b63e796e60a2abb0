"""One call from a network and a device to its table: measured where the device is here, else estimated."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from bcnet_deploy import resources
from bcnet_deploy.devices import DeviceProfile
from bcnet_deploy.errors import BCNetError, TableError
from bcnet_deploy.lut.estimate import estimate_table
from bcnet_deploy.lut.table import LatencyTable
from bcnet_deploy.profiler.assemble import without_keys
from bcnet_deploy.profiler.runners import make_runner_of

if TYPE_CHECKING:
    from torch import nn

    from bcnet_deploy.profiler.build import Report
    from bcnet_deploy.space import WidthSpace

_log = logging.getLogger("bcnet_deploy")


def profile_device(
    model: nn.Module,
    space: WidthSpace,
    device: DeviceProfile,
    path: Path,
    *,
    budget_s: float = 120.0,
    estimate: bool = False,
    seed: int = 0,
    fresh: bool = False,
    report: Report | None = None,
) -> LatencyTable:
    """The latency table of ``space`` on ``device``, saved at ``path``.

    Args:
        model: the full network.
        space: its width space.
        device: whose table.
        path: where the table goes; the log of measurements lies beside it. An interrupted profile goes on.
        budget_s: seconds of everything together.
        estimate: from data sheets instead of measurements.
        seed: of the sampled networks.
        fresh: measure all anew: take over neither an interrupted profile nor shipped measurements.
        report: called after every measurement.

    Raises:
        DeviceError: the device is not here and ``estimate`` is false.
        ExportError, EngineError: the network cannot be exported or run.
        TableError: the budget is too small.
        RunDirError: the folder cannot be written.
    """
    if estimate:
        table = estimate_table(space, device)
        table.save(path)
        return table
    make_runner = make_runner_of(device)
    from bcnet_deploy.profiler.build import Profiler

    start = None if fresh else starting_table(device, path)
    profiler = Profiler(
        model.eval(), space, device, make_runner=make_runner, path=path, budget_s=budget_s, seed=seed,
        start=start, report=report, make_probe=make_runner_of(device, threads_sleep=True),
    )  # fmt: skip
    if fresh:
        profiler.journal_path.unlink(missing_ok=True)
    return profiler.run()


def starting_table(device: DeviceProfile, path: Path) -> LatencyTable | None:
    """Measurements of the same device, machine and runtime to build on: shipped ones, and another
    network's at ``path``; None when there are none."""
    found: LatencyTable | None = None
    candidates = sorted(resources.shipped("luts").glob(f"{device.name}.*.json"))
    for candidate in [path, *candidates]:
        if not candidate.exists():
            continue
        try:
            table = LatencyTable.from_dict(_read(candidate), str(candidate))
        except BCNetError as error:
            if candidate == path:
                _log.warning("%s; it is made again", error)
            continue
        usable = (
            table.source == "measured"
            and table.device == device.name
            and (table.precision, table.batch) == (device.precision, device.batch)
            and table.provenance.get("threads") == device.threads
            and not table.differences()
            and "node_overhead_us" in table.provenance  # else its layers hold what profiling adds
            and (candidate != path or table.complete)
        )
        if usable:
            # A table at `path` began with the shipped ones: only what it does not have joins it.
            found = table if found is None else found.merged(without_keys(table, found.entries))
    return found


def _read(path: Path) -> object:
    from bcnet_deploy import files

    return files.read_json(path, TableError, "latency table")
