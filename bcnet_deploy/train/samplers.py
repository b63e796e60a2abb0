"""Which slices of the supernet a training step runs.

Every rule is a :class:`WidthSampler` that yields steps for ever:

=============  ==========================================================================================
bilateral      left and right of a random vector, ½ each; then, if complementary, left and right of its
               complement as the next step (BCNet, sections 2-3 of the paper's training rule)
unilateral     left of a random vector (the older, unfair rule, "UA")
sandwich       left of the widest, the narrowest and random vectors in one step (AutoSlim)
uniform        left of a network with the same level everywhere (slimmable networks)
=============  ==========================================================================================

With :class:`Distilled` the full width also runs in every step and teaches the other paths.
All the rules draw from one ``numpy.random.Generator`` and their state is a JSON-able dict, so that a
resumed run draws what an uninterrupted one would have drawn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np

from bcnet_deploy.errors import CheckpointError, ConfigError, nearest
from bcnet_deploy.train.grid import SIDES, Path, Role, Side, Step, WidthGrid, both_sides

RULES = ("bilateral", "unilateral", "sandwich", "uniform")


class WidthSampler(ABC):
    """Yields training steps for ever. The same generator state gives the same steps."""

    def __init__(self, grid: WidthGrid, rng: np.random.Generator) -> None:
        self.grid = grid
        self.rng = rng
        self._pending: list[Step] = []

    @abstractmethod
    def draw(self) -> list[Step]:
        """The steps that one random draw gives (two for a complementary pair)."""

    def next_step(self) -> Step:
        """The next training step."""
        if not self._pending:
            self._pending = self.draw()
        return self._pending.pop(0)

    def __iter__(self) -> Iterator[Step]:
        while True:
            yield self.next_step()

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: the generator and the steps of a draw that have not been run yet."""
        return {
            "kind": type(self).__name__,
            "generator": _jsonable(self.rng.bit_generator.state),
            "pending": [[_path_to_dict(path) for path in step.paths] for step in self._pending],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken.

        Raises:
            CheckpointError: the state is of another rule or generator.
        """
        if state.get("kind") != type(self).__name__:
            raise CheckpointError(
                f"the checkpoint was trained with {state.get('kind')!r}, this run asks for "
                f"{type(self).__name__!r}; resume with the same rule or start in another folder"
            )
        try:
            self.rng.bit_generator.state = state["generator"]
            self._pending = [Step(tuple(_path_from_dict(path) for path in step)) for step in state["pending"]]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the sampler's state in the checkpoint is damaged: {error}") from error


class Bilateral(WidthSampler):
    """BCNet's rule: both sides of a vector in one step, then both sides of its complement."""

    def __init__(self, grid: WidthGrid, rng: np.random.Generator, *, complementary: bool = True) -> None:
        super().__init__(grid, rng)
        self.complementary = complementary

    def draw(self) -> list[Step]:
        widths = self.grid.draw(self.rng)
        steps = [both_sides(widths)]
        if self.complementary:
            steps.append(both_sides(self.grid.complement(widths)))
        return steps


class Unilateral(WidthSampler):
    """The older rule: width c is always the first c channels."""

    def draw(self) -> list[Step]:
        return [Step((Path(self.grid.draw(self.rng), "left"),))]


class Sandwich(WidthSampler):
    """AutoSlim's rule: widest, narrowest and ``random_paths`` random vectors, left slices, in one step.

    With distillation (its published form) the widest learns from labels and teaches the others.
    Each path's loss has the same weight, together 1, so that the learning rate means the same as
    under the other rules.
    """

    def __init__(
        self, grid: WidthGrid, rng: np.random.Generator, *, random_paths: int = 2, distillation: bool = True
    ) -> None:
        if random_paths < 0:
            raise ConfigError(f"random_paths is {random_paths}; allowed: 0 or more")
        super().__init__(grid, rng)
        self.random_paths = random_paths
        self.distillation = distillation

    def draw(self) -> list[Step]:
        vectors = [self.grid.full, self.grid.narrowest]
        vectors += [self.grid.draw(self.rng) for _ in range(self.random_paths)]
        weight = 1.0 / len(vectors)
        roles: tuple[Role, Role] = ("teacher", "pupil") if self.distillation else ("anchor", "sampled")
        return [Step(tuple(Path(w, "left", weight, roles[i > 0]) for i, w in enumerate(vectors)))]


class Uniform(WidthSampler):
    """Slimmable networks' rule: one relative width for all the layers, left slices."""

    def draw(self) -> list[Step]:
        ratio = (self.rng.integers(max(map(len, self.grid.choices))) + 1) / max(map(len, self.grid.choices))
        picks = [variable[int(np.ceil(ratio * len(variable))) - 1] for variable in self.grid.choices]
        return [Step((Path(np.array(picks, dtype=np.int64), "left"),))]


class Distilled(WidthSampler):
    """Adds the full width to every step of ``inner``: it learns from the labels and teaches the rest.

    On a widened supernet the full width has two slices that differ; then each side has a teacher of
    its own. Together the two train the m outermost levels of each side once and the rest twice: the
    pupils' counts stay equal, those with the teachers do not. All the paths of a step weigh the same.
    """

    def __init__(self, inner: WidthSampler) -> None:
        super().__init__(inner.grid, inner.rng)
        self.inner = inner

    def draw(self) -> list[Step]:
        return [self._with_teacher(step) for step in self.inner.draw()]

    def _with_teacher(self, step: Step) -> Step:
        used = {path.side for path in step.paths}
        sides: list[Side] = [side for side in SIDES if side in used] if self.grid.widened else ["left"]
        weight = 1.0 / (len(sides) + len(step.paths))
        teachers = [Path(self.grid.full, side, weight, "teacher") for side in sides]
        pupils = [
            Path(path.widths, path.side, weight, "pupil", sides.index(path.side) if path.side in sides else 0)
            for path in step.paths
        ]
        return Step((*teachers, *pupils))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "inner": type(self.inner).__name__}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("inner") != type(self.inner).__name__:
            raise CheckpointError(
                f"the checkpoint was trained with distillation over {state.get('inner')!r} (kind "
                f"{state.get('kind')!r}), this run asks for {type(self.inner).__name__!r} with distillation"
            )
        super().load_state_dict(state)


def make_sampler(
    rule: str,
    grid: WidthGrid,
    rng: np.random.Generator,
    *,
    complementary: bool = True,
    distillation: bool = False,
    random_paths: int = 2,
) -> WidthSampler:
    """The sampler of a rule's name.

    Args:
        rule: one of :data:`RULES`.
        grid: choices and stored channels, see :meth:`WidthGrid.create`.
        rng: owned by the sampler from here on.
        complementary: follow each vector by its complement (bilateral only).
        distillation: the full width teaches the other paths.
        random_paths: random vectors in a sandwich step.

    Raises:
        ConfigError: the rule is unknown.
    """
    if rule == "sandwich":
        return Sandwich(grid, rng, random_paths=random_paths, distillation=distillation)
    if rule == "bilateral":
        inner: WidthSampler = Bilateral(grid, rng, complementary=complementary)
    elif rule == "unilateral":
        inner = Unilateral(grid, rng)
    elif rule == "uniform":
        inner = Uniform(grid, rng)
    else:
        allowed = ", ".join(RULES)
        raise ConfigError(f"unknown training rule {rule!r}; allowed: {allowed}{nearest(rule, RULES)}")
    return Distilled(inner) if distillation else inner


def _path_to_dict(path: Path) -> dict[str, Any]:
    return {
        "widths": path.widths.tolist(), "side": path.side, "weight": path.weight, "role": path.role,
        "teacher_index": path.teacher_index,
    }  # fmt: skip


def _path_from_dict(data: dict[str, Any]) -> Path:
    return Path(**{**data, "widths": np.array(data["widths"], dtype=np.int64)})


def _jsonable(value: Any) -> Any:
    """Generator states hold numpy integers and arrays (MT19937); JSON wants Python's."""
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value


__all__ = [
    "RULES", "Bilateral", "Distilled", "Sandwich", "Uniform", "Unilateral", "WidthGrid", "WidthSampler",
    "make_sampler",
]  # fmt: skip
