"""Training settings: one checked dataclass, read from YAML recipes."""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from bcnet_deploy import files
from bcnet_deploy.data.augment import AUGMENTATIONS
from bcnet_deploy.errors import ConfigError, nearest
from bcnet_deploy.resources import recipe_names, shipped
from bcnet_deploy.train.samplers import RULES

SCHEDULES = ("cosine", "step", "exponential", "constant")
OPTIMIZERS = ("sgd", "rmsprop")
AMP = ("off", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides what training does; the defaults suit a small supernet.

    Attributes:
        rule, complementary, distillation, random_paths: see :func:`bcnet_deploy.train.samplers.make_sampler`;
            a plain network has one path and ignores them. Distillation is the default because, at equal
            cost, it ranked width vectors best (docs/ranking.md).
        epochs: passes over the training images; fractions are allowed.
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
        compile: torch.compile; for plain networks alone, since each width would be compiled anew.
        checkpoint_every, log_every: steps.
        evaluate_every: epochs between evaluations on held-out data; 0 is only at the end.
        temperature: of distillation from a teacher network (retraining).
    """

    rule: str = "bilateral"
    complementary: bool = True
    distillation: bool = True
    random_paths: int = 2
    epochs: float = 30.0
    cost: float | None = None
    batch_size: int = 128
    accumulation: int = 1
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-5
    decay_norm_and_bias: bool = False
    schedule: str = "cosine"
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1
    step_epochs: float = 1.0
    warmup_epochs: float = 0.0
    label_smoothing: float = 0.0
    clip_norm: float = 0.0
    ema_decay: float = 0.0
    augment: str = "crop-flip"
    temperature: float = 1.0
    amp: str = "off"
    compile: bool = False
    channels_last: bool = True
    workers: int = 2
    checkpoint_every: int = 500
    log_every: int = 20
    evaluate_every: float = 0.0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        self._among("rule", RULES)
        self._among("schedule", SCHEDULES)
        self._among("optimizer", OPTIMIZERS)
        self._among("amp", AMP)
        self._among("augment", AUGMENTATIONS)
        for name in ("batch_size", "accumulation", "checkpoint_every", "log_every"):
            self._within(name, 1, math.inf)
        for name in ("epochs", "learning_rate", "gamma", "step_epochs", "temperature"):
            self._within(name, 1e-12, math.inf)
        for name in ("momentum", "label_smoothing", "ema_decay"):
            self._within(name, 0, 1 - 1e-9)
        for name in (
            "weight_decay", "warmup_epochs", "clip_norm", "workers", "evaluate_every", "random_paths",
        ):  # fmt: skip
            self._within(name, 0, math.inf)
        if self.cost is not None:
            self._within("cost", 1e-12, math.inf)
        if self.schedule == "step" and not self.milestones:
            raise ConfigError("schedule 'step' needs milestones: the epochs at which the rate drops")
        if self.nesterov and self.optimizer == "sgd" and self.momentum == 0:
            raise ConfigError("nesterov needs a momentum above 0; set momentum, or nesterov: false")

    def _among(self, name: str, allowed: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in allowed:
            raise ConfigError(
                f"{name} is {value!r}; allowed: {', '.join(allowed)}{nearest(str(value), allowed)}"
            )

    def _within(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if not (low <= value <= high and math.isfinite(value)):
            bound = f"from {low:g} up" if high == math.inf else f"{low:g} to {high:.3g}"
            raise ConfigError(f"{name} is {value!r}; allowed: {bound}")

    def replace(self, **changes: Any) -> TrainConfig:
        """A copy with some settings changed; checked again."""
        return self.from_dict({**self.to_dict(), **changes})

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**dataclasses.asdict(self), "milestones": list(self.milestones)}

    @classmethod
    def from_dict(cls, data: dict[str, Any], source: str = "the training settings") -> TrainConfig:
        """Check names and types. Raises :class:`ConfigError` naming the key and what is allowed."""
        hints = typing.get_type_hints(cls)
        known = [item.name for item in dataclasses.fields(cls)]
        values: dict[str, Any] = {}
        for key, value in data.items():
            if key not in known:
                raise ConfigError(
                    f"{source}: unknown key {key!r}{nearest(key, known)}; allowed: {', '.join(known)}"
                )
            values[key] = _typed(value, hints[key], f"{source}: {key}")
        return cls(**values)

    @classmethod
    def load(cls, path: str | Path) -> TrainConfig:
        """Read a YAML recipe, by path or by the name of a shipped one.

        Raises:
            ConfigError: no such file, or a key or value is not allowed.
        """
        file = find_recipe(path)
        data = files.read_yaml(file, ConfigError, "recipe")
        if not isinstance(data, dict):
            raise ConfigError(f"recipe {file} holds {type(data).__name__}; needed: keys and values")
        return cls.from_dict(data, f"recipe {file}")


def find_recipe(path: str | Path) -> Path:
    """The file of a recipe's path or name. Raises :class:`ConfigError` listing the shipped names."""
    if Path(path).is_file():
        return Path(path)
    named = shipped("configs") / f"{path}.yaml"
    if named.is_file():
        return named
    names = recipe_names()
    raise ConfigError(
        f"no recipe {str(path)!r}{nearest(str(path), names)}; "
        f"allowed: a YAML file or one of {', '.join(names)}"
    )


def _typed(value: Any, hint: Any, what: str) -> Any:
    """YAML's value as the field's type; whole numbers serve as floats, lists as tuples."""
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{what} is {value!r}; allowed: a list of numbers")
        return tuple(_typed(item, get_args(hint)[0], what) for item in value)
    options = get_args(hint) if get_origin(hint) is not Literal and get_args(hint) else (hint,)
    if value is None and type(None) in options:
        return None
    if float in options and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if float in options and isinstance(value, str):
        # YAML 1.1 reads 5e-5 as a string: it wants a dot in the mantissa.
        try:
            return float(value)
        except ValueError:
            pass
    kinds = tuple(option for option in options if option is not type(None))
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ConfigError(f"{what} is {value!r}; allowed: {' or '.join(kind.__name__ for kind in kinds)}")
    return value
