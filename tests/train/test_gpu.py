"""Training on a GPU: no step waits for the device, and every precision learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bcnet_deploy.data import Augmentation, BatchLoader
from bcnet_deploy.nn import Supernet
from bcnet_deploy.space import WidthSpace
from bcnet_deploy.train import Trainer, WidthGrid, make_sampler, train_supernet
from bcnet_deploy.train.distributed import pick_device
from tests.train.helpers import CLASSES, SIZE, make_supernet, make_trainer, settings, splits, tiny

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine"),
]


def trainer_on_gpu(folder: Path, **changes: object) -> Trainer:
    supernet, config, data = make_supernet(), settings(**changes), splits()
    sampler = make_sampler(config.rule, WidthGrid.of(supernet), np.random.default_rng(7), config)
    augmentation = Augmentation("crop-flip", data.mean, data.std)
    loader = BatchLoader(data.train, config.batch_size, augmentation, pick_device(), seed=5)
    return Trainer(supernet, loader, config, folder, sampler=sampler)


def test_the_gpu_is_the_default() -> None:
    assert pick_device().type == "cuda"


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_no_step_waits_for_the_device(amp: str, graphs: bool, tmp_path: Path) -> None:
    trainer = trainer_on_gpu(
        tmp_path, amp=amp, distillation=True, ema_decay=0.99, clip_norm=1.0, cuda_graphs=graphs
    )
    for _ in range(3):
        trainer._advance()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trainer._advance()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_every_precision_learns(amp: str, graphs: bool, tmp_path: Path) -> None:
    trainer = trainer_on_gpu(tmp_path, amp=amp, epochs=15, cuda_graphs=graphs)
    assert trainer.run().loss < 1.0


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("rule", ["bilateral", "sandwich"])
def test_the_gpu_follows_the_cpu(graphs: bool, rule: str, tmp_path: Path) -> None:
    """The same draws, so the first losses differ by rounding only."""
    changes = {"augment": "crop-flip", "rule": rule, "distillation": True}
    on_gpu = trainer_on_gpu(tmp_path / "gpu", cuda_graphs=graphs, **changes)
    on_cpu = make_trainer(make_supernet(), settings(**changes), tmp_path / "cpu")
    for trainer in (on_gpu, on_cpu):
        for _ in range(4):
            trainer._advance()
    for one, two in zip(on_gpu.journal.pending, on_cpu.journal.pending, strict=True):
        torch.testing.assert_close(one.losses.cpu(), two.losses, rtol=2e-2, atol=2e-2)


def test_a_run_resumes(tmp_path: Path) -> None:
    config = settings(epochs=2)
    first = train_supernet(make_supernet(), splits(), config, tmp_path)
    again = train_supernet(make_supernet(seed=2), splits(), config, tmp_path)
    assert first.steps == again.steps and again.val_top1 == pytest.approx(first.val_top1)


def test_a_graphed_step_has_the_gradients_of_the_slices(tmp_path: Path) -> None:
    """When it is captured, and when it is replayed at other widths."""
    trainers = [trainer_on_gpu(tmp_path / str(graphs), cuda_graphs=graphs) for graphs in (False, True)]
    for step in range(6):
        for trainer in trainers:
            trainer._advance()
        sliced, graphed = (trainer.network.model.parameters() for trainer in trainers)
        for one, two in zip(sliced, graphed, strict=True):
            scale = float(one.grad.abs().max()) + 1e-3
            # The weights drift apart by rounding; where a rectifier sits on zero, that shows.
            assert float((one.grad - two.grad).abs().max()) < (0.001 if step == 0 else 0.1) * scale, step
    assert len(trainers[1].run_paths._graphs) == 1


def test_a_plain_network_with_a_teacher_is_graphed(tmp_path: Path) -> None:
    """Against the same training without graphs."""
    results = []
    for graphs in (False, True):
        torch.manual_seed(0)
        data, config = splits(), settings(cuda_graphs=graphs, epochs=2)
        augmentation = Augmentation("none", data.mean, data.std)
        loader = BatchLoader(data.train, config.batch_size, augmentation, pick_device(), seed=5)
        network, teacher = tiny(), tiny().to(loader.device).eval()
        trainer = Trainer(network, loader, config, tmp_path / str(graphs), teacher=teacher)
        results.append(trainer.run().loss)
        assert not graphs or len(trainer.run_paths._graphs) == 1
    assert results[1] == pytest.approx(results[0], rel=0.02)


def test_what_cannot_be_masked_is_trained_by_slices(tmp_path: Path) -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), torch.nn.GroupNorm(1, 8), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(8, CLASSES),
    )  # fmt: skip
    supernet = Supernet(model, WidthSpace.from_model(model, SIZE, levels=4))
    data, config = splits(), settings(cuda_graphs=True)
    sampler = make_sampler(config.rule, WidthGrid.of(supernet), np.random.default_rng(7), config)
    loader = BatchLoader(
        data.train, config.batch_size, Augmentation("none", data.mean, data.std), pick_device(), seed=5
    )
    trainer = Trainer(supernet, loader, config, tmp_path, sampler=sampler)
    with pytest.warns(UserWarning, match="without CUDA graphs"):
        trainer._advance()
    trainer._advance()
    assert all(bool(losses.losses.isfinite().all()) for losses in trainer.journal.pending)
