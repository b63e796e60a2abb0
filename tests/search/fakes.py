"""Small spaces whose costs and accuracies can be written down."""

from __future__ import annotations

import numpy as np

from bcnet_deploy.testing.strategies import HashedAccuracy as Hashed
from bcnet_deploy.testing.strategies import SmallSpace as FakeSpace
from bcnet_deploy.testing.strategies import Staircase

__all__ = ["FakeSpace", "Hashed", "Staircase", "brute_front"]


def brute_front(objectives: np.ndarray) -> np.ndarray:
    """(N, M) to be minimised -> (N,) by comparing each with each."""
    keep = np.ones(len(objectives), dtype=bool)
    for i, row in enumerate(objectives):
        beats = (objectives <= row).all(axis=1) & (objectives < row).any(axis=1)
        keep[i] = not beats.any()
    return keep
