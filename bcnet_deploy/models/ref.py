"""How a run's model is built again, and the one place that builds it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Interval, Len

from bcnet_deploy.errors import ConfigError, RunDirError
from bcnet_deploy.validation import Checked

if TYPE_CHECKING:
    from torch import nn

    from bcnet_deploy.space import WidthSpace

GIVEN = "given"
"""Weights that came with a module from Python."""
PRETRAINED = "pretrained"
"""The published weights of a library's model."""
Pixels = Annotated[int, Interval(ge=1, le=16384)]


@dataclass(frozen=True)
class ModelRef(Checked):
    """A model by reference, with the input and the levels of its width space.

    Attributes:
        name: what :func:`bcnet_deploy.build_model` takes; ``object:CLASS#HASH`` for a module from Python.
        input_size: (channels, height, width).
        levels: widths that each variable may take.
        min_level: the method's minimum width; see ``docs/method.md``.
        weights: file of the trained weights to start from, ``pretrained``, or ``given`` for those of a module
            from Python; None: random weights.
        new_head: the weights are of another number of classes, and the classifier is drawn anew.
    """

    noun: ClassVar[str] = "the model reference"

    name: Annotated[str, Len(1, 1000)]
    num_classes: Annotated[int, Interval(ge=1, le=1_000_000)] = 1000
    input_size: tuple[Pixels, Pixels, Pixels] = (3, 224, 224)
    levels: Annotated[int, Interval(ge=1, le=1024)] = 20
    min_level: Annotated[int, Interval(ge=0, le=1024)] = 0
    weights: str | None = None
    new_head: bool = False

    def check(self) -> None:
        if self.min_level > self.levels:
            raise ConfigError(
                f"min_level is {self.min_level}; allowed: 0 up to the number of levels, {self.levels}"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; weights are left out where there are none."""
        data = super().to_dict()
        if self.weights is None:
            del data["weights"], data["new_head"]
        return data

    @property
    def trained(self) -> bool:
        """Whether the model comes with trained weights."""
        return self.weights is not None

    @property
    def is_object(self) -> bool:
        """Whether the model was given as a module from Python, so that no name builds it again."""
        return self.name.startswith("object:")

    @property
    def may_change(self) -> bool:
        """Whether the same name may build another network later: code of the user's own."""
        return ":" in self.name and not self.is_object


def build_module(ref: ModelRef, seed: int | None = None, *, module: nn.Module | None = None) -> nn.Module:
    """The model with its weights.

    Args:
        ref: the model.
        seed: of random weights; None draws them from torch's global generator.
        module: the model itself where it was given from Python; a copy of it is returned.

    Raises:
        ModelError, CheckpointError: see :func:`bcnet_deploy.build_model`.
        RunDirError: the model was given as an object and ``module`` is None.
    """
    from contextlib import nullcontext

    import torch

    from bcnet_deploy.models.registry import build_model
    from bcnet_deploy.space.patching import copied

    if module is not None:
        return copied(module)
    if ref.is_object or ref.weights == GIVEN:
        raise RunDirError(
            f"the run's model, {ref.name}, or its weights were given as an object; go on from Python with "
            "bcnet_deploy.Run(path, model=...), or begin a run with 'package.module:function'"
        )
    with torch.random.fork_rng(devices=[]) if seed is not None else nullcontext():
        if seed is not None:
            torch.manual_seed(seed)
        return build_model(ref.name, num_classes=ref.num_classes, weights=ref.weights, new_head=ref.new_head)


def space_of(ref: ModelRef, model: nn.Module) -> WidthSpace:
    """The width space of the reference's model. Raises :class:`ModelError` where it can have none."""
    from bcnet_deploy.space import WidthSpace

    space = WidthSpace.from_model(model, ref.input_size, ref.levels, ref.min_level)
    # Messages and tables call it what its user does; "Sequential" could be anything.
    return space if ref.is_object else replace(space, model_name=ref.name)


def build(
    ref: ModelRef, seed: int | None = None, *, module: nn.Module | None = None
) -> tuple[nn.Module, WidthSpace]:
    """The model, and its width space; see :func:`build_module` and :func:`space_of`."""
    model = build_module(ref, seed, module=module)
    return model, space_of(ref, model)
