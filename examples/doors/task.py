"""A task of one's own: classification judged by balanced accuracy, the mean share found of a class.

    bd.train.train_supernet(..., task=BalancedAccuracy())

A recipe names it as `task: my_file.py:BalancedAccuracy`, an installed package as well::

    [project.entry-points."bcnet_deploy.tasks"]
    balanced = "my_package.task:BalancedAccuracy"
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bcnet_deploy.tasks import Classification


class BalancedAccuracy(Classification):
    """Cross-entropy; and a metric that rare classes move as much as common ones."""

    name, metric_name, key, unit = "balanced", "balanced accuracy", "balanced_accuracy", "%"

    def measure(self, outputs: Any, targets: Tensor) -> Tensor:
        """(2 * classes,): images found of each class, and images there are. Sums of batches stay exact."""
        logits = self.logits(outputs)
        there = torch.nn.functional.one_hot(targets, logits.shape[1])
        found = there * (logits.argmax(dim=1) == targets)[:, None]
        return torch.cat([found.sum(dim=0), there.sum(dim=0)])

    def score(self, sums: Tensor, count: int) -> float:
        found, there = sums.view(2, -1)
        return 100.0 * float((found / there)[there > 0].mean())
