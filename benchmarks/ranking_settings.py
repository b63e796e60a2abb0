"""Which runs of ``bm_ranking.py`` are compared with each other, and how files and headings name them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

USUAL_IMAGES = 2000
"""Held-out images of a score, at most; scores on more are a setting of their own."""

Setting = tuple[float, str, int]
"""Cost, augmentation and held-out images: runs in one setting are compared."""


def setting(run: dict[str, Any]) -> Setting:
    return run["cost"], run["augment"], max(run["held_out_images"], USUAL_IMAGES)


def title(one: Setting) -> str:
    cost, augment, images = one
    more = f", scored on {images:,} images" if images > USUAL_IMAGES else ""
    return f"cost {cost:,.0f}, augmentation {augment}{more}"


def settings_of(rows: Sequence[dict[str, Any]]) -> list[Setting]:
    """Settings that were run.

    Largest cost first, then the usual number of held-out images, then the lowest held-out loss of the rules
    that the augmentations share.
    """
    found = list(dict.fromkeys(setting(row) for row in rows))

    def held_out_loss(one: Setting) -> float:
        alike = [other for other in found if (other[0], other[2]) == (one[0], one[2])]
        shared = set.intersection(*[{r["rule"] for r in rows if setting(r) == other} for other in alike])
        losses = [r["held_out_loss"] for r in rows if setting(r) == one and r["rule"] in shared]
        return float(np.mean(losses)) if losses else 0.0

    return sorted(found, key=lambda one: (-one[0], one[2], held_out_loss(one), one[1]))


def name_suffix(augment: str, images: int) -> str:
    """What the names of files add for a setting: nothing where it is usual."""
    augmented = "" if augment == "none" else f"_{augment}"
    return augmented + (f"_images{images}" if images > USUAL_IMAGES else "")


def kendall_name(one: Setting) -> str:
    cost, augment, images = one
    return f"kendall_{cost:.0f}{name_suffix(augment, images)}.svg"
