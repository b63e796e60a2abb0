"""Training settings: one checked dataclass, read from YAML recipes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Ge, Gt, Lt

from bcnet_deploy import files
from bcnet_deploy.data.augment import Augment
from bcnet_deploy.errors import ConfigError, nearest
from bcnet_deploy.resources import recipe_names, shipped
from bcnet_deploy.train.samplers import SAMPLERS
from bcnet_deploy.validation import Checked

Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Lt(1)]


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Checked):
    """Everything that decides what training does; the defaults suit a small supernet.

    Attributes:
        task: what is trained for: ``classification``, ``segmentation``, another registered name, or
            ``module:function`` (:mod:`bcnet_deploy.tasks`).
        rule, complementary, distillation, random_paths: see :mod:`bcnet_deploy.train.samplers`; a plain
            network has one path and ignores them. Distillation is the default because, at equal cost, it
            ranked width vectors best (docs/ranking.md).
        epochs: passes over the training images; fractions are allowed.
        min_steps: train for so many steps at least, whatever the epochs: few images make few steps a pass.
        cost: if set, train until image passes weighed by relative MACs (one image through the full width,
            forward and backward, is 1) reach it, in place of ``epochs``.
        batch_size: images of a step, over all processes.
        accumulation: parts into which each batch is cut, to save memory.
        learning_rate: peak. schedule: ``cosine`` to 0; ``step``: times ``gamma`` at ``milestones`` (epochs);
            ``exponential``: times ``gamma`` every ``step_epochs``; ``constant``. Linear warm-up before.
        weight_decay: on convolution and linear weights, and on norms and biases if ``decay_norm_and_bias``.
        clip_norm: largest global gradient norm; 0 is no limit.
        ema_decay: of the averaged weights that are evaluated and saved; 0 is no averaging.
        augment: see :class:`bcnet_deploy.data.Augmentation`.
        amp: ``bf16`` (CPU, GPU) or ``fp16`` (GPU, with loss scaling).
        cuda_graphs: on a GPU, each kind of step is one CUDA graph (:mod:`bcnet_deploy.train.graphs`): small
            networks cost a launch a layer otherwise. Elsewhere it changes nothing.
        compile: torch.compile; for plain networks alone, since each width would be compiled anew.
        checkpoint_every, log_every: steps.
        evaluate_every: epochs between evaluations on held-out data; 0 is only at the end.
        temperature: of distillation from a teacher network (retraining).
    """

    noun: ClassVar[str] = "the training settings"

    task: str = "classification"
    rule: str = "bilateral"
    complementary: bool = True
    distillation: bool = True
    random_paths: Annotated[int, Ge(0)] = 2
    epochs: Positive = 30.0
    min_steps: Annotated[int, Ge(0)] = 0
    cost: Positive | None = None
    batch_size: Annotated[int, Ge(1)] = 128
    accumulation: Annotated[int, Ge(1)] = 1
    optimizer: Literal["sgd", "rmsprop"] = "sgd"
    learning_rate: Positive = 0.1
    momentum: Share = 0.9
    nesterov: bool = True
    weight_decay: NotNegative = 5e-5
    decay_norm_and_bias: bool = False
    schedule: Literal["cosine", "step", "exponential", "constant"] = "cosine"
    milestones: tuple[float, ...] = ()
    gamma: Positive = 0.1
    step_epochs: Positive = 1.0
    warmup_epochs: NotNegative = 0.0
    label_smoothing: Share = 0.0
    clip_norm: NotNegative = 0.0
    ema_decay: Share = 0.0
    augment: Augment = "crop-flip"
    temperature: Positive = 1.0
    amp: Literal["off", "bf16", "fp16"] = "off"
    cuda_graphs: bool = False
    compile: bool = False
    channels_last: bool = True
    workers: Annotated[int, Ge(0)] = 2
    checkpoint_every: Annotated[int, Ge(1)] = 500
    log_every: Annotated[int, Ge(1)] = 20
    evaluate_every: NotNegative = 0.0
    tensorboard: bool = False

    def check(self) -> None:
        SAMPLERS.get(self.rule)
        if self.schedule == "step" and not self.milestones:
            raise ConfigError("schedule 'step' needs milestones: the epochs at which the rate drops")
        if self.nesterov and self.optimizer == "sgd" and self.momentum == 0:
            raise ConfigError("nesterov needs a momentum above 0; set momentum, or nesterov: false")

    @classmethod
    def from_dict(cls, data: Any, source: str | None = None) -> Self:
        """From keys and values of a file. Raises :class:`ConfigError` naming the key and what is allowed."""
        if isinstance(data, Mapping):
            data = {key: _number(value) if key in _NUMBERS else value for key, value in data.items()}
        return super().from_dict(data, source)

    @classmethod
    def load(cls, path: str | Path) -> TrainConfig:
        """Read a YAML recipe, by path or by the name of a shipped one.

        Raises:
            ConfigError: no such file, or a key or value is not allowed.
        """
        file = find_recipe(path)
        return cls.from_dict(files.read_yaml(file, ConfigError, "recipe"), f"recipe {file}")


def find_recipe(path: str | Path) -> Path:
    """The file of a recipe's path or name. Raises :class:`ConfigError` listing the shipped names."""
    if files.is_file(path):
        return Path(path)
    named = shipped("configs") / f"{path}.yaml"
    if files.is_file(named):
        return named
    names = recipe_names()
    raise ConfigError(
        f"no recipe {str(path)!r}{nearest(str(path), names)}; "
        f"allowed: a YAML file or one of {', '.join(names)}"
    )


_NUMBERS = {"cost"} | {f.name for f in dataclasses.fields(TrainConfig) if isinstance(f.default, float)}


def _number(value: Any) -> Any:
    """YAML 1.1 reads 5e-5 as text: it wants a dot in the mantissa."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
