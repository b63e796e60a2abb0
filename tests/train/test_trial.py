"""What is settled or refused before training: memory order, batches, structures, losses, metrics."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from bcnet_deploy.data import DataSplits
from bcnet_deploy.data.splits import MemoryImages
from bcnet_deploy.errors import BCNetError, ConfigError, DataError, TaskError, TrainingError
from bcnet_deploy.models.ref import ModelRef
from bcnet_deploy.nn import Supernet
from bcnet_deploy.space import WidthSpace
from bcnet_deploy.tasks import load_task, make_task
from bcnet_deploy.train import TrainConfig, Trainer, retrain, train_supernet
from bcnet_deploy.train.distributed import Ranks
from bcnet_deploy.train.evaluate import calibrated_teacher
from bcnet_deploy.train.supernet import make_evaluator, make_loader
from bcnet_deploy.train.trial import try_step
from tests.train.helpers import CLASSES, SIZE, images, settings, splits, tiny

CPU = torch.device("cpu")


class Viewing(nn.Module):
    """The commonest line of old code: ``x.view(x.size(0), -1)`` behind maps larger than 1x1."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(8 * 9, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        return self.head(x.view(x.size(0), -1))


class Giving(nn.Module):
    """The tiny network's logits, in another form."""

    def __init__(self, form: Callable[[torch.Tensor, nn.Module], Any]) -> None:
        super().__init__()
        self.body, self.form = tiny(), form

    def forward(self, x: torch.Tensor) -> Any:
        return self.form(self.body(x), self)


def tried(
    network: nn.Module, data: DataSplits | None = None, *, task: Any = None, **changes: Any
) -> tuple[TrainConfig, tuple[str, ...]]:
    config = settings(**changes)
    return try_step(network, data or splits(), config, task or load_task(config.task), CPU)


def few(count: int, held_out: int = 64) -> DataSplits:
    return replace(splits(), train=images(count, 1), val=images(held_out, 2))


def test_a_model_that_views_trains_evaluates_teaches_and_retrains(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, config = Viewing(), settings(epochs=2, distillation=True)
    space = WidthSpace.from_model(model, SIZE, levels=4)
    supernet = Supernet(model, space)
    result = train_supernet(supernet, splits(), config, tmp_path / "s", device=CPU)
    assert len(result.notes) == 1 and "channels_last is off" in result.notes[0]
    used = json.loads((tmp_path / "s" / "supernet.json").read_text())["config"]
    assert used["channels_last"] is False
    evaluator = make_evaluator(supernet, splits(), TrainConfig.from_dict(used), device=CPU)
    assert np.isfinite(evaluator(space.narrowest)).all()
    teacher = calibrated_teacher(supernet, splits(), 32, CPU)
    retrained = retrain(
        model, space, space.narrowest, splits(), config, tmp_path / "r", device=CPU, teacher=teacher,
        model_ref=ModelRef("x:y", CLASSES, SIZE, 4),
    )  # fmt: skip
    assert retrained.notes == result.notes and retrained.val_metric > 25


def test_a_model_that_runs_in_channels_last_keeps_it_and_false_is_obeyed() -> None:
    assert tried(tiny()) == (settings(), ())
    for network in (tiny(), Viewing()):
        config, notes = tried(network, channels_last=False)
        assert not config.channels_last and notes == ()


def test_nothing_is_disturbed() -> None:
    torch.manual_seed(0)
    space = WidthSpace.from_model(tiny(dropout=0.5), SIZE, levels=4)
    supernet = Supernet(tiny(dropout=0.5), space)
    supernet.set_active(space.uniform(0.5), "right")
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    state = torch.get_rng_state()
    tried(supernet)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())
    assert supernet.active[0].tolist() == space.uniform(0.5).tolist() and supernet.active[1] == "right"
    assert all(p.grad is None for p in supernet.parameters()) and supernet.training


def test_fewer_images_than_a_batch_shrink_it_in_train_and_retrain(tmp_path: Path) -> None:
    model = tiny()
    space = WidthSpace.from_model(model, SIZE, levels=4)
    data, config = few(21), settings(epochs=2, batch_size=128)
    result = train_supernet(Supernet(tiny(), space), data, config, tmp_path / "s", device=CPU)
    assert result.steps == 2 and result.notes == (
        "21 training images are fewer than a batch of 128: the batch is 21",
    )
    again = train_supernet(Supernet(tiny(), space), data, config, tmp_path / "s", device=CPU)
    assert again.steps == 2
    final = retrain(
        model, space, space.full, data, config, tmp_path / "r", device=CPU,
        model_ref=ModelRef("x:y", CLASSES, SIZE, 4),
    )  # fmt: skip
    assert final.steps == 2 and final.notes == result.notes
    config, _ = try_step(
        tiny(), few(21), settings(), make_task(F.cross_entropy, lambda y, t: 0.0), CPU, world=2
    )
    assert config.batch_size == 20
    with pytest.raises(DataError, match="1 training images for 2 process"):
        try_step(tiny(), few(1), settings(), load_task("classification"), CPU, world=2)


def test_weights_that_are_not_of_32_bits_are_refused() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        with pytest.raises(TrainingError, match=f"is {dtype}; training takes 32-bit weights"):
            tried(tiny().to(dtype))


def test_outputs_in_a_mapping_train_and_ambiguous_ones_are_refused(tmp_path: Path) -> None:
    model = Giving(lambda y, _: {"logits": y})
    space = WidthSpace.from_model(model, SIZE, levels=4)
    result = train_supernet(Supernet(model, space), splits(), settings(epochs=12), tmp_path, device=CPU)
    assert result.val_metric["full"] > 50 and result.metric_name == "top-1"
    with pytest.raises(TaskError, match="returns tuple of 2 tensors; classification needs one tensor"):
        tried(Giving(lambda y, _: (y, y)))


class TwoHeads(nn.Module):
    """The tiny network, and a second head beside its own."""

    def __init__(self, name: str, outputs: int = CLASSES) -> None:
        super().__init__()
        self.body, self.side, self.name = tiny(), nn.Linear(SIZE[1] * SIZE[2], outputs), name

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.body(x), self.name: self.side(x[:, 0].flatten(1))}


def test_a_head_that_the_loss_ignores_is_refused_by_name() -> None:
    with pytest.raises(TaskError, match=r"ignores the output \['depth'\], so that side.weight and 1 more"):
        tried(TwoHeads("depth"))
    both = make_task(
        lambda o, t: F.cross_entropy(o["logits"], t) + o["depth"].square().mean(), lambda o, t: 1.0
    )
    assert tried(TwoHeads("depth"), task=both)[1] == ()
    frozen = TwoHeads("depth")
    frozen.side.requires_grad_(False)
    assert tried(frozen)[1] == ()


def test_an_output_that_shares_its_weights_may_be_ignored_and_is_noted() -> None:
    _, notes = tried(Giving(lambda y, _: {"logits": y, "depth": y * 2}))
    assert notes == (
        "the loss of task 'classification' ignores the output ['depth']: nothing is trained by that alone",
    )


def test_auxiliary_classifiers_are_trained() -> None:
    assert tried(TwoHeads("aux_logits"))[1] == ()
    with pytest.raises(TaskError, match=r"ignores the output \['aux_logits'\]"):
        tried(TwoHeads("aux_logits", outputs=CLASSES + 1))
    logits, aux, targets = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    loss = load_task("classification").loss({"logits": logits, "aux_logits1": aux}, targets)
    torch.testing.assert_close(loss, F.cross_entropy(logits, targets) + 0.3 * F.cross_entropy(aux, targets))


class Branching(nn.Module):
    """A mapping for wide slices, a tensor for narrow ones."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.body(x)
        y = self.head(x.mean((2, 3)))
        return {"logits": y} if x.abs().sum(1).numel() and self.body.weight.shape[0] > 4 else y


def test_a_structure_that_changes_is_refused() -> None:
    with pytest.raises(TaskError, match="outputs change with the batch: once .*; return the same"):
        tried(Giving(lambda y, _: {"logits": y} if len(y) == 8 else y))
    try:
        space = WidthSpace.from_model(Branching(), SIZE, levels=4)
    except BCNetError:
        return  # refused even earlier
    with pytest.raises(BCNetError):
        tried(Supernet(Branching(), space))


@pytest.mark.parametrize(
    ("loss", "metric", "words"),
    [
        (F.cross_entropy, lambda y, t: float("nan"), "the metric 'metric' of task 'custom' is nan"),
        (F.cross_entropy, lambda y, t: y.argmax(1), r"is a tensor of the shape \(8,\); needed: one number"),
        (F.cross_entropy, lambda y, t: y["x"], "the metric of task 'custom' fails on the model's outputs"),
        (lambda y, t: (y - 1).square(), lambda y, t: 1.0, r"is a tensor \(8, 4\); needed: a scalar"),
        (lambda y, t: torch.tensor(3.0), lambda y, t: 1.0, "does not depend on the weights"),
        (lambda y, t: 3.0, lambda y, t: 1.0, "is float; needed: a scalar tensor"),
        (lambda y, t: y.sum() / 0, lambda y, t: 1.0, "before any training"),
        (lambda y, t: F.cross_entropy(y["a"], t), lambda y, t: 1.0, "the loss of task 'custom' fails"),
    ],
)
def test_losses_and_metrics_that_do_not_serve_are_named(loss: Any, metric: Any, words: str) -> None:
    with pytest.raises(TaskError, match=words):
        tried(tiny(), task=make_task(loss, metric))


def valued(targets: torch.Tensor) -> DataSplits:
    return replace(splits(), train=MemoryImages(images(len(targets), 1).images, targets),
                   val=MemoryImages(images(len(targets), 2).images, targets))  # fmt: skip


def summed(y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return y.sum() + t.float().sum()


@pytest.mark.parametrize("shape", [(2,), (3, 5)])
def test_targets_that_stay_where_images_move_are_noted(shape: tuple[int, ...]) -> None:
    task, data = make_task(summed, lambda y, t: 0.0, name="boxes"), valued(torch.rand(64, *shape))
    words = "the targets of task 'boxes' stay as they are"
    assert words in " ".join(tried(tiny(), data, task=task, augment="crop-flip")[1])
    assert words not in " ".join(tried(tiny(), data, task=task, augment="none")[1])
    task.move = lambda t, moves: torch.cat([moves.points(t[..., :2]), t[..., 2:]], -1)
    assert words not in " ".join(tried(tiny(), data, task=task, augment="crop-flip")[1])
    assert words not in " ".join(tried(tiny(), augment="crop-flip")[1])


def test_targets_at_each_pixel_and_moves_that_do_not_serve_are_refused() -> None:
    task, data = make_task(summed, lambda y, t: 0.0, name="depth"), valued(torch.rand(64, *SIZE[1:]))
    with pytest.raises(TaskError, match="'depth' have a value at each pixel .* moves.maps"):
        tried(tiny(), data, task=task, augment="crop")
    tried(tiny(), data, task=task, augment="none")
    for move, words in (
        (lambda t, moves: moves.maps(t), ""),
        (lambda t, moves: t[:, 0], r"makes torch.float32 of the shape \(8, 8\) of targets"),
        (lambda t, moves: None, "makes NoneType of targets"),
        (lambda t, moves: moves.nothing, "the move of task 'depth' fails .*AttributeError"),
    ):
        task.move = move
        if not words:
            tried(tiny(), data, task=task, augment="crop-flip")
            continue
        with pytest.raises(TaskError, match=words):
            tried(tiny(), data, task=task, augment="crop-flip")


def test_a_model_that_fails_on_the_data_is_one_line() -> None:
    def fail(y: torch.Tensor, _: nn.Module) -> torch.Tensor:
        raise ZeroDivisionError("first\nsecond")

    with pytest.raises(TrainingError, match=r"fails on 8 training images of the shape \(1, 8, 8\): ZeroDiv"):
        tried(Giving(fail))


def one_channel_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(8, 4)
    )


def test_single_images_are_refused_only_where_the_model_does_not_take_them(tmp_path: Path) -> None:
    for changes in ({"batch_size": 1}, {"batch_size": 4, "accumulation": 4}):
        assert tried(nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten()), **changes)[1] == ()
        with pytest.raises(ConfigError, match="on one image at a time, which this model does not take"):
            tried(one_channel_norm(), **changes)


FORMS: dict[str, Callable[[torch.Tensor, nn.Module], Any]] = {
    "tensor": lambda y, m: y,
    "logits": lambda y, m: {"logits": y},
    "out": lambda y, m: {"out": y, "aux": y},
    "two": lambda y, m: (y, y),
    "one": lambda y, m: [y],
    "none": lambda y, m: None,
    "number": lambda y, m: 3,
    "flat": lambda y, m: y.view(-1),
    "wide": lambda y, m: y[:, :, None, None],
    "few": lambda y, m: y[:, :2],
    "halves": lambda y, m: y.half(),
    "whole": lambda y, m: y.long(),
    "batch": lambda y, m: y if len(y) % 2 else {"logits": y},
    "dropped": lambda y, m: y[1:],
    "detached": lambda y, m: y.detach(),
    "failing": lambda y, m: y.view(3, 5, 7),
}


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    form=st.sampled_from(sorted(FORMS)), task=st.sampled_from(["classification", "segmentation"]),
    batch=st.integers(1, 40), parts=st.integers(1, 5), count=st.integers(4, 20), view=st.booleans(),
)  # fmt: skip
def test_training_works_after_a_trial_that_passes_and_every_refusal_is_typed(
    form: str,
    task: str,
    batch: int,
    parts: int,
    count: int,
    view: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    network = Giving(FORMS[form])
    if view:
        network.body = Viewing()
    data = few(count, 9)
    config = settings(task=task, batch_size=batch, accumulation=parts, epochs=1)
    folder = tmp_path_factory.mktemp("fuzz")
    try:
        checked, _ = try_step(
            network, data, config, __import__("bcnet_deploy.tasks").tasks.load_task(task), CPU
        )
    except BCNetError as error:
        assert "\n" not in str(error)
        return
    assert form in ("tensor", "logits", "out", "one", "halves") and task == "classification"

    Trainer(network, make_loader(data, checked, CPU, 0, Ranks()), checked, folder).run()


class Mixed(nn.Module):
    """A bank of kernels, mixed into one: a parameter of five dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.bank = nn.Parameter(0.1 * torch.randn(2, 8, 8, 3, 3))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.conv2d(F.relu(self.first(x)), self.bank.mean(dim=0), padding=1)
        return self.head(x.mean(dim=(2, 3)))


def test_a_network_with_a_bank_of_kernels_is_retrained(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Mixed()
    space = WidthSpace.from_model(model, SIZE, levels=4)
    result = retrain(
        model, space, space.narrowest, splits(), settings(epochs=1), tmp_path, model_ref={}, device=CPU
    )
    assert result.steps == 4


def test_a_teacher_that_does_not_fit_is_refused_before_training(tmp_path: Path) -> None:
    class Teacher(nn.Module):
        def __init__(self, classes: int) -> None:
            super().__init__()
            self.features, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4 * 64, classes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.features(x).view(len(x), -1))

    def taught(teacher: nn.Module) -> tuple[int, tuple[str, ...]]:
        model = tiny()
        space = WidthSpace.from_model(model, SIZE, levels=4)
        result = retrain(
            model, space, space.narrowest, splits(), settings(epochs=1), tmp_path, model_ref={}, device=CPU,
            teacher=teacher,
        )  # fmt: skip
        return result.steps, result.notes

    with pytest.raises(TaskError, match=r"teacher's outputs are \[\(8, 7\)\]"):
        taught(Teacher(7))
    with pytest.raises(TrainingError, match="teacher fails on 8 training images"):
        taught(nn.Linear(3, 4))
    steps, notes = taught(Teacher(CLASSES))
    assert steps == 4 and any("teacher does not run in channels_last" in note for note in notes)
