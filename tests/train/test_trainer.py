"""The step against networks that are extracted and run by themselves; failures; files."""

from __future__ import annotations

import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from bcnet_deploy.errors import CheckpointError, ConfigError, TaskError, TrainingError
from bcnet_deploy.files import read_rows
from bcnet_deploy.tasks import soft_cross_entropy
from bcnet_deploy.train import Trainer, train_supernet
from bcnet_deploy.train.checkpoint import load_checkpoint, save_checkpoint
from bcnet_deploy.train.evaluate import evaluate_network
from bcnet_deploy.train.optim import WeightAverage, make_optimizer, rate_factor
from bcnet_deploy.train.supernet import make_evaluator
from tests.train.helpers import (
    make_loader,
    make_plain_trainer,
    make_supernet,
    make_trainer,
    settings,
    splits,
    tiny,
)


def scattered_gradients(supernet, paths, images, labels, smoothing=0.0):  # type: ignore[no-untyped-def]
    """Full-size gradients of a step from extracted networks: what each path adds lands in its slice."""
    total = {name: torch.zeros_like(p) for name, p in supernet.model.named_parameters()}
    taught = {}
    for index, path in enumerate(paths):
        net = supernet.extract(path.widths, path.side).train()
        logits = net(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        if path.role == "teacher":
            taught[index] = logits.detach()
        elif path.role == "pupil":
            target = F.softmax(taught[path.teacher_index], dim=1)
            loss = -(target * F.log_softmax(logits, dim=1)).sum(dim=1).mean()
        (path.weight * loss).backward()
        for name, parameter in net.named_parameters():
            full = total[name]
            region = tuple(
                slice(0, part) if path.side == "left" else slice(whole - part, whole)
                for part, whole in zip(parameter.shape, full.shape, strict=True)
            )
            full[region] += parameter.grad
    return total


@pytest.mark.parametrize("min_level", [0, 1])
@pytest.mark.parametrize("rule", ["bilateral", "unilateral", "sandwich", "distilled"])
def test_gradients_equal_those_of_extracted_networks(rule: str, min_level: int, tmp_path: Path) -> None:
    supernet = make_supernet(min_level=min_level)
    distilled = rule in ("sandwich", "distilled")
    config = settings(
        rule="bilateral" if rule == "distilled" else rule,
        distillation=distilled,
        label_smoothing=0.1,
        log_every=1,
    )
    trainer = make_trainer(supernet, config, tmp_path)
    assert trainer.sampler is not None
    step = trainer.sampler.next_step()
    images, labels = trainer.loader.next_batch()
    supernet.train()
    expected = scattered_gradients(supernet, step, images, labels, smoothing=0.1)
    supernet.zero_grad()
    trainer.run_paths(step, images, labels)
    for name, parameter in supernet.model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)


def test_parts_of_a_batch_give_the_whole_batchs_gradients(tmp_path: Path) -> None:
    """Without batch norm, whose statistics are of the part, the cut must not be visible."""
    gradients = []
    for accumulation in (1, 3):
        supernet = make_supernet(norm=False)
        config = settings(accumulation=accumulation, distillation=True)
        trainer = make_trainer(supernet, config, tmp_path / str(accumulation))
        assert trainer.sampler is not None
        trainer.run_paths(trainer.sampler.next_step(), *trainer.loader.next_batch())
        gradients.append([parameter.grad.clone() for parameter in supernet.parameters()])
    for one, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(one, parts, rtol=1e-4, atol=1e-6)


def test_records_hold_the_plain_loss_under_the_widths_that_were_run(tmp_path: Path) -> None:
    supernet = make_supernet()
    trainer = make_trainer(supernet, settings(epochs=1), tmp_path)
    seen = []
    before = trainer.run_paths

    def spied(step, images, labels):  # type: ignore[no-untyped-def]
        losses = [F.cross_entropy(supernet.extract(p.widths, p.side).train()(images), labels) for p in step]
        seen.append((step[0].widths.tolist(), float(torch.stack(losses).mean().detach())))
        return before(step, images, labels)

    trainer.run_paths = spied  # type: ignore[method-assign]
    trainer.run()
    rows = read_rows(tmp_path / "records.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and [row["widths"] for row in rows] == [
        w for w, _ in seen
    ]
    assert [row["loss"] for row in rows] == pytest.approx([loss for _, loss in seen], rel=1e-5)
    stored = supernet.max_channels
    for drawn, complement in zip(rows[::2], rows[1::2], strict=True):
        rest = stored - np.array(drawn["widths"])
        full = rest == 0
        assert (np.array(complement["widths"])[~full] == rest[~full]).all()


def test_teachers_leave_no_records(tmp_path: Path) -> None:
    """Else the full width of every step would be the prior's best hundred."""
    supernet = make_supernet()
    make_trainer(supernet, settings(distillation=True, complementary=False), tmp_path).run()
    rows = read_rows(tmp_path / "records.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert len({tuple(row["widths"]) for row in rows}) > 6


def test_the_teachers_loss_on_the_same_batch_is_the_records_reference(tmp_path: Path) -> None:
    supernet = make_supernet()
    trainer = make_trainer(supernet, settings(distillation=True), tmp_path)
    seen: list[float] = []
    plain = torch.nn.functional.cross_entropy

    def spy(logits: torch.Tensor, labels: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        loss = plain(logits, labels, **kwargs)
        seen.append(float(loss.detach()))
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.nn.functional.cross_entropy", spy)
        trainer.run()
    rows = read_rows(tmp_path / "records.jsonl")
    # Three paths a step: the teacher first.
    assert [row["reference"] for row in rows] == pytest.approx(seen[::3], rel=1e-5)
    assert [row["loss"] for row in rows] == pytest.approx(
        [(a + b) / 2 for a, b in zip(seen[1::3], seen[2::3], strict=True)], rel=1e-5
    )


def test_the_widest_of_an_undistilled_sandwich_leaves_no_record(tmp_path: Path) -> None:
    supernet = make_supernet()
    make_trainer(supernet, settings(rule="sandwich", random_paths=0), tmp_path).run()
    rows = read_rows(tmp_path / "records.jsonl")
    assert [row["widths"] for row in rows] == [supernet.space.narrowest.tolist()] * 12


def test_cost_weighs_image_passes_by_macs_and_ends_training(tmp_path: Path) -> None:
    supernet = make_supernet()
    trainer = make_trainer(supernet, settings(rule="sandwich", random_paths=0, cost=500.0), tmp_path)
    outcome = trainer.run()
    space = supernet.space
    share = 1 + int(space.macs(space.narrowest)[0]) / int(space.macs(space.full)[0])
    assert outcome.cost == pytest.approx(32 * share * outcome.steps)
    assert outcome.cost >= 500 > outcome.cost - 32 * share


@pytest.mark.parametrize("rule", ["bilateral", "sandwich"])
def test_training_learns(rule: str, tmp_path: Path) -> None:
    trainer = make_trainer(make_supernet(), settings(rule=rule, epochs=15, clip_norm=5.0), tmp_path)
    trainer.run()
    rows = read_rows(tmp_path / "curves.jsonl")
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"] and rows[-1]["rate"] < 0.01


def test_bf16_trains_on_the_cpu(tmp_path: Path) -> None:
    trainer = make_trainer(make_supernet(), settings(amp="bf16", epochs=6), tmp_path)
    assert trainer.run().loss < math.log(4)
    assert all(parameter.dtype == torch.float32 for parameter in trainer.network.parameters())


def test_a_loss_that_is_not_finite_stops_with_step_and_widths(tmp_path: Path) -> None:
    config = settings(epochs=10, checkpoint_every=4, log_every=4)
    trainer = make_trainer(make_supernet(), config, tmp_path)
    draw, steps = trainer.loader.next_batch, iter(range(1, 100))

    def poisoned():  # type: ignore[no-untyped-def]
        images, labels = draw()
        return images * (float("nan") if next(steps) == 6 else 1.0), labels

    trainer.loader.next_batch = poisoned  # type: ignore[method-assign]
    with pytest.raises(
        TrainingError, match=r"nan at step 6, widths \[\d+, \d+\], left side; the last good .* step 4"
    ):
        trainer.run()
    tensors, state = load_checkpoint(tmp_path / "checkpoint.safetensors")
    assert state["step"] == 4 and all(
        bool(torch.isfinite(t).all()) for t in tensors.values() if t.is_floating_point()
    )


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    trainer = make_trainer(make_supernet(), settings(checkpoint_every=2), tmp_path)
    with torch.no_grad():
        next(iter(trainer.network.parameters()))[0] = float("inf")
    with pytest.raises(TrainingError, match="a weight is not finite"):
        trainer.save()
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_out_of_memory_says_what_to_change(tmp_path: Path) -> None:
    trainer = make_trainer(make_supernet(), settings(), tmp_path)

    def full(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    trainer.run_paths = full  # type: ignore[method-assign,assignment]
    with pytest.raises(TrainingError, match=r"accumulation: 2 .* parts of 16, or lower batch_size"):
        trainer.run()


def test_other_failures_keep_their_traceback(tmp_path: Path) -> None:
    trainer = make_trainer(make_supernet(), settings(), tmp_path)

    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("shape mismatch")

    trainer.run_paths = broken  # type: ignore[method-assign,assignment]
    with pytest.raises(RuntimeError, match="shape mismatch"):
        trainer.run()


def test_checkpoints_of_others_are_refused_and_kept(tmp_path: Path) -> None:
    make_trainer(make_supernet(), settings(epochs=1), tmp_path).run()
    path = tmp_path / "checkpoint.safetensors"
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"other settings \(learning_rate: 0.05 -> 0.2\)"):
        make_trainer(make_supernet(), settings(epochs=1, learning_rate=0.2), tmp_path)
    other = make_supernet(norm=False)
    with pytest.raises(CheckpointError, match="use another folder, or start anew with --fresh"):
        make_trainer(other, settings(epochs=1), tmp_path)
    path.write_bytes(before[: len(before) // 2])
    with pytest.raises(CheckpointError, match="is damaged"):
        make_trainer(make_supernet(), settings(epochs=1), tmp_path)
    path.write_bytes(before)
    (tmp_path / "records.jsonl").write_text("")
    with pytest.raises(CheckpointError, match=r"records.jsonl has 0 bytes"):
        make_trainer(make_supernet(), settings(epochs=1), tmp_path).run()
    assert make_trainer(make_supernet(), settings(epochs=1), tmp_path, resume=False).run().steps == 4


@pytest.mark.parametrize("key", ["config", "identity", "optimizer", "sampler", "loader", "logs", "step"])
@pytest.mark.parametrize("value", [None, {}, "none"])
def test_a_checkpoint_whose_state_is_spoilt_is_refused_in_one_line(
    key: str, value: object, tmp_path: Path
) -> None:
    make_trainer(make_supernet(), settings(epochs=1), tmp_path).run()
    path = tmp_path / "checkpoint.safetensors"
    tensors, state = load_checkpoint(path)
    spoilt = {name: item for name, item in state.items() if name != key}
    save_checkpoint(path, tensors, spoilt if value == "none" else {**spoilt, key: value})
    with pytest.raises(CheckpointError, match=r"^[^\n]*$"):
        make_trainer(make_supernet(), settings(epochs=1), tmp_path).run()


def test_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    supernet = make_supernet()
    with pytest.raises(ConfigError, match="needs a CUDA GPU"):
        make_trainer(supernet, settings(amp="fp16"), tmp_path)
    with pytest.raises(ConfigError, match="compile does not serve a supernet"):
        make_trainer(supernet, settings(compile=True), tmp_path)
    trainer = make_trainer(supernet, settings(), tmp_path)
    with pytest.raises(ConfigError, match="needs a width sampler"):
        Trainer(supernet, trainer.loader, settings(), tmp_path)


def test_plain_networks_may_be_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module: compiled.append(module) or module)
    loader = make_trainer(make_supernet(), settings(), tmp_path / "other").loader
    network = tiny()
    Trainer(network, loader, settings(compile=True, epochs=1), tmp_path).run()
    assert compiled == [network]


def test_tensorboard_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        make_trainer(make_supernet(), settings(tensorboard=True), tmp_path).run()


def test_schedules_meet_their_closed_forms() -> None:
    cosine = settings(warmup_epochs=5, epochs=105)
    assert rate_factor(cosine, 2.5 / 105, 105) == pytest.approx(0.5)
    assert rate_factor(cosine, 55 / 105, 105) == pytest.approx(0.5)
    assert rate_factor(cosine, 1.0, 105) == pytest.approx(0.0, abs=1e-12)
    steps = settings(schedule="step", milestones=[160, 240, 300], epochs=500)
    assert [rate_factor(steps, e / 500, 500) for e in (159, 160, 250, 400)] == pytest.approx(
        [1, 0.1, 0.01, 0.001]
    )
    exponential = settings(schedule="exponential", gamma=0.963, step_epochs=3, epochs=450)
    assert rate_factor(exponential, 31 / 450, 450) == pytest.approx(0.963**10)


def test_decay_spares_norms_and_biases() -> None:
    network = tiny()
    groups = make_optimizer(network, settings(weight_decay=0.3)).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in network.named_parameters():
        assert decay[id(parameter)] == (0.3 if parameter.ndim > 1 else 0.0), name
    both = make_optimizer(network, settings(weight_decay=0.3, decay_norm_and_bias=True)).param_groups
    assert {group["weight_decay"] for group in both} == {0.3}


@pytest.mark.parametrize("order", ["plain", "channels_last", "gaps"])
def test_the_update_is_nesterovs_whatever_the_memory_order(order: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 4, 3, 6)
    layer = torch.nn.Conv2d(4, 6, 3, bias=False)
    layer.weight = torch.nn.Parameter(weight[..., ::2] if order == "gaps" else weight[..., :3].contiguous())
    if order == "channels_last":
        layer.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(layer, settings(weight_decay=0.1, momentum=0.9, learning_rate=0.2))
    expected, momentum = layer.weight.detach().double(), torch.zeros(6, 4, 3, 3, dtype=torch.float64)
    images = torch.randn(2, 4, 5, 5)
    for step in range(3):
        optimizer.zero_grad()
        layer(images).square().sum().div(100).backward()
        assert layer.weight.grad is not None
        gradient = layer.weight.grad.double() + 0.1 * layer.weight.detach().double()
        momentum = gradient if step == 0 else 0.9 * momentum + gradient
        expected = expected - 0.2 * (gradient + 0.9 * momentum)
        optimizer.step()
        torch.testing.assert_close(layer.weight.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_average_follows_its_recursion() -> None:
    network = torch.nn.Linear(2, 2)
    average = WeightAverage(network, 0.9)
    expected = network.weight.detach().clone()
    for update in range(1, 30):
        with torch.no_grad():
            network.weight.fill_(float(update))
        average.update()
        decay = min(0.9, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * update
    torch.testing.assert_close(average.tensors["weight"], expected)
    average.swap()
    torch.testing.assert_close(network.weight.detach(), expected)
    average.swap()
    assert float(network.weight.detach()[0, 0]) == 29.0


def test_soft_cross_entropy_is_least_at_the_teacher_and_entropy_there() -> None:
    teacher = torch.tensor([[2.0, 0.0, -1.0]])
    entropy = torch.distributions.Categorical(logits=teacher).entropy()
    assert float(soft_cross_entropy(teacher, teacher)) == pytest.approx(float(entropy))
    assert float(soft_cross_entropy(teacher + torch.tensor([[0.0, 1.0, 0.0]]), teacher)) > float(entropy)


def test_few_images_are_passed_over_until_there_are_enough_steps(tmp_path: Path) -> None:
    trainer = make_plain_trainer(settings(epochs=0.1, min_steps=7), tmp_path / "few")
    assert trainer.run().steps == 7
    longer = make_plain_trainer(settings(epochs=2, min_steps=1), tmp_path / "many")
    assert longer.total_steps == 2 * longer.loader.batches_per_epoch


@pytest.mark.parametrize("checkpoint_every", [4, 5])
def test_the_last_step_is_evaluated_whenever_checkpoints_are_written(
    checkpoint_every: int, tmp_path: Path
) -> None:
    """12 steps: a checkpoint of the last one left the figures of an earlier epoch in the result."""
    supernet = make_supernet()
    config = settings(epochs=3, evaluate_every=1, checkpoint_every=checkpoint_every)
    cpu = torch.device("cpu")
    result = train_supernet(supernet, splits(), config, tmp_path, device=cpu)
    points = np.stack([supernet.space.full, supernet.space.uniform(0.5), supernet.space.narrowest])
    scores = make_evaluator(supernet, splits(), config, device=cpu)(points)
    assert list(result.val_metric.values()) == pytest.approx(scores.tolist())
    rows = [row for row in read_rows(tmp_path / "curves.jsonl") if "val_top1_full" in row]
    assert [row["step"] for row in rows] == [4, 8, 12]
    again = train_supernet(supernet, splits(), config, tmp_path, device=cpu)
    assert again.val_metric == pytest.approx(result.val_metric)


def test_the_supernet_in_memory_has_the_averaged_weights_that_were_saved(tmp_path: Path) -> None:
    supernet = make_supernet()
    config = settings(epochs=3, ema_decay=0.99)
    result = train_supernet(supernet, splits(), config, tmp_path, device=torch.device("cpu"))
    saved = load_file(tmp_path / "supernet.safetensors")
    trained = load_checkpoint(tmp_path / "checkpoint.safetensors")[0]
    assert all(torch.equal(tensor, saved[name]) for name, tensor in supernet.state_dict().items())
    weight = next(name for name in saved if name.endswith("0.weight"))
    assert not torch.equal(saved[weight], trained[f"model.{weight}"])
    full = make_evaluator(supernet, splits(), config, device=torch.device("cpu"))(supernet.space.full[None])
    assert result.val_metric["full"] == pytest.approx(float(full[0]))


def test_a_stop_during_the_last_evaluation_is_obeyed_and_nothing_is_lost(tmp_path: Path) -> None:
    def interrupted(network: torch.nn.Module) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        return {"val": 1.0}

    config = settings(epochs=1)
    trainer = Trainer(tiny(), make_loader(config), config, tmp_path, evaluate=interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    resumed = Trainer(tiny(), make_loader(config), config, tmp_path, evaluate=interrupted)
    assert resumed.step == 4 and resumed.run().steps == 4


def test_weights_blown_up_by_the_last_step_are_said_to_be(tmp_path: Path) -> None:
    config = settings(epochs=0.25, learning_rate=1e38, momentum=0.0, nesterov=False)
    model = tiny(norm=False)
    with torch.no_grad():
        model[0].weight.fill_(1e30)
    trainer = Trainer(model, make_loader(config), config, tmp_path, evaluate=lambda network: {"val": 1.0})
    with pytest.raises(TrainingError, match="not finite"):
        trainer.run()


def test_a_held_out_loss_that_is_no_number_is_refused() -> None:
    class Blank(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((len(x), 4), torch.nan)

    with pytest.raises(TaskError, match="loss of task 'classification' is nan on 2"):
        evaluate_network(Blank(), [(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.long))])
