"""Batch-norm statistics of one sub-network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bcnet_deploy.errors import EvaluationError
from bcnet_deploy.nn.supernet import Supernet


def recalibrate(network: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Replace batch-norm running statistics by the plain average over ``batches``.

    Weights shared by many sub-networks leave statistics that fit none of them: before a sub-network
    is evaluated, those of its slice are reset and averaged anew, for each side by itself.

    Args:
        network: a plain network, or a :class:`Supernet`, of which the active slice is recalibrated.
        batches: image batches (N, C, H, W) of *training* data; about 20 are enough.

    Raises:
        EvaluationError: ``batches`` is empty.
    """
    model = network.model if isinstance(network, Supernet) else network
    layers = [
        module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    if not layers:
        return
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(_only_batch_norm_training(network, layers))
        if isinstance(network, Supernet):
            with network.sliced():
                _reset(layers)
        else:
            _reset(layers)
        count = 0
        for batch in batches:
            network(batch)
            count += 1
    if not count:
        raise EvaluationError("batch-norm recalibration needs at least one batch; given: none")


def _reset(layers: list[_BatchNorm]) -> None:
    for layer in layers:
        layer.reset_running_stats()


@contextmanager
def _only_batch_norm_training(network: nn.Module, layers: list[_BatchNorm]) -> Iterator[None]:
    """Everything in evaluation mode but batch norm, which averages cumulatively; restored on exit."""
    flags = [(module, module.training) for module in network.modules()]
    momenta = [(layer, layer.momentum) for layer in layers]
    try:
        for module, _ in flags:
            module.training = False
        for layer in layers:
            layer.training = True
            layer.momentum = None
        yield
    finally:
        for module, flag in flags:
            module.training = flag
        for layer, momentum in momenta:
            layer.momentum = momentum
