"""The benchmark's rows on a tiny supernet: budgets kept, largest by brute force, scores remembered."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from bcnet_deploy.nn import Supernet
from bcnet_deploy.train import SupernetEvaluator
from tests.lut.fakes import TinyNet, make_table, tiny_space


@pytest.fixture(scope="module")
def benchmark(benchmark_module):  # type: ignore[no-untyped-def]
    return benchmark_module("bm_found_by_supernet")


def test_rows_of_a_tiny_supernet(benchmark, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    space, table = tiny_space(levels=4), make_table(tiny_space(levels=4))
    supernet = Supernet(TinyNet().eval(), space)
    train = [(torch.randn(8, 3, 16, 16), torch.zeros(8))]
    val = [(torch.randn(64, 3, 16, 16), torch.randint(10, (64,))) for _ in range(9)]
    evaluator = SupernetEvaluator(supernet, train, val, sides=("left",))
    budgets = benchmark.Budgets(space, table, (0.3,))
    accuracy = benchmark.Remembered(evaluator, tmp_path / "scores.jsonl", "tiny")

    def all_rows(accuracy) -> tuple[list[dict], ...]:  # type: ignore[no-untyped-def]
        networks = list(benchmark.chosen(budgets, accuracy, 14, 0))
        slow = benchmark.on_the_way(budgets, accuracy, networks, 14, 0)
        return benchmark.rows_of(budgets, accuracy, networks), benchmark.beliefs_of(budgets, networks), slow

    rows, beliefs, slow = all_rows(accuracy)
    everything = budgets.everything
    costs = {"macs": space.macs(everything), "latency": table.predict(everything)}
    for kind, values in costs.items():
        assert budgets.limits[kind] == pytest.approx(np.quantile(values, (0.3,)))
    assert {row["searched_by"] for row in rows} >= {"macs", "latency", "largest", "random"}
    for row in rows:
        widths = np.array([
            v.choices[int(digit) - 1] for v, digit in zip(space.variables, row["arch"], strict=True)
        ])  # fmt: skip
        cost = {"macs": float(space.macs(widths)[0]), "latency": float(table.predict(widths)[0])}
        assert cost[row["budget_kind"]] <= float(row["budget"]) * 1.00001
        assert float(row["predicted_ms"]) == pytest.approx(cost["latency"], rel=1e-5)
        assert float(row["score"]) == pytest.approx(float(evaluator(widths)[0]), abs=1e-3)
        assert float(row["low"]) <= float(row["posterior"]) <= float(row["high"])
        searched = row["searched_by"] in ("macs", "latency")
        assert (row["evaluations"] > 0) == searched
        # 8 images for statistics, from 256 to 576 for each score, on one side.
        assert not searched or row["evaluations"] * 264 <= row["image_passes"] <= row["evaluations"] * 584
        if row["searched_by"] == "largest":
            inside = costs[row["budget_kind"]] <= float(row["budget"]) * 1.00001
            assert cost["macs"] == space.macs(everything[inside]).max()
    found = {(row["budget_kind"], row["arch"]) for row in rows if row["searched_by"] == row["budget_kind"]}
    assert {(row["budget_kind"], row["found"]) for row in [*beliefs, *slow]} <= found
    assert {(row["budget_kind"], row["rival"]) for row in beliefs} <= {
        (row["budget_kind"], row["arch"]) for row in rows
    }
    means = {(row["budget_kind"], row["arch"]): float(row["posterior"]) for row in rows}
    for row in beliefs:
        ours, theirs = (means[row["budget_kind"], row[name]] for name in ("found", "rival"))
        assert row["found"] != row["rival"] and 0 <= float(row["probability"]) <= 1
        assert ours >= theirs, "what was found has the best mean within the budget"
        assert float(row["probability"]) >= 0.5
    assert all(row["image_passes"] < row["image_passes_on_the_way"] for row in slow)
    passes = evaluator.image_passes
    again = benchmark.Remembered(evaluator, tmp_path / "scores.jsonl", "tiny")
    assert all_rows(again) == (rows, beliefs, slow)
    assert evaluator.image_passes == passes, "scores are taken from the file"
    out = tmp_path / "found.csv"
    benchmark.write_rows(out, rows[:1], benchmark.FIELDS, {"rule": "other", "seed": 0})
    for _ in range(2):
        benchmark.write_rows(out, rows, benchmark.FIELDS, {"rule": "tiny", "seed": 0})
    with out.open() as file:
        written = list(csv.DictReader(file))
    assert tuple(written[0]) == benchmark.FIELDS and len(written) == len(rows) + 1
