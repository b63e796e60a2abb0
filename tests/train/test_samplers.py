"""Channel fairness against the closed forms of BCNet and BCNetV2, counted channel by channel."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bcnet_deploy.errors import CheckpointError, ConfigError
from bcnet_deploy.files import read_rows
from bcnet_deploy.nn import Supernet
from bcnet_deploy.space import WidthSpace, level_choices
from bcnet_deploy.testing.samplers import SamplerConformance, channel_counts
from bcnet_deploy.train import train_supernet
from bcnet_deploy.train.samplers import (
    SAMPLERS,
    Bilateral,
    Sandwich,
    Slice,
    Step,
    Unilateral,
    WidthGrid,
    WidthSampler,
    both_sides,
    make_sampler,
)
from bcnet_deploy.train.supernet import make_evaluator
from tests.train.helpers import SIZE, make_supernet, settings, splits


class OfRule(SamplerConformance):
    rule: str
    distillation = False

    def make_sampler(self, grid: WidthGrid, rng: np.random.Generator) -> WidthSampler:
        return make_sampler(self.rule, grid, rng, settings(distillation=self.distillation))


class TestBilateral(OfRule):
    rule = "bilateral"


class TestBilateralDistilled(OfRule):
    rule, distillation = "bilateral", True


class TestUnilateral(OfRule):
    rule = "unilateral"


class TestUnilateralDistilled(OfRule):
    rule, distillation = "unilateral", True


class TestSandwich(OfRule):
    rule = "sandwich"


class TestSandwichDistilled(OfRule):
    rule, distillation = "sandwich", True


class TestUniform(OfRule):
    rule = "uniform"


class TestUniformDistilled(OfRule):
    rule, distillation = "uniform", True


class Counting(WidthSampler):
    """A rule that remembers how many vectors it drew."""

    def __init__(self, grid: WidthGrid, rng: np.random.Generator) -> None:
        super().__init__(grid, rng)
        self.drawn = 0

    def draw(self) -> list[Step]:
        self.drawn += 1
        widths = np.array([choices[self.drawn % len(choices)] for choices in self.grid.choices])
        return [(Slice(widths, "left"),)]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.drawn = int(state["drawn"])


class TestCounting(SamplerConformance):
    """With a state of its own, which distillation must keep too."""

    def make_sampler(self, grid: WidthGrid, rng: np.random.Generator) -> WidthSampler:
        return Counting(grid, rng)

    def test_a_spoilt_state_of_its_own_is_refused_under_distillation(self) -> None:
        grid = WidthGrid.create([[2, 4]])
        sampler = make_sampler(Counting, grid, np.random.default_rng(0), settings(distillation=True))
        for spoilt in (None, {**sampler.inner.state_dict(), "drawn": "x"}, {"kind": "none"}):  # type: ignore[attr-defined]
            with pytest.raises(CheckpointError):
                sampler.load_state_dict({**sampler.state_dict(), "inner": spoilt})


def test_a_grid_whose_choices_are_under_what_the_code_takes_is_refused() -> None:
    with pytest.raises(ConfigError, match="lowest"):
        WidthGrid.create([[2, 4]], lowest=[3])


def test_the_default_rule_trains_where_the_code_takes_two_channels_at_least(tmp_path: Path) -> None:
    """Behind a plain squeeze() one channel is none: the complement of full - 1 must not be 1."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, padding=1)]

    class Squeezing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.head = torch.nn.Sequential(*layers), torch.nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.features(x).mean(dim=(2, 3), keepdim=True).squeeze())

    model = Squeezing()
    space = WidthSpace.from_model(model, SIZE, levels=8)
    assert {variable.lowest for variable in space.variables} == {1, 2}
    result = train_supernet(
        Supernet(model, space), splits(), settings(epochs=12), tmp_path, device=torch.device("cpu")
    )
    assert result.steps == 48


def test_every_built_in_rule_is_tested_above() -> None:
    assert {case.rule for case in OfRule.__subclasses__()} == set(SAMPLERS.names())


class Rights(WidthSampler):
    """Right slices of random vectors."""

    sides = ("right",)

    def draw(self) -> list[Step]:
        return [(Slice(self.grid.draw(self.rng), "right"),)]


class TestRights(SamplerConformance):
    def make_sampler(self, grid: WidthGrid, rng: np.random.Generator) -> WidthSampler:
        return Rights(grid, rng)


def broken(**changes: object) -> type[SamplerConformance]:
    """The conformance of a sampler whose slices are spoilt."""

    class Broken(Rights):
        def draw(self) -> list[Step]:
            return [tuple(replace(path, **changes) for path in step) for step in super().draw()]

    return type("Case", (SamplerConformance,), {"make_sampler": lambda self, grid, rng: Broken(grid, rng)})


@pytest.mark.parametrize(
    ("changes", "test"),
    [
        ({"weight": 0.5}, "test_weights_of_a_step_add_up_to_one"),
        ({"widths": np.array([9, 9, 9])}, "test_slices_are_of_the_grid"),
        ({"widths": np.array([2, 2, 2])}, "test_no_channel_stays_untrained"),
        ({"side": "left"}, "test_the_scored_sides_are_trained"),
        ({"role": "pupil"}, "test_a_pupil_follows_a_teacher_that_ran_before_it"),
    ],
)
def test_conformance_finds_what_is_wrong(changes: dict[str, object], test: str) -> None:
    with pytest.raises((AssertionError, IndexError)):
        getattr(broken(**changes)(), test)()


@pytest.mark.parametrize("source", ["class", "function", "object", "name"])
def test_a_rule_from_outside_trains_and_its_sides_are_scored(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supernet, config = make_supernet(), settings(epochs=1)
    given: Any = {
        "class": Rights,
        "function": lambda grid, rng, config: Rights(grid, rng),
        "object": Rights(WidthGrid.of(supernet), np.random.default_rng([0, 1])),
    }.get(source)
    if source == "name":
        # What a package's installer leaves behind.
        (tmp_path / "rights-1.dist-info").mkdir()
        (tmp_path / "rights-1.dist-info" / "METADATA").write_text("Name: rights\nVersion: 1\n")
        (tmp_path / "rights-1.dist-info" / "entry_points.txt").write_text(
            f"[bcnet_deploy.samplers]\nrights = {__name__}:Rights\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(SAMPLERS, "_known", dict(SAMPLERS._known))
        config = config.replace(rule="rights")
    result = train_supernet(supernet, splits(), config, tmp_path, sampler=given, device=torch.device("cpu"))
    assert result.sides == ("right",)
    assert json.loads((tmp_path / "supernet.json").read_text())["sides"] == ["right"]
    evaluator = make_evaluator(supernet, splits(), config, device=torch.device("cpu"), sides=result.sides)
    assert evaluator.sides([[4, 6]]).shape == (1, 1)
    widths = [row["widths"] for row in read_rows(tmp_path / "records.jsonl")]
    rights = Rights(WidthGrid.of(supernet), np.random.default_rng([0, 1]))
    assert widths == [rights.next_step()[0].widths.tolist() for _ in widths]


def test_what_makes_no_sampler_is_refused() -> None:
    with pytest.raises(ConfigError, match="made int; needed"):
        make_sampler(lambda *_: 3, levels_grid(2), np.random.default_rng(0), settings())  # type: ignore[arg-type,return-value]


def levels_grid(levels: int, group: int = 1, minimum: int = 0, variables: int = 1) -> WidthGrid:
    """``levels`` equal groups a variable; widened by ``minimum`` levels as section 4 says."""
    first = max(minimum, 1)
    choices = [[group * j for j in range(first, levels + 1)]] * variables
    return WidthGrid.create(choices, [group * (levels + minimum)] * variables)


def over_all_widths(grid: WidthGrid, bilateral: bool) -> np.ndarray:
    paths: list[Slice] = []
    for width in grid.choices[0]:
        both = both_sides(np.array([width]))
        paths += both if bilateral else both[:1]
    return channel_counts(grid, paths)[0]


@given(levels=st.integers(1, 24), group=st.integers(1, 4))
def test_unilateral_trains_channel_k_in_levels_minus_k_widths(levels: int, group: int) -> None:
    counts = over_all_widths(levels_grid(levels, group), bilateral=False)
    expected = np.repeat(levels - np.arange(levels), group)
    assert counts.tolist() == expected.tolist()


@given(levels=st.integers(1, 24), group=st.integers(1, 4))
def test_bilateral_trains_every_channel_levels_plus_one_times(levels: int, group: int) -> None:
    counts = over_all_widths(levels_grid(levels, group), bilateral=True)
    assert counts.tolist() == [levels + 1] * (levels * group)


@given(levels=st.integers(2, 24), group=st.integers(1, 3), data=st.data())
def test_minimum_width_keeps_fairness_by_widening(levels: int, group: int, data: st.DataObject) -> None:
    minimum = data.draw(st.integers(1, levels))
    counts = over_all_widths(levels_grid(levels, group, minimum), bilateral=True)
    assert counts.tolist() == [levels - minimum + 1] * ((levels + minimum) * group)


def test_the_papers_example_of_section_4() -> None:
    counts = over_all_widths(levels_grid(20, minimum=2), bilateral=True)
    assert len(counts) == 22 and set(counts.tolist()) == {19}


def test_minimum_width_without_widening_is_unfair() -> None:
    """The fault that section 4 repairs: if it did not show here, the test above would prove nothing."""
    grid = WidthGrid.create([range(7, 21)], [20])
    assert len(set(over_all_widths(grid, bilateral=True).tolist())) > 1


uneven = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@given(channels=uneven, levels=st.integers(1, 21), seed=st.integers(0, 2**32))
def test_a_pair_trains_every_channel_exactly_twice(channels: list[int], levels: int, seed: int) -> None:
    """Also where the levels do not divide the channels; a layer drawn full gets its narrowest once more."""
    choices = [sorted({-(-j * c // levels) for j in range(1, levels + 1)}) for c in channels]
    grid = WidthGrid.create(choices)
    sampler = Bilateral(grid, np.random.default_rng(seed))
    steps = sampler.draw()
    assert len(steps) == 2
    drawn = steps[0][0].widths
    counts = channel_counts(grid, [path for step in steps for path in step])
    for count, width, options in zip(counts, drawn, choices, strict=True):
        expected = np.full(len(count), 2)
        if width == len(count):
            expected[: options[0]] += 1
            expected[len(count) - options[0] :] += 1
        assert count.tolist() == expected.tolist()


@given(levels=st.integers(2, 20), group=st.integers(1, 3), seed=st.integers(0, 2**32), data=st.data())
def test_a_widened_pair_always_tiles(levels: int, group: int, seed: int, data: st.DataObject) -> None:
    minimum = data.draw(st.integers(1, levels))
    grid = levels_grid(levels, group, minimum, variables=3)
    steps = Bilateral(grid, np.random.default_rng(seed)).draw()
    for count in channel_counts(grid, [path for step in steps for path in step]):
        assert set(count.tolist()) == {2}
    for step in steps:
        assert all(w in options for w, options in zip(step[0].widths, grid.choices, strict=True))


@given(levels=st.integers(2, 24))
def test_min_plus_max_over_a_uniform_draw_trains_all_levels_equally(levels: int) -> None:
    """Section 3: c together with min + max - c, over all c, gives 2(K+1)."""
    grid = levels_grid(levels)
    paths: list[Slice] = []
    for width in grid.choices[0]:
        paths += both_sides(np.array([width])) + both_sides(np.array([1 + levels - width]))
    assert set(channel_counts(grid, paths)[0].tolist()) == {2 * (levels + 1)}


def test_complement_is_in_channels_and_keeps_the_step() -> None:
    grid = WidthGrid.create([[8, 16, 24, 32], [3, 5, 8, 10]])
    assert grid.complement(np.array([24, 3])).tolist() == [8, 7]
    assert grid.complement(np.array([32, 10])).tolist() == [8, 3]


def test_sandwich_runs_widest_narrowest_and_random_left_slices() -> None:
    grid = levels_grid(4, 8, variables=3)
    (step,) = Sandwich(grid, np.random.default_rng(0), random_paths=2).draw()
    assert [path.widths.tolist() for path in step[:2]] == [[32] * 3, [8] * 3]
    assert [path.role for path in step] == ["teacher", "pupil", "pupil", "pupil"]
    assert {path.side for path in step} == {"left"} and sum(path.weight for path in step) == 1


def test_uniform_shares_one_level_and_reaches_all() -> None:
    grid = WidthGrid.create([[1, 2, 3, 4], [10, 20, 30, 40]])
    sampler = make_sampler("uniform", grid, np.random.default_rng(0), settings())
    seen = {tuple(sampler.next_step()[0].widths.tolist()) for _ in range(200)}
    assert seen == {(1, 10), (2, 20), (3, 30), (4, 40)}


def test_distillation_adds_a_teacher_a_side_only_where_sides_differ() -> None:
    narrow, wide = levels_grid(4, 2), levels_grid(4, 2, minimum=1)
    (first, _) = make_sampler(
        "bilateral", narrow, np.random.default_rng(0), settings(distillation=True)
    ).draw()
    assert [p.role for p in first] == ["teacher", "pupil", "pupil"]
    assert [p.side for p in first] == ["left", "left", "right"]
    assert {path.teacher_index for path in first[1:]} == {0}
    (first, _) = make_sampler("bilateral", wide, np.random.default_rng(0), settings(distillation=True)).draw()
    assert [p.side for p in first] == ["left", "right", "left", "right"]
    assert [p.teacher_index for p in first[2:]] == [0, 1]
    counts = channel_counts(wide, [p for p in first if p.role == "teacher"])[0]
    assert counts.tolist() == [1, 1, 2, 2, 2, 2, 2, 2, 1, 1]


def test_draws_are_uniform_over_the_choices() -> None:
    sampler = Unilateral(levels_grid(4), np.random.default_rng(1))
    draws = [int(sampler.next_step()[0].widths[0]) for _ in range(8000)]
    counts = np.bincount(draws, minlength=5)[1:]
    chi_square = float(((counts - 2000) ** 2 / 2000).sum())
    assert chi_square < 16.3  # 0.1% point of 3 degrees of freedom


def test_bad_input_is_refused() -> None:
    with pytest.raises(ConfigError, match="must ascend"):
        WidthGrid.create([[2, 2]])
    with pytest.raises(ConfigError, match="not below the widest"):
        WidthGrid.create([[1, 2]], [1])
    with pytest.raises(ConfigError, match=r"did you mean 'bilateral'.*allowed: bilateral, unilateral"):
        make_sampler("bilaterl", levels_grid(2), np.random.default_rng(0), settings())
    sampler = Unilateral(levels_grid(2), np.random.default_rng(0))
    with pytest.raises(CheckpointError, match="trained with 'Bilateral'"):
        sampler.load_state_dict(Bilateral(levels_grid(2), np.random.default_rng(0)).state_dict())
    with pytest.raises(CheckpointError, match="damaged"):
        sampler.load_state_dict({"kind": "Unilateral"})


@given(channels=st.integers(1, 200), levels=st.integers(1, 24), data=st.data())
def test_complements_of_a_widened_layer_are_widths_of_the_space(
    channels: int, levels: int, data: st.DataObject
) -> None:
    """Stored levels are rounded up to channels; what a choice leaves is then between narrowest and full."""
    minimum = data.draw(st.integers(1, levels))
    choices = level_choices(channels, 1, levels, minimum)
    stored = -(-(levels + minimum) * channels // levels)
    grid = WidthGrid.create([choices], [stored])
    for width in choices:
        (rest,) = grid.complement(np.array([width])).tolist()
        assert rest == stored - width and choices[0] <= rest <= channels
