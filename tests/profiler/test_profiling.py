"""Profiles: accuracy on a device that is known, budgets, resuming, kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bcnet_deploy import resources
from bcnet_deploy.devices import load_device
from bcnet_deploy.errors import RunDirError, TableError
from bcnet_deploy.lut import LatencyTable
from bcnet_deploy.lut.fit import Granularity
from bcnet_deploy.models import build_model
from bcnet_deploy.profiler.fitting import (
    Speeds,
    at_speed,
    family_of,
    layer_times,
    relative_speeds,
    validate,
)  # fmt: skip
from bcnet_deploy.profiler.journal import Journal, Record
from bcnet_deploy.profiler.measure import faster_half
from bcnet_deploy.profiler.profiling import Profiler, profile_device, starting_table
from bcnet_deploy.profiler.sampling import of_all_sizes
from bcnet_deploy.space import WidthSpace
from tests.lut.fakes import TinyNet, make_table, tiny_space
from tests.profiler.fakes import FakeRunner, true_ms


class Clock:
    """A second passes with every look at it, so that budgets mean the same on every machine."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def profiler(
    path: Path,
    *,
    budget: float = 40.0,
    noise: float = 0.0,
    slow: Callable[[], float] = lambda: 1.0,
    stamp: float = 0.0,
    step: float = 0.1,
    **options: Any,
) -> Profiler:
    torch.manual_seed(0)
    model = TinyNet().eval()
    space = WidthSpace.from_model(model, (3, 16, 16), 20)
    rng = np.random.default_rng(0)
    options.setdefault(
        "make_runner",
        lambda network, profiling: FakeRunner(
            network, profiling, noise=noise, slow=slow, stamp=stamp, rng=rng
        ),
    )
    return Profiler(
        model, space, load_device("cpu-1thread"), path=path, budget_s=budget, clock=Clock(step),
        sleep=lambda _: None, **options,
    )  # fmt: skip


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_predicts_a_known_device(tmp_path: Path, noise: float) -> None:
    made = profiler(tmp_path / "table.json", noise=noise)
    table = made.run()
    widths = made.space.random(40, np.random.default_rng(77))
    truth = np.array([true_ms(made.maker(row)) for row in widths])
    assert np.abs(table.predict(widths) / truth - 1).mean() < (0.02 if noise else 0.01)
    accuracy = table.network.accuracy
    assert accuracy["networks"] >= 4
    assert accuracy["rounds"] >= 2
    assert accuracy["mape"] < 0.02
    assert accuracy["kendall"] > 0.9
    assert table.complete
    assert table.source == "measured"
    assert table.provenance["threads"] == 1
    assert table.provenance["runtime_version"]


@pytest.mark.parametrize(
    ("device", "features", "expected"),
    [
        ("cpu-1thread", ["avx2", "fma", "avx512f"], (16, 4)),
        ("cpu-1thread", ["avx2", "fma"], (8, 4)),
        ("cpu", ["asimd"], (16, 4)),
        ("t4", ["avx2"], (8, 8)),
    ],
)
def test_blocks_are_as_wide_as_the_vectors(
    device: str, features: list[str], expected: tuple[int, int]
) -> None:
    profile = load_device(device)
    assert profile.run_by().rounding(profile, features) == expected


def test_the_file_is_the_table(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    table = profiler(path).run()
    loaded = LatencyTable.load(path)
    assert loaded.fingerprint == table.fingerprint
    assert set(loaded.entries) == {layer.key for layer in loaded.network.layers}


def test_every_width_from_one_channel_up_is_covered(tmp_path: Path) -> None:
    made = profiler(tmp_path / "table.json")
    table = made.run()
    ones = np.ones(len(made.space.variables), dtype=np.int64)
    assert 0 < table.predict(ones)[0] < table.predict(made.space.full)[0]


def test_held_out_networks_are_never_fitted(tmp_path: Path) -> None:
    made = profiler(tmp_path / "table.json")
    made.run()
    records = read(made.journal_path)
    trained = {tuple(r["widths"]) for r in records if r["role"] == "train"}
    held = {tuple(r["widths"]) for r in records if r["role"] == "held-out"}
    assert trained
    assert held
    assert not trained & held


def test_nothing_is_measured_twice_when_run_again(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    first = profiler(path)
    first.run()
    before = first.journal_path.read_bytes()
    again = profiler(path)
    again.run()
    assert again.journal_path.read_bytes() == before
    more = profiler(path, budget=70.0)
    more.run()
    after = more.journal_path.read_bytes()
    assert after.startswith(before)
    assert len(after) > len(before)
    assert duplicates(read(more.journal_path)) == []


def test_another_device_network_or_seed_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    first = profiler(path)
    first.run()
    other = profiler(path, seed=1)
    other.run()
    assert other.journal_path.with_name(other.journal_path.name + ".old").exists()
    header = json.loads(other.journal_path.read_text().splitlines()[0])
    assert header["seed"] == 1


def test_a_larger_network_takes_over_the_layers_it_shares(tmp_path: Path) -> None:
    start = profiler(tmp_path / "first.json").run()
    table = profiler(tmp_path / "second.json", budget=20.0, start=start, seed=3).run()
    for key, entries in start.entries.items():
        kept = {tuple(row): us for row, us in zip(entries.dims.tolist(), entries.median_us, strict=True)}
        now = {
            tuple(r): us
            for r, us in zip(table.entries[key].dims.tolist(), table.entries[key].median_us, strict=True)
        }
        assert all(now[row] == pytest.approx(us) for row, us in kept.items())


@pytest.mark.parametrize("slow", [0.7, 1.6])
def test_layers_taken_over_are_brought_to_todays_speed(tmp_path: Path, slow: float) -> None:
    start = profiler(tmp_path / "first.json").run()
    made = profiler(tmp_path / "second.json", budget=15.0, start=start, seed=3, slow=lambda: slow)
    table = made.run()
    widths = made.space.random(40, np.random.default_rng(78))
    truth = np.array([slow * true_ms(made.maker(row)) for row in widths])
    assert np.abs(table.predict(widths) / truth - 1).mean() < 0.02


class OtherMachine(FakeRunner):
    """Dense convolutions take 1.8 times, depthwise ones 3 times, the linear layer 0.6 times as long."""

    def _activate(self) -> None:
        super()._activate()

        def slowed(name: str, time: float) -> float:
            if "depthwise" in name:
                return 3.0 * time
            if name.endswith(("_nchwc", "_reorder")):
                return 1.8 * time
            return 0.6 * time if "fc" in name else time

        self.nodes = [(name, slowed(name, time)) for name, time in self.nodes]


def test_a_table_of_another_machine_is_rebased_in_a_fraction_of_the_budget(tmp_path: Path) -> None:
    old = profiler(tmp_path / "old.json").run()
    old = replace(old, provenance={**old.provenance, "cpu_model": "Z80", "runtime_version": "0.1"})

    def moved(path: Path, **options: Any) -> tuple[LatencyTable, Profiler]:
        made = profiler(
            path, seed=5,
            make_runner=lambda network, profiling: OtherMachine(network, profiling), **options,
        )  # fmt: skip
        return made.run(), made

    fresh, made = moved(tmp_path / "fresh.json")
    rebased, _ = moved(tmp_path / "rebased.json", budget=8.0, start=old, rebase=True)
    widths = made.space.random(60, np.random.default_rng(78))
    truth = []
    for row in widths:
        with OtherMachine(made.maker(row), False) as runner:
            truth.append(runner.total_us() / 1e3)
    errors = {
        name: float(np.abs(table.predict(widths) / np.array(truth) - 1).mean())
        for name, table in (("old", old), ("fresh", fresh), ("rebased", rebased))
    }
    assert errors["old"] > 0.2
    assert errors["rebased"] < max(1.5 * errors["fresh"], 0.02)
    assert rebased.provenance["networks_measured"] < fresh.provenance["networks_measured"] / 2
    assert rebased.provenance["rebased_from"]["cpu_model"] == "Z80"
    assert rebased.provenance["rebased_from"]["fingerprint"] == old.fingerprint
    assert rebased.network.accuracy["networks"] >= 3  # its own held-out networks, measured here
    for key, entries in old.entries.items():  # what was measured there is kept
        assert set(map(tuple, entries.dims.tolist())) <= set(map(tuple, rebased.entries[key].dims.tolist()))
    assert LatencyTable.load(tmp_path / "rebased.json").fingerprint == rebased.fingerprint


def test_speeds_are_found_by_family(tmp_path: Path) -> None:
    table = profiler(tmp_path / "table.json").run()
    factors = {family: 1 + index / 4 for index, family in enumerate(sorted(map(family_of, table.entries)))}
    moved = {key: entries.slowed(factors[family_of(key)]) for key, entries in table.entries.items()}
    speeds = relative_speeds(moved, table, by_family=True)
    for family, factor in factors.items():
        assert speeds.families.get(family, factor) == pytest.approx(factor, rel=0.02)
    assert any(family.startswith("conv depthwise") for family in speeds.families)


def test_a_kind_of_layer_has_its_own_speed_by_how_often_it_was_measured(tmp_path: Path) -> None:
    """One kind takes twice as long as the rest of its family: known of all its layers, and of one alone."""
    table = profiler(tmp_path / "table.json").run()
    often = max((key for key in table.entries if key.startswith("conv")), key=lambda k: len(table.entries[k]))
    for rows, least, most in ((None, 1.8, 2.1), (1, 1.05, 1.5)):
        now = dict(table.entries)
        odd = now[often].slowed(2.0)
        now[often] = odd if rows is None else odd.without(np.delete(odd.dims, len(odd) // 2, axis=0))
        speeds = relative_speeds(now, table, by_family=True)
        assert least < speeds.of(often) < most


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "estimated"}, "estimated table of cpu-1thread cannot be rebased"),
        ({"precision": "int8"}, "a table in int8 at batch 1 cannot be rebased to 'cpu-1thread'"),
        ({"batch": 4}, "at batch 4 cannot be rebased"),
    ],
)
def test_what_cannot_be_rebased_is_said(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    table = replace(make_table(tiny_space()), **changes)
    with pytest.raises(TableError, match=message):
        profile_device(
            TinyNet().eval(), tiny_space(), load_device("cpu-1thread"), tmp_path / "t.json", rebase=table
        )


class Spells:
    """``factor`` for ``count`` of every ``period`` timings, else 1."""

    def __init__(self, count: int, period: int, factor: float) -> None:
        self.count, self.period, self.factor, self.asked = count, period, factor, 0

    def __call__(self) -> float:
        self.asked += 1
        return self.factor if self.asked % self.period >= self.period - self.count else 1.0


@pytest.mark.parametrize("spells", [(25, 60, 1.5), (12, 60, 0.8)])
def test_a_spell_of_another_speed_is_waited_for(tmp_path: Path, spells: tuple[int, int, float]) -> None:
    made = profiler(tmp_path / "table.json", slow=Spells(*spells))
    table = made.run()
    widths = made.space.random(40, np.random.default_rng(79))
    truth = np.array([true_ms(made.maker(row)) for row in widths])
    assert np.abs(table.predict(widths) / truth - 1).max() < 0.04
    assert table.provenance["drift"] < 0.05


def test_what_profiling_adds_to_each_node_is_taken_out(tmp_path: Path) -> None:
    made = profiler(tmp_path / "table.json", stamp=4.0)
    table = made.run()
    counts = {sum(record["nodes"]) for record in read(made.journal_path) if record["nodes"]}
    assert len(counts) > 1  # else the stamps were a constant
    assert table.provenance["node_overhead_us"] == pytest.approx(4.0, abs=0.5)
    widths = np.concatenate([made.space.random(40, np.random.default_rng(81)), [made.space.full]])
    truth = np.array([true_ms(made.maker(row)) for row in widths])
    assert np.abs(table.predict(widths) / truth - 1).max() < 0.02


def test_layers_profiled_in_a_slow_spell_are_brought_to_the_networks_time() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(2, 60, size=(40, 6))
    nodes = rng.integers(1, 4, size=(40, 6))
    slow = np.where(np.arange(40) % 8 == 3, 1.6, 1.0)
    records = [
        Record(
            "train",
            (index,),
            0,
            (row.sum() + 10) / 1e3,
            tuple(factor * row + 3 * count),
            0.1,
            0.1,
            tuple(map(int, count)),
        )
        for index, (row, count, factor) in enumerate(zip(truth, nodes, slow, strict=True))
    ]
    times, node_us = layer_times(records)
    assert node_us == pytest.approx(3.0, abs=0.5)
    assert times.sum(axis=1) == pytest.approx(truth.sum(axis=1), rel=0.1)
    assert np.abs(times.sum(axis=1) / truth.sum(axis=1) - 1).mean() < 0.04


def test_the_faster_half_of_runs_is_of_whole_runs() -> None:
    runs = np.array([[1.0, 6.0], [2.0, 2.0], [2.0, 4.0], [9.0, 9.0]])
    assert faster_half(runs).tolist() == [2.0, 3.0]


def test_a_machine_slower_for_good_is_measured_as_it_is(tmp_path: Path) -> None:
    asked = 0

    def slow() -> float:
        nonlocal asked
        asked += 1
        return 1.5 if asked > 20 else 1.0

    made = profiler(tmp_path / "table.json", slow=slow)
    table = made.run()
    widths = made.space.random(40, np.random.default_rng(80))
    truth = np.array([1.5 * true_ms(made.maker(row)) for row in widths])
    assert np.abs(table.predict(widths) / truth - 1).mean() < 0.05
    assert table.provenance["measured_s"] < 1.1 * made.budget_s


def test_a_table_that_came_from_the_same_log_counts_nothing_twice(tmp_path: Path) -> None:
    first = profiler(tmp_path / "table.json").run()
    again = profiler(tmp_path / "table.json", start=first).run()
    for key, entries in first.entries.items():
        assert again.entries[key].count.tolist() == entries.count.tolist()
        assert again.entries[key].median_us.tolist() == pytest.approx(entries.median_us.tolist())


def test_another_networks_table_moves_with_the_speed_as_a_whole(tmp_path: Path) -> None:
    start = profiler(tmp_path / "first.json").run()
    moved = at_speed(start, Speeds(1.5))
    widths = profiler(tmp_path / "x.json").space.random(20, np.random.default_rng(1))
    assert moved.predict(widths) == pytest.approx(1.5 * start.predict(widths), rel=1e-6)
    assert relative_speeds(moved.entries, start).overall == pytest.approx(1.5, rel=0.02)


def test_networks_held_out_are_as_many_after_a_kill_in_their_first_round(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    made = profiler(path, budget=40.0)
    whole = made.run().network.accuracy["networks"]
    lines = made.journal_path.read_text().splitlines()
    second = [i for i, line in enumerate(lines) if '"held-out"' in line][1]
    path.unlink()
    made.journal_path.write_text("\n".join(lines[: second + 1]) + "\n")
    resumed = profiler(path, budget=40.0).run().network.accuracy["networks"]
    assert whole > 3
    assert resumed >= 0.7 * whole


def test_networks_of_all_sizes_are_sampled(tmp_path: Path) -> None:
    space = WidthSpace.from_model(build_model("mobilenet_v2"), (3, 32, 32), 20)
    rows = of_all_sizes(space, 2000, np.random.default_rng(0))
    assert (space.check(rows) == rows).all()
    share = space.macs(rows) / space.macs(space.full)[0]
    for low, high in ((0.0, 0.15), (0.15, 0.35), (0.35, 0.6), (0.6, 1.0)):
        assert ((share >= low) & (share < high)).mean() > 0.05, (low, high)
    usual = space.macs(space.random(2000, np.random.default_rng(0))) / space.macs(space.full)[0]
    assert ((usual < 0.15) | (usual > 0.6)).mean() < 0.01  # what the tendencies are for


def test_more_budget_more_networks(tmp_path: Path) -> None:
    small = profiler(tmp_path / "small.json", budget=15.0).run()
    large = profiler(tmp_path / "large.json", budget=40.0).run()
    assert large.provenance["measurements"] > small.provenance["measurements"]


def test_a_budget_of_nothing_still_makes_a_table(tmp_path: Path) -> None:
    table = profiler(tmp_path / "table.json", budget=0.001).run()
    assert table.provenance["networks_measured"] >= 8


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirError, match="choose a writable folder"):
        profiler(tmp_path / "file" / "table.json").run()


def test_too_few_records_are_an_error(tmp_path: Path) -> None:
    made = profiler(tmp_path / "table.json")
    journal = Journal(made.journal_path, made.tables.identity())
    with pytest.raises(TableError, match="too few for a table"):
        made.tables.table(journal, budget_s=1.0, complete=True)
    journal.close()


# -- the journal ----------------------------------------------------------------------------------


def record(number: int) -> Record:
    return Record("train", (number, 2), 0, 1.5, (1.0, 2.0), 0.1)


def test_a_journal_survives_being_cut_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    journal = Journal(path, {"device": "x"})
    for number in range(5):
        journal.add(record(number))
    journal.close()
    content = path.read_bytes()
    header = content.index(b"\n") + 1
    for length in range(header, len(content) + 1):
        path.write_bytes(content[:length])
        resumed = Journal(path, {"device": "x"})
        whole = content[:length].count(b"\n") - 1
        assert [r.widths for r in resumed.records] == [(number, 2) for number in range(whole)]
        resumed.add(record(9))
        resumed.close()
        again = Journal(path, {"device": "x"})
        assert [r.widths[0] for r in again.records] == [*range(whole), 9]
        again.close()


def test_a_journal_of_something_else_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("not a journal\n")
    journal = Journal(path, {"device": "x"})
    journal.close()
    assert journal.records == []
    assert path.with_name("log.jsonl.old").read_text() == "not a journal\n"


def test_a_full_disk_keeps_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "log.jsonl", {"device": "x"})
    journal.add(record(0))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunDirError, match="former lines are kept"):
        journal.add(record(1))
    monkeypatch.undo()
    journal.close()
    again = Journal(tmp_path / "log.jsonl", {"device": "x"})
    again.close()
    assert again.records[0] == record(0)


# -- kill -9 --------------------------------------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
import tests.profiler.test_profiling as t
t.profiler(Path(sys.argv[1]), budget=60.0, step=0.05).run()
"""


def test_kill_and_resume(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    rng = np.random.default_rng(0)
    command = [sys.executable, "-c", SCRIPT, str(path)]
    log = path.with_name("table.samples.jsonl")
    kills = 0
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        started = time.monotonic()
        size = log.stat().st_size if log.exists() else 0
        # Wait for the first new measurement, so that the kill falls into the work and not into imports.
        while process.poll() is None and time.monotonic() - started < 60:
            if log.exists() and log.stat().st_size > size + 200:
                break
            time.sleep(0.01)
        time.sleep(float(rng.uniform(0, 0.4)))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait(30)
        if path.exists():
            LatencyTable.load(path)
    assert kills >= 1
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    assert LatencyTable.load(path).complete
    assert duplicates(read(log)) == []


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


def duplicates(records: list[dict[str, Any]]) -> list[Any]:
    """Training networks measured twice, and rounds of held-out networks counted twice."""
    counts = Counter((r["role"], tuple(r["widths"]), r["round"]) for r in records)
    trained = Counter(tuple(r["widths"]) for r in records if r["role"] == "train")
    return [key for table in (counts, trained) for key, number in table.items() if number > 1]


# -- validation -----------------------------------------------------------------------------------


def test_validation_figures_by_hand() -> None:
    predicted = np.array([1.0, 2.18, 2.7, 4.0])
    rounds = np.array([[1.0, 1.1], [2.0, 2.0], [3.0, 3.3], [4.4, 4.0]])
    found = validate(predicted, rounds)  # medians of the rounds: 1.05, 2.0, 3.15, 4.2
    errors = np.array([1 / 1.05 - 1, 0.09, 2.7 / 3.15 - 1, 4 / 4.2 - 1])
    assert found.networks == 4
    assert found.rounds == 2
    assert found.mape == pytest.approx(np.abs(errors).mean())
    assert found.bias == pytest.approx(errors.mean())
    assert found.relative_error == pytest.approx(np.sqrt((errors**2).mean()))
    assert found.within_5 == 0.5
    assert found.within_10 == 0.75
    assert found.kendall == pytest.approx(1.0)
    assert found.noise_floor == pytest.approx((0.1 / 1.05 + 0 + 0.3 / 3.15 + 0.4 / 4.2) / 4)
    assert found.kendall_floor == pytest.approx(1.0)


def test_missing_rounds_are_left_out() -> None:
    rounds = np.array([[1.0, 1.2, np.nan], [2.0, 2.0, 9.0]])
    found = validate(np.array([1.1, 2.0]), rounds)
    assert found.mape == pytest.approx(0.0)
    assert found.rounds == 2


def test_measurements_of_the_same_machine_join_under_another_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A profile of the user's own that now says other blocks, or a table of a version that guessed others."""
    table = profiler(tmp_path / "table.json", budget=10.0).run()
    key = next(iter(table.entries))
    before = replace(
        table, granularity=Granularity(8, 8),
        networks=(replace(table.network, fingerprint="another's"),),
        entries={**table.entries, "another key": table.entries[key]},
        models={**table.models, "another key": table.models[key]},
    )  # fmt: skip
    now = profiler(tmp_path / "now.json", budget=10.0, start=before).run()
    assert now.granularity == table.granularity and "another key" in now.entries
    assert [n.fingerprint for n in now.networks] == [table.network.fingerprint, "another's"]

    before.save(tmp_path / "shipped" / "cpu-1thread.another.json")
    monkeypatch.setattr(resources, "shipped", lambda folder: tmp_path / "shipped")
    start = starting_table(load_device("cpu-1thread"), tmp_path / "table.json")
    assert start is not None and start.granularity == table.granularity and "another key" in start.models


def test_what_was_measured_before_survives_the_kill_of_a_later_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unfinished table takes the complete one's place, and is no beginning for the same command."""
    monkeypatch.setattr(resources, "shipped", lambda folder: tmp_path / "shipped")
    path = tmp_path / "table.json"
    table = profiler(path, budget=10.0).run()
    key = next(iter(table.entries))
    other = {"another key": table.entries[key]}, {"another key": table.models[key]}
    before = replace(
        table, networks=(replace(table.network, fingerprint="another's"),),
        entries={**table.entries, **other[0]}, models={**table.models, **other[1]},
    )  # fmt: skip
    before.save(path)

    def killed(self: Profiler) -> LatencyTable:
        assert self.start is not None and "another key" in self.start.entries
        replace(table, complete=False).save(self.path)
        raise KeyboardInterrupt

    def finished(self: Profiler) -> LatencyTable:
        assert self.start is not None and "another key" in self.start.entries
        table.save(self.path)
        return table

    for run in (killed, killed, finished):
        monkeypatch.setattr(Profiler, "run", run)
        with nullcontext() if run is finished else pytest.raises(KeyboardInterrupt):
            profile_device(TinyNet().eval(), tiny_space(), load_device("cpu-1thread"), path)
    assert sorted(file.suffix for file in tmp_path.iterdir() if file.is_file()) == [".json", ".jsonl"]
