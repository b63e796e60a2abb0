"""The settings of every step: one dataclass a step, one set of defaults, for command, ``run`` and Python.

Settings that are not given take the values that the run file keeps for the step, then the defaults here.
"""

from __future__ import annotations

import dataclasses
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Interval

from bcnet_deploy import files, units
from bcnet_deploy.bench.settings import BenchSettings
from bcnet_deploy.errors import CheckpointError, ConfigError, ConstraintError, nearest, wrong_option
from bcnet_deploy.models.ref import Pixels
from bcnet_deploy.resources import shipped
from bcnet_deploy.run.directory import DIGITS, NETWORKS, RunConfig, RunDir
from bcnet_deploy.run.engine import first_rank, only_writer
from bcnet_deploy.validation import Checked

if TYPE_CHECKING:
    from bcnet_deploy.tasks import Task
    from bcnet_deploy.train import TrainConfig

Which = Literal["found", "uniform", "full"]
Seed = Annotated[int, Interval(ge=0, lt=2**63)]
Count = Annotated[int, Interval(ge=1, le=10**9)]
Amount = str | int | float
NO_TASK = "none"
"""In place of a task: the network is measured and not trained."""
DEFAULT_LATENCY = "0.5x"
"""The budget of ``run`` where none is given."""


@dataclass(frozen=True, kw_only=True)
class ProfileSettings(Checked):
    """How a latency table is made.

    Attributes:
        device: name of a profile, or path of one of the user's own; None: the run's.
        budget: time for everything, such as ``120s`` or ``2m``; None: 120 s, or 20 s to rebase a table.
        estimate: from data sheets, for a device that is not here.
        table: take this table, made on another host, instead of measuring one.
        rebase: begin with this table of another machine or runtime, and measure how fast this one is.
        task: what the network will be trained for, where no built-in task fits its outputs; ``none``: it is
            not to be trained. Where training has a task by then, that is taken.
        seed: of the sampled networks; None: the run's.
    """

    noun: ClassVar[str] = "profile"

    device: str | None = None
    budget: str | None = None
    estimate: bool = False
    table: str | None = None
    rebase: str | None = None
    task: str | None = None
    seed: Seed | None = None

    def check(self) -> None:
        units.parse_duration(self.time)
        if self.table is not None and self.estimate:
            raise ConfigError("a table is given and an estimate asked for; give one of them")
        if self.rebase is not None and (self.estimate or self.table is not None):
            raise ConfigError("a rebased table is measured; leave out --estimate and --table")

    @property
    def time(self) -> str:
        """The budget that holds."""
        return self.budget or ("120s" if self.rebase is None else "20s")


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Checked):
    """How a network or supernet is trained.

    Attributes:
        recipe: a YAML file or a shipped recipe's name; None: the digits' for them, else built-in values.
        changes: settings of the recipe to change; see :class:`bcnet_deploy.train.TrainConfig`.
        compute: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; it does not change what is trained.
        seed: of weights, order and crops; None: the run's.
    """

    noun: ClassVar[str] = "training"
    from_trained: ClassVar[str] = "finetune"

    recipe: str | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    compute: str = "auto"
    seed: Seed | None = None

    def check(self) -> None:
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", self.compute):
            raise ConfigError(
                f"compute is {reprlib.repr(self.compute)}; allowed: 'auto', 'cpu', 'cuda' or 'cuda:N'"
            )

    @classmethod
    def split(cls, data: Mapping[str, Any]) -> dict[str, Any]:
        """Keys of this class as they are, all others as :attr:`changes`: recipes are written flat."""
        own = {item.name for item in dataclasses.fields(cls)}
        flat = {key: value for key, value in data.items() if key not in own}
        rest = {key: value for key, value in data.items() if key in own}
        return {**rest, "changes": {**rest.get("changes", {}), **flat}}

    def said_task(self, data: str | None) -> str | None:
        """The task by these settings; None where neither a recipe nor a change tells one."""
        if self.recipe is None and "task" not in self.changes and data != DIGITS:
            return None
        return self.config(data).task

    def config(self, data: str | None, *, trained: bool = False, task: str | None = None) -> TrainConfig:
        """The training settings in full.

        Args:
            data: name of the data: the digits have a recipe of their own.
            trained: whether training starts from trained weights, which has a recipe of its own too.
            task: where these settings tell none, see :func:`named_task`.

        Raises:
            ConfigError: no such recipe, or a change is not allowed.
        """
        from bcnet_deploy.train.config import TrainConfig

        recipe = self.recipe or (self.from_trained if trained else DIGITS if data == DIGITS else None)
        base = TrainConfig.load(recipe) if recipe else TrainConfig()
        if "epochs" in self.changes:
            base = base.replace(min_steps=0)  # who says how long means it
        changes = self.changes
        if task is not None and self.said_task(data) is None:
            changes = {"task": task, **changes}
        return TrainConfig.from_dict({**base.to_dict(), **changes}, "the training settings")


@dataclass(frozen=True, kw_only=True)
class TrainSettings(TrainingSettings):
    """How the supernet is trained; see :class:`TrainingSettings`.

    Attributes:
        importance: orders the channels of trained weights before the supernet starts from them.
        both_ends: important channels at both ends, so that left and right slices are alike.
    """

    noun: ClassVar[str] = "train"
    from_trained: ClassVar[str] = "short_supernet"

    importance: str = "l2"
    both_ends: bool = True

    def check(self) -> None:
        super().check()
        _check_importance(self.importance)


@dataclass(frozen=True, kw_only=True)
class RetrainSettings(TrainingSettings):
    """How a chosen network is trained to the end; see :class:`TrainingSettings`.

    Attributes:
        network: which one.
        widths: a file with widths of the user's own, trained under the name of ``network``.
        start: ``scratch``: random weights; ``original``: the channels kept of the run's trained weights;
            ``supernet``: those of the trained supernet; None: the original where there is one, else scratch.
        distill: follow the original, or else the supernet's full width, with half of the loss; None: where
            training starts from the original.
        importance: which channels of the original are kept.
        steps: narrow the original bit by bit, with an equal share of the training after each step.
    """

    noun: ClassVar[str] = "retrain"

    network: Which = "found"
    widths: str | None = None
    start: Literal["scratch", "original", "supernet"] | None = None
    distill: bool | None = None
    importance: str = "l2"
    steps: Annotated[int, Interval(ge=1, le=100)] = 1

    def check(self) -> None:
        super().check()
        _check_importance(self.importance)


@dataclass(frozen=True, kw_only=True)
class SearchSettings(Checked):
    """What is searched for, and how hard.

    Attributes:
        latency: ``5ms`` or ``0.5x`` on the run's device, ``cpu=8ms`` on another; one, several, or a mapping.
        macs, params: multiply-accumulates and parameters: ``300M``, ``0.5x``.
        peak_memory: activations alive at once, FP32, batch 1: ``4MiB``.
        weight_size: bytes of the weights, FP32: ``10MB``.
        confidence: probability, by the table's uncertainty, that a latency budget is met.
        pareto: look for the best network at every budget up to the given ones.
        strategy: a registered name, or a callable; see :mod:`bcnet_deploy.search`.
        evaluations: most networks to evaluate; None: 2000, or all of an exhaustive search, or 32 of tuned
            scores.
        population_size: networks a generation.
        patience: generations without improvement before it stops.
        prior: begin with the prior population of the supernet's loss records.
        val_images: held-out images to score on; 0: all, but 2,000 of pruned scores.
        on_error: ``stop`` or ``skip`` where the evaluation of a network fails.
        scores: ``supernet``: of the trained supernet; ``pruned``: of slices of the run's trained weights,
            channels in order of ``importance``, nothing trained; ``tuned``: of these slices after
            ``tune_steps`` steps of fine-tuning each; None: the supernet's where there is one, or ``pruned``.
        channel_steps: ``levels``: the run's; ``learned``: the widths at which the tables' latency drops.
        seed: None: the run's.
    """

    noun: ClassVar[str] = "search"

    latency: str | tuple[str, ...] | dict[str, str] = ()
    macs: Amount | None = None
    params: Amount | None = None
    peak_memory: Amount | None = None
    weight_size: Amount | None = None
    confidence: float = 0.95
    pareto: bool = False
    strategy: str | Callable[..., Any] = "nsga2"
    evaluations: Count | None = None
    population_size: Annotated[int, Interval(ge=2, le=100_000)] = 40
    patience: Count = 15
    prior: bool = True
    val_images: Annotated[int, Ge(0)] = 0
    on_error: Literal["stop", "skip"] = "stop"
    scores: Literal["supernet", "pruned", "tuned"] | None = None
    tune_steps: Count = 150
    importance: str = "l2"
    channel_steps: Literal["levels", "learned"] = "levels"
    seed: Seed | None = None

    def check(self) -> None:
        from bcnet_deploy.search.constraints import check_budget, check_confidence

        check_confidence(self.confidence)
        _check_importance(self.importance)
        for text in self.latencies("").values():
            check_budget("latency_ms", text)
        for kind, value in self.counted.items():
            check_budget(kind, str(value))

    def latencies(self, device: str) -> dict[str, str]:
        """Device -> budget; ``device`` is meant where none is named.

        Raises:
            ConstraintError: two budgets for one device.
        """
        if isinstance(self.latency, dict):
            return dict(self.latency)
        found: dict[str, str] = {}
        for text in (self.latency,) if isinstance(self.latency, str) else self.latency:
            name, sign, budget = text.rpartition("=")
            name = name.strip() or device
            if sign and not text.rpartition("=")[0].strip():
                raise ConstraintError(f"latency {text!r} names no device; allowed: '5ms', or 'cpu=5ms'")
            if name in found:
                raise ConstraintError(
                    f"two latency budgets for device {name!r} conflict: {found[name]!r} and {budget!r}; "
                    "give one"
                )
            found[name] = budget
        return found

    @property
    def counted(self) -> dict[str, Amount]:
        """Kind of budget as :func:`bcnet_deploy.search.search` names it -> budget; those that are given."""
        kinds = {
            "macs": self.macs, "params": self.params, "peak_activation_bytes": self.peak_memory,
            "weight_bytes": self.weight_size,
        }  # fmt: skip
        return {kind: value for kind, value in kinds.items() if value is not None}

    @property
    def has_budget(self) -> bool:
        return bool(self.latency or self.counted or self.pareto)


@dataclass(frozen=True, kw_only=True)
class ExportSettings(Checked):
    """What is exported, and how.

    Attributes:
        network: which one.
        engine: ``onnx``: an ONNX file; else also the named runtime's own format or engine.
        precision: of the computation; None: the device's own for an engine of it, else FP32.
        dynamic_batch: any batch size instead of 1.
        opset: ONNX operator set.
        device: profile of an engine; None: the run's.
        keep_fp32: layers that stay in FP32 in an INT8 network.
        max_loss: share of the accuracy that INT8 may lose; the layers that lose most stay in FP32 for it.
    """

    noun: ClassVar[str] = "export"

    network: Which = "found"
    engine: str = "onnx"
    precision: str | None = None
    dynamic_batch: bool = False
    opset: int = 19
    device: str | None = None
    keep_fp32: tuple[str, ...] = ()
    max_loss: Annotated[float, Interval(ge=0, le=1)] | None = None


@dataclass(frozen=True, kw_only=True)
class BenchStepSettings(BenchSettings):
    """How the run's exported networks are measured; see :class:`bcnet_deploy.bench.BenchSettings`.

    Attributes:
        device: profile whose table and threads are used; None: the run's.
    """

    device: str | None = None


def _check_importance(name: str) -> None:
    """Raise :class:`ConfigError` unless it is registered."""
    if name != "l2":  # the default needs no PyTorch
        from bcnet_deploy.importance import IMPORTANCES

        IMPORTANCES.get(name)


SETTINGS: dict[str, type[Checked]] = {
    "profile": ProfileSettings, "train": TrainSettings, "search": SearchSettings, "retrain": RetrainSettings,
    "export": ExportSettings, "bench": BenchStepSettings,
}  # fmt: skip

_SHORT = {
    "latency": "search", "macs": "search", "params": "search", "confidence": "search", "table": "profile",
    "estimate": "profile", "engine": "export", "precision": "export",
}  # fmt: skip
"""Keys of a configuration that may stand outside their step's section."""


@dataclass(frozen=True, kw_only=True)
class PipelineSettings(Checked):
    """What ``bcnet-deploy run`` is to do: what the run is about, and the settings of its steps.

    Attributes:
        model, num_classes, input_size, levels, min_level, weights, new_head: see
            :class:`bcnet_deploy.models.ref.ModelRef`; None: the data's classes, the model's usual size.
        train_supernet: rank widths by a supernet; None: unless trained weights can rank them alone.
        data: None: the run's; the demo model's are the digits.
        networks: which of full, uniform and found are trained to the end; found always is.
        profile, train, search, retrain, export, bench: settings of each step.
    """

    noun: ClassVar[str] = "the configuration"

    model: str = "demo"
    num_classes: Count | None = None
    input_size: tuple[Pixels, Pixels, Pixels] | None = None
    levels: Annotated[int, Interval(ge=1, le=1024)] = 20
    min_level: Annotated[int, Interval(ge=0, le=1024)] = 0
    weights: str | None = None
    new_head: bool = False
    train_supernet: bool | None = None
    data: str | None = None
    device: str = "cpu"
    seed: Seed = 0
    networks: tuple[Which, ...] = NETWORKS  # type: ignore[assignment]
    profile: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    search: dict[str, Any] = field(default_factory=dict)
    retrain: dict[str, Any] = field(default_factory=dict)
    export: dict[str, Any] = field(default_factory=dict)
    bench: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        if "found" not in self.networks:
            raise ConfigError(
                f"networks is {list(self.networks)}; allowed: found, and any of full and uniform"
            )
        if self.min_level > self.levels:
            raise ConfigError(f"min_level is {self.min_level}; allowed: 0 up to levels, {self.levels}")
        for name in SETTINGS:
            self.step(name)

    def step(self, name: str, **changes: Any) -> Any:
        """The checked settings of one step. Raises :class:`ConfigError`."""
        return step_settings(name, {**getattr(self, name), **changes})

    @classmethod
    def read(cls, data: Any, source: str) -> PipelineSettings:
        """From a file's keys and values, with the keys that may stand outside their section.

        Raises:
            ConfigError: a key is unknown or a value not allowed, naming ``source``.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"{source} holds {type(data).__name__}; needed: keys and values")
        values = {key: value for key, value in data.items() if value is not None}
        if "profile_budget" in values:  # the name of a former version
            inside = values.get("profile", {})
            if isinstance(inside, Mapping):  # else refused by name when it is checked
                values["profile"] = {"budget": values["profile_budget"], **inside}
            del values["profile_budget"]
        size = values.get("input_size")
        if isinstance(size, str | int) and not isinstance(size, bool):
            values["input_size"] = units.parse_size(str(size))
        return cls.from_dict(sectioned(values), source)


def sectioned(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with those that stand outside their step's section moved into it."""
    found = dict(values)
    for key, section in _SHORT.items():
        if key in found:
            inside = found.get(section, {})
            if not isinstance(inside, Mapping):
                break  # refused by name when it is checked
            found[section] = {**inside, key: found.pop(key)}
    return found


def step_settings(name: str, given: Mapping[str, Any]) -> Any:
    """Checked settings of the step ``name``. Raises :class:`ConfigError` or :class:`ConstraintError`."""
    kind = SETTINGS[name]
    values = {key: str(v) if isinstance(v, Path) else v for key, v in given.items() if v is not None}
    if isinstance(values.get("latency"), int | float):
        raise ConfigError(f"latency is {values['latency']!r}; a unit is needed, such as '5ms' or '0.5x'")
    if issubclass(kind, TrainingSettings):
        values = kind.split(values)
    settings = kind.from_dict(values, name)
    if isinstance(settings, TrainingSettings):
        settings.config(None)  # a mistake in a later step is not to cost the steps before it
    return settings


def named_task(config: RunConfig) -> str | None:
    """The task that a run's training was given, or else its latency table, or its retraining; None: none.

    Trained weights need no supernet: then it is retraining alone that has a recipe.
    """
    training: TrainSettings = step_settings("train", config.steps.get("train", {}))
    task = training.said_task(config.data) or config.steps.get("profile", {}).get("task")
    if task is None:
        retraining: RetrainSettings = step_settings("retrain", config.steps.get("retrain", {}))
        task = retraining.said_task(config.data)
    return None if task == NO_TASK else task


def task_of(config: RunConfig) -> Task | None:
    """The task of :func:`named_task`; None where none was named."""
    from bcnet_deploy.tasks import load_task

    name = named_task(config)
    return None if name is None else load_task(name)


# -- what a run keeps of them --------------------------------------------------------------------

BUDGETS = ("latency", "macs", "params", "peak_memory", "weight_size", "pareto")
_WAYS = ("estimate", "table", "rebase")
_EACH_TIME = ("network", "widths", "compute")
"""Settings of one call alone."""


def over_kept(step: str, kept: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given for a step now over what was given before.

    New budgets replace the former ones altogether, and so does another way to a table.
    """
    replaced: tuple[str, ...] = ()
    for whole, names in (("search", BUDGETS), ("profile", _WAYS)):
        if step == whole and any(given.get(name) for name in names):
            replaced = names
    merged = {**{key: value for key, value in kept.items() if key not in replaced}, **given}
    return {key: value for key, value in merged.items() if value is not None}


def settings_of(run: RunDir, step: str, given: Mapping[str, Any]) -> Any:
    """The checked settings of a step of ``run``: given now, else given before, else the defaults.

    Raises:
        ConfigError, ConstraintError: not allowed; it is wrong usage where what is given is alone to blame.
    """
    kept = run.load().steps.get(step, {}) if run.exists() else {}
    with wrong_option():
        step_settings(step, given)
    with wrong_option(None):
        return step_settings(step, over_kept(step, kept, given))


@contextmanager
def keeping(run: RunDir, step: str, given: Mapping[str, Any]) -> Iterator[None]:
    """Within it a step is carried out; what was given for it is kept in the run file for its next call.

    Nobody else writes meanwhile: neither what the step reads first nor what is kept last is another's.
    Kept when the step is done; a training's at once, so that after a kill it goes on without them. Refused
    for those of a checkpoint, they do not stay. Under torchrun the first process keeps them.
    """
    if not first_rank():
        yield
        return
    with only_writer(run):
        before = run.load().steps
        kept = {key: value for key, value in given.items() if key not in _EACH_TIME}
        now = {**before, step: over_kept(step, before.get(step, {}), kept)}
        if step == "train":
            run.keep(steps=now)
        try:
            yield
        except CheckpointError:
            run.keep(steps=before)
            raise
        run.keep(steps=now)


# -- shipped configurations ----------------------------------------------------------------------


def config_names() -> list[str]:
    """Names of the shipped configurations of ``run``."""
    return sorted(file.stem for file in (shipped("configs") / "run").glob("*.yaml"))


def load_config(path: str | Path) -> dict[str, Any]:
    """Keys and values of a configuration: a YAML file, or the name of a shipped one.

    Raises:
        ConfigError: there is none.
    """
    file = Path(path)
    if not files.is_file(file):
        file = shipped("configs") / "run" / f"{path}.yaml"
    if not files.is_file(file):
        names = config_names()
        raise ConfigError(
            f"no configuration {str(path)!r}{nearest(str(path), names)}; "
            f"allowed: a YAML file or one of {', '.join(names)}"
        )
    data = files.read_yaml(file, ConfigError, "configuration")
    PipelineSettings.read(data, f"configuration {file}")
    return dict(data)


__all__ = [
    "BenchStepSettings",
    "ExportSettings",
    "PipelineSettings",
    "ProfileSettings",
    "RetrainSettings",
    "SearchSettings",
    "TrainSettings",
    "TrainingSettings",
    "config_names",
    "keeping",
    "load_config",
    "over_kept",
    "sectioned",
    "settings_of",
    "step_settings",
]
