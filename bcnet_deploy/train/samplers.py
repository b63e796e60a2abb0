"""Which slices of the supernet a training step runs.

A rule is a :class:`WidthSampler` that yields steps for ever. Built in:

=============  ==========================================================================================
bilateral      left and right of a random vector, half the loss each; then, if complementary, left and
               right of its complement as the next step (BCNet, sections 2-3 of the paper's training rule)
unilateral     left of a random vector (the older, unfair rule, "UA")
sandwich       left of the widest, the narrowest and random vectors in one step (AutoSlim)
uniform        left of a network with the same level everywhere (slimmable networks)
=============  ==========================================================================================

With :class:`Distilled` the full width also runs in every step and teaches the other paths.
A rule draws from one ``numpy.random.Generator`` and its state is a JSON-able dict, so that a resumed
run draws what an uninterrupted one would have drawn.

A rule of one's own subclasses :class:`WidthSampler`, and is given to ``train_supernet(sampler=...)`` or
registered in :data:`SAMPLERS`. ``bcnet_deploy.testing.samplers.SamplerConformance`` tests it.
"""

from __future__ import annotations

import math
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from bcnet_deploy import files
from bcnet_deploy.errors import CheckpointError, ConfigError
from bcnet_deploy.registry import Registry

if TYPE_CHECKING:
    from bcnet_deploy.nn import Supernet
    from bcnet_deploy.train.config import TrainConfig

Widths = npt.NDArray[np.int64]
Side = Literal["left", "right"]
Role = Literal["sampled", "anchor", "teacher", "pupil"]
SIDES: tuple[Side, Side] = ("left", "right")
_ANEW = "start anew with --fresh"


@dataclass(frozen=True)
class Slice:
    """One path of a step: ``widths`` (L,), its ``side``, the ``weight`` of its loss.

    A ``teacher`` learns from the labels and its output teaches the step's ``pupil`` paths; a
    ``sampled`` path learns from the labels alone, and so does an ``anchor``, which every step runs and
    which therefore leaves no loss record. ``teacher_index`` is the teacher's place in the step.
    """

    widths: Widths
    side: Side
    weight: float = 1.0
    role: Role = "sampled"
    teacher_index: int = 0


Step = tuple[Slice, ...]
"""The slices between two optimiser updates, in the order in which they run."""


@dataclass(frozen=True)
class WidthGrid:
    """What a sampler draws from: the ``choices`` of each variable and the ``stored`` channels (L,).

    ``stored`` exceeds the last choice where the supernet was widened for a minimum width (BCNetV2,
    arXiv 2203.13714): there the left slice is [0, c) and the right one [stored - c, stored). Under its
    ``lowest`` width (L,) the model's code does not run.
    """

    choices: tuple[tuple[int, ...], ...]
    stored: Widths
    lowest: Widths

    @classmethod
    def create(
        cls,
        choices: Sequence[Sequence[int]],
        stored: Sequence[int] | Widths | None = None,
        lowest: Sequence[int] | Widths | None = None,
    ) -> WidthGrid:
        """Check and freeze. ``stored`` defaults to each variable's largest choice, ``lowest`` to 1.

        Raises:
            ConfigError: a variable has no choice, choices do not ascend from at least 1 and its lowest
                width, or a stored count is below the largest choice.
        """
        frozen = tuple(tuple(int(width) for width in variable) for variable in choices)
        for index, variable in enumerate(frozen):
            if not variable or variable[0] < 1 or any(a >= b for a, b in pairwise(variable)):
                raise ConfigError(
                    f"the choices of width variable {index} are {list(variable)}; "
                    "they must ascend from 1 or more"
                )
        full = np.array([variable[-1] for variable in frozen], dtype=np.int64)
        kept = full if stored is None else np.asarray(stored, dtype=np.int64)
        if kept.shape != full.shape or bool((kept < full).any()):
            raise ConfigError(
                f"stored channels {kept.tolist()} must be one a variable and not below the widest "
                f"{full.tolist()}"
            )
        least = np.ones_like(full) if lowest is None else np.asarray(lowest, dtype=np.int64)
        narrowest = np.array([variable[0] for variable in frozen], dtype=np.int64)
        if least.shape != full.shape or bool((least > narrowest).any()):
            raise ConfigError(
                f"lowest widths {least.tolist()} must be one a variable and not above the narrowest "
                f"{narrowest.tolist()}"
            )
        return cls(frozen, kept, least)

    @classmethod
    def of(cls, supernet: Supernet) -> WidthGrid:
        """The choices and stored channels of a supernet."""
        variables = supernet.space.variables
        return cls.create(
            [variable.choices for variable in variables], supernet.max_channels,
            [variable.lowest for variable in variables],
        )  # fmt: skip

    @property
    def full(self) -> Widths:
        """(L,): the widest choice of each variable."""
        return np.array([variable[-1] for variable in self.choices], dtype=np.int64)

    @property
    def narrowest(self) -> Widths:
        """(L,): the narrowest choice of each variable."""
        return np.array([variable[0] for variable in self.choices], dtype=np.int64)

    @property
    def widened(self) -> bool:
        """Whether any variable stores more channels than its widest choice."""
        return bool((self.stored > self.full).any())

    def draw(self, rng: np.random.Generator) -> Widths:
        """(L,): each variable uniform over its choices, independently."""
        return np.array([variable[rng.integers(len(variable))] for variable in self.choices], dtype=np.int64)

    def complement(self, widths: Widths) -> Widths:
        """(L,): the vector whose left and right slices tile the layers with right and left of ``widths``.

        That is ``stored - width`` channels, exactly, whether or not it is one of the choices. Where
        nothing is left (the full width of a layer that was not widened), or less than the model's code
        takes, it is min + max - width, which is one of them or between two.
        """
        rest = self.stored - widths
        return np.where(rest >= self.lowest, rest, self.narrowest + self.full - widths)


def both_sides(widths: Widths) -> Step:
    """One step of left and right of ``widths`` (L,), half the loss each."""
    return tuple(Slice(widths, side, 0.5) for side in SIDES)


class WidthSampler(ABC):
    """Yields training steps for ever. The same generator state gives the same steps.

    The weights of a step's slices add up to 1, so that the learning rate means the same under every rule.

    Attributes:
        sides: on which a width vector is evaluated. Its score is the mean over them.
    """

    sides: tuple[Side, ...] = ("left",)

    def __init__(self, grid: WidthGrid, rng: np.random.Generator) -> None:
        self.grid = grid
        self.rng = rng
        self._pending: list[Step] = []

    @classmethod
    def from_config(cls, grid: WidthGrid, rng: np.random.Generator, config: TrainConfig) -> WidthSampler:
        """The sampler that the training settings ask for; distilled where they say so."""
        sampler = cls(grid, rng)
        return Distilled(sampler) if config.distillation else sampler

    @abstractmethod
    def draw(self) -> Sequence[Step]:
        """The steps that one random draw gives (two for a complementary pair)."""

    def next_step(self) -> Step:
        """The next training step."""
        if not self._pending:
            self._pending = list(self.draw())
        return self._pending.pop(0)

    def __iter__(self) -> Iterator[Step]:
        while True:
            yield self.next_step()

    @property
    def kind(self) -> str:
        """What a saved state must be of."""
        return type(self).__name__

    def state_dict(self) -> dict[str, Any]:
        """JSON-able: the generator and the steps of a draw that have not been run yet.

        A rule that remembers more than that extends this and :meth:`load_state_dict`.
        """
        return {
            "kind": self.kind,
            "generator": _jsonable(self.rng.bit_generator.state),
            "pending": [[_jsonable(asdict(path)) for path in step] for step in self._pending],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken.

        Raises:
            CheckpointError: the state is of another rule or generator.
        """
        if state.get("kind") != self.kind:
            raise CheckpointError(
                f"the checkpoint was trained with {state.get('kind')!r}, this run asks for {self.kind!r}; "
                "resume with the same rule or start in another folder"
            )
        with files.malformed("the sampler's state in the checkpoint", CheckpointError, _ANEW):
            self.rng.bit_generator.state = state["generator"]
            self._pending = [
                tuple(self._slice(path, len(step)) for path in step) for step in state["pending"]
            ]

    def _slice(self, data: dict[str, Any], count: int) -> Slice:
        """One of the ``count`` slices of a step that was kept. Raises ValueError where it cannot be run."""
        path = Slice(**{**data, "widths": np.array(data["widths"], dtype=np.int64)})
        stored = self.grid.stored
        if path.widths.shape != stored.shape or not ((path.widths >= 1) & (path.widths <= stored)).all():
            raise ValueError(f"widths {reprlib.repr(data['widths'])}")
        known = path.side in SIDES and path.role in get_args(Role)
        if not known or not 0 <= path.weight < math.inf or path.teacher_index not in range(count):
            raise ValueError(f"the slice {reprlib.repr(data)}")
        return path


SAMPLERS: Registry[type[WidthSampler]] = Registry("training rule", "bcnet_deploy.samplers")
"""Rules by name, for ``TrainConfig.rule``: subclasses of :class:`WidthSampler`."""

SamplerSource = WidthSampler | Callable[[WidthGrid, np.random.Generator, "TrainConfig"], WidthSampler]
"""A rule as an object: a sampler, its class, or a function that makes one."""


@SAMPLERS.register("bilateral")
class Bilateral(WidthSampler):
    """BCNet's rule: both sides of a vector in one step, then both sides of its complement."""

    sides = SIDES

    def __init__(self, grid: WidthGrid, rng: np.random.Generator, *, complementary: bool = True) -> None:
        super().__init__(grid, rng)
        self.complementary = complementary

    @classmethod
    def from_config(cls, grid: WidthGrid, rng: np.random.Generator, config: TrainConfig) -> WidthSampler:
        sampler = cls(grid, rng, complementary=config.complementary)
        return Distilled(sampler) if config.distillation else sampler

    def draw(self) -> list[Step]:
        widths = self.grid.draw(self.rng)
        steps = [both_sides(widths)]
        if self.complementary:
            steps.append(both_sides(self.grid.complement(widths)))
        return steps


@SAMPLERS.register("unilateral")
class Unilateral(WidthSampler):
    """The older rule: width c is always the first c channels."""

    def draw(self) -> list[Step]:
        return [(Slice(self.grid.draw(self.rng), "left"),)]


@SAMPLERS.register("sandwich")
class Sandwich(WidthSampler):
    """AutoSlim's rule: widest, narrowest and ``random_paths`` random vectors, left slices, in one step.

    With distillation (its published form) the widest learns from labels and teaches the others.
    """

    def __init__(
        self, grid: WidthGrid, rng: np.random.Generator, *, random_paths: int = 2, distillation: bool = True
    ) -> None:
        if random_paths < 0:
            raise ConfigError(f"random_paths is {random_paths}; allowed: 0 or more")
        super().__init__(grid, rng)
        self.random_paths = random_paths
        self.distillation = distillation

    @classmethod
    def from_config(cls, grid: WidthGrid, rng: np.random.Generator, config: TrainConfig) -> WidthSampler:
        return cls(grid, rng, random_paths=config.random_paths, distillation=config.distillation)

    def draw(self) -> list[Step]:
        vectors = [self.grid.full, self.grid.narrowest]
        vectors += [self.grid.draw(self.rng) for _ in range(self.random_paths)]
        weight = 1.0 / len(vectors)
        roles: tuple[Role, Role] = ("teacher", "pupil") if self.distillation else ("anchor", "sampled")
        return [tuple(Slice(w, "left", weight, roles[i > 0]) for i, w in enumerate(vectors))]


@SAMPLERS.register("uniform")
class Uniform(WidthSampler):
    """Slimmable networks' rule: one relative width for all the layers, left slices."""

    def draw(self) -> list[Step]:
        ratio = (self.rng.integers(max(map(len, self.grid.choices))) + 1) / max(map(len, self.grid.choices))
        picks = [variable[int(np.ceil(ratio * len(variable))) - 1] for variable in self.grid.choices]
        return [(Slice(np.array(picks, dtype=np.int64), "left"),)]


class Distilled(WidthSampler):
    """Adds the full width to every step of ``inner``: it learns from the labels and teaches the rest.

    On a widened supernet the full width has two slices that differ; then each side has a teacher of
    its own. Together the two train the m outermost levels of each side once and the rest twice: the
    pupils' counts stay equal, those with the teachers do not. All the paths of a step weigh the same.
    """

    def __init__(self, inner: WidthSampler) -> None:
        super().__init__(inner.grid, inner.rng)
        self.inner = inner
        self.sides = inner.sides

    @property
    def kind(self) -> str:
        return f"{self.inner.kind} with distillation"

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "inner": self.inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "inner" in state:  # a rule that remembers nothing of its own went without, formerly
            with files.malformed("the sampler's state in the checkpoint", CheckpointError, _ANEW):
                self.inner.load_state_dict(dict(state["inner"]))
        super().load_state_dict(state)

    def draw(self) -> list[Step]:
        return [self._with_teacher(step) for step in self.inner.draw()]

    def _with_teacher(self, step: Step) -> Step:
        used = {path.side for path in step}
        sides: list[Side] = [side for side in SIDES if side in used] if self.grid.widened else ["left"]
        weight = 1.0 / (len(sides) + len(step))
        teachers = [Slice(self.grid.full, side, weight, "teacher") for side in sides]
        pupils = [
            Slice(
                path.widths, path.side, weight, "pupil", sides.index(path.side) if path.side in sides else 0
            )
            for path in step
        ]
        return (*teachers, *pupils)


def make_sampler(
    rule: str | SamplerSource, grid: WidthGrid, rng: np.random.Generator, config: TrainConfig
) -> WidthSampler:
    """The sampler of a rule.

    Args:
        rule: a name in :data:`SAMPLERS`, a sampler (returned as it is), its class, or a function of the
            other arguments.
        grid: choices and stored channels, see :meth:`WidthGrid.of`.
        rng: owned by the sampler from here on.
        config: its ``complementary``, ``distillation`` and ``random_paths`` are followed.

    Raises:
        ConfigError: the rule is unknown, or what it makes is no :class:`WidthSampler`.
    """
    if isinstance(rule, WidthSampler):
        return rule
    source: Any = SAMPLERS.get(rule) if isinstance(rule, str) else rule
    sampler = getattr(source, "from_config", source)(grid, rng, config)
    if not isinstance(sampler, WidthSampler):
        raise ConfigError(
            f"the training rule {rule!r} made {type(sampler).__name__}; needed: a "
            "bcnet_deploy.train.WidthSampler"
        )
    return sampler


def _jsonable(value: Any) -> Any:
    """Generator states hold numpy integers and arrays (MT19937); JSON wants Python's."""
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.item() if isinstance(value, np.generic) else value
