"""The channel layouts of all values of a model's traces, and what happens where two meet."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn

from bcnet_deploy.space.axes import Layout, fixed, freeze, fresh, joined, same_size, size_of, unify
from bcnet_deploy.space.capture import Call, Value
from bcnet_deploy.space.questions import Formula, Size, ends

Dims = list[Layout | None]
"""One entry a dimension; None where it can never depend on widths (batch, height, width)."""


FEW_GROUPS = 4
"""Up to so many groups all are kept and each is made narrower; of more, whole groups are kept."""


class Layouts:
    """The layout of every dimension of every value of a trace."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.activations: set[Value] = set()
        """Values that depend on the image, of all traces."""
        self._of: dict[int, Dims] = {}
        self._parameters: dict[str, Dims] = {}
        self._modules = modules
        self.attributes: dict[tuple[str, str], Layout | list[Layout]] = {}
        """Integer attributes of modules that follow widths: (module path, name) -> layout.

        A list of layouts stands for a sequence of integers.
        """

    def of(self, value: Value) -> Dims:
        if value.parameter is not None:
            return self.parameter(value.parameter, value.shape)
        return self._of.setdefault(id(value), [None] * len(value.shape))

    def set(self, value: Value, dims: Dims) -> None:
        assert len(dims) == len(value.shape), (dims, value.shape)
        if value.parameter is None:
            self._of[id(value)] = dims

    def parameter(self, name: str, shape: tuple[int, ...]) -> Dims:
        """Shared by all traces of a model, so that train and eval mode agree on one slicing."""
        return self._parameters.setdefault(name, [fresh(size) for size in shape])

    def is_a(self, call: Call, kind: type) -> bool:
        """Whether the innermost module that makes this call is a ``kind``."""
        return isinstance(self._modules.get(call.module), kind)

    def attribute(self, call: Call, name: str, layout: Layout | None) -> None:
        if layout is not None:
            self.attributes[call.module, name] = layout

    def follow(self, call: Call, number: int, layout: Layout | None) -> bool:
        """Let the attribute that the code gave a call as ``number``, if it was one, follow ``layout``."""
        sizes = (size for size in call.given if isinstance(size, Size) and size.formula[0] == "attribute")
        given = next((size for size in sizes if int(size) == number), None)
        return given is not None and self.follow_size(given, layout)

    def as_given(self, call: Call, dims: Dims, new: Collection[int] = ()) -> None:
        """Tie the dimensions of a call's output to what the code took their sizes from.

        A size that came from another tensor's dimension is that dimension's also at other widths; an
        attribute that it came from follows. Nothing happens unless the code gave one number a dimension.
        Of the ``new`` dimensions nothing is known but their size.
        """
        sizes = call.outputs[0].shape
        given = [int(number) for number in call.given]
        if len(given) != len(sizes) or any(n not in (-1, s) for n, s in zip(given, sizes, strict=True)):
            return
        for i, number in enumerate(call.given):
            self.follow_size(number, dims[i])
            if not isinstance(number, Size):
                continue
            if number.formula[0] == "size" and i in new:
                _, value, axis = number.formula
                dims[i] = self.of(value)[axis]
            elif (own := dims[i]) is not None and i not in new:
                self._tie(call, number, own)

    def _tie(self, call: Call, number: Size, own: Layout) -> None:
        """Let a dimension whose size is ``number`` have the size at all widths that the code works out.

        Known are another's size, and such a size divided or multiplied by a number: heads are cut out of
        channels by ``C // heads``.
        """
        name, *ends = number.formula
        times = 1
        if name in ("floordiv", "mul"):
            ends = ends if name == "floordiv" or not isinstance(ends[0], int) else ends[::-1]
            source, times = ends[0], self._number(ends[1])
        else:
            source = number.formula
        if isinstance(source, int) or times < 1 or source[0] not in ("size", "attribute"):
            return
        if source[0] == "attribute":
            known = self.attributes.get((source[1], source[2])) if name == "floordiv" else None
            if name == "floordiv" and len(source) == 3 and not isinstance(known, list):
                whole = joined([own] * times)
                number_of = vars(self._modules[source[1]])[source[2]]
                if number_of == size_of(whole):
                    self.follow_size(Size.make(number_of, source, {}), whole)
            return
        layout = self.of(source[1])[source[2]]
        if layout is None:
            return
        first, second = (
            (joined([own] * times), layout) if name == "floordiv" else (own, joined([layout] * times))
        )
        if size_of(first) == size_of(second) and not same_size(first, second):
            unify(first, second, f"{where(call)} gives it the size of another")

    def _number(self, formula: Any) -> int:
        """The value of a number, or of an attribute that the code gave; 0 for anything else."""
        if isinstance(formula, int):
            return formula
        if formula[0] != "attribute":
            return 0
        value = vars(self._modules[formula[1]])[formula[2]]
        return int(value[formula[3]] if len(formula) > 3 else value)

    def from_attribute(self, call: Call, dimension: int) -> bool:
        """Whether the code took the size of a dimension of a call's output from an attribute."""
        return self._origin(call, dimension)[0] == "attribute"

    def from_channels(self, call: Call, dimension: int) -> bool:
        """Whether it took it from an attribute or from a dimension that follows widths."""
        kind, *place = self._origin(call, dimension)
        return kind == "attribute" or (kind == "size" and self.of(place[0])[place[1]] is not None)

    def is_number_of(self, call: Call, dimension: int, parts: Sequence[int]) -> bool:
        """Whether the code works out a dimension of a call's output, and gives those of its parts as numbers.

        So are channels read as pairs, ``x.view(n, c // 2, 2, h, w)`` or ``x.view(n, -1, 2, h, w)``.
        """
        if len(call.given) != len(call.outputs[0].shape):
            return False
        number, others = call.given[dimension], [call.given[i] for i in parts]
        if isinstance(number, Size):
            worked_out = number.formula[0] == "floordiv" and self._varies(number)
        else:
            worked_out = number == -1
        return worked_out and not any(int(other) == -1 or self._varies(other) for other in others)

    def _origin(self, call: Call, dimension: int) -> Formula:
        """The formula of the size that the code gave for a dimension of a call's output, if known."""
        given, shape = call.given, call.outputs[0].shape
        number = given[dimension] if len(given) == len(shape) else 0
        return number.formula if isinstance(number, Size) and int(number) == shape[dimension] else ("",)

    def _varies(self, number: int) -> bool:
        """Whether a number that the code gave depends on channels or attributes, not on places alone."""
        return isinstance(number, Size) and any(
            end[0] == "attribute" or self.of(end[1])[end[2]] is not None for end in ends(number.formula)
        )

    def follow_size(self, given: int, layout: Layout | None) -> bool:
        """Let the attribute that ``given`` comes from, if from one alone, follow ``layout``."""
        if layout is None or not isinstance(given, Size) or given.formula[0] != "attribute":
            return False
        _, path, name, *position = given.formula
        known = self.attributes.get((path, name))
        if position and known is None:
            numbers = vars(self._modules[path])[name]
            known = self.attributes[path, name] = [fixed(n, f"{name} of {path}") for n in numbers]
        if position and isinstance(known, list):
            known[position[0]] = layout
        elif known is None:
            self.attributes[path, name] = layout
        elif isinstance(known, tuple):
            unify(known, layout, f"{name} of {path} is used for both")
        return True


def where(call: Call) -> str:
    return f"{call.op} in {call.module or 'the model'}"


def meet(layouts: Layouts, first: Layout | None, second: Layout | None, reason: str) -> Layout | None:
    """The layout of a dimension in which two operands are combined element by element."""
    if first is None or second is None:
        for layout in (first, second):
            if layout is not None:
                freeze(layout, reason)
        return first or second
    unify(first, second, reason)
    return first


def freeze_value(layouts: Layouts, value: Value, reason: str) -> None:
    for layout in layouts.of(value):
        if layout is not None:
            freeze(layout, reason)


def unknown(layouts: Layouts, call: Call) -> None:
    reason = f"no rule for operator {call.op} (in {call.module or 'the model'})"
    for value in call.inputs:
        freeze_value(layouts, value, reason)
    for output in call.outputs:
        if output in layouts.activations:
            layouts.set(output, [None] * len(output.shape))
        else:
            # Made from weights alone, so without a batch: the reason goes on to the layer that uses it.
            layouts.set(output, [fixed(size, reason) for size in output.shape])
