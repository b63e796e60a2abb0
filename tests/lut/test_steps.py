"""Suggested widths on a device whose steps are known: 16 channels, and multiples of 4 below."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import bcnet_deploy as bd
from bcnet_deploy.devices import load_device
from bcnet_deploy.lut.estimate import estimate_table
from bcnet_deploy.lut.steps import learned_choices, suggest_steps
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
    learned = learned_choices(space, [table], gain=0.01)
    for item, variable in zip(suggest_steps(table, gain=0.01), space.variables, strict=True):
        assert set(learned[variable.name]) == {*item.widths, variable.choices[0]}
    searched = replace(space, variables=tuple(replace(v, choices=learned[v.name]) for v in space.variables))
    assert searched.size < space.size
    result = bd.search(
        searched, lambda rows: np.log(rows).sum(axis=1), {"latency_ms": (table, "0.6x")}, 60, seed=1
    )
    assert all(int(w) in learned[v.name] for w, v in zip(result.widths, space.variables, strict=True))
    assert result.costs["latency_ms"] <= 0.6 * float(table.predict(space.full)[0])


def test_choices_of_several_devices_are_those_of_each_and_keep_the_ends() -> None:
    space = tiny_space(levels=4)
    own, gpu = make_table(space), estimate_table(space, load_device("t4"))
    one, other = (learned_choices(space, [table], gain=0.01) for table in (own, gpu))
    assert one != other
    both = learned_choices(space, [own, gpu], gain=0.01)
    assert both == {name: tuple(sorted({*one[name], *other[name]})) for name in one}
    for variable in space.variables:
        assert one[variable.name][0] == variable.choices[0] and one[variable.name][-1] == variable.channels
    with pytest.raises(bd.TableError, match="given: none"):
        learned_choices(space, [])
