"""What the benchmarks of latency tables compute of measurements: against simulations and sums by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import kendalltau


@pytest.fixture(scope="module")
def accuracy(benchmark_module):  # type: ignore[no-untyped-def]
    return benchmark_module("bm_lut_accuracy")


@pytest.mark.parametrize("noise", [0.01, 0.03, 0.06])
def test_the_bound_is_what_a_table_without_error_reaches(accuracy, noise: float) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    halves, perfect = [], []
    for _ in range(30):
        latency = 0.18 * rng.standard_normal(300)
        rounds = latency[:, None] + noise * rng.standard_normal((300, 4))
        halves.append(kendalltau(rounds[:, 0::2].mean(1), rounds[:, 1::2].mean(1)).statistic)
        perfect.append(kendalltau(latency, rounds.mean(1)).statistic)
    assert accuracy.kendall_bound(float(np.mean(halves))) == pytest.approx(np.mean(perfect), abs=0.005)


def test_the_bound_at_its_ends(accuracy) -> None:  # type: ignore[no-untyped-def]
    assert accuracy.kendall_bound(1.0) == pytest.approx(1.0)
    assert accuracy.kendall_bound(0.0) == accuracy.kendall_bound(-0.3) == 0.0


def test_what_slows_down_both_networks_goes(accuracy) -> None:  # type: ignore[no-untyped-def]
    own, theirs = np.full((2, 3, 5), 4.0), np.full((2, 3, 5), 2.0)
    own[1] *= 3
    slow = np.random.default_rng(0).uniform(1, 2, own.shape)
    found = accuracy.paired(own * slow, theirs * slow)
    np.testing.assert_allclose(found[1] / found[0], 3.0)


def test_pieces_of_an_evaluation_join(accuracy) -> None:  # type: ignore[no-untyped-def]
    """The machine was twice as slow in the second piece, for the reference network as well."""

    def piece(speed: float, widths: list[list[int]]) -> dict[str, object]:
        times = [[speed * 3.0, speed * 3.0], [speed * 6.0, speed * 6.0]]
        return {"widths": widths, "rounds_ms": times, "paired_ms": times, "reference_ms": speed * 2.0,
                "measure_s": 1.0, "had_core": 1.0 / speed}  # fmt: skip

    found = accuracy.joined([piece(1.0, [[4], [8]]), piece(2.0, [[4], [8]])])
    assert found["rounds"] == 4
    assert found["rounds_ms"] == [[3.0, 3.0, 6.0, 6.0], [6.0, 6.0, 12.0, 12.0]]
    assert found["reference_ms"] == 3.0
    assert found["paired_ms"] == [[4.5] * 4, [9.0] * 4]
    assert (found["measure_s"], found["had_core"]) == (2.0, 0.5)
    with pytest.raises(SystemExit, match="same --seed"):
        accuracy.joined([piece(1.0, [[4], [8]]), piece(1.0, [[4], [9]])])


def test_rounds_with_something_beside_them_are_left_out(accuracy) -> None:  # type: ignore[no-untyped-def]
    kept, share = accuracy.undisturbed(np.array([[2.0, 1.0, 1.2, 1.31], [4.0, 4.0, 5.0, 5.0]]))
    nan = float("nan")
    np.testing.assert_array_equal(kept, [[1.0, 1.2, nan, nan], [4.0, 4.0, 5.0, 5.0]])
    assert share == 6 / 8


def test_choices_are_compared_at_equal_measured_time(benchmark_module) -> None:  # type: ignore[no-untyped-def]
    """The other table's choices take a tenth longer than the first one's of the same capacity."""

    def entry(by: str, ms: float, capacity: float) -> dict[str, object]:
        return {
            "device": "a",
            "by": by,
            "rounds_ms": [ms, ms, 9 * ms, ms / 3, ms],
            "capacity": capacity,
            "macs": 1,
        }

    times = [2.0, 3.0, 4.0, 5.0]
    entries = [entry("full", 10.0, 0.0), *(entry("a", ms, math.log(ms)) for ms in times),
               *(entry("b", 1.1 * ms, math.log(ms)) for ms in times)]  # fmt: skip
    found = benchmark_module("bm_runtimes").compare(entries)
    assert found["other_takes_longer"]["choices"] == 4
    assert found["other_takes_longer"]["mean"] == pytest.approx(0.1)
    at_half = next(budget for budget in found["budgets"] if budget["share"] == 0.5)
    assert at_half["own"]["measured_ms"] == 5.0
    assert at_half["other"]["measured_ms"] == pytest.approx(4.4)
    assert at_half["own"]["capacity"] > at_half["other"]["capacity"]
