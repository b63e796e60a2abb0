"""The whole path as one call, and the same steps as methods of one object."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from bcnet_deploy.devices import DeviceProfile
from bcnet_deploy.errors import ConfigError
from bcnet_deploy.models.ref import GIVEN
from bcnet_deploy.run.bench import BenchStepResult, bench
from bcnet_deploy.run.directory import Given, RunConfig, RunDir, require_classes
from bcnet_deploy.run.display import Display, NoDisplay
from bcnet_deploy.run.engine import Done, Progress, only_writer, writing
from bcnet_deploy.run.export import ExportStepResult, check_loss, export, exported_files, target_of
from bcnet_deploy.run.preflight import (
    check_classes,
    check_table,
    describe_object,
    describe_run,
    start,
)
from bcnet_deploy.run.profile import ProfileResult, check_profile, profile
from bcnet_deploy.run.report import ReportResult, report
from bcnet_deploy.run.retrain import RetrainStepResult, retrain
from bcnet_deploy.run.search import SearchStepResult, prepare, search
from bcnet_deploy.run.settings import DEFAULT_LATENCY, PipelineSettings, keeping, settings_of, task_of
from bcnet_deploy.run.supernets import supernet_info
from bcnet_deploy.run.train import TrainResult, train
from bcnet_deploy.units import parse_duration

if TYPE_CHECKING:
    from torch import nn

    from bcnet_deploy.report import Content


R = TypeVar("R")


class StepResult(Protocol):
    """What every step's result tells."""

    @property
    def ran(self) -> bool: ...


@dataclass(frozen=True)
class PlannedStep:
    """A step of the whole path: its name, title, expected seconds (of two cores) and call."""

    name: str
    title: str
    seconds: float
    call: Callable[[Progress], StepResult]


@dataclass(frozen=True)
class PipelineResult:
    """What a run came to.

    Attributes:
        content: what the report shows, the summary's networks among it.
        report: the HTML file.
        ran: the steps that were not done already.
        seconds: wall time of this call.
    """

    content: Content
    report: Path
    ran: list[str]
    seconds: float

    @property
    def budget_ms(self) -> float | None:
        return self.content.budget_ms


def describe(run: RunDir, settings: PipelineSettings, *, force: bool = False) -> RunConfig:
    """What the run is about by these settings. Nothing is written. Raises as :func:`describe_run`."""
    device = run.device(settings.device)
    return describe_run(
        run, model=settings.model, num_classes=settings.num_classes, input_size=settings.input_size,
        levels=settings.levels, min_level=settings.min_level, weights=settings.weights,
        new_head=settings.new_head or None, data=settings.data,
        device=device.name, seed=settings.seed, replaces=force,
    )  # fmt: skip


def refuse_early(run: RunDir, config: RunConfig, settings: PipelineSettings) -> None:
    """Everything that can be refused before any work.

    Raises:
        BCNetError: what the step that meets it would raise, after the work of those before it.
    """
    device = run.device(settings.device)
    if run.given.data is None:
        check_classes(config.data, config.model.num_classes, config.model.input_size)
    for name in ("train", "retrain"):
        settings.step(name).config(config.data, trained=config.model.trained)
    if settings.train_supernet is False and settings.step("search").scores == "supernet":
        supernet_info(run)
    exporting = settings.step("export", network="found")
    task = task_of(replace(config, steps={**config.steps, **sections_of(settings)}))
    check_loss(exporting, target_of(exporting, device), task)
    profiling = settings.step("profile", device=str(settings.device))
    check_table(profiling.table, device.name)
    check_profile(run, profiling, whole=True)


def stages(run: RunDir, settings: PipelineSettings) -> list[PlannedStep]:
    """The steps of the whole path but the report, in order."""
    device = run.device(settings.device).name
    profiling = settings.step("profile", device=device)
    budgets = settings.step("search")
    searching = budgets if budgets.has_budget else budgets.replace(latency=DEFAULT_LATENCY)
    shown = ", ".join(
        [*searching.latencies(device).values(), *(str(amount) for amount in searching.counted.values())]
    )
    engine: dict[str, Any] = {name: settings.step("export", network=name) for name in settings.networks}
    wanted = target_of(engine["found"], run.device(settings.device))
    for name in engine:
        if name != "found":
            # Full and uniform are only compared with: they need no engine of their own.
            engine[name] = engine[name].replace(
                engine="onnx",
                precision=wanted.onnx_precision,
            )

    by_supernet = settings.train_supernet
    if by_supernet is None:
        by_supernet = settings.weights is None or searching.scores == "supernet"
    if not by_supernet and searching.scores is None:
        searching = searching.replace(scores="pruned")

    def training(progress: Progress) -> TrainResult:
        prepare(run, searching, evaluating=False)  # a budget that no network keeps is refused before training
        return train(run, settings.step("train"), progress, replace=True)

    def measuring(progress: Progress) -> BenchStepResult:
        networks: dict[str, Path] = {
            name: exported_files(run, engine[name])[-1] for name in settings.networks
        }
        return bench(run, settings.step("bench"), progress, replace=True, exported=networks)

    def retraining(name: str) -> PlannedStep:
        chosen = settings.step("retrain", network=name)
        return PlannedStep(
            f"retrain-{name}", f"training {name}", 40 if name == "full" else 20,
            lambda progress: retrain(run, chosen, progress, replace=True),
        )  # fmt: skip

    def exporting(name: str) -> PlannedStep:
        return PlannedStep(
            f"export-{name}", f"exporting {name}", 5,
            lambda progress: export(run, engine[name], progress, replace=True),
        )  # fmt: skip

    quick = profiling.table is not None or profiling.estimate
    return [
        PlannedStep(
            "profile", f"latency table of {device}", 2 if quick else parse_duration(profiling.time),
            lambda progress: profile(run, profiling, progress, replace=True),
        ),
        *([PlannedStep("train", "supernet", 45, training)] if by_supernet else []),
        PlannedStep(
            "search", f"widths within {shown}", 60,
            lambda progress: search(run, searching, progress, replace=True),
        ),
        *(retraining(name) for name in settings.networks),
        *(exporting(name) for name in settings.networks),
        PlannedStep("bench", "measuring", 20, measuring),
    ]  # fmt: skip


def run_all(
    run: RunDir,
    settings: PipelineSettings,
    display: Callable[[Sequence[PlannedStep]], Any] | None = None,
    *,
    force: bool = False,
) -> PipelineResult:
    """Profile, train, search, retrain, export, measure, report; what is done is skipped.

    Args:
        run: where everything is kept; the same call goes on after a kill.
        settings: what to do.
        display: makes, from the stages, a context manager that gives a :class:`Display`; None shows nothing.
        force: replace a run of another model, data set or seed.

    Raises:
        BCNetError: whatever a step raises; the steps before it are kept.
    """
    from contextlib import nullcontext

    started = time.monotonic()
    config = describe(run, settings, force=force)
    refuse_early(run, config, settings)
    with only_writer(run):
        start(run, config, force=force)
        run.keep_device(run.device(settings.device))
        run.keep(steps=sections_of(settings))  # so that the steps' own commands need them no more
        plan = stages(run, settings)
        ran = []
        with display(plan) if display is not None else nullcontext(NoDisplay()) as shown:
            for stage in plan:
                if carried(stage, shown):
                    ran.append(stage.name)
        finished = report(run)
    return PipelineResult(finished.content, finished.path, ran, time.monotonic() - started)


def carried(stage: PlannedStep, display: Display) -> bool:
    """Carry out one stage and show it; whether it ran."""
    progress = display.begin(stage.title)
    began = time.monotonic()
    result = stage.call(progress)
    said = (*getattr(result, "notes", ()), *getattr(getattr(result, "trained", None), "notes", ()))
    notes = tuple(dict.fromkeys(said)) if result.ran else ()
    display.end(stage.title, Done(stage.name, result.ran, time.monotonic() - began, notes))
    return result.ran


def sections_of(settings: PipelineSettings) -> dict[str, dict[str, Any]]:
    """The settings of every step, as a run keeps them."""
    sections = {name: dict(getattr(settings, name)) for name in ("profile", "train", "search", "retrain")}
    sections |= {"export": dict(settings.export), "bench": dict(settings.bench)}
    search_section = sections["search"]
    if not settings.step("search").has_budget:
        search_section["latency"] = DEFAULT_LATENCY
    sections["run"] = {"networks": list(settings.networks)}
    if settings.train_supernet is not None:
        sections["run"]["train_supernet"] = settings.train_supernet
    return {name: section for name, section in sections.items() if section}


def settings_of_run(run: RunDir) -> dict[str, Any]:
    """Keys and values of :class:`PipelineSettings` as the run file has them, to go on with that run."""
    config = run.load()
    about = {key: value for key, value in config.model.to_dict().items() if key != "name"}
    steps = {name: section for name, section in config.steps.items() if name != "run"}
    return {
        "model": config.model.name, **about, "data": config.data, "device": config.device,
        "seed": config.seed, **steps, **config.steps.get("run", {}),
    }  # fmt: skip


class Run:
    """A run from Python: the seven steps as methods, on names or on objects.

    Args:
        path: the run directory; a run that is there is gone on with.
        model: a name as for :func:`bcnet_deploy.build_model`, or a module.
        data: a reference as for :func:`bcnet_deploy.data.load_data`, or what it takes as an object: arrays by
            split, a data set, or :class:`bcnet_deploy.data.DataSplits`.
        device: name of a device profile, the path of one, or a :class:`bcnet_deploy.devices.DeviceProfile`.
        num_classes, input_size, levels, min_level: see :class:`bcnet_deploy.models.ref.ModelRef`.
        weights: trained weights to start from: a file, ``pretrained``, a trained module, or True where the
            module given as the model is trained.
        seed: of everything random.
        progress: told the share done and a note by every step.

    Raises:
        RunDirError: what is given contradicts the run that is there.
        UnknownModelError, DataError, UnknownDeviceError: a name is unknown.
        DataError: the data has other classes than the model.

    Example::

        run = bd.Run("bcnet-run", model="demo", data="digits", device="cpu-1thread")
        run.profile(budget="60s")
        run.train(epochs=10)
        found = run.search(latency="0.5x")
    """

    def __init__(
        self,
        path: str | Path = "bcnet-run",
        *,
        model: str | nn.Module | None = None,
        data: Any = None,
        device: str | Path | DeviceProfile | None = None,
        num_classes: int | None = None,
        input_size: tuple[int, int, int] | None = None,
        levels: int | None = None,
        min_level: int | None = None,
        weights: str | Path | nn.Module | bool | None = None,
        seed: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.directory = RunDir(path, Given())
        self._progress: Progress = progress or (lambda done, note: None)
        about: dict[str, Any] = {
            "num_classes": num_classes, "input_size": input_size, "levels": levels, "min_level": min_level,
            "weights": str(weights) if isinstance(weights, str | Path) else None, "seed": seed,
        }  # fmt: skip
        profile_given = self._device(device)
        self._give_objects(model, data, about)
        if weights is True or not isinstance(weights, str | Path | bool | None):
            self._give_weights(model, weights, about)
        config = describe_run(
            self.directory, device=None if profile_given is None else profile_given.name, **about
        )
        if not self.directory.exists():
            # A run that is begun keeps its number of classes: a wrong one must not begin it.
            if (splits := self.directory.given.data) is not None:
                require_classes(splits, config.model.num_classes)
            elif config.data is not None:
                check_classes(config.data, config.model.num_classes, config.model.input_size)
        with writing(self.directory):
            start(self.directory, config)
            if profile_given is not None:
                self.directory.keep_device(profile_given)

    @property
    def path(self) -> Path:
        return self.directory.path

    def _device(self, device: str | Path | DeviceProfile | None) -> DeviceProfile | None:
        if device is None or isinstance(device, DeviceProfile):
            return device
        return self.directory.device(device)

    def _give_objects(self, model: Any, data: Any, about: dict[str, Any]) -> None:
        """Take objects as they are and put names for them into ``about``."""
        given = self.directory.given
        if data is not None and not isinstance(data, str | Path):
            from bcnet_deploy.data import load_data

            size = about["input_size"] or _size_of(data)
            if size is None:
                raise ConfigError(
                    "the images' size cannot be seen from the data; give input_size=(3, 224, 224)"
                )
            given.data = load_data(data, size)
            about["input_size"] = given.data.input_size
            about["num_classes"] = about["num_classes"] or given.data.num_classes
            about["data"] = f"object:{given.data.name}"
        elif data is not None:
            about["data"] = str(data)
        if model is None or isinstance(model, str):
            about["model"] = model
            return
        size = about["input_size"] or (
            self.directory.load().model.input_size if self.directory.exists() else None
        )
        if size is None:
            raise ConfigError(
                "the model is a module: its input size must be given too, as input_size=(3, 224, 224), "
                "or by data given as arrays"
            )
        ref = describe_object(self.directory, model, num_classes=about["num_classes"], input_size=tuple(size))
        given.model = model
        about.update(model=ref.name, num_classes=ref.num_classes, input_size=ref.input_size)

    def _give_weights(self, model: Any, weights: Any, about: dict[str, Any]) -> None:
        """Weights that are a trained module: the one that is the model, or one of the model's name."""
        if weights is not True:
            self.directory.given.model = weights
        if self.directory.given.model is None:
            raise ConfigError(
                f"weights=True says that the module given as the model is trained; the model is {model!r}: "
                "give a file, 'pretrained' or a trained module"
            )
        about["weights"] = GIVEN

    def _carried(self, step: str, function: Callable[..., R], given: Mapping[str, Any], **more: Any) -> R:
        """Carry out a step; settings that are given are kept, as those of its command."""
        settings = settings_of(self.directory, step, given)
        with keeping(self.directory, step, given):
            return function(self.directory, settings, self._progress, **more)

    def profile(self, *, estimate: bool = False, fresh: bool = False, **settings: Any) -> ProfileResult:
        """The latency table; settings of :class:`ProfileSettings`, such as ``budget="120s"``.

        An estimate, a table to take and one to rebase are asked for each time: without them, this call means
        to measure.
        """
        given = {"table": None, "rebase": None, **settings, "estimate": estimate}
        return self._carried("profile", profile, given, fresh=fresh)

    def train(self, *, fresh: bool = False, **settings: Any) -> TrainResult:
        """The supernet; ``recipe`` and any setting of :class:`bcnet_deploy.train.TrainConfig`."""
        return self._carried("train", train, settings, fresh=fresh)

    def search(self, *, fresh: bool = False, **settings: Any) -> SearchStepResult:
        """The best widths; settings of :class:`SearchSettings`, such as ``latency="5ms"``."""
        return self._carried("search", search, settings, fresh=fresh)

    def retrain(self, network: str = "found", *, fresh: bool = False, **settings: Any) -> RetrainStepResult:
        """The chosen network; settings of :class:`RetrainSettings` and of a recipe."""
        return self._carried("retrain", retrain, {**settings, "network": network}, fresh=fresh)

    def export(
        self, network: str = "found", *, fresh: bool = False, out: Path | None = None, **settings: Any
    ) -> ExportStepResult:
        """The exported network; settings of :class:`ExportSettings`. ``fresh`` replaces what is there."""
        return self._carried("export", export, {**settings, "network": network}, fresh=fresh, out=out)

    def bench(self, *, fresh: bool = False, **settings: Any) -> BenchStepResult:
        """Measured latencies; settings of :class:`BenchStepSettings`."""
        return self._carried("bench", bench, settings, fresh=fresh)

    def report(self, path: str | Path | None = None, *, force: bool = False) -> ReportResult:
        """The HTML page."""
        return report(self.directory, path, force=force)


def _size_of(data: Any) -> tuple[int, int, int] | None:
    """(C, H, W) of the images of arrays or splits; None where only reading them would tell."""
    if hasattr(data, "input_size"):
        return (*data.input_size,)
    pair = data.get("train") if isinstance(data, Mapping) else data
    shape: tuple[int, ...] = ()
    if isinstance(pair, tuple | list) and len(pair) == 2:
        shape = tuple(getattr(pair[0], "shape", ()))
    return (int(shape[1]), int(shape[2]), int(shape[3])) if len(shape) == 4 else None


__all__ = ["PipelineResult", "Run", "PlannedStep", "refuse_early", "run_all", "stages"]
