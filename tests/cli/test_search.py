"""``bcnet-deploy search`` on a tiny run: what it refuses and when, what it writes, and that it resumes."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from bcnet_deploy.cli.main import cli
from bcnet_deploy.cli.search import _show_front, metric_of, show_dry_run
from bcnet_deploy.data import load_data
from bcnet_deploy.devices import load_device
from bcnet_deploy.lut import LatencyTable
from bcnet_deploy.lut.entries import Entries
from bcnet_deploy.lut.estimate import estimate_table
from bcnet_deploy.models import build_model
from bcnet_deploy.models.ref import ModelRef
from bcnet_deploy.nn import Supernet
from bcnet_deploy.report.load import gather
from bcnet_deploy.run.directory import RunConfig, RunDir
from bcnet_deploy.run.search import _disagreement
from bcnet_deploy.space import WidthSpace
from bcnet_deploy.train import SupernetEvaluator, SupernetResult, TrainConfig
from bcnet_deploy.train.supernet import _save
from bcnet_deploy.units import parse_count

REF = ModelRef("demo", num_classes=10, input_size=(1, 16, 16), levels=2)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def search(run: Path, *arguments: str) -> Result:
    return call("search", "--run-dir", str(run), "--quiet", "--val-images", "16", *arguments)


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Accuracies that rise with every width, instead of images through an untrained network."""

    def results(self: SupernetEvaluator, widths: Any, images: int | None = None) -> np.ndarray:
        accuracy = np.asarray(widths).reshape(-1, len(self.supernet.space.variables)).sum(axis=1) / 10
        return np.stack([np.stack([accuracy] * 2, axis=1), np.ones((len(accuracy), 2))], axis=1)

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SupernetEvaluator, "_results", results)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def space() -> WidthSpace:
    return WidthSpace.from_model(build_model("demo", num_classes=10), REF.input_size, REF.levels)


def measured(table: LatencyTable, error: float) -> LatencyTable:
    """An estimate that passes for a measurement with this relative error."""
    entries = {}
    for layer in table.network.layers:
        largest = np.array([extent.max for extent in layer.dims] or [1])
        dims = np.unique(np.stack([np.ones_like(largest), largest]), axis=0)
        times = table.models[layer.key].time_us(dims)
        new = Entries(dims, np.ones(len(dims), dtype=np.int64), times, np.zeros(len(dims)))
        entries[layer.key] = new.merged(entries.get(layer.key))
    network = replace(table.network, relative_error=error)
    return replace(table, source="measured", networks=(network,), entries=entries, provenance={})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, space: WidthSpace) -> Path:
    """A run as ``train`` and ``profile`` leave it, with a table of cpu with an error of 10%."""
    place = RunDir(tmp_path_factory.mktemp("cli") / "run")
    place.save(RunConfig(REF, device="cpu", data="digits"))
    place.keep_space(space)
    supernet = Supernet(build_model("demo", num_classes=10), space, generator=torch.Generator())
    splits = load_data("digits", REF.input_size, num_classes=10)
    config = TrainConfig(batch_size=8, augment="none")
    _save(supernet, splits, config, 0, place.train, SupernetResult(1, 1.0, 1.0, 1.0, 1.0, {}))
    rows = space.random(40, np.random.default_rng(0))
    lines = [json.dumps({"widths": row.tolist(), "loss": 1 / float(row.sum())}) for row in rows]
    (place.train / "records.jsonl").write_text("\n".join(lines) + "\n")
    measured(estimate_table(space, load_device("cpu")), 0.1).save(place.latency_table("cpu"))
    estimate_table(space, load_device("t4")).save(place.latency_table("t4"))
    return place.path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def refused(result: Result, *words: str, code: int = 1) -> None:
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert all(word in result.output for word in words), result.output
    if code == 1:
        errors = [line for line in result.output.strip().splitlines() if "error:" in line]
        assert len(errors) == 1, result.output


@pytest.fixture
def no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Building a model is what takes seconds: it must not happen."""

    def build(*arguments: Any, **more: Any) -> None:
        raise AssertionError("a model was built")

    monkeypatch.setattr("bcnet_deploy.models.registry.build_model", build)


def every_network(space: WidthSpace) -> np.ndarray:
    return np.array(list(itertools.product(*(v.choices for v in space.variables))))


# -- usage -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--macs", "0.5x", "--on-error", "ignore"],
        ["--macs", "0.5x", "--val-images", "0"],
        ["--macs", "0.5x", "--val-images", "-1", "--dry-run"],
    ],
)
def test_wrong_usage_exits_with_2(trained: Path, arguments: list[str]) -> None:
    refused(call("search", "--run-dir", str(trained), *arguments), "see 'cli search --help'", code=2)


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_an_unknown_strategy_is_wrong_usage(trained: Path, more: list[str]) -> None:
    result = search(trained, "--macs", "0.5x", "--strategy", "nsga3", *more)
    refused(result, "unknown strategy 'nsga3'", "did you mean 'nsga2'", "exhaustive", code=2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--macs", "-1"], ["'-1'", "300M"]),
        (["--params", "many"], ["'many'", "0.5x"]),
        (["--latency", "5"], ["'5'", "'5ms'"]),
        (["--latency", "t4=fast"], ["'fast'", "'5ms'"]),
        (["--macs", "0.5x", "--macs", "0.3x"], ["--macs", "'0.5x' and '0.3x'", "give one"]),
        (["--params", "1M", "--params", "2M"], ["--params", "'1M' and '2M'"]),
        (["--peak-memory", "1MB", "--peak-memory", "2MB"], ["--peak-memory", "'1MB' and '2MB'"]),
        (["--weight-size", "1MB", "--weight-size", "2MB"], ["--weight-size", "'1MB' and '2MB'"]),
        (["--latency", "5ms", "--latency", "cpu=3ms"], ["'cpu'", "5ms", "3ms"]),
        (["--macs", "0.5x", "--confidence", "95"], ["95", "0.95"]),
        (["--latency", "l4=5ms"], ["no latency table of device 'l4'", "tables of cpu, t4", "--device l4"]),
    ],
)
def test_budgets_are_read_before_any_model_is_built(
    run: Path, no_trace: None, arguments: list[str], words: list[str]
) -> None:
    (run / "search" / "space.json").unlink()
    refused(search(run, *arguments), *words, code=1 if "l4=5ms" in arguments else 2)


# -- refusals without a trace ------------------------------------------------------------------


def test_a_kept_space_refuses_in_a_moment(trained: Path, space: WidthSpace, no_trace: None) -> None:
    least = int(space.macs(space.narrowest[None])[0])
    started = time.process_time()
    result = search(trained, "--macs", "1k", "--latency", "1us")
    assert time.process_time() - started < 2
    # Both impossible budgets in one message, each with what would do.
    refused(result, "MACs <= 1k cannot be met", "latency on cpu <= 1 µs cannot be met", "(proven)")
    nearest = result.output.split("Nearest feasible budget: ")[1:]
    assert len(nearest) == 2
    assert least <= parse_count(nearest[0].split("; ")[0]).value <= 1.001 * least


def test_without_a_kept_space_the_model_is_traced_for_refusals(run: Path) -> None:
    (run / "search" / "space.json").unlink()
    refused(search(run, "--latency", "1us", "--latency", "t4=2us"), "on cpu", "on t4", "(proven)")


def test_the_tables_levels_are_not_taken_for_the_runs(run: Path, space: WidthSpace) -> None:
    """A table measured with finer levels knows narrower networks than the run may choose."""
    model = build_model("demo", num_classes=10)
    fine = WidthSpace.from_model(model, REF.input_size, 16)
    measured(estimate_table(fine, load_device("cpu")), 0.0).save(RunDir(run).latency_table("cpu"))
    table = LatencyTable.load(RunDir(run).latency_table("cpu"))
    least = float(table.predict(every_network(space)).min())
    assert float(table.predict(fine.narrowest)[0]) < 0.95 * least
    (run / "search" / "space.json").unlink()
    refused(search(run, "--latency", f"{0.99 * least:.6f}ms"), "cannot be met")


def test_a_nearest_budget_is_met_when_given_back(trained: Path) -> None:
    for option in ("--macs", "--params", "--weight-size", "--peak-memory"):
        error = search(trained, option, "1").output
        nearest = error.split("Nearest feasible budget: ")[1].split(". Raise")[0]
        again = search(trained, option, nearest, "--dry-run", "--json")
        assert again.exit_code == 0, again.output


def test_an_exhaustive_search_of_a_large_space_is_refused_at_once(run: Path, no_trace: None) -> None:
    place = RunDir(run)
    ref = replace(REF, levels=16)
    place.save(RunConfig(ref, device="cpu", data="digits"))
    data = json.loads((run / "search" / "space.json").read_text())
    kept = WidthSpace.from_dict(data["space"])
    many = {variable.name: range(1, variable.channels + 1) for variable in kept.variables}
    place.keep_space(kept.with_choices(many))
    result = search(run, "--macs", "0.5x", "--strategy", "exhaustive", "--dry-run")
    refused(result, "at most 131,072", "nsga2")
    assert "allow" not in result.output, "more evaluations do not help"


def test_an_exhaustive_search_says_how_many_evaluations_it_needs(trained: Path, space: WidthSpace) -> None:
    within = space.macs(every_network(space)) <= 0.5 * space.macs(space.full[None])[0]
    result = search(trained, "--macs", "0.5x", "--strategy", "exhaustive", "--evaluations", "3", "--dry-run")
    refused(result, f"{int(within.sum()):,} networks keep the budgets", "3 evaluations")


def test_damaged_loss_records_are_named_before_anything_is_evaluated(run: Path, no_trace: None) -> None:
    path = run / "train" / "records.jsonl"
    whole = path.read_text().splitlines()
    for line, words in (
        ("{", ["line 2", "not JSON"]), ('{"loss": 1.0}', ["line 2", "the key 'widths' is missing"]),
        ('{"widths": [1, 2], "loss": 1.0}', ["line 2", "2 widths"]), ("3", ["line 2"]),
        ('{"widths": "wide", "loss": 1.0}', ["line 2", "'wide'"]),
        (whole[1].replace(": [", f": [{10**30}, ", 1), ["line 2", "widths is 1e+30"]),
    ):  # fmt: skip
        path.write_text("\n".join([whole[0], line, *whole[2:]]) + "\n")
        refused(search(run, "--macs", "0.5x"), "records.jsonl", *words, "--no-prior", "train --fresh")
    path.write_bytes(b"\xff\xfe\n")
    refused(search(run, "--macs", "0.5x"), "records.jsonl", "--no-prior")


# -- other models, devices and levels ----------------------------------------------------------


def other_table(run: Path, device: str) -> None:
    """A table of another model at the run's resolution, under the name of a device."""
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 40, 7, 1, 3), torch.nn.ReLU(), torch.nn.Conv2d(40, 8, 5))
    wrapped = torch.nn.Sequential(model, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    other = WidthSpace.from_model(wrapped, REF.input_size, 2)
    estimate_table(other, load_device(device)).save(RunDir(run).latency_table(device))


@pytest.mark.parametrize("kept", [True, False])
def test_a_table_of_another_model_is_refused_before_its_bounds(run: Path, kept: bool) -> None:
    other_table(run, "t4")
    if not kept:
        (run / "search" / "space.json").unlink()
    # A budget that the other model's table would call infeasible: the table itself is what is wrong.
    result = search(run, "--latency", "t4=1us", "--dry-run")
    refused(result, "t4.json", "device 't4'", "not of the run's model demo", "profile --device t4")
    assert "cannot be met" not in result.output


def test_a_table_of_another_device_is_refused(run: Path) -> None:
    shutil.copy(run / "latency" / "t4.json", run / "latency" / "mine.json")
    refused(search(run, "--latency", "mine=1ms"), "mine.json", "device 't4'", "'mine'")


def test_a_table_of_another_resolution_is_refused(run: Path) -> None:
    larger = WidthSpace.from_model(build_model("demo", num_classes=10), (1, 32, 32), 2)
    estimate_table(larger, load_device("t4")).save(RunDir(run).latency_table("t4"))
    refused(search(run, "--latency", "t4=1ms"), "t4.json", "1x32x32", "1x16x16", "--device t4")


def test_an_unusable_table_of_a_device_without_a_budget_stops_nothing(run: Path) -> None:
    other_table(run, "cpu")
    result = search(run, "--macs", "0.5x", "--evaluations", "4", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["latency"] == []


def test_a_supernet_of_other_levels_is_refused_with_both_values(run: Path, no_trace: None) -> None:
    place = RunDir(run)
    place.save(RunConfig(replace(REF, levels=4), device="cpu", data="digits"))
    refused(search(run, "--macs", "0.5x"), "levels 2", "levels 4", "train --fresh", "'levels: 2'")
    place.save(RunConfig(replace(REF, min_level=1), device="cpu", data="digits"))
    refused(search(run, "--macs", "0.5x"), "min_level 0", "min_level 1", "train --fresh")
    place.save(RunConfig(REF, device="cpu", data="digits"))
    assert place.kept_space() is not None


def test_a_supernet_of_another_model_is_refused_by_name(run: Path, space: WidthSpace) -> None:
    path = run / "train" / "supernet.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "space": "0123", "model": "ResNet"}))
    result = search(run, "--macs", "0.5x")
    refused(result, "ResNet at 1x16x16", f"{space.model_name} at 1x16x16", "train --fresh --run-dir")


def test_without_a_supernet_the_command_for_one_is_named(run: Path) -> None:
    shutil.rmtree(run / "train")
    refused(search(run, "--macs", "0.5x"), "run 'bcnet-deploy train' first")


# -- estimates and confidence ------------------------------------------------------------------


def test_a_share_on_an_estimated_table_holds_the_prediction(trained: Path) -> None:
    result = search(trained, "--latency", "t4=1x", "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    (budget,) = json.loads(result.stdout)["budgets"]
    assert budget["estimated"] and budget["confidence"] is None
    assert budget["limit"] == budget["full"] == budget["full_bound"]


def test_a_budget_that_only_the_confidence_breaks_says_so(trained: Path, space: WidthSpace) -> None:
    predicted = LatencyTable.load(trained / "latency" / "t4.json").predict(every_network(space))
    budget = 1.2 * float(predicted.min())
    result = search(trained, "--latency", f"t4={budget:.8f}ms", "--dry-run")
    refused(result, "The prediction alone", "estimate", "profile --device t4", "--confidence 0.65")
    # Normal quantiles from tables: 0.2 / 0.5 = 0.4 deviations is 0.6554.
    for confidence, code in (("0.65", 0), ("0.66", 1)):
        again = search(trained, "--latency", f"t4={budget:.8f}ms", "--dry-run", "--confidence", confidence)
        assert again.exit_code == code, again.output
    below = search(trained, "--latency", f"t4={0.9 * float(predicted.min()):.8f}ms", "--dry-run")
    assert below.exit_code == 1 and "prediction alone" not in below.output


# -- results -----------------------------------------------------------------------------------


def test_a_dry_run_tells_bounds_from_means(trained: Path, space: WidthSpace) -> None:
    result = search(trained, "--latency", "0.9x", "--macs", "0.9x", "--dry-run", "--json")
    data = json.loads(result.stdout)
    table = LatencyTable.load(trained / "latency" / "cpu.json")
    rows = {row["cost"]: row for row in data["budgets"]}
    for name, widths in (("narrowest", space.narrowest), ("full", space.full)):
        predicted = float(table.predict(widths)[0])
        assert rows["latency_ms"][name] == pytest.approx(predicted)
        # 1.6449: the normal distribution's 95% quantile, from tables.
        assert rows["latency_ms"][f"{name}_bound"] == pytest.approx(predicted * 1.16449, rel=1e-4)
        assert rows["macs"][name] == rows["macs"][f"{name}_bound"] == space.macs(widths[None])[0]
    shown = search(trained, "--latency", "0.9x", "--dry-run").output
    assert "95% bound" in shown and "expected" in shown and "Nothing was evaluated" in shown


def test_json_and_files_agree_and_tell_latencies_without_a_budget(run: Path, space: WidthSpace) -> None:
    result = search(run, "--macs", "0.6x", "--evaluations", "10", "--population", "4", "--json")
    assert result.exit_code == 0 and result.stderr == "", result.output
    data = json.loads(result.stdout)
    written = yaml.safe_load((run / "search" / "widths.yaml").read_text())
    assert written["widths"] == data["widths"]
    widths = np.array([[data["widths"][v.name] for v in space.variables]])
    assert space.macs(widths)[0] == data["costs"]["macs"] <= 0.6 * space.macs(space.full[None])[0]
    table = LatencyTable.load(run / "latency" / "cpu.json")
    for network, row in ((written, widths), (written["compared_with"]["full"], space.full)):
        (latency,) = network["latency"]
        assert latency["device"] == "cpu" and latency["budget_ms"] is None
        assert latency["predicted_ms"] == pytest.approx(float(table.predict(row)[0]))
    assert sum(written["latency"][0]["by_layer_ms"].values()) == pytest.approx(
        written["latency"][0]["predicted_ms"], rel=1e-2
    )
    assert [b["cost"] for b in written["budgets"]] == ["macs"]
    log = json.loads((run / "search" / "search.json").read_text())["generations"]
    assert all(0 <= g["proposed_feasible"] <= 1 for g in log if g["proposed_feasible"] is not None)


def test_pareto_without_a_budget_is_of_latency_and_macs_where_there_is_a_table(run: Path) -> None:
    arguments = ["--pareto", "--evaluations", "10", "--population", "4"]
    result = search(run, *arguments, "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert [b["cost"] for b in data["budgets"]] == ["latency_ms", "macs"]
    assert all("latency_ms" in row["costs"] for row in data["front"])
    full = data["compared_with"]["full"]
    assert full["latency"][0]["bound_ms"] <= data["budgets"][0]["limit"], "the full network is within"
    # From its journal: the same again, for people.
    shown = search(run, *arguments)
    assert shown.exit_code == 0 and "latency_ms" in shown.output and "cpu latency" in shown.output
    shutil.rmtree(run / "latency")
    without = json.loads(search(run, *arguments, "--json").stdout)
    assert without["budgets"] == [] and set(without["front"][0]["costs"]) == {"macs", "params"}


def test_a_failing_evaluation_names_its_type_and_the_option_and_resumes(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--macs", "0.6x", "--evaluations", "10", "--population", "4", "--json"]
    right = SupernetEvaluator.__call__
    asked: list[tuple[int, ...]] = []
    bad = [6]

    def failing(self: SupernetEvaluator, widths: Any) -> Any:
        rows = [tuple(int(w) for w in row) for row in np.atleast_2d(widths)]
        asked.extend(row for row in rows if row not in asked)
        if any(number <= len(asked) and asked[number - 1] in rows for number in bad):
            raise MemoryError
        return right(self, widths)

    monkeypatch.setattr(SupernetEvaluator, "__call__", failing)
    refused(search(run, *arguments), "failed: MemoryError.", "--on-error skip")
    (journal,) = (run / "search").glob("journal-*.jsonl")
    assert len(journal.read_text().splitlines()) == 1 + 5
    asked.clear()
    bad.clear()
    resumed = json.loads(search(run, *arguments).stdout)
    resumed_asked = len(asked)
    undisturbed = json.loads(search(run, *arguments, "--fresh").stdout)
    assert {**resumed, "ran": True} == undisturbed
    assert resumed_asked == undisturbed["search"]["evaluations"] - 5
    asked.clear()
    bad.append(6)
    skipped = json.loads(search(run, *arguments, "--fresh", "--on-error", "skip").stdout)
    assert skipped["search"]["evaluations"] == 10
    failures = json.loads((run / "search" / "search.json").read_text())["failures"]
    assert [f["reason"] for f in failures] == ["MemoryError"]


def test_a_network_to_compare_with_that_has_no_score_does_not_end_a_search(
    run: Path, space: WidthSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The full network is scored after the search alone: it failed there again at every resumption."""
    right = SupernetEvaluator.sides

    def failing(self: SupernetEvaluator, widths: Any) -> Any:
        if (np.asarray(widths) == space.full).all(axis=-1).any():
            raise MemoryError
        return right(self, widths)

    monkeypatch.setattr(SupernetEvaluator, "sides", failing)
    arguments = ["--macs", "0.6x", "--evaluations", "10", "--on-error", "skip"]
    shown = search(run, *arguments, "--fresh")
    assert shown.exit_code == 0, shown.output
    (line,) = (line for line in shown.output.splitlines() if "full" in line and "–" in line)
    kept = json.loads(search(run, *arguments, "--json").stdout)
    assert kept["compared_with"]["full"]["scores"] == {} and kept["compared_with"]["uniform"]["scores"]
    assert kept["scores"]["accuracy"] > 0


def test_a_result_spoilt_since_it_was_written_is_named(run: Path) -> None:
    arguments = ["--macs", "0.6x", "--evaluations", "6", "--population", "4"]
    assert search(run, *arguments).exit_code == 0
    path = run / "search" / "widths.yaml"
    spoilt = yaml.safe_load(path.read_text())
    spoilt["latency"] = [{"device": "cpu", "source": "measured", "budget_ms": None, "predicted_ms": "soon"}]
    path.write_text(yaml.safe_dump(spoilt))
    refused(search(run, *arguments), "widths.yaml", "search again with --fresh")
    spoilt["latency"] = [10**30]
    path.write_text(yaml.safe_dump(spoilt))
    refused(search(run, *arguments), "latency is 1e+30", "search again with --fresh")


def test_budgets_of_several_devices_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    """A cost's key has the device in brackets, which rich takes for markup."""
    keys = ["latency_ms[cpu-int8]", "latency_ms[cpu-openvino-int8]"]
    row = {
        "limit": 3.0, "confidence": None, "estimated": False, "narrowest": 1.0, "narrowest_bound": 1.1,
        "full": 4.0, "full_bound": 4.1,
    }  # fmt: skip
    show_dry_run({
        "variables": 2, "networks_log10": 1.0, "feasible_share_of_uniform_draws": 0.5,
        "budgets": [{**row, "cost": key} for key in keys],
    })  # fmt: skip
    shown = capsys.readouterr().out
    assert all(key in shown for key in keys)
    front = [{"accuracy": 70.0 + i, "costs": dict.fromkeys(keys, 1.0 + i)} for i in range(2)]
    _show_front(SimpleNamespace(front=front), "accuracy", "%")  # type: ignore[arg-type]
    shown = capsys.readouterr().out
    assert all(key in shown for key in keys)


def test_a_table_says_what_was_scored_and_in_what(run: Path) -> None:
    shown = search(run, "--macs", "0.6x", "--evaluations", "30")
    assert shown.exit_code == 0, shown.output
    assert "slices of the supernet" in shown.output
    assert metric_of(RunDir(run)) == ("accuracy", "%")
    RunDir(run).keep(steps={"train": {"task": "segmentation"}})
    assert metric_of(RunDir(run)) == ("mean IoU", "%")


@pytest.mark.parametrize(
    ("tau", "count", "said"),
    [(0.1, 105, True), (0.45, 105, False), (0.1, 8, False), (float("nan"), 105, False)],
)
def test_sides_that_do_not_agree_are_said(tau: float, count: int, said: bool) -> None:
    """On Channel-Bench-Macro .09 to .29 where the true ranking was lost, .41 to .54 where it was not."""
    doubt = _disagreement(SimpleNamespace(agreement=lambda: (tau, count)))  # type: ignore[arg-type]
    assert ("left and right slices rank the 105 networks" in (doubt or "")) is said


def test_a_doubt_reaches_the_terminal_the_files_and_the_report(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SupernetEvaluator, "agreement", lambda self: (0.1, 40))
    shown = search(run, "--macs", "0.6x", "--evaluations", "30", "--fresh")
    assert shown.exit_code == 0, shown.output
    assert "cannot be trusted" in " ".join(shown.output.split())
    kept = yaml.safe_load(RunDir(run).widths_file.read_text())
    assert any("cannot be trusted" in note for note in kept["posterior"]["notes"])
    assert any("cannot be trusted" in warning for warning in gather(RunDir(run)).warnings)


# -- channel steps learned from a table --------------------------------------------------------


def test_learned_channel_steps_are_the_widths_at_which_latency_drops(run: Path, space: WidthSpace) -> None:
    asked = ("--latency", "t4=0.97x", "--confidence", "0.5", "--evaluations", "40", "--json")
    by_levels = json.loads(search(run, *asked).stdout)
    result = search(run, *asked, "--channel-steps", "learned")
    assert result.exit_code == 0, result.output
    learned = json.loads(result.stdout)
    assert by_levels["ran"] and learned["ran"], "other choices are another search"
    choices = {variable.name: set(variable.choices) for variable in space.variables}
    assert all(width in choices[name] for name, width in by_levels["widths"].items())
    off_levels = {name for name, width in learned["widths"].items() if width not in choices[name]}
    assert off_levels, "two levels are not where this table's latency drops"
    table = LatencyTable.load(RunDir(run).latency_table("t4")).for_space(space)
    row = np.array([learned["widths"][variable.name] for variable in space.variables])
    for index, variable in enumerate(space.variables):
        if variable.name in off_levels:
            wider = np.tile(row, (variable.channels - row[index], 1))
            wider[:, index] = np.arange(row[index] + 1, variable.channels + 1)
            assert (table.predict(wider) > table.predict(row[None])[0]).all(), variable.name
    kept = RunDir(run).load().steps["search"]
    assert kept["channel_steps"] == "learned"
    assert not json.loads(search(run, *asked).stdout)["ran"], "kept for the next call"
    again = json.loads(search(run, *asked, "--channel-steps", "levels").stdout)
    assert again["ran"] and again["widths"] == by_levels["widths"]


def test_learned_channel_steps_need_a_table(run: Path) -> None:
    shutil.rmtree(run / "latency")
    result = search(run, "--macs", "0.5x", "--channel-steps", "learned")
    refused(result, "channel steps are learned from a latency table", "bcnet-deploy profile")
