"""Training on a GPU: no step waits for the device, and every precision learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bcnet_deploy.data import Augmentation, BatchLoader
from bcnet_deploy.train import Trainer, WidthGrid, make_sampler, train_supernet
from bcnet_deploy.train.distributed import pick_device
from tests.train.helpers import make_supernet, make_trainer, settings, splits

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


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_no_step_waits_for_the_device(amp: str, tmp_path: Path) -> None:
    trainer = trainer_on_gpu(tmp_path, amp=amp, distillation=True, ema_decay=0.99, clip_norm=1.0)
    for _ in range(3):
        trainer._advance()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trainer._advance()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_every_precision_learns(amp: str, tmp_path: Path) -> None:
    trainer = trainer_on_gpu(tmp_path, amp=amp, epochs=15)
    assert trainer.run().loss < 1.0


def test_the_gpu_follows_the_cpu(tmp_path: Path) -> None:
    """The same draws, so the first losses differ by rounding only."""
    on_gpu = trainer_on_gpu(tmp_path / "gpu", augment="crop-flip")
    on_cpu = make_trainer(make_supernet(), settings(augment="crop-flip"), tmp_path / "cpu")
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
