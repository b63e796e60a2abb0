"""The first step: the latency table of a device."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcnet_deploy.devices import DeviceProfile, is_shipped
from bcnet_deploy.run.directory import RunDir
from bcnet_deploy.run.engine import Progress, Step, carry_out, silent
from bcnet_deploy.run.preflight import check_table
from bcnet_deploy.run.settings import NO_TASK, ProfileSettings, named_task
from bcnet_deploy.units import parse_duration

if TYPE_CHECKING:
    from torch import nn

    from bcnet_deploy.lut import LatencyTable
    from bcnet_deploy.space import WidthSpace


@dataclass(frozen=True)
class ProfileResult:
    """A latency table: where it is, and what it says.

    Attributes:
        path: the file.
        table: bound to the run's network.
        full_ms: predicted latency of the full network.
        ran: whether this call made it.
    """

    device: str
    path: Path
    table: LatencyTable
    full_ms: float
    ran: bool

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        table, network = self.table, self.table.network
        return {
            "path": str(self.path), "device": self.device, "source": table.source,
            "network": network.description, "entries": sum(map(len, table.entries.values())),
            "layers": len(network.layers), "full_ms": self.full_ms, "accuracy": network.accuracy,
            "relative_error": network.relative_error, "provenance": table.provenance,
            "fingerprint": table.fingerprint, "ran": self.ran,
        }  # fmt: skip


def check_profile(
    run: RunDir, settings: ProfileSettings, *, model: str | None = None, whole: bool = False
) -> DeviceProfile:
    """The device of the table; refuses what cannot be profiled here.

    Args:
        model: named in the commands that help.
        whole: for ``run``, whose own options help.

    Raises:
        DeviceError: the device is not here and no estimate is asked for.
        TableError: the table that is given is not there, of another device, or cannot be rebased.
    """
    device = run.device(settings.device)
    check_table(settings.table, device.name)
    if not settings.estimate and settings.table is None:
        device.require_here(model, whole=whole)
    if settings.rebase is not None:
        from bcnet_deploy.lut import LatencyTable
        from bcnet_deploy.profiler.profiling import require_rebasable

        require_rebasable(LatencyTable.load(settings.rebase), device)
    return device


def profile(
    run: RunDir,
    settings: ProfileSettings,
    progress: Progress = silent,
    *,
    fresh: bool = False,
    replace: bool = False,
) -> ProfileResult:
    """Measure, estimate or take over the latency table of a device.

    Whole networks of random widths are measured and taken apart layer by layer; held-out networks tell how
    far predictions are off. Interrupted, the same call goes on where it stopped.

    Args:
        run: a run that has begun.
        settings: the device, and how.
        progress: told the share done.
        fresh: measure anew; neither go on nor start from shipped tables.

    Raises:
        DeviceError, TableError: see :func:`check_profile`.
        TaskError: the network returns what its task, or no built-in task, can be trained on.
        BCNetError: see :func:`bcnet_deploy.profiler.profiling.profile_device`.
    """
    from bcnet_deploy.lut import LatencyTable

    config = run.load()
    device = check_profile(run, settings, model=config.model.name)
    path = run.latency_table(device.name)
    given = [Path(file) for file in (settings.table, settings.rebase) if file is not None]
    step = Step(
        name="profile", stamp=f"profile-{device.name}",
        identity={
            "model": config.model.replace(weights=None, new_head=False).to_dict(),
            "device": device.name, "estimate": settings.estimate,
            "budget": None if settings.table or settings.estimate else settings.time,
            "seed": config.seed if settings.seed is None else settings.seed, **own_device(device),
        },
        inputs=given, outputs=[path],
        work=lambda anew, tell: _make(run, settings, device, anew and fresh, tell),
    )  # fmt: skip
    run.keep_device(device)
    done = carry_out(run, step, progress, fresh=fresh, replace=replace)
    table = LatencyTable.load(path)
    full = [variable.channels for variable in table.network.variables]
    return ProfileResult(device.name, path, table, float(table.predict(full)[0]), done.ran)


def _make(
    run: RunDir, settings: ProfileSettings, device: DeviceProfile, fresh: bool, progress: Progress
) -> None:
    from bcnet_deploy.lut import LatencyTable
    from bcnet_deploy.profiler.profiling import profile_device

    seed = run.load().seed if settings.seed is None else settings.seed
    model, space = run.build(run.load().seed)
    _check_outputs(run, settings, model, space)
    run.keep_space(space)
    path = run.latency_table(device.name)
    if settings.table is not None:
        LatencyTable.load(settings.table).for_space(space).save(path)
        return

    def report(state: Any) -> None:
        progress(state.done_s / state.budget_s, f"{state.networks} networks measured")

    profile_device(
        model, space, device, path, budget_s=parse_duration(settings.time), estimate=settings.estimate,
        seed=seed, fresh=fresh, report=report,
        rebase=None if settings.rebase is None else LatencyTable.load(settings.rebase),
    )  # fmt: skip


def _check_outputs(run: RunDir, settings: ProfileSettings, model: nn.Module, space: WidthSpace) -> None:
    """Refuse a network whose outputs training could not use, before anything is measured.

    Raises:
        TaskError: naming the outputs and the options that help.
    """
    from bcnet_deploy.errors import TaskError
    from bcnet_deploy.tasks import built_in_for, described, load_task
    from bcnet_deploy.train.trial import outputs_on_zeros

    config = run.load()
    task = named_task(config) or settings.task
    if task == NO_TASK:
        return
    outputs = outputs_on_zeros(model, space.input_size)
    if task is not None:
        load_task(task).check_outputs(outputs)
    elif built_in_for(outputs) is None:
        raise TaskError(
            f"the network returns {described(outputs)}, which no built-in task can train: name a task of "
            f"your own with 'profile --task module:function', or '--task {NO_TASK}' for a latency table alone"
        )


def own_device(device: DeviceProfile) -> dict[str, Any]:
    """What a device profile of the user's own says: steps depend on more than its name."""
    return {} if is_shipped(device) else {"profile": {**dataclasses.asdict(device), "path": None}}


__all__ = ["ProfileResult", "check_profile", "own_device", "profile"]
