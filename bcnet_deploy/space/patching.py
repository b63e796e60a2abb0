"""Run a module with other parameters, buffers and integer attributes, and put everything back."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class TensorPlace:
    """Where a module tree refers to a parameter or buffer."""

    owner: nn.Module
    key: str
    is_parameter: bool

    @property
    def table(self) -> dict[str, Any]:
        return self.owner._parameters if self.is_parameter else self.owner._buffers


def tensor_places(model: nn.Module) -> dict[str, list[TensorPlace]]:
    """All references to each parameter and buffer, by the first name it has in ``model``.

    A tensor shared by several modules appears once, with every place that refers to it.
    """
    names: dict[int, str] = {}
    places: dict[str, list[TensorPlace]] = {}
    for path, module in model.named_modules():
        for table, is_parameter in ((module._parameters, True), (module._buffers, False)):
            for key, tensor in table.items():
                if tensor is None:
                    continue
                name = names.setdefault(id(tensor), f"{path}.{key}" if path else key)
                places.setdefault(name, []).append(TensorPlace(module, key, is_parameter))
    return places


def attribute_patches(
    modules: Mapping[str, nn.Module], values: Iterable[tuple[str, str, int | tuple[int, ...]]]
) -> list[tuple[nn.Module, str, Any]]:
    """(module, attribute name, value) for :func:`patched`; a sequence has the type of the former one."""
    patches: list[tuple[nn.Module, str, Any]] = []
    for path, key, value in values:
        former = getattr(modules[path], key)
        patches.append((modules[path], key, type(former)(value) if isinstance(value, tuple) else value))
    return patches


def reachable(model: nn.Module) -> list[Any]:
    """Everything that a forward pass may leave something in: what the modules hold besides tensors.

    Found are lists, dictionaries, sets and objects of the user's own, also those that hooks or wrapped
    forward functions hold on to.
    """
    found: dict[int, Any] = {}
    waiting: list[Any] = [vars(module) for module in model.modules()]
    while waiting:
        item = waiting.pop()
        if id(item) in found:
            continue
        if isinstance(item, dict):
            found[id(item)] = item
            waiting.extend(item.values())
        elif isinstance(item, (list, tuple, set, deque)):
            found[id(item)] = item
            waiting.extend(item)
        elif isinstance(item, FunctionType):
            found[id(item)] = item
            waiting.extend(cell.cell_contents for cell in item.__closure__ or () if _filled(cell))
        elif isinstance(item, MethodType):
            waiting.append(item.__self__)
        elif isinstance(item, partial):
            waiting.extend((item.func, item.args, item.keywords))
        elif not isinstance(item, (nn.Module, type, ModuleType)) and hasattr(item, "__dict__"):
            found[id(item)] = item
            if not isinstance(item, torch.Tensor):
                waiting.append(vars(item))
    return list(found.values())


def copied(model: nn.Module, shared: Iterable[torch.Tensor] = ()) -> nn.Module:
    """A deep copy of a model, also of one that has run: PyTorch copies no tensor that has a history.

    Args:
        model: any module.
        shared: tensors that the copy takes over as they are.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in shared}
    for item in reachable(model):
        if isinstance(item, torch.Tensor) and not item.is_leaf:
            memo[id(item)] = item.detach()
    return copy.deepcopy(model, memo)


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


class ModuleState:
    """What the modules of a model hold, to undo what their forward pass leaves on them.

    Forward passes keep feature maps, counters or computed weights as attributes, in lists or dictionaries; a
    trace must not leave its fake tensors there.
    """

    def __init__(self, model: nn.Module) -> None:
        self._former: list[tuple[Any, Any]] = [
            (item, copy.copy(item)) for item in reachable(model) if isinstance(item, (dict, list, set, deque))
        ]

    def restore(self) -> None:
        for container, former in self._former:
            if isinstance(container, dict):
                # Only where something changed: most modules leave nothing.
                if container.keys() != former.keys() or any(container[k] is not former[k] for k in former):
                    container.clear()
                    container.update(former)
            elif len(container) != len(former) or any(
                a is not b for a, b in zip(container, former, strict=True)
            ):
                container.clear()
                (container.update if isinstance(container, set) else container.extend)(former)


@contextmanager
def patched(
    tensors: Iterable[tuple[TensorPlace, torch.Tensor]],
    attributes: Iterable[tuple[nn.Module, str, Any]],
) -> Iterator[None]:
    """Put ``tensors`` and ``attributes`` in place for the duration of the block.

    The former objects come back in any case, also after an exception.
    """
    former_tensors: list[tuple[dict[str, Any], str, Any]] = []
    former_attributes: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for place, tensor in tensors:
            table = place.table
            former_tensors.append((table, place.key, table[place.key]))
            table[place.key] = tensor
        for module, name, value in attributes:
            values = module.__dict__
            former_attributes.append((values, name, values[name]))
            values[name] = value
        yield
    finally:
        for table, key, tensor in reversed(former_tensors):
            table[key] = tensor
        for values, name, value in reversed(former_attributes):
            values[name] = value
