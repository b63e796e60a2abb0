"""The configuration of the whole path: what is accepted, and how refusals read."""

from __future__ import annotations

from pathlib import Path

import pytest

from bcnet_deploy.cli.run import read_settings
from bcnet_deploy.errors import BCNetError, ConfigError, MissingStepError, RunDirError
from bcnet_deploy.models.ref import ModelRef
from bcnet_deploy.run.directory import RunConfig, RunDir
from bcnet_deploy.run.pipeline import Run, describe, refuse_early, sections_of, stages
from bcnet_deploy.run.preflight import start
from bcnet_deploy.run.settings import (
    PipelineSettings,
    ProfileSettings,
    SearchSettings,
    config_names,
    load_config,
    named_task,
    step_settings,
)

NO_OPTIONS: dict[str, object] = {"model": None}


def test_a_file_and_overrides(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("model: mynet:small\ninput_size: 3x64x48\nlatency: 5ms\ntrain: {epochs: 3}\n")
    about = {"model": None, "device": "t4", "seed": 7}
    config = read_settings(RunDir(tmp_path), str(file), about, {"search": {"macs": "1M"}}, force=False)
    assert (config.model, config.input_size, config.device) == ("mynet:small", (3, 64, 48), "t4")
    assert (config.search, config.seed, config.train) == ({"latency": "5ms", "macs": "1M"}, 7, {"epochs": 3})


@pytest.mark.parametrize("size", ["3x64x48", [3, 64, 48]])
def test_input_sizes(size: object) -> None:
    assert PipelineSettings.read({"input_size": size}, "here").input_size == (3, 64, 48)


def test_dict_form_is_read_back() -> None:
    config = PipelineSettings(input_size=(3, 64, 48), networks=("found",), num_classes=5)
    assert PipelineSettings.read(config.to_dict(), "here") == config


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"modell": "demo"}, ["'modell'", "did you mean 'model'"]),
        ({"latency": 5}, ["latency is 5", "a unit is needed"]),
        ({"latency": "5 parsecs"}, ["5 parsecs", "'5ms'"]),
        ({"latency": "-1ms"}, ["not a positive"]),
        ({"profile_budget": "soon"}, ["soon"]),
        ({"profile_budget": "60s", "profile": "60s"}, ["profile is '60s'", "keys and values"]),
        ({"seed": "one"}, ["seed is 'one'", "a whole number"]),
        ({"seed": True}, ["seed is True"]),
        ({"train": [1]}, ["train is [1]", "keys and values"]),
        ({"networks": ["uniform"]}, ["found"]),
        ({"networks": ["found", "small"]}, ["small"]),
        ({"confidence": 1.0}, ["confidence is 1.0"]),
        ({"levels": 4, "min_level": 5}, ["min_level is 5", "levels, 4"]),
        ({"input_size": "huge"}, ["huge"]),
    ],
)
def test_refusals_name_the_value_and_what_is_allowed(data: dict[str, object], words: list[str]) -> None:
    with pytest.raises(BCNetError) as caught:
        PipelineSettings.read(data, "file.yaml")
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_name_lists_the_shipped_ones() -> None:
    assert "demo" in config_names()
    with pytest.raises(ConfigError, match="did you mean 'demo'"):
        load_config("dem")


def test_shipped_configurations_load() -> None:
    for name in config_names():
        assert PipelineSettings.read(load_config(name), name).step("search").has_budget


def test_a_list_is_no_configuration(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("- 1\n")
    with pytest.raises(ConfigError, match="holds list"):
        load_config(file)


def test_fine_tuning_of_few_images_takes_enough_steps_unless_epochs_are_named() -> None:
    settings = step_settings("retrain", {})
    assert settings.config("photos", trained=True).min_steps == 300
    assert settings.config("photos").min_steps == 0
    named = step_settings("retrain", {"epochs": 2})
    assert named.config("photos", trained=True).min_steps == 0


@pytest.mark.parametrize(
    ("steps", "task"),
    [
        ({}, None),
        ({"train": {"task": "segmentation"}, "retrain": {"task": "my:task"}}, "segmentation"),
        ({"profile": {"task": "my:task"}}, "my:task"),
        ({"profile": {"task": "none"}, "retrain": {"task": "my:task"}}, None),
        ({"retrain": {"changes": {"task": "my:task"}}}, "my:task"),
        ({"retrain": {"task": "my:task"}}, "my:task"),
    ],
)
def test_the_task_of_a_run_is_told_by_the_first_step_that_has_one(
    steps: dict[str, dict[str, object]], task: str | None
) -> None:
    """Also where trained weights are given, and retraining alone has a recipe."""
    model = ModelRef("demo", num_classes=10, input_size=(1, 16, 16))
    assert named_task(RunConfig(model=model, data="photos", steps=steps)) == task


def test_a_forced_run_is_the_one_that_is_there_with_what_is_given(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    ref = ModelRef("resnet18", num_classes=10, input_size=(3, 64, 64))
    run.save(RunConfig(ref, data="digits", device="t4", steps={"search": {"latency": "0.3x"}}))
    sections = {"profile": {"table": None}, "search": {"latency": [], "macs": None}}

    def forced(**about: object) -> PipelineSettings:
        return read_settings(run, None, {**NO_OPTIONS, **about}, sections, force=True)

    for same in (forced(seed=1), forced(seed=1, model="resnet18")):
        assert (same.model, same.num_classes, same.input_size) == ("resnet18", 10, (3, 64, 64))
        assert (same.data, same.device, same.seed) == ("digits", "t4", 1)
        assert same.search == {"latency": "0.3x"}
    other = forced(data="digits-canvas")
    assert (other.model, other.data, other.num_classes) == ("resnet18", "digits-canvas", None)
    assert forced(model="mobilenet_v2").search == {}, "another model has nothing of this one"
    run.config_path.write_text("{")
    assert forced().model == "demo"
    with pytest.raises(RunDirError):
        read_settings(run, None, dict(NO_OPTIONS), sections, force=False)


def test_who_asked_for_a_supernet_need_not_ask_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(tmp_path)
    (tmp_path / "w.pt").write_bytes(b"")
    settings = PipelineSettings(weights=str(tmp_path / "w.pt"), train_supernet=True)
    start(run, describe(run, settings))
    run.keep(steps=sections_of(settings))
    again = read_settings(run, None, dict(NO_OPTIONS), {}, force=False)
    assert again.train_supernet is True and "train" in [step.name for step in stages(run, again)]

    searched: list[str | None] = []

    def search(run: RunDir, settings: SearchSettings, *_: object, **__: object) -> None:
        searched.append(settings.scores)

    monkeypatch.setattr("bcnet_deploy.run.pipeline.search", search)
    for train, scores in [(None, None), (None, "supernet"), (False, None), (False, "tuned"), (True, None)]:
        asked = settings.replace(train_supernet=train, search={"scores": scores})
        plan = {step.name: step for step in stages(run, asked)}
        plan["search"].call(lambda share, note: None)
        assert ("train" in plan) == (train is True or scores == "supernet")
    assert searched == ["pruned", "supernet", "pruned", "tuned", None]
    none_there = settings.replace(train_supernet=False, search={"scores": "supernet"})
    with pytest.raises(MissingStepError, match="no supernet has been trained"):
        refuse_early(run, run.load(), none_there)


def test_a_table_that_was_taken_once_is_not_taken_where_a_budget_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[ProfileSettings] = []

    def profile(run: RunDir, settings: ProfileSettings, *_: object, **__: object) -> None:
        asked.append(settings)

    monkeypatch.setattr("bcnet_deploy.run.pipeline.profile", profile)
    run = Run(tmp_path, model="demo", data="digits")
    for way in ("table", "rebase"):
        run.directory.keep(steps={"profile": {way: "table.json", "task": "none"}})
        run.profile(budget="60s")
        last = asked[-1]
        assert (last.table, last.rebase, last.budget, last.task) == (None, None, "60s", "none")
        assert way not in run.directory.load().steps["profile"]
    run.profile(table="table.json")
    assert asked[-1].table == "table.json"
