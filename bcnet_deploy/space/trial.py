"""Check a grouping by running the model's own code at other widths, on shapes alone.

Code that fixes a size (``x.view(-1, 512 * 7 * 7)``) looks like code that asks for it. So before a
grouping is used, the forward pass is traced again with sliced shapes, in both modes, and every
operator's result must have the size that the grouping predicts. Tried are random widths, each variable
at its least beside others that are not, and every width at which the code's own comparisons of sizes come
out differently. Where a trial fails, what flows into that operator is frozen, by name and reason, or kept
from the least width if only that fails, and the trials start again. Last, a copy cut to other widths is
traced as well: extraction must carry all that the model computes with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from bcnet_deploy.errors import InputSizeError, UnsupportedModelError
from bcnet_deploy.space.axes import Axis
from bcnet_deploy.space.capture import TRACE_BATCH, Call, CallError, Trace, Value, run_trace, user_line
from bcnet_deploy.space.extent import Int64, Segments, extent_of, kept_positions
from bcnet_deploy.space.grouping import Grouper, Grouping, multiply_accumulates, require_cnn
from bcnet_deploy.space.patching import attribute_patches
from bcnet_deploy.space.questions import Comparison, Formula
from bcnet_deploy.space.slicing import rebuilt

_ROUNDS = 3
"""Trials at random widths."""
_DRAWS = 16
"""Draws for each of them."""
_CANDIDATES = 4096
"""Width vectors among which one is looked for that changes the answer to a question."""
_MOST_ANSWERS = 64
"""Trials for the sake of questions, at most."""


def analysed(model: nn.Module, input_size: tuple[int, ...]) -> Grouping:
    """The width variables of a model, its operators and how its tensors follow the widths, all tried out.

    Raises:
        UnsupportedModelError: not a CNN, no plain Python, or it does not run at other widths.
        InputSizeError: the model does not run on this input size.
    """
    _require_sliceable(model)
    if len(input_size) != 3 or any(not isinstance(n, int) or n < 1 for n in input_size):
        raise InputSizeError(f"input_size is (channels, height, width), all positive; given: {input_size}")
    grouper = Grouper(model, input_size)
    _require_own_statistics(model, grouper.trace)
    grouping = Trials(model, grouper).settle()
    require_cnn(grouping, model)
    return grouping


def _require_sliceable(model: nn.Module) -> None:
    """Refuse by name what has no plain Python code, shapes or single-precision weights."""
    name = type(model).__name__
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"a width space is made from a torch.nn.Module; given: {name}")
    for path, module in model.named_modules():
        part = f"{path} of {name}" if path else name
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedModelError(
                f"{part} is TorchScript, which cannot be sliced; give the nn.Module behind it"
            )
        if isinstance(module, torch._dynamo.eval_frame.OptimizedModule) or module._compiled_call_impl:
            raise UnsupportedModelError(
                f"{part} is compiled, which cannot be sliced; give the module before it is compiled"
            )
        if "train" in vars(module):  # torch.export puts one there that raises
            try:
                module.train(module.training)
            except NotImplementedError as error:
                raise UnsupportedModelError(
                    f"{part} was made by torch.export, which fixes its mode; give the module before that"
                ) from error
    for tensor_name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise UnsupportedModelError(f"{tensor_name} of {name} has no shape yet; run the model once first")
        if tensor.is_quantized or tensor.dtype in (torch.float16, torch.bfloat16):
            raise UnsupportedModelError(
                f"{tensor_name} of {name} is {str(tensor.dtype).removeprefix('torch.')}; networks are "
                "trained and exported from float32: give model.float(); precision is chosen at export"
            )


def _require_own_statistics(model: nn.Module, trace: Trace) -> None:
    """Refuse what normalises images by one another in evaluation too: alone, each is another one."""
    for call in trace.calls:
        # PyTorch's instance norm is a batch norm as well, with the images beside one another.
        together = "batch_norm" in call.op and call.inputs[0].shape[0] == TRACE_BATCH
        if together and call.argument("training") and call.inputs[0] in trace.activations:
            raise UnsupportedModelError(
                f"{call.module or 'forward'} of {type(model).__name__} is a batch norm without running "
                "statistics: what an image comes to depends on the others of its batch, and the exported "
                "network, which gets one image, would compute something else; set track_running_stats=True, "
                "or take a group norm"
            )


@dataclass
class Failure:
    """A trial that went wrong.

    Attributes:
        call: of the original trace, where the difference shows; None if unknown.
        reason: for the user.
        units: (L,) what was tried.
        elsewhere: whether the code went another way, rather than that an operator refused a size.
        comparison: of the code, whose answer is to blame; None if no such is known.
    """

    call: Call | None
    reason: str
    units: Int64
    elsewhere: bool = False
    comparison: Comparison | None = None


class Trials:
    """Runs a model at other widths until its grouping holds.

    Args:
        model: the model, unchanged.
        grouper: of this model; what fails is frozen in it.
        seed: of the random widths.
    """

    def __init__(self, model: nn.Module, grouper: Grouper, *, seed: int = 0) -> None:
        self.model = model
        self.grouper = grouper
        self.seed = seed
        self.grouping = grouper.group()

    def settle(self) -> Grouping:
        """The grouping after freezing whatever does not run at other widths.

        Raises:
            UnsupportedModelError: the model runs at no other widths, or cannot be copied.
        """
        reason = "no trial was made"
        for _ in range(2 * len(self.grouping.variables) + 2):
            failure = self._first_failure()
            if failure is None:
                self._require_copy()
                return self.grouping
            reason = failure.reason
            if not (
                self._raise_least(failure)
                or self._freeze_answer(failure)
                or self._freeze(failure)
                or self._freeze_alone(reason)
            ):
                raise UnsupportedModelError(
                    f"{type(self.model).__name__} does not run at other widths ({reason}; tried "
                    f"{failure.units.tolist()}); make its forward take sizes from its tensors"
                )
            self.grouping = self.grouper.group()
        raise UnsupportedModelError(f"no width of {type(self.model).__name__} can change: {reason}")

    # -- which widths to try -------------------------------------------------------------------

    @property
    def _most(self) -> Int64:
        return np.array([variable.units for variable in self.grouping.variables], dtype=np.int64)

    @property
    def _least(self) -> Int64:
        return np.array([variable.lowest for variable in self.grouping.variables], dtype=np.int64)

    def _first_failure(self) -> Failure | None:
        if not self.grouping.variables:
            return None
        rng = np.random.default_rng(self.seed)
        vectors = list(self._vectors(rng))
        # Both modes run the same layers, but for auxiliary heads: one trial in training mode does.
        modes = [self.grouper.training_trace or self.grouper.trace, *[self.grouper.trace] * len(vectors)]
        for number, (trace, units) in enumerate(zip(modes, [vectors[0], *vectors], strict=True)):
            failure = self._try(trace, units)
            if failure is not None:
                if failure.elsewhere:
                    failure.comparison = self._suspect(units, vectors[: max(0, number - 1)])
                return failure
        for comparison, units in self._changed_answers(rng, np.stack(vectors)):
            failure = self._try(self.grouper.trace, units)
            if failure is not None:
                failure.comparison = comparison
                return failure
        return None

    @property
    def _comparisons(self) -> list[Comparison]:
        traces = filter(None, (self.grouper.trace, self.grouper.training_trace))
        return list(dict.fromkeys(comparison for trace in traces for comparison in trace.comparisons))

    def _vectors(self, rng: np.random.Generator) -> Iterator[Int64]:
        """Random widths, the least ones, and some least beside random ones.

        Random ones are those of several draws at which most comparisons come out as at full width: where
        that is not so, it is to be tried by itself.
        """
        least, most = self._least, self._most
        even = np.arange(len(most)) % 2 == 0
        never = np.zeros(len(most), dtype=bool)
        yield from (self._drawn(at_least, rng) for at_least in [never] * _ROUNDS)
        yield least
        yield from (self._drawn(at_least, rng) for at_least in (even, ~even))

    def _drawn(self, at_least: npt.NDArray[np.bool_], rng: np.random.Generator) -> Int64:
        least, most = self._least, self._most
        rows = rng.integers(np.minimum(least + 1, most), most + 1, (_DRAWS, len(most)))
        rows[:, at_least] = least[at_least]
        changed = np.zeros(_DRAWS, dtype=np.int64)
        for comparison in self._comparisons:
            changed += self._differs(comparison, rows)
        return np.asarray(rows[int(np.argmin(changed))])

    def _changed_answers(self, rng: np.random.Generator, tried: Int64) -> Iterator[tuple[Comparison, Int64]]:
        """Widths at which a comparison that the code makes comes out otherwise than at full width."""
        least, most = self._least, self._most
        count = 0
        for comparison in self._comparisons:
            if count < _MOST_ANSWERS and not self._differs(comparison, tried).any():
                rows = self._rows_that_differ(comparison, least, most, rng)
                if len(rows):
                    count += 1
                    yield comparison, rows[rng.integers(len(rows))]

    def _suspect(self, units: Int64, passed: list[Int64]) -> Comparison | None:
        """A comparison that comes out otherwise at ``units``; if possible one that did not in ``passed``."""
        suspects = [c for c in self._comparisons if self._differs(c, units[None]).any()]
        for comparison in suspects:
            if not passed or not self._differs(comparison, np.stack(passed)).any():
                return comparison
        return suspects[0] if suspects else None

    def _rows_that_differ(
        self, comparison: Comparison, least: Int64, most: Int64, rng: np.random.Generator
    ) -> Int64:
        """(n, L) units from ``least`` to ``most`` at which a comparison has another answer; maybe none."""
        involved = self._involved(comparison)
        if not involved:
            return np.empty((0, len(most)), dtype=np.int64)
        if np.prod((most - least + 1)[involved].astype(float)) <= _CANDIDATES:
            grid = np.meshgrid(*(np.arange(least[v], most[v] + 1) for v in involved), indexing="ij")
            rows = np.tile(most, (grid[0].size, 1))
            rows[:, involved] = np.stack([axis.ravel() for axis in grid], axis=1)
        else:
            rows = np.tile(most, (_CANDIDATES, 1))
            rows[:, involved] = rng.integers(least, most + 1, (_CANDIDATES, len(most)))[:, involved]
            # Equal numbers of units are rare among random ones, and what code asks for most often.
            equal = rng.integers(1, most[involved].max() + 1, _CANDIDATES // 4)[:, None]
            rows[: _CANDIDATES // 4, involved] = np.clip(equal, least[involved], most[involved])
        return rows[self._differs(comparison, rows)]

    def _involved(self, comparison: Comparison) -> list[int]:
        """The variables on which a comparison depends."""
        segments = (segment for end in comparison.ends() for segment in self._segments_of(end))
        return sorted({segment.variable for segment in segments if segment.variable >= 0})

    def _differs(
        self, comparison: Comparison, units: Int64
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        answers = comparison.answers(lambda end: self._size_of(end, units))
        return np.broadcast_to(np.asarray(answers) != comparison.answer, (len(units),))

    def _segments_of(self, end: Formula) -> Segments:
        if end[0] == "size":
            value, index = end[1:]
            return self.grouper.segments(self.grouper.layouts.of(value)[index], value.shape[index])
        attribute = self.grouping.plan.attributes.get((end[1], end[2]), ())
        return attribute[end[3]] if isinstance(attribute, list) else attribute

    def _size_of(self, end: Formula, units: Int64) -> Int64 | int:
        segments = self._segments_of(end)
        if not segments:  # an attribute that follows nothing
            number = vars(self.model.get_submodule(end[1]))[end[2]]
            return int(number[end[3]] if len(end) > 3 else number)
        steps = tuple(variable.step for variable in self.grouping.variables)
        return extent_of(segments, steps).of_columns(units.T)

    # -- one trial -----------------------------------------------------------------------------

    def _try(self, expected: Trace, units: Int64) -> Failure | None:
        plan = self.grouping.plan
        attributes = attribute_patches(dict(self.model.named_modules()), plan.attribute_values(units))
        training = expected is self.grouper.training_trace
        try:
            actual = run_trace(
                self.model,
                self.grouper.input_size,
                training=training,
                shapes=plan.shapes(units),
                attributes=attributes,
            )
        except CallError as error:
            calls = _significant(expected)
            position = len(_significant(error.trace))
            call = calls[position] if position < len(calls) else None
            message = (str(error.cause).strip().splitlines() or ["?"])[0]
            reason = f"the code fixes a size at {user_line(error.cause) or 'an unknown line'} ({message})"
            return self._mismatch(expected, error.trace, units) or Failure(
                call, reason, units, elsewhere=error.failing is None
            )
        return self._mismatch(expected, actual, units)

    def _mismatch(self, expected: Trace, actual: Trace, units: Int64) -> Failure | None:
        for ours, theirs in zip(_significant(expected), _significant(actual), strict=False):
            if _SAME_AS.get(ours.op, ours.op) != _SAME_AS.get(theirs.op, theirs.op):
                if (units == 1).any() and self._same_products(expected, actual, units):
                    return None
                reason = f"{ours.module or 'the model'} takes another path at other widths"
                return Failure(ours, reason, units, elsewhere=True)
            for a, b in zip(ours.outputs, theirs.outputs, strict=True):
                if self._predicted(a, units) != b.shape:
                    reason = f"{ours.op} in {ours.module or 'the model'} has a size fixed in the code"
                    return Failure(ours, reason, units)
        return None

    def _same_products(self, expected: Trace, actual: Trace, units: Int64) -> bool:
        """Whether a trace computes what it should, though with other operators.

        PyTorch chooses operators by memory layout, which is another one where there is one channel.
        """
        if not actual.outputs:
            return False
        results = [self._predicted(value, units) for value in expected.outputs]
        return results == [value.shape for value in actual.outputs] and multiply_accumulates(
            expected, lambda value: self._predicted(value, units)
        ) == multiply_accumulates(actual, lambda value: value.shape)

    def _predicted(self, value: Value, units: Int64) -> tuple[int, ...]:
        return tuple(
            kept_positions(self.grouper.segments(layout, size), units)
            for layout, size in zip(self.grouper.layouts.of(value), value.shape, strict=True)
        )

    # -- what to do about a failure ------------------------------------------------------------

    def _alike(self, call: Call) -> list[Call]:
        """The call itself and the same call in modules of the same class.

        Repeated blocks fail alike; taken one a trial, a deep network would need a trial for each.
        """
        calls = self.grouper.trace.calls
        own = [other for other in calls if other.module == call.module]
        if not call.module or call not in own:
            return [call]
        place, ops = own.index(call), [c.op for c in own]
        found = []
        for path in self._same_kind(call.module):
            theirs = [other for other in calls if other.module == path]
            if [c.op for c in theirs] == ops:
                found.append(theirs[place])
        return found

    def _same_kind(self, path: str) -> list[str]:
        kind = type(self.model.get_submodule(path))
        return [other for other, module in self.model.named_modules() if other and type(module) is kind]

    def _freeze_answer(self, failure: Failure) -> bool:
        """Freeze one of the variables that a comparison depends on if that settles its answer, else all."""
        if failure.comparison is None:
            return False
        involved = self._involved(failure.comparison)
        rng = np.random.default_rng(self.seed)
        for index in involved:
            least = self._least
            least[index] = self._most[index]
            if not len(self._rows_that_differ(failure.comparison, least, self._most, rng)):
                involved = [index]
                break
        return _frozen({self.grouper.axes[index] for index in involved}, failure.reason)

    def _flowing(self, call: Call | None) -> set[Axis]:
        """What varies and flows into a call, and into the same call of modules of the same class.

        Where nothing that varies flows into the call itself, the size comes from elsewhere in its module:
        then it is all that flows into the module and its parts.
        """
        if call is None:
            return set()
        axes = self.grouper.inputs_of(call)
        if axes:
            return axes.union(*(self.grouper.inputs_of(other) for other in self._alike(call)))
        if call.module:
            for path in self._same_kind(call.module):
                for other in self.grouper.trace.calls:
                    if other.module == path or other.module.startswith(f"{path}."):
                        axes |= self.grouper.inputs_of(other)
        return axes

    def _raise_least(self, failure: Failure) -> bool:
        """Keep variables that were tried at one unit from it, once: ``squeeze()`` drops such channels."""
        index = {axis: i for i, axis in enumerate(self.grouper.axes)}
        raised = {
            axis
            for axis in self._flowing(failure.call)
            if axis in index and failure.units[index[axis]] == 1 and axis not in self.grouper.lowest
        }
        for axis in raised:
            if axis.size > 2:
                self.grouper.lowest[axis] = 2
            else:
                axis.reason = failure.reason
        return bool(raised)

    def _freeze(self, failure: Failure) -> bool:
        return _frozen(self._flowing(failure.call), failure.reason)

    def _freeze_alone(self, reason: str) -> bool:
        """Change one variable at a time and freeze those that fail; False if none does."""
        failing = set()
        for index in range(len(self._most)):
            units = self._most
            units[index] = max(self._least[index], units[index] // 2)
            for expected in filter(None, (self.grouper.trace, self.grouper.training_trace)):
                if self._try(expected, units) is not None:
                    failing.add(self.grouper.axes[index])
                    break
        return _frozen(failing, reason)

    # -- the copy ------------------------------------------------------------------------------

    def _require_copy(self) -> None:
        """Refuse a model whose copy computes with something else than its own sliced tensors.

        Raises:
            UnsupportedModelError: naming the part.
        """
        if not self.grouping.variables:
            return
        name = type(self.model).__name__
        units = np.maximum(self._least, self._most // 2)
        shapes = self.grouping.plan.shapes(units)
        try:
            copy = rebuilt(
                self.grouping.plan,
                self.model,
                units.tolist(),
                lambda name, tensor: torch.empty(shapes[name], dtype=tensor.dtype, device="meta"),
            )
        except Exception as error:  # copy runs the code of whatever the model holds
            raise UnsupportedModelError(
                f"{name} cannot be copied ({type(error).__name__}: {str(error).splitlines()[:1]}), so no "
                "sub-network can be extracted; keep what cannot be copied out of its attributes"
            ) from error
        expected = _significant(self.grouper.trace)
        try:
            actual = _significant(run_trace(copy, self.grouper.input_size))
        except CallError as error:
            actual = _significant(error.trace)
        for ours, theirs in zip(expected, actual, strict=False):
            sizes = [self._predicted(value, units) for value in ours.outputs]
            if _sources(ours) != _sources(theirs) or sizes != [value.shape for value in theirs.outputs]:
                raise UnsupportedModelError(self._about_copy(ours))
        if len(expected) != len(actual):
            raise UnsupportedModelError(self._about_copy(expected[min(len(actual), len(expected) - 1)]))

    def _about_copy(self, call: Call) -> str:
        name = type(self.model).__name__
        wrapped = [
            path
            for path, module in self.model.named_modules()
            if "forward" in vars(module)
            and (call.module == path or call.module.startswith(f"{path}.") or not path)
        ]
        what = (
            f"the forward of {wrapped[-1] or name} is a function that holds on to it"
            if wrapped
            else "a function, hook or list may hold on to it"
        )
        return (
            f"a copy of {name} still computes with parts of the original ({call.op} in "
            f"{call.module or 'the model'}): {what}; make the wrapper an nn.Module that has it as a submodule"
        )


def _frozen(axes: set[Axis], reason: str) -> bool:
    for axis in axes:
        if axis.reason is None:
            axis.reason = reason
    return bool(axes)


def _sources(call: Call) -> list[str | None]:
    """The parameters and buffers that a call reads, None for other inputs."""
    return [(value.base or value).parameter for value in call.inputs]


_MEMORY_ONLY = frozenset({"clone", "alias", "detach", "as_strided"})
_SAME_AS = {"_unsafe_view": "view", "_reshape_alias": "view", "reshape": "view"}


def _significant(trace: Trace) -> list[Call]:
    """Calls that compute: whether a reshape copies depends on strides, which depend on widths."""
    return [call for call in trace.calls if call.outputs and call.op not in _MEMORY_ONLY]
