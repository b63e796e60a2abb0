"""Build a :class:`WidthSpace` from a model: capture, group, try out, name the levels."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from bcnet_deploy.errors import InputSizeError, UnsupportedModelError, WidthError
from bcnet_deploy.space.grouping import Grouper, require_cnn
from bcnet_deploy.space.patching import tensor_places
from bcnet_deploy.space.trial import settle
from bcnet_deploy.space.variables import make_variables
from bcnet_deploy.space.widths import WidthSpace


def space_of(
    cls: type[WidthSpace], model: nn.Module, input_size: tuple[int, ...], levels: int, min_level: int
) -> WidthSpace:
    """See :meth:`WidthSpace.from_model`."""
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"a width space is made from a torch.nn.Module; given: {type(model).__name__}"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedModelError(
            f"{type(model).__name__} is TorchScript, which cannot be sliced; give the nn.Module behind it"
        )
    lazy = next((n for n, p in (*model.named_parameters(), *model.named_buffers()) if is_lazy(p)), None)
    if lazy is not None:
        raise UnsupportedModelError(
            f"{lazy} of {type(model).__name__} has no shape yet; run the model once first"
        )
    if len(input_size) != 3 or any(not isinstance(n, int) or n < 1 for n in input_size):
        raise InputSizeError(f"input_size is (channels, height, width), all positive; given: {input_size}")
    if not (_whole(levels) and _whole(min_level)) or levels < 1 or not 0 <= min_level <= levels:
        raise WidthError(
            f"levels must be an integer of at least 1 and min_level one of 0..levels; given: "
            f"levels={levels!r}, min_level={min_level!r}"
        )
    grouping = settle(model, Grouper(model, input_size))
    require_cnn(grouping, model)
    channels, height, width = input_size
    return cls(
        variables=make_variables(
            [(v.name, v.units * v.step, v.step, v.layers) for v in grouping.variables], levels, min_level
        ),
        input_size=(channels, height, width),
        levels=levels,
        min_level=min_level,
        model_name=type(model).__name__,
        ops=tuple(grouping.ops),
        tensors=tuple(grouping.tensors),
        slices=grouping.slices,
        attributes=grouping.attributes,
        parameter_names=frozenset(
            name for name, places in tensor_places(model).items() if places[0].is_parameter
        ),
        frozen=tuple(grouping.frozen),
        notes=tuple(grouping.notes),
    )


def _whole(value: object) -> bool:
    return isinstance(value, (int, np.integer))
