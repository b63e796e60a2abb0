"""What the ranking benchmark keeps of its runs: figures to the last bit, one run a slot."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ranking_runs import add_run, between_halves, read_heads, read_runs


def run(seed: int = 0, images: int = 384, augment: str = "none", sides: int = 2) -> dict[str, Any]:
    rng = random.Random(f"{seed}{images}")
    scores = [
        {
            "arch": arch, "draw": "all", "score": 100 * rng.random(), "loss": rng.random(),
            "accuracy_by_side": [100 * rng.random() for _ in range(sides)],
        }
        for arch in ("1441411", "2222222", "4444444")
    ]  # fmt: skip
    return {
        "rule": "bilateral", "seed": seed, "cost": 80_000.0, "size": 16, "augment": augment,
        "held_out_images": images, "recalibration_images": 512, "scores": scores,
    }  # fmt: skip


@pytest.mark.parametrize("sides", [1, 2])
def test_what_is_added_is_read_back_to_the_last_bit(sides: int, tmp_path: Path) -> None:
    runs = [run(seed, sides=sides) for seed in range(3)]
    for one in reversed(runs):
        add_run(tmp_path, one)
    assert read_runs(tmp_path) == [{**one, "between_halves": None} for one in runs]


def test_more_images_replace_fewer_up_to_the_usual_number(tmp_path: Path) -> None:
    for images in (384, 5000, 2000):
        add_run(tmp_path, run(images=images))
    add_run(tmp_path, run(augment="crop-flip"))
    kept = [(one["augment"], one["held_out_images"]) for one in read_runs(tmp_path)]
    assert kept == [("crop-flip", 384), ("none", 2000), ("none", 5000)]


def test_a_run_whose_scores_were_not_written_is_not_there(tmp_path: Path) -> None:
    add_run(tmp_path, run(0))
    scores = (tmp_path / "scores.csv").read_text()
    add_run(tmp_path, run(1))
    (tmp_path / "scores.csv").write_text(scores)
    assert [one["seed"] for one in read_runs(tmp_path)] == [0]


def test_halves_that_agree_and_that_do_not() -> None:
    rows = [{"accuracy_by_half": [half, half]} for half in (1.0, 2.0, 3.0)]
    assert between_halves(rows) == pytest.approx(1)
    assert between_halves([{"accuracy_by_half": [x, -x]} for x in (1.0, 2.0, 3.0)]) == pytest.approx(-1)
    assert between_halves([*rows, {}]) is None


def test_every_published_run_has_the_scores_of_all_vectors() -> None:
    results = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "ranking"
    runs = read_runs(results)
    assert len(runs) == len(read_heads(results)) == 48
    for one in runs:
        scores = [row["score"] for row in one["scores"]]
        assert len(scores) == 640
        assert sum(scores) / 640 == pytest.approx(one["held_out_accuracy"], rel=1e-12)
