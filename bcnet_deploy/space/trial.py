"""Check a grouping by running the model's own code at other widths, on shapes alone.

Code that fixes a size (``x.view(-1, 512 * 7 * 7)``) looks like code that asks for it. So before a
grouping is used, the forward pass is traced again with sliced shapes, in both modes, and every
operator's result must have the size that the grouping predicts. Where it has not, what flows into
that operator is frozen, by name and reason, and the trial starts again.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from bcnet_deploy.errors import InputSizeError, UnsupportedModelError
from bcnet_deploy.space.capture import Call, CallError, Trace, Value, run_trace, user_line
from bcnet_deploy.space.extent import kept_positions
from bcnet_deploy.space.grouping import Grouper, Grouping, require_cnn
from bcnet_deploy.space.patching import attribute_patches


def analysed(model: nn.Module, input_size: tuple[int, ...]) -> Grouping:
    """The width variables of a model, its operators and how its tensors follow the widths, all tried out.

    Raises:
        UnsupportedModelError: not a CNN, no plain Python, or it does not run at other widths.
        InputSizeError: the model does not run on this input size.
    """
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
    grouping = settle(model, Grouper(model, input_size))
    require_cnn(grouping, model)
    return grouping


def settle(model: nn.Module, grouper: Grouper, *, rounds: int = 3, seed: int = 0) -> Grouping:
    """The grouping after freezing whatever does not run at other widths.

    Raises:
        UnsupportedModelError: the model does not run at full width under its own plan (never seen;
            it would be a defect, and a wrong slice is worse than a refusal).
    """
    grouping = grouper.group()
    reason = "no trial was made"
    for _ in range(len(grouping.variables) + 2):
        failure = _first_failure(model, grouper, grouping, rounds, np.random.default_rng(seed))
        if failure is None:
            grouping.notes += _at_one_unit(model, grouper, grouping)
            return grouping
        call, reason, unit_rows = failure
        if not _freeze_at(model, grouper, call, reason) and not _freeze_alone(
            model, grouper, grouping, reason
        ):
            raise UnsupportedModelError(
                f"{type(model).__name__} does not run at other widths ({reason}; tried {unit_rows}); "
                "make its forward take sizes from its tensors"
            )
        grouping = grouper.group()
    raise UnsupportedModelError(f"no width of {type(model).__name__} can change: {reason}")


Failure = tuple[Call | None, str, list[int]]


def _first_failure(
    model: nn.Module, grouper: Grouper, grouping: Grouping, rounds: int, rng: np.random.Generator
) -> Failure | None:
    maxima = np.array([variable.units for variable in grouping.variables], dtype=np.int64)
    if not len(maxima):
        return None
    for number in range(rounds):
        units = rng.integers(1, maxima + 1)
        # Both modes run the same layers, but for auxiliary heads: one trial in training mode is enough.
        expected = grouper.training_trace if number == 0 else grouper.trace
        failure = _try(model, grouper, grouping, expected or grouper.trace, units)
        if failure is not None:
            return failure
    return None


def _at_one_unit(model: nn.Module, grouper: Grouper, grouping: Grouping) -> list[str]:
    """A note if the code fails where every variable is at its least; ``squeeze()`` drops such channels.

    Nothing is frozen for it: two channels already run. Operators may differ here, since memory
    layouts do, so only the results are compared.
    """
    units = np.ones(len(grouping.variables), dtype=np.int64)
    shapes, attributes = _sliced(model, grouping, units)
    try:
        trace = run_trace(model, grouper.input_size, shapes=shapes, attributes=attributes)
    except CallError as error:
        where = user_line(error.cause) or "an unknown line"
    else:
        predicted = [tuple(_sizes(grouper, value, units)) for value in grouper.trace.outputs]
        if predicted == [value.shape for value in trace.outputs]:
            return []
        where = "its outputs, which then have other shapes"
    return [f"widths of one channel may not run: the code fails there at {where}"]


def _sliced(
    model: nn.Module, grouping: Grouping, units: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
) -> tuple[dict[str, tuple[int, ...]], list[tuple[nn.Module, str, object]]]:
    """Shapes of tensors and integer attributes of modules at these units."""
    values = grouping.plan.attribute_values(units)
    return grouping.plan.shapes(units), attribute_patches(dict(model.named_modules()), values)


def _try(
    model: nn.Module,
    grouper: Grouper,
    grouping: Grouping,
    expected: Trace,
    units: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
) -> Failure | None:
    shapes, attributes = _sliced(model, grouping, units)
    training = expected is grouper.training_trace
    try:
        actual = run_trace(model, grouper.input_size, training=training, shapes=shapes, attributes=attributes)
    except CallError as error:
        calls = _significant(expected)
        position = len(_significant(error.trace))
        call = calls[position] if position < len(calls) else None
        mismatch = _mismatch(grouper, expected, error.trace, units)
        if mismatch is not None:
            return mismatch[0], mismatch[1], units.tolist()
        message = (str(error.cause).strip().splitlines() or ["?"])[0]
        return (
            call,
            f"the code fixes a size at {user_line(error.cause) or 'an unknown line'} ({message})",
            units.tolist(),
        )
    mismatch = _mismatch(grouper, expected, actual, units)
    return None if mismatch is None else (*mismatch, units.tolist())


def _mismatch(
    grouper: Grouper, expected: Trace, actual: Trace, units: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
) -> tuple[Call, str] | None:
    for ours, theirs in zip(_significant(expected), _significant(actual), strict=False):
        if _SAME_AS.get(ours.op, ours.op) != _SAME_AS.get(theirs.op, theirs.op):
            return ours, f"{ours.module or 'the model'} takes another path at other widths"
        for a, b in zip(ours.outputs, theirs.outputs, strict=True):
            predicted = tuple(_sizes(grouper, a, units))
            if predicted != b.shape:
                return ours, f"{ours.op} in {ours.module or 'the model'} has a size fixed in the code"
    return None


_MEMORY_ONLY = frozenset({"clone", "alias", "detach", "as_strided"})
_SAME_AS = {"_unsafe_view": "view", "_reshape_alias": "view", "reshape": "view"}


def _significant(trace: Trace) -> list[Call]:
    """Calls that compute: whether a reshape copies depends on strides, which depend on widths."""
    return [call for call in trace.calls if call.outputs and call.op not in _MEMORY_ONLY]


def _sizes(
    grouper: Grouper, value: Value, units: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
) -> Iterator[int]:
    for layout, size in zip(grouper.layouts.of(value), value.shape, strict=True):
        yield kept_positions(grouper.segments(layout, size), units)


def _freeze_at(model: nn.Module, grouper: Grouper, call: Call | None, reason: str) -> bool:
    """Freeze what flows into a failing call, and into the same call of modules of the same class.

    Repeated blocks fail alike; taken one a trial, a deep network would need a trial for each. Where
    nothing that varies flows into the call itself, the size comes from elsewhere in its module:
    then all that flows into the module and its parts is frozen.
    """
    if call is None:
        return False
    if not call.module:
        return grouper.freeze_inputs(call, reason)
    kind = type(model.get_submodule(call.module))
    same_kind = [path for path, module in model.named_modules() if path and type(module) is kind]
    calls = grouper.trace.calls
    own = [other for other in calls if other.module == call.module]
    place = own.index(call) if call in own else -1
    if grouper.freeze_inputs(call, reason):
        for path in same_kind:
            theirs = [other for other in calls if other.module == path]
            if place >= 0 and [c.op for c in theirs] == [c.op for c in own]:
                grouper.freeze_inputs(theirs[place], reason)
        return True
    found = False
    for path in same_kind:
        for other in calls:
            if other.module == path or other.module.startswith(f"{path}."):
                found |= grouper.freeze_inputs(other, reason)
    return found


def _freeze_alone(model: nn.Module, grouper: Grouper, grouping: Grouping, reason: str) -> bool:
    """Change one variable at a time and freeze those that fail; False if none does."""
    maxima = np.array([variable.units for variable in grouping.variables], dtype=np.int64)
    failing = []
    for index in range(len(maxima)):
        units = maxima.copy()
        units[index] = max(1, units[index] // 2)
        for expected in filter(None, (grouper.trace, grouper.training_trace)):
            if _try(model, grouper, grouping, expected, units) is not None:
                failing.append(index)
                break
    for index in failing:
        grouper.freeze_axis_of(grouper.axes[index], reason)
    return bool(failing)
