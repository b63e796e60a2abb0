"""Detection through a loss of one's own: a backbone with heads, boxes that move with their images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from bcnet_deploy.data import load_data
from bcnet_deploy.models.ref import ModelRef
from bcnet_deploy.nn import Supernet
from bcnet_deploy.space import WidthSpace
from bcnet_deploy.tasks import Task, make_task
from bcnet_deploy.train import TrainConfig, retrain, train_supernet

SIZE, CELLS, CLASSES = (3, 32, 32), 8, 3


class Detector(nn.Module):
    """At each of 8 x 8 cells a box and scores."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(),
        )  # fmt: skip
        self.boxes, self.scores = nn.Conv2d(16, 4, 1), nn.Conv2d(16, CLASSES, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.body(x)
        return {"boxes": self.boxes(x), "scores": self.scores(x)}


def found(outputs: dict[str, torch.Tensor], targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, boxes, 4) and (N, boxes, classes) at the cells of the true middles."""
    cells = ((targets[..., :2] + targets[..., 2:4]) / 2 * CELLS).long().clamp(0, CELLS - 1)
    image = torch.arange(len(targets), device=targets.device)[:, None]
    return tuple(outputs[key][image, :, cells[..., 1], cells[..., 0]] for key in ("boxes", "scores"))  # type: ignore[return-value]


def loss(outputs: dict[str, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
    boxes, scores = found(outputs, targets)
    labels = targets[..., 4].long()
    return F.l1_loss(boxes, targets[..., :4]) + F.cross_entropy(scores.flatten(0, 1), labels.flatten())


def share_right(outputs: dict[str, torch.Tensor], targets: torch.Tensor) -> float:
    return float((found(outputs, targets)[1].argmax(-1) == targets[..., 4]).float().mean())


def move(targets: torch.Tensor, moves: object) -> torch.Tensor:
    corners = moves.points(targets[..., :4].unflatten(-1, (2, 2)))  # type: ignore[attr-defined]
    return torch.cat([corners.amin(-2), corners.amax(-2), targets[..., 4:]], dim=-1)


def scenes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two squares an image, one in each half, whose colours are their classes."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 40, (count, *SIZE)).astype(np.uint8)
    targets = np.zeros((count, 2, 5), dtype=np.float32)
    for image, rows in zip(images, targets, strict=True):
        for half, row in enumerate(rows):
            x, y, label = rng.integers(6, 20), half * 16 + rng.integers(3, 8), rng.integers(CLASSES)
            image[label, y : y + 6, x : x + 6] = 255
            row[:] = x / 32, y / 32, (x + 6) / 32, (y + 6) / 32, label
    return images, targets


def task() -> Task:
    return make_task(loss, share_right, name="detection", metric_name="found", move=move)


def test_detection_through_a_loss_of_ones_own(tmp_path: Path) -> None:
    data = load_data(
        {"train": scenes(256, 0), "test": scenes(64, 1), "classes": ["red", "green", "blue"]}, SIZE
    )
    assert data.num_classes == CLASSES
    torch.manual_seed(0)
    model = Detector()
    space = WidthSpace.from_model(model, SIZE, levels=4)
    config = TrainConfig(
        batch_size=32, epochs=6, learning_rate=0.1, augment="crop-flip", distillation=False, workers=0
    )
    result = train_supernet(Supernet(model, space), data, config, tmp_path / "train", task=task())
    assert result.metric_name == "found" and not any("stay as they are" in note for note in result.notes)
    again = retrain(
        model, space, space.uniform(0.5), data, config.replace(epochs=12), tmp_path / "half", task=task(),
        model_ref=ModelRef("object", num_classes=CLASSES, input_size=SIZE),
    )  # fmt: skip
    assert again.test_metric is not None and again.test_metric > 0.8  # a third by chance
