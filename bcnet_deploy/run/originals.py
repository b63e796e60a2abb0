"""The trained network that a run starts from: in order of importance, and scores of its slices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bcnet_deploy.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from bcnet_deploy.run.directory import RunDir
    from bcnet_deploy.space import WidthSpace
    from bcnet_deploy.train import SupernetEvaluator
    from bcnet_deploy.train.tuned import TunedEvaluator


def require_trained(run: RunDir) -> None:
    """Raise :class:`ConfigError` where the run's model has random weights."""
    if not run.load().model.trained:
        raise ConfigError(
            f"the model of the run in {run.path} has random weights; begin one with --weights FILE, or "
            "train a supernet with 'bcnet-deploy train'"
        )


def permuted(run: RunDir, importance: str = "l2", *, both_ends: bool = False) -> tuple[nn.Module, WidthSpace]:
    """The trained model with the channels of every variable in order of importance, and its space.

    Args:
        importance: registered name of the score, see :mod:`bcnet_deploy.importance`.
        both_ends: important channels at both ends, so that left and right slices are alike.

    Raises:
        ConfigError: the run has no trained weights.
        BCNetError: see :func:`bcnet_deploy.train.pruned.permuted_on`.
    """
    require_trained(run)
    import torch

    from bcnet_deploy.train.pruned import permuted_on

    model, space = run.build(run.load().seed)
    cpu = torch.device("cpu")
    data, task = run.data(), run.task()
    return permuted_on(model, space, data, importance, both_ends=both_ends, task=task, device=cpu), space


def pruned_evaluator(run: RunDir, images: int | None = None, importance: str = "l2") -> SupernetEvaluator:
    """Scores of the trained network's own slices, without any training (EagleEye, ECCV 2020).

    Args:
        images: held-out images to score on; None: all.
        importance: see :func:`permuted`.

    Raises:
        ConfigError, DataError: see :func:`permuted` and :meth:`RunDir.data`.
    """
    require_trained(run)
    from bcnet_deploy.train.pruned import open_pruned_evaluator

    model, space = run.build(run.load().seed)
    return open_pruned_evaluator(
        model, space, run.data(), importance=importance, task=run.task(), limit=images
    )


def tuned_evaluator(
    run: RunDir, steps: int, images: int | None = None, importance: str = "l2"
) -> TunedEvaluator:
    """Scores of the trained network's slices after some steps of fine-tuning each.

    Args:
        steps: of each network's training.
        images: held-out images to score on; None: all.
        importance: see :func:`permuted`.

    Raises:
        ConfigError, DataError: see :func:`permuted` and :meth:`RunDir.data`.
    """
    from bcnet_deploy.train.tuned import TunedEvaluator

    model, space = permuted(run, importance)
    return TunedEvaluator(
        model, space, run.data(), steps=steps, task=run.task(), limit=images, seed=run.load().seed
    )
