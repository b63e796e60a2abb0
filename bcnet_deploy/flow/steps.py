"""The steps of the whole path, each on top of the part that does its work."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcnet_deploy.devices import DeviceProfile, device_of_run, is_shipped, keep_device
from bcnet_deploy.errors import ConfigError, RunDirError
from bcnet_deploy.flow.checks import (
    check_budget,
    check_classes,
    check_export,
    check_table,
    known_settings,
)
from bcnet_deploy.flow.config import FlowConfig
from bcnet_deploy.flow.engine import Advance, Step
from bcnet_deploy.flow.run_space import keep_space
from bcnet_deploy.rundir import ModelRef, RunConfig, RunDir
from bcnet_deploy.units import parse_duration

if TYPE_CHECKING:
    from torch import nn

    from bcnet_deploy.export.job import ExportJob
    from bcnet_deploy.space import WidthSpace

FOLDERS = ("latency", "train", "search", "retrain", "export", "bench", "flow")


def model_reference(config: FlowConfig) -> ModelRef:
    """How the run's model is built. Raises :class:`UnknownModelError`, :class:`DataError`."""
    from bcnet_deploy.data import classes_of
    from bcnet_deploy.models import default_input_size, default_num_classes

    size = config.input_size or default_input_size(config.model)
    return ModelRef(
        name=config.model,
        num_classes=config.num_classes or classes_of(config.data, size) or default_num_classes(config.model),
        input_size=size,
        levels=config.levels,
        min_level=config.min_level,
    )


def open_run(run: RunDir, config: FlowConfig, *, force: bool) -> RunConfig:
    """The run file of this configuration, written where there is none.

    Args:
        run: the run directory.
        config: what is to be done.
        force: drop a run of another model, data set or seed that is there.

    Raises:
        RunDirError: another run is there and ``force`` is false, or it is of another version.
    """
    profile = device_of_run(run, config.device)
    wanted = RunConfig(model=model_reference(config), device=profile.name, data=config.data, seed=config.seed)
    if run.exists():
        try:
            there = run.load()
        except RunDirError:
            if not force:
                raise
            there = None
        kept = ("model", "data", "seed")
        other = [key for key in kept if there is None or getattr(there, key) != getattr(wanted, key)]
        if other and not force:
            key = other[0]
            old, new = (_short(getattr(run_config, key)) for run_config in (there, wanted))
            raise RunDirError(
                f"{run.path} holds a run of {key} {old}, not {new}; "
                "give another --run-dir, or --force to replace it"
            )
        if other:
            for name in FOLDERS:
                shutil.rmtree(run / name, ignore_errors=True)
        elif there == wanted:
            keep_device(run, profile)
            return wanted
    run.save(wanted)
    keep_device(run, profile)
    return wanted


def _short(value: Any) -> str:
    return repr(value.to_dict() if isinstance(value, ModelRef) else value)


def build(ref: ModelRef, seed: int) -> tuple[nn.Module, WidthSpace]:
    """The model with weights drawn from ``seed``, and its space."""
    import torch

    from bcnet_deploy.models import build_model
    from bcnet_deploy.space import WidthSpace

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(ref.name, num_classes=ref.num_classes)
    return model, WidthSpace.from_model(model, ref.input_size, ref.levels, ref.min_level)


def train_settings(overrides: Mapping[str, Any], data: str) -> Any:
    """The recipe under ``recipe`` (the digits' for them by default) with the other keys over it.

    Raises:
        ConfigError: no such recipe, or a setting is not allowed.
    """
    from bcnet_deploy.train import TrainConfig

    changes = dict(overrides)
    recipe = changes.pop("recipe", "digits" if data == "digits" else None)
    if recipe is not None and not isinstance(recipe, str):
        raise ConfigError(f"recipe is {recipe!r}; allowed: a YAML file or the name of a shipped recipe")
    base = TrainConfig.load(recipe) if recipe else TrainConfig()
    return TrainConfig.from_dict({**base.to_dict(), **changes}, "the training settings")


class Steps:
    """Makes the steps of one configuration in one run directory."""

    def __init__(self, run: RunDir, config: FlowConfig) -> None:
        self.run = run
        self.config = config
        self.profile: DeviceProfile = device_of_run(run, config.device)
        self.ref = model_reference(config)
        self.supernet_settings = train_settings(config.train, config.data)
        self.final_settings = train_settings(config.retrain, config.data)
        check_classes(config.data, self.ref.num_classes, self.ref.input_size)
        self.precision = check_export(config, self.profile)
        check_table(config.table, self.profile.name)
        # Checked here, so that a mistake in a later step's settings does not cost the steps before it.
        self.search_settings = known_settings(
            "search",
            config.search,
            {"evaluations": 200, "population_size": 20, "patience": 15, "val_images": 0},
        )
        self.bench_settings = known_settings(
            "bench", config.bench, {"rounds": 10, "runs": 30, "batches": [1, 16], "layers": True}
        )

    @property
    def table(self) -> Path:
        return self.run.latency_table(self.profile.name)

    def all(self) -> list[Step]:
        """Every step, in order."""
        steps = [self.profiling(), self.training(), self.searching()]
        steps += [self.retraining(name) for name in self.config.networks]
        steps += [self.exporting(name) for name in self.config.networks]
        return [*steps, self.measuring()]

    @property
    def _identity(self) -> dict[str, Any]:
        config = self.config
        return {"model": self.ref.to_dict(), "data": config.data, "seed": config.seed}

    @property
    def _own_device(self) -> dict[str, Any]:
        """What a device profile of the user's own says: steps depend on more than its name."""
        if is_shipped(self.profile):
            return {}
        return {"profile": {**dataclasses.asdict(self.profile), "path": None}}

    # -- profile -------------------------------------------------------------------------------

    def profiling(self) -> Step:
        config, given = self.config, [Path(self.config.table)] if self.config.table else []
        settings = {
            "model": self.ref.to_dict(), "device": self.profile.name, "estimate": config.estimate,
            "budget": None if given else config.profile_budget, **self._own_device,
        }  # fmt: skip
        budget = parse_duration(config.profile_budget)
        title = f"latency table of {self.profile.name}"
        return Step("profile", title, 2 if given else budget, settings, given, [self.table], self._profile)

    def _profile(self, fresh: bool, advance: Advance) -> None:
        from bcnet_deploy.lut import LatencyTable

        _, space = build(self.ref, self.config.seed)
        keep_space(self.run, self.ref, space)
        if self.config.table:
            LatencyTable.load(self.config.table).for_space(space).save(self.table)
            return
        from bcnet_deploy.profiler.profiling import profile_device

        if not self.config.estimate:
            self.profile.require_here(self.ref.name, whole=True)
        model, _ = build(self.ref, self.config.seed)
        budget = parse_duration(self.config.profile_budget)

        def report(state: Any) -> None:
            advance(state.done_s / budget, f"{state.networks} networks measured")

        profile_device(
            model, space, self.profile, self.table, budget_s=budget, estimate=self.config.estimate,
            seed=self.config.seed, fresh=fresh, report=report,
        )  # fmt: skip

    # -- train ---------------------------------------------------------------------------------

    def training(self) -> Step:
        folder = self.run.train
        settings = {**self._identity, "train": self.supernet_settings.to_dict()}
        outputs = [folder / "supernet.safetensors", folder / "supernet.json"]
        return Step("train", "supernet", 45, settings, [], outputs, self._train)

    def _train(self, fresh: bool, advance: Advance) -> None:
        import torch

        from bcnet_deploy.data import load_data
        from bcnet_deploy.nn import Supernet
        from bcnet_deploy.train import train_supernet

        seed = self.config.seed
        model, space = build(self.ref, seed)
        keep_space(self.run, self.ref, space)
        check_budget(space, self.table, self.config)
        splits = load_data(self.config.data, self.ref.input_size, num_classes=self.ref.num_classes)
        supernet = Supernet(model, space, generator=torch.Generator().manual_seed(seed))
        train_supernet(
            supernet, splits, self.supernet_settings, self.run.train, seed=seed, fresh=fresh, progress=advance
        )

    # -- search --------------------------------------------------------------------------------

    def searching(self) -> Step:
        from bcnet_deploy.flow.searching import run_search

        config = self.config
        settings = {
            **self._identity, "latency": config.latency, "confidence": config.confidence,
            **self.search_settings,
        }  # fmt: skip
        inputs = [self.table, self.run.train / "supernet.safetensors"]
        outputs = [self.run.search / "search.json", self.run.widths]

        def go(fresh: bool, advance: Advance) -> None:
            run_search(self.run, self.table, config, self.search_settings, advance)

        return Step("search", f"widths within {config.latency}", 60, settings, inputs, outputs, go)

    # -- retrain, export, bench ----------------------------------------------------------------

    def retraining(self, which: str) -> Step:
        folder = self.run.retrained(which)
        settings = {**self._identity, "retrain": self.final_settings.to_dict(), "which": which}
        # The full network does not depend on the search: another budget leaves it as it is.
        inputs = [] if which == "full" else [self.run.widths]
        outputs = [folder / "weights.safetensors", folder / "subnet.yaml", folder / "result.json"]

        def go(fresh: bool, advance: Advance) -> None:
            from bcnet_deploy.data import load_data
            from bcnet_deploy.flow.searching import widths_of
            from bcnet_deploy.train import retrain

            model, space = build(self.ref, self.config.seed)
            splits = load_data(self.config.data, self.ref.input_size, num_classes=self.ref.num_classes)
            retrain(
                model, space, widths_of(self.run, space, which), splits, self.final_settings, folder,
                model_ref=self.ref, seed=self.config.seed, fresh=fresh, progress=advance,
            )  # fmt: skip

        return Step(
            f"retrain-{which}",
            f"training {which}",
            40 if which == "full" else 20,
            settings,
            inputs,
            outputs,
            go,
        )

    def _export_job(self, which: str) -> ExportJob:
        from bcnet_deploy.export.job import ExportJob

        # Full and uniform are only compared with: they need no engine of their own.
        engine = self.config.engine if which == "found" else "onnx"
        return ExportJob(which=which, engine=engine, precision=self.precision, force=True)  # type: ignore[arg-type]

    def _exported(self, which: str) -> tuple[Path, ...]:
        """The files of one network's export, the ONNX file last."""
        from bcnet_deploy.export.job import exported_files

        job = self._export_job(which)
        device = self.profile if job.engine == "trt" else None
        return exported_files(self.run.export, job, self.precision, device)  # type: ignore[arg-type]

    def exporting(self, which: str) -> Step:
        job = self._export_job(which)
        settings = {"engine": job.engine, "precision": self.precision, "device": self.profile.name}
        inputs = [self.run.retrained(which) / name for name in ("weights.safetensors", "subnet.yaml")]

        def go(fresh: bool, advance: Advance) -> None:
            from bcnet_deploy.export.job import run_export

            run_export(self.run, job, progress=advance)

        return Step(f"export-{which}", f"exporting {which}", 5, settings, inputs, self._exported(which), go)

    def measuring(self) -> Step:
        exported = {name: self._exported(name) for name in self.config.networks}
        # Exactly what is measured: a former export of another kind may lie in the folder as well.
        networks = {name: paths[-1] for name, paths in exported.items()}
        engines = [path for paths in exported.values() for path in paths if path.suffix == ".engine"]

        def go(fresh: bool, advance: Advance) -> None:
            from bcnet_deploy.bench.measure import BenchSettings
            from bcnet_deploy.bench.runs import bench_run

            settings = {**self.bench_settings, "batches": tuple(self.bench_settings["batches"])}
            bench_run(self.run, settings=BenchSettings(**settings), exported=networks, progress=advance)

        inputs = [self.table, *networks.values(), *engines]
        settings = {**self.bench_settings, **self._own_device}
        return Step("bench", "measuring", 20, settings, inputs, [self.run.bench], go)
