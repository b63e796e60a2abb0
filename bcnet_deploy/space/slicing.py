"""Slices of parameters for given widths, and plain sub-networks made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import nn

from bcnet_deploy.errors import CheckpointError, NonFiniteWeightError, WidthError
from bcnet_deploy.space.extent import Segments, SlicePlan
from bcnet_deploy.space.patching import attribute_patches, copied, tensor_places

Side = Literal["left", "right"]
Ranges = tuple[tuple[int, int], ...]
"""Kept positions of a dimension as (start, length), ascending and not touching."""


def check_side(side: str) -> None:
    if side not in ("left", "right"):
        raise WidthError(f"side is 'left' or 'right'; given: {side!r}")


def kept_ranges(segments: Segments, units: Sequence[int], stored: Sequence[int], side: str) -> Ranges:
    """The positions that a width vector keeps.

    Args:
        segments: one dimension of a parameter.
        units: (L,) kept units of each variable.
        stored: (L,) units that the parameter holds; more than the space's own maxima in a supernet
            with a minimum level.
        side: left keeps [0, c), right [stored - c, stored) (BCNet, section 3.2).
    """
    ranges: list[tuple[int, int]] = []
    offset = 0
    for segment in segments:
        if segment.variable < 0:
            total = length = segment.positions
        else:
            total = stored[segment.variable] * segment.repeat
            length = units[segment.variable] * segment.repeat
        start = offset if side == "left" else offset + total - length
        if ranges and sum(ranges[-1]) == start:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + length)
        else:
            ranges.append((start, length))
        offset += total
    return tuple(ranges)


def take(tensor: torch.Tensor, dims: Sequence[Ranges]) -> torch.Tensor:
    """The kept part of a tensor: a view, or where a dimension keeps several ranges (the consumer of a
    concatenation) those ranges joined. Differentiable; gradients reach kept positions only."""
    for axis, ranges in enumerate(dims):
        if len(ranges) == 1:
            start, length = ranges[0]
            if length != tensor.shape[axis]:
                tensor = tensor.narrow(axis, start, length)
        else:
            tensor = torch.cat([tensor.narrow(axis, start, length) for start, length in ranges], dim=axis)
    return tensor


def take_leaf(weight: torch.Tensor, dims: Sequence[Ranges]) -> torch.Tensor:
    """As :func:`take`, but backward adds the gradient to the kept part of ``weight.grad`` in place.

    Differentiating :func:`take` makes a zero tensor of the full size for each sliced axis and adds it to the
    gradient, however small the slice; here only the slice is touched. ``weight`` itself takes no part in the
    graph: ``torch.autograd.grad`` and hooks do not see it. ``weight.grad`` is made where there is none.
    """
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return _leaf(weight.detach(), weight.grad, dims, 0)


def _leaf(value: torch.Tensor, grad: torch.Tensor, dims: Sequence[Ranges], axis: int) -> torch.Tensor:
    if axis == len(dims):
        leaf = value.detach().requires_grad_()
        leaf.register_post_accumulate_grad_hook(partial(_hand_over, grad))
        return leaf
    parts = [
        _leaf(value.narrow(axis, start, length), grad.narrow(axis, start, length), dims, axis + 1)
        for start, length in dims[axis]
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=axis)


def _hand_over(grad: torch.Tensor, leaf: torch.Tensor) -> None:
    grad.add_(leaf.grad)  # type: ignore[arg-type]
    leaf.grad = None


def stored_units(plan: SlicePlan, model: nn.Module) -> list[int]:
    """(L,) units of each variable that the tensors of ``model`` hold: a full model's, or a narrower one's.

    Raises :class:`CheckpointError` where the tensors are not of this space at any widths.
    """
    shapes = {
        name: tuple(places[0].table[places[0].key].shape) for name, places in tensor_places(model).items()
    }
    units = list(plan.units)
    known: set[int] = set()
    for name, dims in plan.tensors.items():
        for segments, size in zip(dims, shapes.get(name, ()), strict=False):
            own = {segment.variable for segment in segments if segment.variable >= 0}
            if len(own) == 1 and not own <= known:
                each = sum(segment.repeat for segment in segments if segment.variable >= 0)
                fixed = sum(segment.positions for segment in segments if segment.variable < 0)
                units[min(own)] = (size - fixed) // each
                known |= own
    check_model(plan, model, units)
    return units


def check_model(plan: SlicePlan, model: nn.Module, stored: Sequence[int]) -> None:
    """Raise :class:`CheckpointError` unless ``model`` has the tensors of the plan, in stored sizes."""
    shapes = {
        name: tuple(places[0].table[places[0].key].shape) for name, places in tensor_places(model).items()
    }
    for name, expected in plan.shapes(stored).items():
        if shapes.get(name) != expected:
            raise CheckpointError(
                f"the model is not of this space ({plan.model_name}): {name} should have shape {expected}, "
                f"it has {shapes.get(name, 'no such tensor')}"
            )
    extra = sorted(set(shapes) - set(plan.tensors))
    if extra:
        raise CheckpointError(f"the model is not of this space ({plan.model_name}): unknown {extra[0]}")


def extract(
    plan: SlicePlan,
    model: nn.Module,
    units: Sequence[int],
    side: str = "left",
    *,
    stored: Sequence[int] | None = None,
) -> nn.Module:
    """See :meth:`WidthSpace.extract`; ``units`` and ``stored`` as in :func:`kept_ranges`."""
    check_side(side)
    stored = plan.units if stored is None else stored
    check_model(plan, model, stored)
    for name, places in tensor_places(model).items():
        tensor = places[0].table[places[0].key]
        if tensor.is_meta:  # shapes without values
            continue
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NonFiniteWeightError(
                f"{name} holds values that are not finite; the network is not worth extracting"
            )

    def sliced(name: str, tensor: torch.Tensor) -> torch.Tensor:
        ranges = [kept_ranges(segments, units, stored, side) for segments in plan.tensors[name]]
        return take(tensor.detach(), ranges).clone(memory_format=torch.contiguous_format)

    return rebuilt(plan, model, units, sliced)


def resized(plan: SlicePlan, model: nn.Module, units: Sequence[int], generator: torch.Generator) -> nn.Module:
    """A copy of ``model`` with other, also larger, widths.

    Added channels draw their values from the same tensor (so they have its distribution, but not
    one another's values); what exists is kept.
    """

    shapes = plan.shapes(units)

    def grown(name: str, tensor: torch.Tensor) -> torch.Tensor:
        shape = shapes[name]
        if shape == tuple(tensor.shape):
            return tensor.detach().clone()
        flat = tensor.detach().reshape(-1)
        picks = torch.randint(flat.numel(), shape, generator=generator).to(flat.device)
        result = flat[picks]
        region = tuple(slice(0, min(a, b)) for a, b in zip(shape, tensor.shape, strict=True))
        result[region] = tensor.detach()[region]
        return result

    return rebuilt(plan, model, units, grown)


def rebuilt(
    plan: SlicePlan,
    model: nn.Module,
    units: Sequence[int],
    new_tensor: Callable[[str, torch.Tensor], torch.Tensor],
) -> nn.Module:
    """A copy of ``model`` with these units, its tensors made by ``new_tensor`` from name and former one."""
    # Parameters are shared with the copy until they are replaced: deepcopy would copy full weights.
    clone = copied(model, [places[0].table[places[0].key] for places in tensor_places(model).values()])
    for name, copies in tensor_places(clone).items():
        tensor = copies[0].table[copies[0].key]
        replacement = new_tensor(name, tensor)
        if copies[0].is_parameter:
            replacement = nn.Parameter(replacement, requires_grad=tensor.requires_grad)
        for place in copies:
            place.table[place.key] = replacement
    for module, key, value in attribute_patches(dict(clone.named_modules()), plan.attribute_values(units)):
        setattr(module, key, value)
    return clone
