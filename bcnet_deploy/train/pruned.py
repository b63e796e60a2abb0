"""Ranking width vectors by a trained network alone, without training a supernet."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from bcnet_deploy.data import DataSplits, PlainBatches
from bcnet_deploy.importance import Importance, permute_by_importance
from bcnet_deploy.importance.scores import first_order_taylor
from bcnet_deploy.nn import Supernet
from bcnet_deploy.space import WidthSpace
from bcnet_deploy.tasks import Classification, Task
from bcnet_deploy.train.distributed import pick_device
from bcnet_deploy.train.evaluate import SupernetEvaluator, score_batches
from bcnet_deploy.train.supernet import check_fit
from bcnet_deploy.train.trial import runs_in_channels_last, try_scores

IMPORTANCE_IMAGES = 1024
"""Training images of scores that need gradients."""


def permuted_on(
    model: nn.Module,
    space: WidthSpace,
    splits: DataSplits,
    importance: str | Importance = "l2",
    *,
    both_ends: bool = False,
    batch_size: int = 64,
    task: Task | None = None,
    device: torch.device | None = None,
) -> nn.Module:
    """:func:`bcnet_deploy.importance.permute_by_importance` with batches of the training images.

    Args:
        model: a trained model of ``space``; not changed, but moved to the device.
        splits: the first training images serve scores that need gradients; none are read otherwise.
        both_ends: for a bilateral supernet.
        task: whose loss ``taylor`` takes the gradient of; default: classification.
        device: default: the GPU where there is one.

    Raises:
        DataError: the images are not of the space's size.
        ConfigError, CheckpointError, NonFiniteWeightError: see :func:`permute_by_importance`.
        TaskError, TrainingError: ``taylor`` has no loss, see :func:`bcnet_deploy.train.trial.try_scores`.
    """
    check_fit(splits, space)
    device = device or pick_device()
    last = runs_in_channels_last(model.to(device), splits.input_size, device)
    batches = PlainBatches(
        splits.train, splits, batch_size, device, limit=IMPORTANCE_IMAGES, channels_last=last
    )
    if importance == "taylor":
        try_scores(model, splits, task or Classification(), device)
    if importance == "taylor" and task is not None:
        importance = partial(first_order_taylor, loss_sum=task.loss_sum)
    return permute_by_importance(model, space, importance, batches=batches, both_ends=both_ends)


def open_pruned_evaluator(
    model: nn.Module,
    space: WidthSpace,
    splits: DataSplits,
    *,
    importance: str | Importance | None = "l2",
    task: Task | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    amp: str = "off",
    device: torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SupernetEvaluator:
    """An evaluator whose scores are those of pruned networks: what a search needs, and nothing is trained.

    A width vector keeps the most important channels of each layer. The statistics of its batch norms are
    averaged anew on training images, without which scores say little, and it is scored on held-out images
    (EagleEye; Li et al., ECCV 2020, section 3.3).

    Args:
        model: a trained model of ``space``; not changed, but moved to the device.
        splits: training images for statistics, held-out images for scores; test images are not touched.
        importance: orders the channels, see :func:`permute_by_importance`; None: the model is in order.
        task: its metric is the score; default: classification.
        limit: held-out images of a score; default: all.
        batch_size: images of a batch.
        amp: ``off`` or ``bf16``.
        device: default: the GPU where there is one.
        progress: called with (vectors done, vectors of this call).

    Raises:
        DataError, ConfigError, CheckpointError, NonFiniteWeightError: see :func:`permuted_on`.
        TaskError, TrainingError: see :func:`bcnet_deploy.train.trial.try_scores`.
    """
    check_fit(splits, space)
    device = device or pick_device()
    try_scores(model.to(device), splits, task or Classification(), device)
    if importance is not None:
        model = permuted_on(model, space, splits, importance, batch_size=batch_size, task=task, device=device)
    supernet = Supernet(model, space).to(device)
    last = runs_in_channels_last(supernet, splits.input_size, device)
    train, val = score_batches(splits, batch_size, device, limit=limit, channels_last=last)
    return SupernetEvaluator(
        supernet, train, val, task=task, sides=("left",), amp=amp, progress=progress, shares_weights=False
    )
