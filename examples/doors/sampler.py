"""A training rule of one's own: every width of every layer equally often.

    bd.train.train_supernet(..., sampler=Balanced)

An installed package names it as well, and a recipe says `rule: balanced`::

    [project.entry-points."bcnet_deploy.samplers"]
    balanced = "my_package.sampler:Balanced"
"""

from __future__ import annotations

import numpy as np

from bcnet_deploy.train.samplers import SIDES, Step, WidthSampler, both_sides


class Balanced(WidthSampler):
    """Rounds of K steps, K the most choices of a layer: each layer takes its choices in a random order.

    A random draw leaves some widths behind for a while. Here they differ by one step at most. As BCNet, each
    step trains the left and the right slice.
    """

    sides = SIDES

    def draw(self) -> list[Step]:
        rounds = max(map(len, self.grid.choices))
        columns = [np.resize(self.rng.permutation(choices), rounds) for choices in self.grid.choices]
        return [both_sides(widths) for widths in np.stack(columns, axis=1)]
