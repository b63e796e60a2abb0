"""Scores of width vectors against networks extracted, recalibrated and run by themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import bcnet_deploy as bd
from bcnet_deploy.data import PlainBatches
from bcnet_deploy.errors import EvaluationError, WidthError
from bcnet_deploy.nn import Supernet
from bcnet_deploy.space import WidthSpace
from bcnet_deploy.tasks import Task
from bcnet_deploy.train import SupernetEvaluator, evaluate_network
from tests.train.helpers import make_supernet, make_trainer, settings, splits


def batches() -> tuple[PlainBatches, PlainBatches]:
    data, cpu = splits(), torch.device("cpu")
    return PlainBatches(data.train, data, 32, cpu, limit=96), PlainBatches(data.val, data, 24, cpu)


def trained(tmp_path, **options):  # type: ignore[no-untyped-def]
    supernet = make_supernet(**options)
    make_trainer(supernet, settings(epochs=4), tmp_path).run()
    return supernet


def by_hand(supernet, widths, side, train, val):  # type: ignore[no-untyped-def]
    """Extract, average the statistics of each batch norm's inputs with momentum 1/n, count right answers."""
    net = supernet.extract(widths, side)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    net.train()
    with torch.no_grad():
        for images, _ in train:
            net(images)
        net.eval()
        right = sum(int((net(images).argmax(1) == labels).sum()) for images, labels in val)
    return 100 * right / 64


@pytest.mark.parametrize("min_level", [0, 1])
def test_scores_equal_those_of_extracted_networks(min_level: int, tmp_path) -> None:  # type: ignore[no-untyped-def]
    supernet = trained(tmp_path, min_level=min_level)
    train, val = batches()
    evaluator = SupernetEvaluator(supernet, train, val)
    widths = supernet.space.random(4, np.random.default_rng(0))
    expected = [[by_hand(supernet, row, side, train, val) for side in ("left", "right")] for row in widths]
    assert evaluator.sides(widths).tolist() == expected
    assert evaluator(widths).tolist() == np.mean(expected, axis=1).tolist()
    assert (evaluator.losses(widths) > 0).all()


def test_each_vector_runs_once_and_the_supernet_is_left_alone(tmp_path) -> None:  # type: ignore[no-untyped-def]
    supernet = trained(tmp_path)
    supernet.set_active([4, 6], "right")
    supernet.train()
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    said: list[tuple[int, int]] = []
    train, val = batches()
    evaluator = SupernetEvaluator(supernet, train, val, progress=lambda done, of: said.append((done, of)))
    evaluator([[2, 3], [8, 12], [2, 3]])
    evaluator([2, 3])
    assert said == [(1, 2), (2, 2)] and evaluator.evaluations == 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())
    assert supernet.training and supernet.active[0].tolist() == [4, 6] and supernet.active[1] == "right"


def test_agreement_counts_the_pairs_that_both_sides_order_alike(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Kendall's tau-b by its definition, of what was run on all images alone."""
    supernet = trained(tmp_path)
    train, val = batches()
    evaluator = SupernetEvaluator(supernet, train, val)
    assert evaluator.agreement()[1] == 0 and np.isnan(evaluator.agreement()[0])
    widths = np.unique(supernet.space.random(9, np.random.default_rng(1)), axis=0)
    sides = evaluator.sides(widths[1:])
    evaluator.on(widths[0], 24)
    left, right = (np.sign(side[:, None] - side[None])[np.triu_indices(len(side), 1)] for side in sides.T)
    expected = (left * right).sum() / np.sqrt((left**2).sum() * (right**2).sum())
    assert evaluator.agreement() == (pytest.approx(expected), len(widths) - 1)
    alone = SupernetEvaluator(supernet, train, val, sides=("left",))
    alone(widths)
    assert np.isnan(alone.agreement()[0])


class Plain(nn.Module):
    """A chain whose parts work in place, and whose head reads a width."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        )
        self.block = nn.Sequential(Residual(8, 12), nn.ReLU(inplace=True), Residual(8, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block(self.stem(x))
        return self.head(x.mean(dim=(2, 3)))


class Residual(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand, self.norm = nn.Conv2d(width, hidden, 1), nn.BatchNorm2d(hidden)
        self.project, self.last = nn.Conv2d(hidden, width, 1), nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.last(self.project(torch.relu(self.norm(self.expand(x)))))


class LooksBack(Plain):
    """What the stem gave is read again at the end: nothing behind it can be skipped."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.stem(x)
        return self.head((self.block(first) + first).mean(dim=(2, 3)))


class Running(nn.Module):
    """Keeps a running average of its own, as no batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.level.mul_(0.9).add_(0.1 * x.detach().mean())
        return x - self.level


class WithRunning(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.running = Running()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.running(self.block(self.stem(x))).mean(dim=(2, 3)))


class Twice(Plain):
    """A batch norm runs twice on a batch: its statistics are of both."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block[0].last(self.block(self.stem(x)))
        return self.head(x.mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("kind", "stages"),
    [(Plain, 3), (LooksBack, 1), (WithRunning, 0), (Twice, 0)],
)
def test_shared_beginnings_change_no_score(kind: type[nn.Module], stages: int) -> None:
    """All vectors in one call against each in an evaluator of its own, and against extracted networks."""
    torch.manual_seed(1)
    model = kind()
    space = WidthSpace.from_model(model, (1, 8, 8), levels=4)
    supernet = Supernet(model, space)
    train = [torch.randn(16, 1, 8, 8) for _ in range(3)]
    val = [(torch.randn(32, 1, 8, 8), torch.randint(3, (32,))) for _ in range(2)]
    widths = space.random(24, np.random.default_rng(0))
    together = SupernetEvaluator(supernet, train, val)
    found = together.sides(widths)
    assert together.prefixes == ((0,), (0, 1), (0, 1, 2))[:stages]
    alone = [SupernetEvaluator(supernet, train, val).sides(row)[0].tolist() for row in widths]
    assert found.tolist() == alone
    if kind is not WithRunning:
        pairs = [(images, torch.zeros(16)) for images in train]
        assert found[:6].tolist() == [
            [by_hand(supernet, row, side, pairs, val) for side in ("left", "right")] for row in widths[:6]
        ]
    losses = [SupernetEvaluator(supernet, train, val).losses(row)[0] for row in widths[:6]]
    np.testing.assert_allclose(together.losses(widths[:6]), losses, rtol=1e-6)


def test_part_of_the_images_first_and_the_rest_later() -> None:
    supernet, (train, val) = make_supernet(), batches()
    widths = supernet.space.random(5, np.random.default_rng(0))
    widths = np.unique(widths, axis=0)
    full = SupernetEvaluator(supernet, train, val)
    expected = full(widths)
    assert full.image_passes == len(widths) * 2 * (96 + 64)
    raced = SupernetEvaluator(supernet, train, val)
    first = raced.on(widths, 20)  # the first batch holds 24
    alone = SupernetEvaluator(supernet, train, [val[0]])
    assert first.tolist() == alone(widths).tolist()
    assert raced.image_passes == len(widths) * 2 * (96 + 24)
    assert raced(widths).tolist() == expected.tolist() and raced.on(widths, 20).tolist() == first.tolist()
    assert raced.image_passes == full.image_passes, "no image is run twice, and statistics are kept"
    assert not raced._begun
    share = (first / 100 * 24 + 1) / 26
    left, right = (raced.on(widths, 20), raced.sides(widths))
    assert left.shape == (len(widths),) and right.shape == (len(widths), 2)
    noise = raced.noise(widths, 20)
    # Both sides near the mean: the square root of p (1 - p) / 48 images.
    np.testing.assert_allclose(noise, 100 * np.sqrt(share * (1 - share) / 48), rtol=0.2)
    assert (raced.noise(widths) < noise).all()


def test_one_image_is_no_certainty() -> None:
    supernet, (train, val) = make_supernet(), batches()
    one = [(val[0][0][:1], val[0][1][:1])]
    evaluator = SupernetEvaluator(supernet, train, one)
    assert evaluator([[2, 3]])[0] in (0.0, 50.0, 100.0)
    assert evaluator.noise([[2, 3]])[0] > 10


def test_other_tasks_know_no_noise() -> None:
    class Own(Task):
        name, metric_name, key, unit = "own", "own", "own", ""

        def loss(self, outputs, targets, label_smoothing=0.0):  # type: ignore[no-untyped-def]
            return outputs.mean()

        def loss_sum(self, outputs, targets):  # type: ignore[no-untyped-def]
            return outputs.mean(dim=1).sum()

        def measure(self, outputs, targets):  # type: ignore[no-untyped-def]
            return outputs.mean(dim=1).sum().view(1)

        def score(self, sums, count):  # type: ignore[no-untyped-def]
            return float(sums[0]) / count

    train, val = batches()
    evaluator = SupernetEvaluator(make_supernet(), train, val, task=Own())
    assert not hasattr(evaluator, "noise") and evaluator([[2, 3]]).shape == (1,)


def test_a_search_races_on_a_supernet_and_goes_on_after_a_kill(tmp_path) -> None:  # type: ignore[no-untyped-def]
    supernet = trained(tmp_path)
    data, cpu = splits(), torch.device("cpu")
    train = PlainBatches(data.train, data, 32, cpu, limit=32)
    images, labels = (torch.cat([part] * 12) for part in PlainBatches(data.val, data, 64, cpu)[0])
    val = [(images[i : i + 32], labels[i : i + 32]) for i in range(0, len(images), 32)]

    def search(evaluator: SupernetEvaluator) -> dict[str, object]:
        return bd.search(
            supernet.space,
            evaluator,
            {"macs": "0.8x"},
            12,
            population_size=6,
            checkpoint=tmp_path / "j.jsonl",
        ).to_dict()

    # As the scores of a network's own slices are: those of a supernet are taken of a design, on all images.
    evaluator = SupernetEvaluator(supernet, train, val, shares_weights=False)
    result = search(evaluator)
    assert (
        12 * 256 <= result["images"] < 12 * 768 and result["posterior"]["low"] < result["posterior"]["high"]
    )
    lines = (tmp_path / "j.jsonl").read_text().splitlines()
    (tmp_path / "j.jsonl").write_text("\n".join(lines[:8]) + "\n")
    assert search(SupernetEvaluator(supernet, train, val, shares_weights=False)) == result


def test_bad_input_is_refused() -> None:
    train, val = batches()
    with pytest.raises(EvaluationError, match="given: 0 and 3"):
        SupernetEvaluator(make_supernet(), [], val)
    with pytest.raises(EvaluationError, match="at least one image"):
        evaluate_network(nn.Identity(), [])
    with pytest.raises(WidthError):
        SupernetEvaluator(make_supernet(), train, val)([[0, 3]])
