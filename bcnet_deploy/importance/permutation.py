"""Channels in order of importance, by a permutation that leaves the network's function as it is.

After it a left slice keeps the most important channels: it *is* the pruned network, and all that works on
slices (supernet, evaluator, extraction) works on pruned networks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bcnet_deploy.errors import WidthError
from bcnet_deploy.importance.scores import Batches, Importance, importance_scores
from bcnet_deploy.space import WidthSpace
from bcnet_deploy.space.extent import Segments
from bcnet_deploy.space.patching import tensor_places
from bcnet_deploy.space.slicing import extract, stored_units

SAME = 1e-9
"""Largest difference of float64 outputs, relative to the largest output, that rounding always explains."""
OF_ROUNDING, DIFFERENT = 1e4, 1e-3
"""Deep networks amplify rounding: so many times what a change in the last digit of images does is rounding,
too, up to a difference that a unit in a wrong place exceeds."""


def order_of(scores: Tensor, *, both_ends: bool = False) -> Tensor:
    """(units,) positions of a variable's units, the most important first.

    Equal scores keep their order, so that the result is the same on every machine.

    Args:
        both_ends: ranks 0, 2, 4, ... from the left and 1, 3, 5, ... from the right: the left and the right
            slice of a bilateral supernet are then alike in importance, and the middle is dropped first.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    return torch.cat([order[0::2], order[1::2].flip(0)]) if both_ends else order


def permute(model: nn.Module, space: WidthSpace, orders: Sequence[Tensor]) -> nn.Module:
    """A copy of ``model`` with the units of each variable in the order given; it computes the same function.

    Every tensor that a variable slices is permuted alike: outputs and inputs of convolutions, norms and
    their statistics, gates, depthwise filters. Of a grouped convolution whole groups change places.

    Args:
        model: a model of ``space``, of any widths; not changed.
        orders: for each variable (units,): the former position of the unit at each place.

    Raises:
        WidthError: an order is not a permutation of its variable's units.
        CheckpointError: the model is not of this space.
        NonFiniteWeightError: a weight is not finite.
    """
    units = stored_units(space.plan, model)
    if len(orders) != len(units):
        raise WidthError(f"{space.model_name} has {len(units)} width variables; given: {len(orders)} orders")
    for variable, count, order in zip(space.variables, units, orders, strict=True):
        if not torch.equal(order.sort().values.cpu(), torch.arange(count)):
            raise WidthError(
                f"the order of {variable.name} is no permutation of its {count} units; "
                f"given: {order[:8].tolist()}"
            )
    copy = extract(space.plan, model, units, stored=units)
    with torch.no_grad():
        for name, places in tensor_places(copy).items():
            tensor = places[0].table[places[0].key]
            for axis, segments in enumerate(space.slices[name]):
                if any(segment.variable >= 0 for segment in segments):
                    index = _positions(segments, orders).to(tensor.device)
                    tensor.copy_(tensor.index_select(axis, index))
    return copy


def _positions(segments: Segments, orders: Sequence[Tensor]) -> Tensor:
    """The former position of each position of one dimension."""
    parts: list[Tensor] = []
    offset = 0
    for segment in segments:
        if segment.variable < 0:
            part = torch.arange(segment.positions)
        else:
            order = orders[segment.variable].cpu()
            part = (order[:, None] * segment.repeat + torch.arange(segment.repeat)).flatten()
        parts.append(part + offset)
        offset += len(part)
    return torch.cat(parts)


def permute_by_importance(
    model: nn.Module,
    space: WidthSpace,
    importance: str | Importance = "l2",
    *,
    batches: Batches | None = None,
    both_ends: bool = False,
) -> nn.Module:
    """A copy of a trained model whose channels stand in order of importance; it computes the same function.

    Args:
        model: a trained model of ``space``; not changed.
        importance: ``l2``, ``l2-normalised``, ``bn-scale``, ``taylor``, a name that a package of yours
            registers as ``bcnet_deploy.importances``, or a callable (see
            :data:`bcnet_deploy.importance.Importance`).
        batches: images and labels, on the model's device; only ``taylor`` needs them.
        both_ends: for bilateral supernets, see :func:`order_of`.

    Variables that no permutation leaves alone keep their order; see :func:`permutable`.

    Raises:
        ConfigError, EvaluationError, NonFiniteWeightError: see :func:`importance_scores`.
        CheckpointError: the model is not of this space.
    """
    scores = importance_scores(model, space, importance, batches)
    orders = [order_of(value, both_ends=both_ends) for value in scores]
    free = permutable(model, space)
    return permute(
        model,
        space,
        [order if may else torch.arange(len(order)) for order, may in zip(orders, free, strict=True)],
    )


def permutable(model: nn.Module, space: WidthSpace, *, seed: int = 0) -> list[bool]:
    """For each variable, whether its units may change places.

    ShuffleNet cuts shuffled channels by position: there a unit's place decides what reads it, so no
    permutation of the variable's units leaves the function as it is. Tried out in float64 on random images,
    or in float32 where the model's code takes nothing else, first with all variables, and where outputs
    differ by more than rounding with each variable alone.

    Args:
        model: a model of ``space``, of any widths; not changed.
        seed: of orders and images.

    Raises:
        CheckpointError, NonFiniteWeightError: see :func:`permute`.
    """
    generator = torch.Generator().manual_seed(seed)
    units = stored_units(space.plan, model)
    orders = [_shuffled(count, generator) for count in units]
    images = torch.randn(2, *space.input_size, generator=generator, dtype=torch.float64)
    exact = extract(space.plan, model, units, stored=units).cpu().double().eval()
    try:
        expected = _outputs(exact, images)
    except Exception:  # the user's forward may raise anything, as where it names a type
        exact, images = exact.float(), images.float()
        expected = _outputs(exact, images)

    def difference(chosen: Sequence[int]) -> float:
        tried = [order if i in chosen else torch.arange(len(order)) for i, order in enumerate(orders)]
        return _difference(_outputs(permute(exact, space, tried).eval(), images), expected)

    every = range(len(orders))
    together = difference(every)
    if together <= SAME:
        return [True] * len(orders)
    last_digit = torch.randint(-1, 2, images.shape, generator=generator) * torch.finfo(images.dtype).eps
    rounding = _difference(_outputs(exact, images * (1 + last_digit.to(images.dtype))), expected)
    tolerance = max(SAME, min(OF_ROUNDING * rounding, DIFFERENT))
    return [together <= tolerance or difference([index]) <= tolerance for index in every]


def _shuffled(count: int, generator: torch.Generator) -> Tensor:
    """An order of so many units that is not the one they have, where there is another."""
    while True:
        order = torch.randperm(count, generator=generator)
        if count < 2 or not torch.equal(order, torch.arange(count)):
            return order


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest over all outputs, each relative to its largest value."""
    return max(
        float((a - b).abs().max()) / max(float(b.abs().max()), 1e-300)
        for a, b in zip(found, expected, strict=True)
    )


@torch.no_grad()
def _outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(model(images)) if isinstance(leaf, Tensor)]
