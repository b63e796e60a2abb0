"""What is read from a run directory, against files written here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bcnet_deploy.devices import load_device
from bcnet_deploy.errors import MissingEntryError, WidthError
from bcnet_deploy.lut import LatencyTable
from bcnet_deploy.lut.estimate import estimate_table
from bcnet_deploy.models.ref import ModelRef, build
from bcnet_deploy.profiler.fitting import Speeds, at_speed
from bcnet_deploy.report import gather
from bcnet_deploy.report.content import Content
from bcnet_deploy.resources import shipped
from bcnet_deploy.run.directory import RunConfig, RunDir


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run that has a measured table and nothing else."""
    run = RunDir(tmp_path)
    model = ModelRef("demo", num_classes=10, input_size=(1, 16, 16), levels=16)
    run.save(RunConfig(model, device="cpu-1thread", data="digits"))
    table = shipped("luts") / "cpu-1thread.demo-16.json"
    run.latency_table("cpu-1thread").parent.mkdir()
    run.latency_table("cpu-1thread").write_bytes(table.read_bytes())
    return run


def test_a_held_out_network_is_as_fast_as_the_median_of_its_rounds(run: RunDir) -> None:
    """As in the table's own accuracy, so that both speak of the same error; one round says nothing."""
    path = run.latency_table("cpu-1thread")
    table = LatencyTable.load(path)
    full = np.array([variable.channels for variable in table.network.variables])
    rounds = {0.25: [0.05, 0.01, 0.09], 0.5: [0.2, 0.1], 0.75: [0.3]}
    lines = [
        {"role": "held-out", "widths": (full * share).astype(int).tolist(), "latency_ms": value}
        for share, values in rounds.items() for value in values
    ]  # fmt: skip
    lines.append({"role": "train", "widths": full.tolist(), "latency_ms": 1.0})
    path.with_name("cpu-1thread.samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pairs = gather(run).pairs
    assert [pair.measured_ms for pair in pairs] == pytest.approx([0.05, 0.15])
    predicted = table.predict(np.stack([full * 0.25, full * 0.5]).astype(int))
    assert [pair.predicted_ms for pair in pairs] == pytest.approx(predicted)


def test_what_has_not_been_done_is_empty(run: RunDir) -> None:
    content = gather(run)
    assert (content.networks, content.widths, content.front, content.curves) == ([], [], None, [])
    table = LatencyTable.load(run.latency_table("cpu-1thread"))
    full = [variable.channels for variable in table.network.variables]
    layers = sum(layer.milliseconds for layer in content.layers["full"])
    assert layers == pytest.approx(table.predict(full)[0])


@pytest.mark.parametrize(
    ("inherited", "steps", "began"),
    [(False, 9, "new weights"), (True, 9, "trained weights"), (True, 0, "trained weights, as given")],
)
def test_a_trained_network_says_its_metric_and_what_it_began_with(
    run: RunDir, inherited: bool, steps: int, began: str
) -> None:
    result = {
        "widths": [], "test_metric": 41.5, "macs": 5, "params": 6, "inherited": inherited, "steps": steps,
        "metric_name": "mean IoU", "unit": "%",
    }  # fmt: skip
    folder = run.retrained("full")
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
    curves = [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.5, "val_mean_iou": 40.0, "val_loss": 1.4}]
    (folder / "curves.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curves))
    content = gather(run)
    (row,) = content.networks
    assert (row.name, row.test_metric, row.macs, row.began) == ("full", 41.5, 5, began)
    assert content.score(row.test_metric) == "41.50%" and content.accuracy == "mean IoU, %"
    assert [(curve.quantity, curve.points) for curve in content.curves] == [
        ("training loss", ((1.0, 2.0), (2.0, 1.5))), ("validation mean IoU, %", ((2.0, 40.0),)),
    ]  # fmt: skip


def test_where_devices_differ_is_what_their_tables_say(run: RunDir) -> None:
    """A device of half the speed has the same staircases; one that runs in blocks of 16 has others."""
    assert gather(run).staircases == []
    first = LatencyTable.load(run.latency_table("cpu-1thread"))
    slower = at_speed(first, Speeds(2.0))
    slower = replace(slower, networks=(replace(first.network, overhead_us=2 * first.network.overhead_us),))
    slower.save(run.latency_table("slow"))
    content = gather(run)
    assert {one.name for one in content.staircases} == {v.name for v in first.network.variables}
    assert max(one.apart[0] for one in content.staircases) == pytest.approx(0, abs=1e-5)  # files are rounded
    assert content.by_device["slow"]["full"] == pytest.approx(2 * content.by_device["cpu-1thread"]["full"])

    model, space = build(ModelRef("demo", num_classes=10, input_size=(1, 16, 16), levels=16))
    estimate_table(space, load_device("cpu-int8")).save(run.latency_table("cpu-int8"))
    content = gather(run)
    assert list(content.by_device) == ["cpu-1thread", "cpu-int8", "slow"]
    apart = [one.apart[0] for one in content.staircases]
    assert apart == sorted(apart, reverse=True) and apart[0] > 0.01
    top = content.staircases[0]
    difference, width = top.apart
    column = [v.name for v in first.network.variables].index(top.name)
    full = np.array([v.channels for v in first.network.variables])
    row = full.copy()
    row[column] = width
    other = LatencyTable.load(run.latency_table("cpu-int8"))
    shares = [table.predict(row)[0] / table.predict(full)[0] for table in (first, other)]
    assert difference == pytest.approx(abs(shares[0] - shares[1]), abs=1e-5)
    for staircase in content.staircases:
        column = [v.name for v in first.network.variables].index(staircase.name)
        rows = np.repeat(full[None], len(staircase.widths), axis=0)
        rows[:, column] = staircase.widths
        expected = first.predict(rows) / first.predict(full)
        np.testing.assert_allclose(staircase.shares["cpu-1thread"], expected, rtol=1e-6)
        rows[:, column] = staircase.widths[0] - 1  # below it nothing was measured, or there is nothing
        with pytest.raises((MissingEntryError, WidthError)):
            first.predict(rows[:1])
    column = [v.name for v in first.network.variables].index(top.name)
    assert top.around == "full" and top.chosen == top.widths[-1] == full[column]


def test_the_table_of_another_network_is_not_compared(run: RunDir) -> None:
    table = shipped("luts") / "cpu-1thread.mobilenet_v2-224.json"
    run.latency_table("other").write_bytes(table.read_bytes())
    run.latency_table("damaged").write_text("{")
    assert gather(run).staircases == []


def test_a_budget_of_another_device_is_not_held_against_the_runs_own(run: RunDir) -> None:
    first = LatencyTable.load(run.latency_table("cpu-1thread"))
    slower = at_speed(first, Speeds(2.0))
    slower.save(run.latency_table("slow"))
    full = [variable.channels for variable in first.network.variables]
    own_ms, slow_ms = (float(table.predict(full)[0]) for table in (first, slower))

    def searched(*budgets: tuple[str, str, float]) -> Content:
        costs = {"macs": 5, **{key: limit for key, _, limit in budgets}}
        found = {
            "budgets": [
                {"key": key, "device": device, "limit": limit, "given": "0.5x"}
                for key, device, limit in budgets
            ],
            "evaluated": [{"accuracy": 50.0, "widths": full}], "accuracy": 50.0, "costs": costs,
            "front": [{"accuracy": 50.0, "costs": costs}], "generations": [],
        }  # fmt: skip
        run.search.mkdir(exist_ok=True)
        (run.search / "search.json").write_text(json.dumps(found))
        return gather(run)

    alone = searched(("latency_ms", "slow", 0.7))
    assert (alone.budget_ms, alone.budget_share) == (None, None) and "on slow" in alone.budget
    assert alone.front is not None and alone.front.chosen is not None
    assert alone.front.cost_name == "predicted latency on slow" and alone.front.chosen.cost == 0.7
    assert [dot.cost for dot in alone.front.evaluated] == pytest.approx([slow_ms])
    slow, own = ("latency_ms[slow]", "slow", 0.7), ("latency_ms[cpu-1thread]", "cpu-1thread", 0.3)
    for budgets in ((slow, own), (own, slow)):
        both = searched(*budgets)
        assert (both.budget_ms, both.budget_share) == (0.3, 0.5)
        assert both.front is not None and both.front.chosen is not None
        assert both.front.cost_name == "predicted latency" and both.front.chosen.cost == 0.3
        assert [dot.cost for dot in both.front.evaluated] == pytest.approx([own_ms])
