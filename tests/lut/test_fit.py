"""Fits of devices whose times are known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bcnet_deploy.errors import TableError
from bcnet_deploy.lut.fit import Fit, Granularity, fit
from tests.lut.fakes import staircase_us

GRANULARITY = Granularity(16, 4)


def cells(count: int, limits: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.unique(np.stack([rng.integers(1, limit + 1, count) for limit in limits], axis=1), axis=0)


@pytest.mark.parametrize("limits", [(200,), (96, 160)])
def test_recovers_a_staircase_from_part_of_it(limits: tuple[int, ...]) -> None:
    known, unseen = cells(250, limits, 0), cells(250, limits, 1)
    model = fit(known, staircase_us(known), np.ones(len(known), dtype=np.int64), GRANULARITY)
    error = model.time_us(unseen) / staircase_us(unseen) - 1
    assert np.abs(error).mean() < 0.01
    assert np.quantile(np.abs(error), 0.95) < 0.04


def test_channels_beyond_the_last_block_are_seen_to_be_slow() -> None:
    """A sawtooth: what lies beyond a multiple of eight is computed one by one, at 60 us a channel.

    ONNX Runtime's depthwise convolutions in INT8 do so: 12 channels take 540 us, 16 take 165.
    """

    def sawtooth(dims: np.ndarray) -> np.ndarray:
        count = dims[:, 0].astype(float)
        return 80 + 5 * (count // 8) + 60 * (count % 8)

    unseen = np.arange(1, 97)[:, None]
    known = unseen[np.random.default_rng(0).permutation(96)[:48]]
    rng = np.random.default_rng(1)
    noisy = sawtooth(known) * np.exp(0.02 * rng.standard_normal(48))
    model = fit(known, noisy, np.ones(48, dtype=np.int64), GRANULARITY)
    assert model.granularity.tail == 8
    error = np.abs(model.time_us(unseen) / sawtooth(unseen) - 1)
    assert error.mean() < 0.03 and error.max() < 0.15
    again = Fit.from_dict(json.loads(json.dumps(model.to_dict())), GRANULARITY)
    np.testing.assert_allclose(again.time_us(unseen), model.time_us(unseen), rtol=1e-4)


def test_counts_that_are_slow_by_themselves_are_known_again() -> None:
    """Kernels chosen by exact size: some counts take a sixth longer than their neighbours."""

    def times(dims: np.ndarray) -> np.ndarray:
        return staircase_us(dims) * np.where(np.isin(dims[:, 0], (40, 72, 88)), 7 / 6, 1.0)

    counts = np.array([(a, b) for a in range(8, 97, 8) for b in range(16, 161, 8)])
    order = np.random.default_rng(3).permutation(len(counts))
    known, unseen = counts[order[:100]], counts[order[100:]]
    noisy = times(known) * np.exp(0.01 * np.random.default_rng(4).standard_normal(100))
    model = fit(known, noisy, np.ones(100, dtype=np.int64), GRANULARITY)
    slow = np.isin(unseen[:, 0], (40, 72, 88))
    bias = np.log(model.time_us(unseen) / times(unseen))
    assert model.own > 0
    assert abs(bias[slow].mean() - bias[~slow].mean()) < 0.02  # neighbours alone: 0.05
    again = Fit.from_dict(json.loads(json.dumps(model.to_dict())), GRANULARITY)
    np.testing.assert_allclose(again.time_us(unseen), model.time_us(unseen), rtol=1e-4)


def test_a_table_of_an_earlier_version_has_one_granularity_for_all() -> None:
    known = cells(20, (200,), 0)  # too few to tell another than the guess
    model = fit(known, staircase_us(known), np.ones(len(known), dtype=np.int64), GRANULARITY)
    assert model.granularity == GRANULARITY
    assert model.own == 0  # nothing of their own in smooth times
    earlier = {key: value for key, value in model.to_dict().items() if key not in ("granularity", "own")}
    np.testing.assert_allclose(
        Fit.from_dict(earlier, GRANULARITY).time_us(known), model.time_us(known), rtol=1e-4
    )


@pytest.mark.parametrize("damaged", [[0, 4, 0], [16, -4, 0], [16, 4, -1]])
def test_a_damaged_granularity_is_named(damaged: list[int]) -> None:
    known = cells(50, (200,), 0)
    data = fit(known, staircase_us(known), np.ones(len(known), dtype=np.int64), GRANULARITY).to_dict()
    with pytest.raises(TableError, match="here.granularity must be"):
        Fit.from_dict({**data, "granularity": damaged}, GRANULARITY).check("here")


@pytest.mark.parametrize("damaged", [-0.1, float("nan"), float("inf")])
def test_a_damaged_amplitude_of_counts_is_named(damaged: float) -> None:
    known = cells(50, (200,), 0)
    data = fit(known, staircase_us(known), np.ones(len(known), dtype=np.int64), GRANULARITY).to_dict()
    with pytest.raises(TableError, match="here.own must be"):
        Fit.from_dict({**data, "own": damaged}, GRANULARITY).check("here")


def test_noise_is_averaged_out() -> None:
    rng = np.random.default_rng(2)
    known, unseen = cells(400, (96, 160), 3), cells(200, (96, 160), 4)
    noisy = staircase_us(known) * np.exp(0.05 * rng.standard_normal(len(known)))
    model = fit(known, noisy, np.ones(len(known), dtype=np.int64), GRANULARITY)
    error = model.time_us(unseen) / staircase_us(unseen) - 1
    assert np.abs(error).mean() < 0.025  # half of the noise put in


def test_disturbed_measurements_are_distrusted() -> None:
    rng = np.random.default_rng(5)
    known, unseen = cells(400, (96, 160), 6), cells(200, (96, 160), 7)
    times = staircase_us(known)
    times[rng.random(len(times)) < 0.15] *= 1.8
    model = fit(known, times, np.ones(len(known), dtype=np.int64), GRANULARITY)
    error = model.time_us(unseen) / staircase_us(unseen) - 1
    assert abs(np.median(error)) < 0.03  # a plain mean would be 12% high


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_measurements_are_reproduced(count: int) -> None:
    known = cells(400, (96, 160), 8)[:: 400 // count][:count]
    model = fit(known, staircase_us(known), np.ones(len(known), dtype=np.int64), GRANULARITY)
    np.testing.assert_allclose(model.time_us(known), staircase_us(known), rtol=0.2)


def test_more_cells_than_can_be_solved_are_merged() -> None:
    known = cells(6000, (640, 320), 9)
    model = fit(known, staircase_us(known), np.ones(len(known), dtype=np.int64), GRANULARITY)
    assert len(model.cells) <= 700
    error = model.time_us(known) / staircase_us(known) - 1
    assert np.abs(error).mean() < 0.02


def test_survives_json() -> None:
    known = cells(50, (96, 160), 10)
    model = fit(known, staircase_us(known), np.ones(len(known), dtype=np.int64), GRANULARITY)
    again = Fit.from_dict(model.to_dict(), GRANULARITY)
    np.testing.assert_allclose(again.time_us(known), model.time_us(known), rtol=1e-4)
