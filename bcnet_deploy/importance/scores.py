"""How important each channel of a trained network is.

A width variable ties channels of many tensors: a residual's, a depthwise convolution's, a gate's. A score
is therefore a sum over all the tensors that the variable slices (DepGraph; Fang et al., CVPR 2023, section
3.2), one number a *unit*: the channels that the variable keeps or drops together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bcnet_deploy.errors import EvaluationError, NonFiniteWeightError
from bcnet_deploy.registry import Registry
from bcnet_deploy.space import WidthSpace
from bcnet_deploy.space.patching import tensor_places
from bcnet_deploy.space.slicing import stored_units

Batches = Iterable[tuple[Tensor, Tensor]]
"""Normalised images (N, C, H, W) and labels (N,)."""
Scores = tuple[Tensor, ...]
"""For each variable (units,): higher is more important. Units are channels divided by the variable's step."""
Importance = Callable[[nn.Module, WidthSpace, "Batches | None"], Scores]
"""Scores of a trained model of a space; the batches are None where the caller gave none."""
LossSum = Callable[[Any, Tensor], Tensor]
"""Outputs of the model and targets -> the loss, summed over the batch."""


def _cross_entropy(outputs: Any, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="sum")


IMPORTANCES: Registry[Importance] = Registry("importance", "bcnet_deploy.importances")


def importance_scores(
    model: nn.Module, space: WidthSpace, importance: str | Importance, batches: Batches | None = None
) -> Scores:
    """The scores that ``importance`` gives each variable's units.

    Args:
        model: a trained model of ``space``, of any widths; not changed.
        importance: a name of :data:`IMPORTANCES`, or a callable.
        batches: images and labels, for scores that need them.

    Raises:
        ConfigError: no importance has this name.
        EvaluationError: the importance needs batches, or does not give one number a unit.
        NonFiniteWeightError: a score is not finite.
    """
    score = IMPORTANCES.get(importance) if isinstance(importance, str) else importance
    name = importance if isinstance(importance, str) else getattr(importance, "__name__", "the importance")
    units = stored_units(space.plan, model)
    scores = tuple(torch.as_tensor(value).detach().double().cpu() for value in score(model, space, batches))
    shapes = [tuple(value.shape) for value in scores]
    if shapes != [(count,) for count in units]:
        raise EvaluationError(
            f"{name} gave scores of shapes {shapes}; it must give one number a unit, "
            f"{len(units)} tensors of shapes {[(count,) for count in units]}"
        )
    for variable, value in zip(space.variables, scores, strict=True):
        if not bool(torch.isfinite(value).all()):
            raise NonFiniteWeightError(
                f"{name} gave NaN or infinite scores for the channels of {variable.name}; "
                "use weights from before training diverged"
            )
    return scores


def per_variable(
    space: WidthSpace, values: Mapping[str, Tensor], units: list[int], *, normalised: bool = False
) -> Scores:
    """Values of tensors, summed for each unit over all the tensors that it ties.

    Args:
        values: by tensor name, of the tensor's shape; tensors that are not named do not count. A tensor that
            a variable slices along two dimensions counts twice, as output and as input.
        units: (L,) units that the tensors hold.
        normalised: each tensor's sums are divided by their mean first, so that a small tensor counts as much
            as a large one (DepGraph's normaliser, applied tensor by tensor).
    """
    scores = [torch.zeros(count, dtype=torch.float64) for count in units]
    for name, value in values.items():
        for axis, segments in enumerate(space.slices[name]):
            offset = 0
            along = value.detach().double().cpu().movedim(axis, 0).reshape(value.shape[axis], -1).sum(dim=1)
            for segment in segments:
                size = segment.positions if segment.variable < 0 else units[segment.variable] * segment.repeat
                if segment.variable >= 0:
                    sums = along[offset : offset + size].view(-1, segment.repeat).sum(dim=1)
                    mean = float(sums.mean()) if normalised else 1.0
                    scores[segment.variable] += sums / mean if mean else sums
                offset += size
    return tuple(scores)


def _weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that scale what passes: all but the biases."""
    return {
        name: places[0].table[places[0].key]
        for name, places in tensor_places(model).items()
        if places[0].is_parameter and places[0].key != "bias"
    }


@IMPORTANCES.register("l2")
def group_l2(model: nn.Module, space: WidthSpace, batches: Batches | None = None) -> Scores:
    """Sum of squares of all weights that a unit ties, biases left out (DepGraph, section 3.3)."""
    squares = {name: weight.detach().double().square() for name, weight in _weights(model).items()}
    return per_variable(space, squares, stored_units(space.plan, model))


@IMPORTANCES.register("l2-normalised")
def group_l2_normalised(model: nn.Module, space: WidthSpace, batches: Batches | None = None) -> Scores:
    """As ``l2``, with every tensor counted alike: its sums are divided by their mean."""
    squares = {name: weight.detach().double().square() for name, weight in _weights(model).items()}
    return per_variable(space, squares, stored_units(space.plan, model), normalised=True)


@IMPORTANCES.register("bn-scale")
def batch_norm_scale(model: nn.Module, space: WidthSpace, batches: Batches | None = None) -> Scores:
    """Sum of the absolute scales of the norms over a unit (Network Slimming; Liu et al., ICCV 2017).

    A variable that no scaled norm follows gets its group L2 instead.
    """
    norms = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm)
    scales = {
        name: weight.detach().abs()
        for name, weight in _weights(model).items()
        if isinstance(tensor_places(model)[name][0].owner, norms)
    }
    scores = per_variable(space, scales, stored_units(space.plan, model))
    return tuple(
        scale if bool(scale.any()) else magnitude
        for scale, magnitude in zip(scores, group_l2(model, space, None), strict=True)
    )


def first_order_taylor(
    model: nn.Module,
    space: WidthSpace,
    batches: Batches | None = None,
    *,
    loss_sum: LossSum = _cross_entropy,
) -> Scores:
    """Sum over a unit's weights of |weight x gradient of the loss| (Molchanov et al., CVPR 2019, eq. 8).

    The gradient is of the mean loss over all the batches, in evaluation mode.

    Args:
        model, space, batches: see :data:`Importance`.
        loss_sum: of the task that the model was trained for; default: cross-entropy of logits.

    Raises:
        EvaluationError: there are no batches.
    """
    weights = _weights(model)
    gradients = _gradients(model, weights, batches, loss_sum)
    products = {name: (weights[name].detach() * gradients[name]).abs() for name in weights}
    return per_variable(space, products, stored_units(space.plan, model))


IMPORTANCES.register("taylor")(first_order_taylor)


def _gradients(
    model: nn.Module, weights: Mapping[str, nn.Parameter], batches: Batches | None, loss_sum: LossSum
) -> dict[str, Tensor]:
    """The mean gradient of the loss, zero for weights that take no part; the model stays as it is."""
    totals = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    images_seen = 0
    flags = [(module, module.training) for module in model.modules()]
    frozen = [weight for weight in weights.values() if not weight.requires_grad]
    model.eval()
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        for images, labels in batches or ():
            loss = loss_sum(model(images), labels)
            found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for total, gradient in zip(totals.values(), found, strict=True):
                if gradient is not None:
                    total += gradient
            images_seen += len(labels)
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
        for module, training in flags:
            module.training = training
    if not images_seen:
        raise EvaluationError("importance 'taylor' needs batches of images and labels; given: none")
    return {name: total / images_seen for name, total in totals.items()}
