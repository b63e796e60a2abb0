"""Width variables and the widths that levels choose."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bcnet_deploy.space.ops import WidthVariable


def level_choices(units: int, step: int, levels: int, min_level: int) -> tuple[int, ...]:
    """Widths of levels ``max(1, min_level)..levels``: level j keeps ceil(j * units / levels) units.

    Source: BCNet (CVPR 2021), section 3.1; the smallest level: BCNetV2, section 3.
    """
    lowest = max(1, min_level)
    return tuple(sorted({step * math.ceil(j * units / levels) for j in range(lowest, levels + 1)}))


def make_variables(
    raw: Sequence[tuple[str, int, int, tuple[str, ...]]], levels: int, min_level: int
) -> tuple[WidthVariable, ...]:
    """Variables from (name, channels, step, layers), with the choices of the levels."""
    return tuple(
        WidthVariable(
            name=name,
            channels=channels,
            choices=level_choices(channels // step, step, levels, min_level),
            step=step,
            index=index,
            layers=layers,
        )
        for index, (name, channels, step, layers) in enumerate(raw)
    )
