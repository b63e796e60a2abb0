"""What every width sampler must do, as one class of tests.

::

    class TestMine(SamplerConformance):
        def make_sampler(self, grid, rng):
            return Mine(grid, rng)
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from bcnet_deploy.errors import CheckpointError
from bcnet_deploy.train.samplers import SIDES, Distilled, Slice, Step, WidthGrid, WidthSampler

STEPS = 200
GRIDS = {
    "even": WidthGrid.create([[2, 4, 6, 8]] * 3),
    "uneven": WidthGrid.create([[1, 2, 3, 5, 6], [4, 8], [7]]),
    "widened": WidthGrid.create([[4, 6, 8], [2, 3, 4]], [12, 6]),
    "least": WidthGrid.create([[3, 4, 5, 6, 7, 8], [2, 4]], lowest=[3, 1]),
}


def channel_counts(grid: WidthGrid, paths: Iterable[Slice]) -> tuple[npt.NDArray[np.int64], ...]:
    """How often the paths train each stored channel: one array (stored_l,) a variable."""
    counts = tuple(np.zeros(int(stored), dtype=np.int64) for stored in grid.stored)
    for path in paths:
        for count, width in zip(counts, path.widths, strict=True):
            kept = slice(0, width) if path.side == "left" else slice(len(count) - width, None)
            count[kept] += 1
    return counts


class SamplerConformance(ABC):
    """Subclass it as ``Test...`` and say how the sampler is made; pytest finds the rest."""

    @abstractmethod
    def make_sampler(self, grid: WidthGrid, rng: np.random.Generator) -> WidthSampler:
        """A new sampler."""

    def steps(self, grid: WidthGrid, count: int = STEPS, seed: int = 0) -> list[Step]:
        """The first steps of a new sampler."""
        sampler = self.make_sampler(grid, np.random.default_rng(seed))
        return [sampler.next_step() for _ in range(count)]

    def test_slices_are_of_the_grid(self) -> None:
        for grid in GRIDS.values():
            for step in self.steps(grid):
                assert len(step), "a step without slices trains nothing"
                for path in step:
                    widths = np.asarray(path.widths)
                    assert widths.shape == grid.full.shape and widths.dtype.kind == "i"
                    assert (widths >= grid.lowest).all() and (widths <= grid.full).all()
                    assert path.side in SIDES

    def test_weights_of_a_step_add_up_to_one(self) -> None:
        for grid in GRIDS.values():
            for step in self.steps(grid):
                assert all(path.weight > 0 for path in step)
                assert abs(sum(path.weight for path in step) - 1) < 1e-9

    def test_a_pupil_follows_a_teacher_that_ran_before_it(self) -> None:
        for grid in GRIDS.values():
            for step in self.steps(grid):
                for index, path in enumerate(step):
                    assert path.role in ("sampled", "anchor", "teacher", "pupil")
                    if path.role == "pupil":
                        assert 0 <= path.teacher_index < index
                        assert step[path.teacher_index].role == "teacher"

    def test_the_scored_sides_are_trained(self) -> None:
        sampler = self.make_sampler(GRIDS["even"], np.random.default_rng(0))
        assert sampler.sides and set(sampler.sides) <= set(SIDES)
        assert len(set(sampler.sides)) == len(sampler.sides)
        trained = {path.side for step in self.steps(GRIDS["even"]) for path in step}
        assert set(sampler.sides) <= trained

    def test_no_channel_stays_untrained(self) -> None:
        for name in ("even", "uneven"):
            paths = [path for step in self.steps(GRIDS[name]) for path in step]
            assert all((count > 0).all() for count in channel_counts(GRIDS[name], paths))

    def test_the_same_seed_draws_the_same_and_leaves_the_grid_alone(self) -> None:
        for grid in GRIDS.values():
            choices, stored = grid.choices, grid.stored.copy()
            assert _plain(self.steps(grid, 20, seed=3)) == _plain(self.steps(grid, 20, seed=3))
            assert grid.choices == choices and (grid.stored == stored).all()

    def test_a_resumed_sampler_goes_on_alike(self) -> None:
        for grid in GRIDS.values():
            for done in range(6):
                for as_run in (lambda sampler: sampler, Distilled):  # what training makes of it by default
                    sampler = as_run(self.make_sampler(grid, np.random.default_rng(1)))
                    for _ in range(done):
                        sampler.next_step()
                    state = json.loads(json.dumps(sampler.state_dict()))
                    other = as_run(self.make_sampler(grid, np.random.default_rng(99)))
                    other.load_state_dict(state)
                    ahead = [[s.next_step() for _ in range(8)] for s in (sampler, other)]
                    assert _plain(ahead[0]) == _plain(ahead[1])

    def test_a_state_of_another_rule_is_refused(self) -> None:
        sampler = self.make_sampler(GRIDS["even"], np.random.default_rng(0))
        for spoilt in ({**sampler.state_dict(), "kind": "none"}, {"kind": sampler.kind}):
            try:
                sampler.load_state_dict(spoilt)
            except CheckpointError:
                continue
            raise AssertionError(f"a checkpoint state {sorted(spoilt)} that does not fit was taken")


def _plain(steps: Iterable[Step]) -> list[list[tuple[object, ...]]]:
    return [[(p.widths.tolist(), p.side, p.weight, p.role, p.teacher_index) for p in step] for step in steps]


__all__ = ["SamplerConformance", "channel_counts"]
