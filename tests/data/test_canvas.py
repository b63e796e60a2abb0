"""Digits on canvases: masks lie on the ink, splits share no digit, every run sees the same."""

from __future__ import annotations

import pytest
import torch

from bcnet_deploy.data import load_data
from bcnet_deploy.errors import DataError


def test_masks_are_on_the_ink_and_name_every_digit() -> None:
    data = load_data("digits-canvas", (1, 32, 32))
    images, masks = data.train.memory, data.train.labels
    assert images is not None and images.shape == (1200, 1, 32, 32) and masks.shape == (1200, 32, 32)
    assert data.classes[0] == "background" and data.num_classes == 11
    assert set(masks.unique().tolist()) == set(range(11))
    ink = masks > 0
    assert 0.08 < float(ink.float().mean()) < 0.3
    # Noise has a deviation of 8, ink starts 16 above the brightest background.
    assert float((images[:, 0] > 56)[ink].float().mean()) > 0.97
    assert float((images[:, 0] > 56)[~ink].float().mean()) < 0.05
    assert (ink.flatten(1).sum(1) > 0).all()
    again = load_data("digits-canvas", (1, 32, 32))
    assert torch.equal(again.train.labels, masks) and torch.equal(again.val.memory, data.val.memory)
    assert len(data.val) == len(data.load_test()) == 400


def test_canvases_of_other_sizes() -> None:
    data = load_data("digits-canvas", (3, 40, 24))
    assert data.val.memory.shape == (400, 3, 40, 24) and data.val.labels.shape == (400, 40, 24)
    assert torch.equal(data.val.memory[:, 0], data.val.memory[:, 2])
    with pytest.raises(DataError, match="the canvas is 8x32; allowed: 16x16 or more"):
        load_data("digits-canvas", (1, 8, 32))
