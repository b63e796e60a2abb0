"""Which network a run directory holds for export: retrained if it was, cut from the supernet otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bcnet_deploy.errors import ExportError, MissingStepError
from bcnet_deploy.rundir import ModelRef, RunDir
from bcnet_deploy.searched import searched_row, searched_widths
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
    _require_searched(run, which)
    model, space = build(config.model)
    widths = searched_row(run, space, which)
    assert widths is not None
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


def build(ref: ModelRef) -> tuple[nn.Module, WidthSpace]:
    """The full model and its width space."""
    from bcnet_deploy.models import build_model
    from bcnet_deploy.space import WidthSpace

    model = build_model(ref.name, num_classes=ref.num_classes)
    space = WidthSpace.from_model(model, ref.input_size, levels=ref.levels, min_level=ref.min_level)
    return model, space


def _require_searched(run: RunDir, which: str) -> None:
    """Raise :class:`MissingStepError` without the widths of ``which``, before the model is built for them."""
    if which == "full":
        return
    run.require(run.widths, "widths found", "bcnet-deploy search")
    if searched_widths(run, which) is None:
        raise MissingStepError(
            f"{run.widths} names no {which} network; run 'bcnet-deploy retrain --network {which}' first"
        )


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
