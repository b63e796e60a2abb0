"""From a trained network: scores of its slices without training, fine-tuning, and a supernet it teaches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bcnet_deploy.data import PlainBatches
from bcnet_deploy.errors import CheckpointError, ConfigError, DataError, TaskError, WidthError
from bcnet_deploy.importance import per_variable, permute_by_importance
from bcnet_deploy.models.ref import ModelRef
from bcnet_deploy.nn import Supernet, load_subnet, recalibrate
from bcnet_deploy.space import WidthSpace
from bcnet_deploy.tasks import Classification, make_task
from bcnet_deploy.train import evaluate_network, open_pruned_evaluator, retrain, train_supernet
from bcnet_deploy.train.paths import PathRunner
from bcnet_deploy.train.pruned import permuted_on
from bcnet_deploy.train.retrain import keep_trained
from bcnet_deploy.train.samplers import Slice
from tests.train.helpers import SIZE, settings, splits, tiny, trained_plain

REF = ModelRef("tests.train.helpers:tiny", num_classes=4, input_size=SIZE, levels=4)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    return trained_plain(12, tmp_path_factory.mktemp("trained"))


def space_of(model: nn.Module) -> WidthSpace:
    return WidthSpace.from_model(model, SIZE, levels=4)


def test_scores_are_those_of_the_pruned_network(trained: nn.Module) -> None:
    """Against a network cut out, recalibrated and evaluated by itself."""
    space, data = space_of(trained), splits()
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    evaluator = open_pruned_evaluator(trained, space, data, device=CPU, batch_size=32)
    assert evaluator.side_names == ("left",)
    rows = np.array([space.full, [4, 9], [2, 3]])
    scores = evaluator(rows)
    for row, score in zip(rows, scores, strict=True):
        pruned = space.extract(permute_by_importance(trained, space, "l2"), row)
        recalibrate(pruned, [x for x, _ in PlainBatches(data.train, data, 32, CPU)])
        assert evaluate_network(pruned, PlainBatches(data.val, data, 64, CPU))[0] == pytest.approx(score)
    assert scores[0] > 90 and len(set(scores.tolist())) > 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())


def test_what_does_not_fit_is_refused(trained: nn.Module) -> None:
    space = space_of(trained)
    with pytest.raises(ConfigError, match="unknown importance 'l3'"):
        open_pruned_evaluator(trained, space, splits(), importance="l3")
    with pytest.raises(CheckpointError, match="not of this space"):
        open_pruned_evaluator(tiny(norm=False), space, splits())
    with pytest.raises(DataError, match="the width space is for"):
        open_pruned_evaluator(trained, WidthSpace.from_model(trained, (1, 12, 12)), splits())


@pytest.mark.parametrize("importance", ["l2", "taylor"])
def test_targets_that_the_task_cannot_use_are_refused(
    trained: nn.Module, importance: str, tmp_path: Path
) -> None:
    """Nothing is trained here, so nothing else would have looked at them before."""
    space, data = space_of(trained), splits()
    values = replace(data, train=replace(data.train, labels=torch.rand(len(data.train), 4)),
                     val=replace(data.val, labels=torch.rand(len(data.val), 4)))  # fmt: skip
    with pytest.raises(TaskError, match="needs one integer an image; for such values set task"):
        open_pruned_evaluator(trained, space, values, importance=importance, device=CPU)
    with pytest.raises(TaskError, match="needs one integer an image"):
        keep_trained(trained, space, values, settings(), tmp_path, model_ref=REF, device=CPU)
    distance = make_task(F.mse_loss, lambda y, t: -F.mse_loss(y, t))
    scores = open_pruned_evaluator(
        trained, space, values, importance=importance, task=distance, device=CPU
    )(space.full[None])  # fmt: skip
    assert scores[0] < 0
    odd = make_task(F.mse_loss, lambda y, t: y["none"])
    with pytest.raises(TaskError, match="the metric of task 'custom' fails on the model's outputs"):
        open_pruned_evaluator(trained, space, values, importance=importance, task=odd, device=CPU)


class Energy(Classification):
    """A task whose loss has nothing to do with labels."""

    def loss_sum(self, outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        return outputs.square().sum()


def test_taylor_is_of_the_loss_of_the_task(trained: nn.Module) -> None:
    """Against the gradient of that loss, taken here."""
    space, data = space_of(trained), splits()
    images = torch.cat([x for x, _ in PlainBatches(data.train, data, 64, CPU)])

    def by_hand(model: nn.Module, space: WidthSpace, batches: Any) -> Any:
        weights = {name: p for name, p in model.named_parameters() if not name.endswith("bias")}
        found = torch.autograd.grad(model(images).square().sum() / len(images), list(weights.values()))
        products = {name: (weights[name] * g).abs() for name, g in zip(weights, found, strict=True)}
        return per_variable(space, products, [variable.units for variable in space.variables])

    own, other = (
        permuted_on(trained, space, data, "taylor", task=task, device=CPU) for task in (Energy(), None)
    )
    expected = permute_by_importance(trained, space, by_hand)
    for ours, theirs in zip(own.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not all(torch.equal(a, b) for a, b in zip(own.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("importance", ["l2", "l2-normalised", "bn-scale", "taylor"])
def test_fine_tuning_starts_from_the_kept_channels(
    trained: nn.Module, tmp_path: Path, importance: str
) -> None:
    space = space_of(trained)
    initial = permuted_on(trained, space, splits(), importance, device=CPU)
    still = settings(epochs=1, learning_rate=1e-9, weight_decay=0.0)
    result = retrain(
        tiny(), space, [4, 6], splits(), still, tmp_path, model_ref=REF, initial=initial, teacher=trained,
        device=CPU,
    )  # fmt: skip
    assert result.inherited
    net, _ = load_subnet(tmp_path, tiny())
    for ours, theirs in zip(net.parameters(), space.extract(initial, [4, 6]).parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_fine_tuning_beats_random_weights_in_one_epoch(trained: nn.Module, tmp_path: Path) -> None:
    space, config = space_of(trained), settings(epochs=1, learning_rate=0.01)
    initial = permuted_on(trained, space, splits(), device=CPU)
    top1 = [
        retrain(
            tiny(), space, [4, 6], splits(), config, tmp_path / str(index), model_ref=REF, initial=start,
            teacher=trained, device=CPU,
        ).test_top1
        for index, start in enumerate((initial, None))
    ]  # fmt: skip
    assert top1[0] is not None and top1[1] is not None and top1[0] > top1[1] + 10


def test_a_result_of_other_weights_is_not_taken(trained: nn.Module, tmp_path: Path) -> None:
    space, config = space_of(trained), settings(epochs=1)
    permuted = permute_by_importance(trained, space)
    results = [
        retrain(tiny(), space, [4, 6], splits(), config, tmp_path, model_ref=REF, initial=start, device=CPU)
        for start in (permuted, permuted)
    ]
    assert results[0] == results[1]
    with pytest.raises(CheckpointError):
        retrain(tiny(), space, [4, 6], splits(), config, tmp_path, model_ref=REF, initial=trained, device=CPU)


def test_going_on_from_a_network_that_is_narrower(trained: nn.Module, tmp_path: Path) -> None:
    space, config = space_of(trained), settings(epochs=1, learning_rate=1e-9, weight_decay=0.0)
    half = space.extract(permute_by_importance(trained, space), [6, 9])
    retrain(tiny(), space, [4, 6], splits(), config, tmp_path, model_ref=REF, initial=half, device=CPU)
    net, _ = load_subnet(tmp_path, tiny())
    torch.testing.assert_close(net[0].weight, half[0].weight[:4], rtol=0, atol=1e-6)
    with pytest.raises(WidthError, match="8 channels; the network to start from has 6"):
        retrain(tiny(), space, [8, 6], splits(), config, tmp_path, model_ref=REF, initial=half, fresh=True)


@pytest.mark.parametrize("rule", ["sandwich", "bilateral"])
def test_a_short_supernet_makes_narrow_slices_better(trained: nn.Module, tmp_path: Path, rule: str) -> None:
    space, data = space_of(trained), splits()
    start = permuted_on(trained, space, data, both_ends=rule == "bilateral", device=CPU)
    supernet, narrow = Supernet(start, space), [[2, 3]]
    config = settings(epochs=4, learning_rate=0.02, rule=rule, distillation=True)
    before = open_pruned_evaluator(start, space, data, importance=None, device=CPU).losses(narrow)
    result = train_supernet(supernet, data, config, tmp_path, teacher=trained, device=CPU)
    after = open_pruned_evaluator(supernet.model, space, data, importance=None, device=CPU).losses(narrow)
    assert result.val_top1["full"] > 80 and after[0, 0] < before[0, 0] - 0.1
    with pytest.raises(CheckpointError, match="teacher"):
        train_supernet(Supernet(start, space), data, config, tmp_path, teacher=tiny(), device=CPU)


def test_every_path_of_a_step_follows_the_teacher() -> None:
    """Against the sum of the losses written out: half labels and half teacher, a pupil the teacher alone."""
    torch.manual_seed(0)
    model, teacher = tiny(norm=False).double(), tiny(norm=False).double().eval()
    space = space_of(model)
    images, labels = torch.randn(6, *SIZE, dtype=torch.float64), torch.arange(6) % 4
    step = (
        Slice(np.array([8, 12]), "left", 0.5, "teacher"), Slice(np.array([4, 6]), "left", 2.0, "pupil"),
        Slice(np.array([2, 9]), "left", 1.0, "sampled"),
    )  # fmt: skip
    expected = torch.zeros((), dtype=torch.float64)
    temperature = 2.0
    target = (teacher(images).detach() / temperature).softmax(1)
    for path in step:
        logits = Supernet(model, space).extract(path.widths)(images)
        soft = -(target * (logits / temperature).log_softmax(1)).sum(1).mean() * temperature**2
        hard = nn.functional.cross_entropy(logits, labels)
        expected += path.weight * (soft if path.role == "pupil" else 0.5 * hard + 0.5 * soft)
    supernet = Supernet(model, space)
    scaler = _Seen()
    config = settings(temperature=temperature, accumulation=2)
    task = Classification()
    PathRunner(supernet, supernet, config, CPU, scaler, task, teacher)(step, images, labels)  # type: ignore[arg-type]
    assert float(scaler.total) == pytest.approx(float(expected.detach()), rel=1e-6)


class _Seen:
    """In place of a loss scaler: adds up what is differentiated."""

    total = 0.0

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        self.total += float(loss.detach())
        return loss
