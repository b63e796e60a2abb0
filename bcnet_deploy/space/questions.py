"""What a model's code asks about sizes, and where the sizes that it hands to operators come from.

Code may decide by widths (``if x.shape[1] != y.shape[1]``), and widths drawn at random rarely meet the one
case in which the answer changes. So while a model is traced, its code gets the sizes of tensors and the
integer attributes of modules as integers that remember their origin. Each comparison of them is noted, and
widths at which it comes out differently can be looked for and tried.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from bcnet_deploy.space.extent import Int64

Formula = tuple[Any, ...]
"""("size", value, dimension), ("attribute", path, name), ("attribute", path, name, position), or the name of
an operator with two formulas or numbers."""

_SHAPE = torch.Tensor.shape.__get__  # type: ignore[attr-defined]
_DEEPEST = 30
_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "floordiv": operator.floordiv,
    "mod": operator.mod,
}  # fmt: skip
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt,
    "ge": operator.ge,
}  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """``left <kind> right`` was asked, with this answer at full width."""

    kind: str
    left: Formula | int
    right: Formula | int
    answer: bool

    def answers(self, size_of: Callable[[Formula], Int64 | int]) -> Any:
        """The answers where ``size_of`` gives the sizes at the ends of the formulas."""
        with np.errstate(divide="ignore"):
            return _COMPARISONS[self.kind](evaluated(self.left, size_of), evaluated(self.right, size_of))

    def ends(self) -> Iterator[Formula]:
        """The sizes and attributes that it depends on."""
        for formula in (self.left, self.right):
            yield from ends(formula)


def ends(formula: Formula | int) -> Iterator[Formula]:
    """The sizes and attributes that a formula depends on."""
    if isinstance(formula, int):
        return
    if formula[0] in ("size", "attribute"):
        yield formula
        return
    for part in formula[1:]:
        yield from ends(part)


def evaluated(formula: Formula | int, size_of: Callable[[Formula], Int64 | int]) -> Any:
    """The value of a formula, for many widths at once."""
    if isinstance(formula, int):
        return formula
    if formula[0] in ("size", "attribute"):
        return size_of(formula)
    left, right = (evaluated(part, size_of) for part in formula[1:])
    return _ARITHMETIC[formula[0]](left, right)


class Size(int):
    """An integer that remembers its formula, and notes what it is compared with."""

    formula: Formula
    depth: int
    noted: dict[Comparison, None]

    @classmethod
    def make(cls, number: int, formula: Formula, noted: dict[Comparison, None], depth: int = 0) -> Size:
        size = cls(number)
        size.formula, size.noted, size.depth = formula, noted, depth
        return size

    __hash__ = int.__hash__

    def __bool__(self) -> bool:
        self.noted[Comparison("ne", self.formula, 0, int(self) != 0)] = None
        return int(self) != 0

    def __copy__(self) -> int:
        return int(self)

    def __deepcopy__(self, memo: Any) -> int:
        return int(self)

    def __reduce__(self) -> Any:
        return int, (int(self),)


def _formula(number: int) -> Formula | int:
    return number.formula if isinstance(number, Size) else number


def _arithmetic(name: str, reflected: bool) -> Any:
    plain = _ARITHMETIC[name]

    def method(self: Size, other: Any) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        pair = (other, self) if reflected else (self, other)
        result = plain(int(pair[0]), int(pair[1]))
        depth = 1 + max(self.depth, getattr(other, "depth", 0))
        if depth > _DEEPEST:
            return result
        return Size.make(result, (name, _formula(pair[0]), _formula(pair[1])), self.noted, depth)

    return method


def _comparing(name: str) -> Any:
    plain = _COMPARISONS[name]

    def method(self: Size, other: Any) -> Any:
        if not isinstance(other, int):
            return plain(int(self), other)
        answer = plain(int(self), int(other))
        self.noted[Comparison(name, self.formula, _formula(other), answer)] = None
        return answer

    return method


for _name in _ARITHMETIC:
    setattr(Size, f"__{_name}__", _arithmetic(_name, reflected=False))
    setattr(Size, f"__r{_name}__", _arithmetic(_name, reflected=True))
for _name in _COMPARISONS:
    setattr(Size, f"__{_name}__", _comparing(_name))


class Questions(TorchFunctionMode):
    """Hands out sizes of tensors as :class:`Size`, and keeps the attributes that operators are called with.

    Args:
        value_of: the value of the trace behind a tensor, or None.

    Attributes:
        noted: the comparisons made, in order.
        function: name of the PyTorch function that is running.
        given: integers among its arguments, in order.
    """

    def __init__(self, value_of: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.value_of = value_of
        self.noted: dict[Comparison, None] = {}
        self.function = ""
        self.given: list[int] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self.function = getattr(func, "__name__", "")
        self.given = [*_integers(args), *_integers(tuple(kwargs.values()))]
        result = func(*args, **kwargs)
        self.function, self.given = "", []
        if func == _SHAPE or (func is torch.Tensor.size and isinstance(result, tuple)):
            return torch.Size(self._sizes(args[0], result))
        if func is torch.Tensor.size:
            which = args[1] if len(args) > 1 else kwargs["dim"]
            return self._sizes(args[0], args[0].shape)[which]
        return result

    def _sizes(self, tensor: torch.Tensor, shape: tuple[int, ...]) -> list[int]:
        value = self.value_of(tensor)
        if value is None:
            return list(shape)
        return [Size.make(size, ("size", value, i), self.noted) for i, size in enumerate(shape)]

    def attributes(self, model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
        """Replacements for the integer attributes of all modules, and sequences of them in the user's own."""
        found: list[tuple[nn.Module, str, Any]] = []
        for path, module in model.named_modules():
            own = not type(module).__module__.startswith("torch.nn.")
            for name, value in vars(module).items():
                if type(value) is int:
                    found.append((module, name, Size.make(value, ("attribute", path, name), self.noted)))
                elif own and type(value) in (list, tuple) and {type(item) for item in value} == {int}:
                    sizes = [
                        Size.make(item, ("attribute", path, name, i), self.noted)
                        for i, item in enumerate(value)
                    ]
                    found.append((module, name, type(value)(sizes)))
        return found


def _integers(arguments: tuple[Any, ...]) -> Iterator[int]:
    for argument in arguments:
        if isinstance(argument, int) and not isinstance(argument, bool):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from _integers(tuple(argument))
