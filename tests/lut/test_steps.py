"""Suggested widths on a device whose steps are known: 16 channels, and multiples of 4 below."""

from __future__ import annotations

import numpy as np

from bcnet_deploy.lut.steps import suggest_steps, with_choices
from tests.lut.fakes import make_table, tiny_space, true_ms


def test_finds_the_blocks_of_the_device() -> None:
    space = tiny_space(levels=64)
    for item, variable in zip(suggest_steps(make_table(space), gain=0.01), space.variables, strict=True):
        assert item.widths[-1] == variable.channels
        assert all(width % 16 == 0 for width in item.widths if width > 16)
        assert item.saved_ms[-1] == 0
        assert all(np.diff(item.saved_ms) < 0)


def test_no_width_left_out_is_better() -> None:
    """For every width there is a suggested one, as wide or wider, that is hardly slower."""
    space = tiny_space(levels=64)
    table = make_table(space)
    gain = 0.01
    slack = 3 * gain * float(true_ms(space, space.full[None])[0])
    for item in suggest_steps(table, gain=gain):
        for width in range(1, item.channels + 1):
            wider = min(candidate for candidate in item.widths if candidate >= width)
            rows = np.stack([space.full, space.full])
            rows[:, item.index] = (width, wider)
            given, suggested = true_ms(space, rows)
            assert suggested <= given + slack


def test_most_limits_the_number_and_keeps_the_ends() -> None:
    space = tiny_space(levels=64)
    table = make_table(space)
    every = suggest_steps(table, gain=0.001)
    few = suggest_steps(table, gain=0.001, most=3)
    for all_of_them, some in zip(every, few, strict=True):
        assert len(some.widths) <= max(3, 2)
        assert set(some.widths) <= set(all_of_them.widths)
        assert (some.widths[0], some.widths[-1]) == (all_of_them.widths[0], all_of_them.widths[-1])


def test_become_the_choices_of_a_search() -> None:
    space = tiny_space(levels=64)
    table = make_table(space)
    suggestions = suggest_steps(table, gain=0.01)
    searched = with_choices(space, suggestions)
    assert searched.size < space.size
    drawn = searched.random(50, np.random.default_rng(0))
    assert all(set(drawn[:, item.index]) <= set(item.widths) for item in suggestions)
    np.testing.assert_allclose(table.for_space(searched).predict(drawn), table.predict(drawn))
