"""Scores of thousands of sub-networks of a sequential supernet, one at a time, image by image.

The same numbers as :class:`bcnet_deploy.train.evaluate.SupernetEvaluator` (tests/test_prefix_scores.py
holds them together), which shares stages among the networks of one call. Here the activations of all images
stay behind every stage from one call to the next: a benchmark writes each score as it comes, goes on after
a kill, and asks which images were right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

import bcnet_deploy as bd
from bcnet_deploy.nn import recalibrate
from bcnet_deploy.train.chain import stages_of

_CHUNK = 64
"""Held-out images at once on a CPU: larger parts leave the cache."""


@dataclass(frozen=True)
class _Reached:
    """Activations behind a stage, and the widths that they depend on."""

    key: tuple[int, ...]
    calibration: torch.Tensor
    held_out: torch.Tensor


class PrefixScorer:
    """Top-1 in percent and cross-entropy by side, for vectors in any order; fastest in sorted order.

    Args:
        supernet: its model a sequence of stages to the end, see :mod:`bcnet_deploy.train.chain`.
        calibration: (B, C, H, W) training images, one batch.
        images, labels: held out.
        sides: the slices to score.
        chunk: held-out images at once.
    """

    def __init__(
        self, supernet: bd.Supernet, calibration: torch.Tensor, images: torch.Tensor, labels: torch.Tensor,
        sides: Sequence[str], chunk: int = _CHUNK,
    ) -> None:  # fmt: skip
        self.supernet, self.labels, self.sides, self.chunk = supernet, labels, tuple(sides), chunk
        self._start = _Reached(
            (),
            calibration.contiguous(memory_format=torch.channels_last),
            images.contiguous(memory_format=torch.channels_last),
        )
        self._stages = [
            (nn.Sequential(*stage.modules), stage.variables) for stage in stages_of(supernet, calibration)
        ]
        self._reached: dict[str, list[_Reached]] = {side: [self._start] for side in self.sides}

    @torch.no_grad()
    def __call__(
        self, widths: npt.NDArray[np.int64], count: int | None = None
    ) -> tuple[list[float], list[float]]:
        """(L,) widths -> accuracy and loss of each side, on the first ``count`` images (all)."""
        accuracy, loss = [], []
        labels = self.labels[:count]
        for side in self.sides:
            logits = self._logits(widths, side)[:count]
            accuracy.append(100.0 * float((logits.argmax(1) == labels).double().mean()))
            loss.append(float(F.cross_entropy(logits, labels)))
        return accuracy, loss

    @torch.no_grad()
    def correct(self, widths: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """(L,) widths -> (sides, images): whether each held-out image is classified rightly.

        Costs next to nothing for the vector that was scored last.
        """
        by_side = [self._logits(widths, side).argmax(1) == self.labels for side in self.sides]
        return torch.stack(by_side).cpu().numpy()

    @torch.no_grad()
    def features(self, widths: npt.NDArray[np.int64], side: str) -> torch.Tensor:
        """(L,) widths -> what the last stage's last module is given, of each held-out image."""
        self._logits(widths, side)
        features = self._reached[side][-2].held_out.clone()
        with self.supernet.sliced():
            for module in list(self._stages[-1][0].children())[:-1]:
                features = module(features)
        return features

    def _logits(self, widths: npt.NDArray[np.int64], side: str) -> torch.Tensor:
        reached = self._reached[side]
        keys = [tuple(int(widths[v]) for v in needed) for _, needed in self._stages]
        common = 0
        while common + 1 < len(reached) and reached[common + 1].key == keys[common]:
            common += 1
        del reached[common + 1 :]
        self.supernet.set_active(widths, side)
        self.supernet.eval()
        with self.supernet.sliced():
            for (stage, _), key in zip(self._stages[common:], keys[common:], strict=True):
                reached.append(_advance(stage, reached[-1], key, self.chunk))
        return reached[-1].held_out.float()


def _advance(stage: nn.Module, before: _Reached, key: tuple[int, ...], chunk: int) -> _Reached:
    outputs: list[torch.Tensor] = []
    handle = stage.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        # A stage may work in place: what other networks go on from is not given away.
        recalibrate(stage, [before.calibration.clone()])
        if not outputs:  # nothing to calibrate
            outputs.append(stage(before.calibration.clone()))
        calibrated = outputs[0]
    finally:
        handle.remove()
    held_out = torch.cat([stage(part.clone()) for part in before.held_out.split(chunk)])
    return _Reached(key, calibrated, held_out)
