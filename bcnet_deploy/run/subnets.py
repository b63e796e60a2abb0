"""Which network a run holds: retrained if it was, cut from the supernet otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bcnet_deploy.errors import MissingStepError
from bcnet_deploy.models.ref import ModelRef
from bcnet_deploy.run.directory import RunDir
from bcnet_deploy.run.originals import permuted
from bcnet_deploy.run.settings import step_settings
from bcnet_deploy.run.supernets import load_supernet
from bcnet_deploy.run.widths import named

if TYPE_CHECKING:
    from torch import nn

    from bcnet_deploy.data import DataSplits


@dataclass(frozen=True)
class Subnet:
    """A network of a run, as a plain module.

    Attributes:
        which: ``found``, ``uniform`` or ``full``.
        module: with weights.
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


def subnet_of(run: RunDir, which: str, *, former: bool = False) -> Subnet:
    """The network ``which`` of ``run``.

    The retrained one where there is one. Else its widths are cut from the trained supernet (the left side),
    or from the model as it is built when there is no supernet; ``origin`` says so.

    Args:
        run: after ``search`` (any run for ``full``).
        which: ``found``, ``uniform`` or ``full``.
        former: what was retrained at a former search's widths counts as not there, instead of being refused.

    Raises:
        RunDirError: ``which`` was retrained before the latest search found other widths.
        MissingStepError: the run lacks the step that makes it; the message names the command.
        CheckpointError: its files are damaged.
    """
    if not former:
        run.require_current(which)
    folder = run.retrained(which)
    if (folder / "subnet.yaml").exists() and not run.outdated(which):
        from bcnet_deploy.nn import load_subnet

        module, info = load_subnet(folder, run.given.model)
        own = run.given_widths(which) is not None
        return Subnet(
            which, module, ModelRef.from_dict(info["model"]), dict(info["widths"]), str(info["space"]),
            f"retrained weights of {folder}" + (", at widths of your own, not the search's" if own else ""),
            extra=info.get("extra") or {},
        )  # fmt: skip
    if which != "full":
        run.require_searched(which)  # before a model is built
    try:
        supernet = load_supernet(run)
    except MissingStepError:
        shared = run.load().model.trained
        if shared:
            # By what the search ranked: its scores are of these channels.
            kept = run.load().steps.get("search", {})
            model, space = permuted(run, step_settings("search", kept).importance)
            origin = "channels kept of the trained original, batch norms recalibrated, not fine-tuned"
        else:
            model, space = run.build(run.load().seed)
            origin = "weights of the model as it is built: nothing was trained in this run"
        module = space.extract(model, widths := run.widths(which, space))
    else:
        space = supernet.space
        module = supernet.extract(widths := run.widths(which, space))
        origin = "weights shared in the supernet, left side, batch norms recalibrated, not retrained"
        shared = True
    config = run.load()
    return Subnet(which, module, config.model, named(widths, space), space.fingerprint, origin, shared=shared)


def recalibrated(module: nn.Module, splits: DataSplits, batches: int = 20) -> nn.Module:
    """``module`` with batch-norm statistics of its own: those of the supernet are of other widths."""
    import torch

    from bcnet_deploy.data import PlainBatches
    from bcnet_deploy.nn import recalibrate

    images = PlainBatches(splits.train, splits, 64, torch.device("cpu"), limit=64 * batches)
    recalibrate(module, (batch for batch, _ in images))
    return module


__all__ = ["Subnet", "recalibrated", "subnet_of"]
