"""The stages of a network that follow one another, so that networks which begin alike share activations.

Statistics of a batch norm depend on the layers before it alone. So sub-networks that agree in the widths of
their first stages agree in these stages' activations, while batch norms are recalibrated and afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from bcnet_deploy.nn import Supernet

Widths = tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """Modules that run one after another, each on the former one's output alone.

    Attributes:
        modules: in order.
        variables: all that the last one's output depends on, those of earlier stages included.
        norms: positions, among the model's batch norms, of those within.
    """

    modules: tuple[nn.Module, ...]
    variables: tuple[int, ...]
    norms: tuple[int, ...]


@dataclass
class _Call:
    path: str
    module: nn.Module
    given: Any
    returned: Any
    version: int


@dataclass
class _Reached:
    """The output of a stage, and the widths that it depends on."""

    key: Widths
    output: torch.Tensor


@dataclass
class Chain:
    """Runs a supernet's sub-networks on one batch, resuming behind the stages shared with the one before.

    Args:
        supernet: in evaluation mode.
        stages: from :func:`stages_of`; none: nothing is shared.
    """

    supernet: Supernet
    stages: Sequence[Stage]
    _reached: list[_Reached] = field(default_factory=list)

    def start(self) -> None:
        """Forget the activations: another batch, side or mode follows."""
        self._reached.clear()

    def order(self, rows: Iterable[Widths]) -> list[Widths]:
        """The order in which most is shared."""
        return sorted(rows, key=lambda row: (*(row[v] for s in self.stages for v in s.variables), *row))

    def run(
        self,
        widths: Widths,
        images: torch.Tensor,
        before: Callable[[set[int]], None] = lambda skipped: None,
        after: Callable[[set[int]], None] = lambda skipped: None,
    ) -> Any:
        """The output for the supernet's active slice, which has these widths.

        Args:
            widths: (L,)
            images: the same batch as in other calls since :meth:`start`.
            before, after: called with the slice in place and the positions of the batch norms that are not
                run again.
        """
        keys = [tuple(widths[v] for v in stage.variables) for stage in self.stages]
        common = 0
        while common < len(self._reached) and self._reached[common].key == keys[common]:
            common += 1
        del self._reached[common:]
        skipped = {norm for stage in self.stages[:common] for norm in stage.norms}
        with self.supernet.sliced() as model, ExitStack() as stack:
            before(skipped)
            if common:
                stack.enter_context(_resumed(self.stages[:common], self._reached[-1].output))
            for stage, key in zip(self.stages[common:], keys[common:], strict=True):
                stack.enter_context(_noted(stage.modules[-1], self._reached, key))
            output = model(images)
            after(skipped)
            return output


@contextmanager
def _noted(module: nn.Module, reached: list[_Reached], key: Widths) -> Iterator[None]:
    handle = module.register_forward_hook(
        lambda module, inputs, output: reached.append(_Reached(key, output))
    )
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _resumed(stages: Sequence[Stage], output: torch.Tensor) -> Iterator[None]:
    """Stages that pass on what they get, the last one ``output``."""
    modules = [module for stage in stages for module in stage.modules]
    for module in modules:
        module.forward = lambda given: given
    modules[-1].forward = lambda given: output
    try:
        yield
    finally:
        for module in modules:
            del module.__dict__["forward"]


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """All that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


@torch.no_grad()
def stages_of(supernet: Supernet, images: torch.Tensor) -> tuple[Stage, ...]:
    """The stages that sub-networks can share; empty where the model is no chain at its beginning.

    Empty too where a batch norm runs twice on a batch: what it keeps is then no stage's alone.

    Found by running the active slice, and believed only where skipping them changes nothing.

    Args:
        supernet: left as it is, but for hooks that are gone afterwards.
        images: a batch; the first two are run.
    """
    training = supernet.training
    supernet.eval()
    probe = images[:2]
    try:
        calls = _calls(supernet, probe)
        stages = _grouped(supernet, calls)
        # A stage's output that something else reads too would be missed when the stage is skipped.
        while stages and not _can_be_skipped(supernet, stages, probe):
            stages = stages[:-1]
    finally:
        supernet.train(training)
    return stages


def _calls(supernet: Supernet, probe: torch.Tensor) -> list[_Call]:
    """Calls of the model's parts from its first one on, as long as each runs on the former one's output."""
    found: list[_Call] = []
    seen: dict[nn.Module, int] = {}
    handles = []

    def note(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, keywords: Any, output: Any) -> None:
            seen[module] = seen.get(module, 0) + 1
            plain = len(inputs) == 1 and not keywords and isinstance(output, torch.Tensor)
            given = inputs[0] if plain else None
            version = output._version if isinstance(output, torch.Tensor) else -1
            found.append(_Call(path, module, given, output, version))

        return hook

    for path, module in _parts(supernet.model):
        if "forward" not in module.__dict__:
            handles.append(module.register_forward_hook(note(path), with_kwargs=True))
    runs: Counter[nn.Module] = Counter()
    for norm in batch_norms(supernet.model):
        handles.append(norm.register_forward_hook(lambda module, *_: runs.update([module])))
    try:
        supernet(probe)
    finally:
        for handle in handles:
            handle.remove()
    if max(runs.values(), default=0) > 1:
        return []
    chain: list[_Call] = []
    for call in found:
        follows = not chain or call.given is chain[-1].returned
        if call.given is None or not follows or seen[call.module] > 1:
            break
        chain.append(call)
    return chain


def _parts(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The model's children; sequences are taken apart."""
    for name, child in model.named_children():
        if type(child) is nn.Sequential:
            yield from _parts(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def _grouped(supernet: Supernet, calls: Sequence[_Call]) -> tuple[Stage, ...]:
    """Calls in stages: one ends where the next part has a width of its own, and works on a copy."""
    space = supernet.space
    position = {norm: i for i, norm in enumerate(batch_norms(supernet.model))}
    needed: set[int] = set()
    stages: list[Stage] = []
    modules: list[nn.Module] = []
    for index, call in enumerate(calls):
        modules.append(call.module)
        needed |= _variables(space.slices, call.path)
        for (path, _), value in space.plan.attributes.items():
            if f"{path}.".startswith(f"{call.path}."):
                needed |= {s.variable for s in _segments(value) if s.variable >= 0}
        after = calls[index + 1] if index + 1 < len(calls) else None
        changed = call.returned._version != call.version
        new = after is None or not _variables(space.slices, after.path) <= needed
        if new and not changed:
            norms = tuple(
                position[m] for part in modules for m in part.modules()
                if isinstance(m, _BatchNorm) and m in position
            )  # fmt: skip
            stages.append(Stage(tuple(modules), tuple(sorted(needed)), norms))
            modules = []
    return tuple(stages)


def _variables(slices: Any, path: str) -> set[int]:
    return {
        segment.variable
        for name, dims in slices.items() if name.startswith(f"{path}.")
        for segments in dims for segment in segments if segment.variable >= 0
    }  # fmt: skip


def _segments(value: Any) -> Iterator[Any]:
    """The segments of an attribute: one tuple of them, or a tuple of such tuples."""
    for item in value:
        if isinstance(item, tuple):
            yield from item
        else:
            yield item


def _can_be_skipped(supernet: Supernet, stages: tuple[Stage, ...], probe: torch.Tensor) -> bool:
    widths = tuple(int(w) for w in supernet.active[0])
    chain = Chain(supernet, stages)
    try:
        first, second = chain.run(widths, probe), chain.run(widths, probe)
    except Exception:  # whatever a foreign model's forward does with what it is not given
        return False
    own, other = pytree.tree_leaves(first), pytree.tree_leaves(second)
    return len(own) == len(other) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(own, other, strict=True)
    )
