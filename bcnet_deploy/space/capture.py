"""Record what a model computes, operator by operator, without computing it.

The model's own ``forward`` runs under fake tensors (shapes without data), so Python control flow,
functional calls, bare parameters and modules that are called twice need no special case, and
nothing in the model is changed. Operators are seen at ATen level, below PyTorch's composite
functions: about forty kinds cover every CNN in torchvision.

Control flow that depends on *values* cannot run under fake tensors; it is reported with its line.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_iter, tree_map_only

from bcnet_deploy.errors import InputSizeError, UnsupportedModelError
from bcnet_deploy.space.patching import ModuleState, TensorPlace, patched, tensor_places
from bcnet_deploy.space.questions import Comparison, Questions

TRACE_BATCH = 2
"""Batch size of the trace: not 1, which many operators treat apart."""


@dataclass(eq=False)
class Value:
    """A tensor of the trace: an input, a parameter, a buffer or the result of a call."""

    shape: tuple[int, ...]
    parameter: str | None = None
    base: Value | None = None
    """The tensor whose memory a view shares."""


@dataclass(eq=False)
class Call:
    """One operator call."""

    op: str
    """Name of the ATen operator without namespace, overload and in-place underscore."""
    func: torch._ops.OpOverload[Any, Any]
    args: tuple[Any, ...]
    """Arguments by position, defaults filled in; tensors replaced by :class:`Value`."""
    outputs: list[Value]
    inputs: list[Value]
    module: str
    in_place: bool = False
    function: str = ""
    """The PyTorch function behind the call, if the trace was made to note it."""
    given: tuple[int, ...] = ()
    """Integers that the code gave to that function; see :class:`Size`."""

    def argument(self, name: str) -> Any:
        """An argument by the name it has in the operator's schema; None where there is no such."""
        names = [argument.name for argument in self.func._schema.arguments]
        return self.args[names.index(name)] if name in names else None


@dataclass
class Trace:
    """Everything one forward pass did, in order."""

    calls: list[Call] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    parameters: dict[str, Value] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)
    """What the code asked about sizes, if the trace was made to note it."""
    reshaped: str | None = None
    """A parameter or buffer that forward replaced by one of another shape."""

    @cached_property
    def activations(self) -> set[Value]:
        """Values that depend on the image. To be asked for once the trace is complete."""
        found = set(self.inputs)
        for call in self.calls:
            if any(value in found for value in call.inputs):
                found.update(value for value in call.outputs if value.parameter is None)
        return found


class CallError(Exception):
    """The forward pass failed at a call; carries what was recorded before it."""

    def __init__(self, cause: BaseException, trace: Trace, failing: Call | None) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.trace = trace
        self.failing = failing


class _Recorder(TorchDispatchMode):
    def __init__(self, trace: Trace, stack: list[str]) -> None:
        super().__init__()
        self.trace = trace
        self.stack = stack
        self.values: dict[int, Value] = {}
        self.alive: list[torch.Tensor] = []
        self.failing: Call | None = None
        self.made = Made()
        self.questions = Questions(lambda tensor: self.values.get(id(tensor)))

    def value(self, tensor: torch.Tensor, **facts: Any) -> Value:
        known = self.values.get(id(tensor))
        if known is None:
            known = self.values[id(tensor)] = Value(tuple(tensor.shape), **facts)
            # Identity is by id(): the tensor must outlive the trace.
            self.alive.append(tensor)
        return known

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.channel_shuffle.default:
            x, groups = args
            with self:  # the same in operators that rules are known of
                cut = x.view(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
                return cut.transpose(1, 2).reshape(x.shape)
        schema = func._schema
        bound = _bind(schema, args, kwargs)
        inputs = [self.value(t) for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)]
        name = schema.name.split("::")[-1]
        call = Call(
            op=name.rstrip("_") if not name.startswith("_") else "_" + name.strip("_"),
            func=func,
            args=_replace(bound, self.value),
            outputs=[],
            inputs=inputs,
            module=self.stack[-1] if self.stack else "",
            in_place=schema.is_mutable and name.endswith("_"),
            function=self.questions.function,
            given=tuple(self.questions.given),
        )
        self.failing = call
        if name == "_local_scalar_dense" and self.made.knows(args[0]):
            self.failing = None
            return self.made.number(args[0])
        if "batch_norm" in name:
            result = _normalized(args[0], [t for t in args[1:5] if isinstance(t, torch.Tensor)])
        else:
            result = func(*args, **kwargs)
        self.failing = None
        base = inputs[0].base or inputs[0] if func.is_view and inputs else None
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                call.outputs.append(self.value(tensor, base=base))
        self.trace.calls.append(call)
        self.made.note(func, args, kwargs, result)
        return result


class Made:
    """Tensors of a trace whose values are known: made of constants and of tensors that are no weights.

    Anchor points, strides and tables are such. They depend on shapes alone, so code may decide by them. How
    each was made is noted, and carried out with real tensors when a value is asked for.
    """

    def __init__(self) -> None:
        self._recipes: dict[int, tuple[Any, tuple[Any, ...], Mapping[str, Any], int | None]] = {}
        self._values: dict[int, torch.Tensor] = {}

    def knows(self, tensor: torch.Tensor) -> bool:
        if not isinstance(tensor, FakeTensor):
            return not isinstance(tensor, nn.Parameter)
        return id(tensor) in self._recipes

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The real tensor behind one that is known."""
        if not isinstance(tensor, FakeTensor):
            return tensor
        if id(tensor) not in self._values:
            func, args, kwargs, index = self._recipes[id(tensor)]
            args, kwargs = tree_map_only(torch.Tensor, self.of, (args, dict(kwargs)))
            with _disable_current_modes():
                result = func(*args, **kwargs)
            self._values[id(tensor)] = result if index is None else result[index]
        return self._values[id(tensor)]

    def number(self, tensor: torch.Tensor) -> Any:
        """The value of one that is known and has one element."""
        with _disable_current_modes():
            return self.of(tensor).item()

    def note(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        """Note a call that was made, and the fake tensors that came of it."""
        inputs = [t for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)]
        if func._schema.is_mutable:
            # Views of what is written into change as well: nothing made so far is sure any more.
            if any(isinstance(t, FakeTensor) and self.knows(t) for t in inputs):
                self._recipes.clear()
                self._values.clear()
            return
        known = all(map(self.knows, inputs))
        if not known or torch.Tag.nondeterministic_seeded in func.tags or "empty" in func.__name__:
            return
        if isinstance(result, torch.Tensor):
            self._recipes[id(result)] = (func, args, kwargs, None)
        elif isinstance(result, (list, tuple)):
            for index, item in enumerate(result):
                if isinstance(item, torch.Tensor):
                    self._recipes[id(item)] = (func, args, kwargs, index)


def _normalized(x: torch.Tensor, per_channel: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Batch normalisation as far as shapes go: PyTorch's own shape rule takes half of a trace's time."""
    for tensor in per_channel:
        if tensor.shape != x.shape[1:2]:
            raise RuntimeError(
                f"batch norm of {x.shape[1]} channels with statistics of shape {tuple(tensor.shape)}"
            )
    return x.new_empty(x.shape), x.new_empty(x.shape[1:2]), x.new_empty(x.shape[1:2])


def _bind(schema: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    bound = []
    for index, argument in enumerate(schema.arguments):
        if index < len(args):
            bound.append(args[index])
        elif argument.name in kwargs:
            bound.append(kwargs[argument.name])
        else:
            bound.append(argument.default_value if argument.has_default_value() else None)
    return tuple(bound)


def _replace(value: Any, to_value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return to_value(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_replace(item, to_value) for item in value)
    return value


@contextmanager
def _module_stack(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keep the path of the module whose forward is running on top of ``stack``."""
    handles = []

    def enter(path: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            stack.append(path)

        return hook

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        stack.pop()

    try:
        for path, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(enter(path), prepend=True))
            handles.append(module.register_forward_hook(leave))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Set the training flag of every module, and put each one's own back."""
    former = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in former:
            module.training = training
        yield
    finally:
        for module, flag in former:
            module.training = flag


@contextmanager
def _silent() -> Iterator[None]:
    """Without PyTorch's log of shape errors: a trial that fails is an answer, not an accident."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    former = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = former


def run_trace(
    model: nn.Module,
    input_size: tuple[int, ...],
    *,
    training: bool = False,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    attributes: list[tuple[nn.Module, str, Any]] | None = None,
    asking: bool = False,
) -> Trace:
    """The calls of one forward pass on a batch of :data:`TRACE_BATCH` inputs.

    Args:
        model: any module whose forward takes one tensor.
        input_size: (channels, height, width).
        training: trace with the training flag set (batch statistics, auxiliary heads).
        shapes: other shapes for some parameters and buffers, by name.
        attributes: integer attributes to replace during the trace.
        asking: note what the code asks about sizes, and from which attributes it takes them.

    Raises:
        CallError: the forward pass failed; nothing in ``model`` has changed.
    """
    trace = Trace()
    stack: list[str] = []
    shapes = shapes or {}
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    recorder = _Recorder(trace, stack)
    replaced: list[tuple[TensorPlace, torch.Tensor]] = []
    state = ModuleState(model)
    with fake_mode:
        for name, places in tensor_places(model).items():
            real = places[0].table[places[0].key]
            tensor: torch.Tensor = torch.empty(shapes.get(name, tuple(real.shape)), dtype=real.dtype)
            if places[0].is_parameter:
                tensor = nn.Parameter(tensor, requires_grad=False)
            trace.parameters[name] = recorder.value(tensor, parameter=name)
            replaced.extend((place, tensor) for place in places)
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        image = torch.empty((TRACE_BATCH, *input_size), dtype=dtype)
    trace.inputs.append(recorder.value(image))
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # The stack recovers by itself only if forward hooks run; a failed trace is thrown away.
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with (
            _module_stack(model, stack),
            _mode(model, training),
            patched(replaced, recorder.questions.attributes(model) if asking else attributes or ()),
            _silent(),
            torch.no_grad(),
            fake_mode,
            recorder,
            recorder.questions if asking else nullcontext(),
        ):
            result = model(image)
            trace.reshaped = next(
                (
                    f"{place.key} of {type(place.owner).__name__}"
                    for place, tensor in replaced
                    if getattr(place.table.get(place.key), "shape", tensor.shape) != tensor.shape
                ),
                None,
            )
    except Exception as error:
        raise CallError(error, trace, recorder.failing) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        state.restore()
    trace.outputs = [recorder.value(t) for t in _tensors(result)]
    trace.comparisons = list(recorder.questions.noted)
    return trace


def _tensors(result: Any) -> Iterator[torch.Tensor]:
    for item in tree_iter(result):
        if isinstance(item, torch.Tensor):
            yield item
        elif hasattr(item, "__dict__"):
            yield from (value for value in vars(item).values() if isinstance(value, torch.Tensor))


def capture(model: nn.Module, input_size: tuple[int, ...], *, training: bool = False) -> Trace:
    """:func:`run_trace` of the unchanged model, with failures turned into the user's terms.

    Raises:
        UnsupportedModelError: control flow depends on data, or forward does not take one tensor.
        InputSizeError: the model rejects inputs of ``input_size``.
    """
    try:
        trace = run_trace(model, input_size, training=training, asking=True)
        if trace.reshaped is not None:
            raise UnsupportedModelError(
                f"{type(model).__name__} replaces {trace.reshaped} by one of another shape when it runs; "
                "make it in __init__ for this input size, or run the model once before it is given"
            )
        return trace
    except CallError:
        pass  # maybe for the integers that ask; an error of the model's own comes again
    try:
        return run_trace(model, input_size, training=training)
    except CallError as failure:
        cause = failure.cause
        line = user_line(cause)
        where = f" at {line}" if line else ""
        name = type(model).__name__
        if isinstance(cause, (DataDependentOutputException, DynamicOutputShapeException)) or (
            ".numpy()" in str(cause)
        ):
            raise UnsupportedModelError(
                f"{name} decides by the values of a tensor, so its layers differ from input to input"
                f"{where}; make the decision depend on shapes or on the training flag only; of a detector "
                "give the network up to the raw outputs of its heads"
            ) from cause
        if isinstance(cause, (TypeError, AttributeError, NotImplementedError, KeyError)):
            several = (
                "; bcnet_deploy.models.SeveralInputs makes one image of several inputs"
                if isinstance(cause, TypeError) and "required positional argument" in str(cause)
                else ""
            )
            raise UnsupportedModelError(
                f"{name} cannot run on one image tensor ({type(cause).__name__}: {_first_line(cause)}){where}"
                f"{several}"
            ) from cause
        size = "x".join(map(str, input_size))
        raise InputSizeError(
            f"{name} does not run on inputs of {size} ({_first_line(cause)}){where}; "
            "give the size it was made for with input_size / --input-size"
        ) from cause


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def user_line(error: BaseException) -> str:
    """``file.py:12 'if x.sum() > 0:'``: the innermost line outside PyTorch and this package, or ''."""
    ours = Path(__file__).parent
    torch_root = Path(torch.__file__).parent
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        path = Path(frame.filename)
        if ours not in path.parents and torch_root not in path.parents and path.suffix == ".py":
            return f"{path.name}:{frame.lineno} {frame.line!r}"
    return ""
