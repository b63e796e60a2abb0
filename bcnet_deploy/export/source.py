"""Which network a run directory holds for export: retrained if it was, cut from the supernet otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bcnet_deploy import files
from bcnet_deploy.errors import ExportError, MissingStepError, RunDirError
from bcnet_deploy.rundir import ModelRef, RunDir
from bcnet_deploy.stale import given_widths, other_widths

if TYPE_CHECKING:
    from torch import nn

    from bcnet_deploy.data import DataSplits
    from bcnet_deploy.nn import Supernet
    from bcnet_deploy.space import WidthSpace

WHICH = ("found", "uniform", "full")


@dataclass(frozen=True)
class Source:
    """A network of a run directory.

    Attributes:
        which: ``found``, ``uniform`` or ``full``.
        module: the plain network, with weights.
        model: how the full model is built.
        widths: by variable name.
        fingerprint: of the width space.
        origin: where the weights come from, for people.
        shared: whether they are a supernet's, so that batch norms need recalibration.
        extra: of the retraining: mean, std, classes, accuracies.
    """

    which: str
    module: nn.Module
    model: ModelRef
    widths: dict[str, int]
    fingerprint: str
    origin: str
    shared: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)


def load_source(run: RunDir, which: str, *, former: bool = False) -> Source:
    """The network ``which`` of ``run``.

    The retrained one where there is one. Else its widths are cut from the trained supernet
    (the left side), or from the model as it is built when there is no supernet; ``origin`` says so.

    Args:
        run: after ``search`` (any run for ``full``).
        which: ``found``, ``uniform`` or ``full``.
        former: what was retrained at a former search's widths counts as not there, instead of being refused.

    Raises:
        ExportError: ``which`` is unknown, or was retrained before the latest search found other widths.
        MissingStepError: the run lacks the step that makes it; the message names the command.
        CheckpointError: its files are damaged.
    """
    if which not in WHICH:
        raise ExportError(f"unknown network {which!r}; allowed are {', '.join(WHICH)}")
    config = run.load()
    folder = run.retrained(which)
    if not former:
        require_current(run, which)
    if (folder / "subnet.yaml").exists() and not other_widths(run, which):
        from bcnet_deploy.nn import load_subnet

        module, info = load_subnet(folder)
        own = given_widths(run, which) is not None
        return Source(
            which, module, ModelRef.from_dict(info["model"]), dict(info["widths"]), str(info["space"]),
            f"retrained weights of {folder}" + (", at widths of your own, not the search's" if own else ""),
            extra=info.get("extra") or {},
        )  # fmt: skip
    by_name = None if which == "full" else searched_widths(run, which)
    model, space = build(config.model)
    widths = vector(space, by_name, str(run.widths)) if by_name is not None else space.full
    stored, origin = _trained(run, model, space)
    module = stored.extract(widths) if stored is not None else space.extract(model, widths)
    names = {variable.name: int(width) for variable, width in zip(space.variables, widths, strict=True)}
    return Source(which, module, config.model, names, space.fingerprint, origin, shared=stored is not None)


def require_current(run: RunDir, which: str) -> None:
    """Raise :class:`ExportError` where ``which`` was retrained at a former search's widths."""
    if other := other_widths(run, which):
        raise ExportError(
            f"{run.retrained(which)} was trained at other widths than the latest search found ({other}); run "
            f"'bcnet-deploy retrain --network {which} --fresh' to train those, or the same with --widths "
            "FILE for widths of your own"
        )


def searched_widths(run: RunDir, which: str) -> dict[str, int]:
    """Width by variable name of ``found`` or ``uniform`` in ``search/widths.yaml``.

    Raises:
        MissingStepError: no search was run, or no uniform network was within its budgets.
        RunDirError: the file does not say widths.
    """
    path = run.require(run.widths, "widths found", "bcnet-deploy search")
    data = files.read_yaml(path, RunDirError, "widths")
    if which == "uniform":
        compared = data.get("compared_with") if isinstance(data, dict) else None
        data = compared.get("uniform") if isinstance(compared, dict) else None
        if data is None:
            raise MissingStepError(
                f"{path} names no uniform network; run 'bcnet-deploy retrain --network uniform' first"
            )
    widths = data.get("widths") if isinstance(data, dict) else None
    if not isinstance(widths, dict) or not all(isinstance(width, int) for width in widths.values()):
        raise RunDirError(f"{path} names no width for each variable under 'widths'; run the search again")
    return {str(name): width for name, width in widths.items()}


def build(ref: ModelRef) -> tuple[nn.Module, WidthSpace]:
    """The full model and its width space."""
    from bcnet_deploy.models import build_model
    from bcnet_deploy.space import WidthSpace

    model = build_model(ref.name, num_classes=ref.num_classes)
    space = WidthSpace.from_model(model, ref.input_size, levels=ref.levels, min_level=ref.min_level)
    return model, space


def vector(space: WidthSpace, by_name: dict[str, int], where: str) -> Any:
    """(L,) widths of ``space`` from widths by name. Raises :class:`RunDirError`."""
    missing = [variable.name for variable in space.variables if variable.name not in by_name]
    if missing or len(by_name) != len(space.variables):
        odd = missing[0] if missing else sorted(set(by_name) - {v.name for v in space.variables})[0]
        raise RunDirError(
            f"{where} is of another model: variable {odd!r} does not match; run the search again"
        )
    return space.check([by_name[variable.name] for variable in space.variables])[0]


def _trained(run: RunDir, model: nn.Module, space: WidthSpace) -> tuple[Supernet | None, str]:
    """The supernet with its trained weights, or None, and what to tell of it."""
    from bcnet_deploy.nn import Supernet
    from bcnet_deploy.train.supernet import load_supernet

    try:
        supernet = load_supernet(run, Supernet(model, space))
    except MissingStepError:
        return None, "weights of the model as it is built: nothing was trained in this run"
    return supernet, "weights shared in the supernet, left side, batch norms recalibrated, not retrained"


def recalibrated(module: nn.Module, splits: DataSplits, batches: int = 20) -> nn.Module:
    """``module`` with batch-norm statistics of its own: those of the supernet are of other widths."""
    import torch

    from bcnet_deploy.data import PlainBatches
    from bcnet_deploy.nn import recalibrate

    images = PlainBatches(splits.train, splits, 64, torch.device("cpu"), limit=64 * batches)
    recalibrate(module, (batch for batch, _ in images))
    return module
