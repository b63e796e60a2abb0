"""One rank of the two-process test; run by tests/train/test_distributed.py under torchrun's variables."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from bcnet_deploy.data import Augmentation, BatchLoader, PlainBatches
from bcnet_deploy.train import SupernetEvaluator, Trainer, WidthGrid, make_sampler, retrain, train_supernet
from bcnet_deploy.train.distributed import process_group
from tests.train.helpers import make_supernet, settings, splits, tiny

CPU = torch.device("cpu")


def gradients(folder: Path) -> dict[str, torch.Tensor]:
    """Gradients of a distilled bilateral step on this rank's part of the batch, exchanged."""
    supernet, data, config = make_supernet(norm=False), splits(), settings(distillation=True)
    with process_group(CPU) as ranks:
        sampler = make_sampler("bilateral", WidthGrid.of(supernet), np.random.default_rng(7), config)
        loader = BatchLoader(
            data.train, 32, Augmentation("none", data.mean, data.std), CPU, rank=ranks.rank, world=ranks.world
        )
        trainer = Trainer(supernet, loader, config, folder, sampler=sampler, ranks=ranks)
        trainer.run_paths(sampler.next_step(), *loader.next_batch())
        return {name: p.grad.clone() for name, p in supernet.named_parameters() if p.grad is not None}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with process_group(CPU) as ranks:
        save_file(gradients(folder / "step"), str(folder / f"gradients-{ranks.rank}.safetensors"))
        supernet, data = make_supernet(), splits()
        train_supernet(
            supernet, data, settings(epochs=2, checkpoint_every=3), folder / f"run-{ranks.rank}", device=CPU
        )
        retrain(
            tiny(), supernet.space, [4, 9], data, settings(epochs=2, evaluate_every=0.75, log_every=4),
            folder / f"retrain-{ranks.rank}", model_ref={}, device=CPU,
        )  # fmt: skip
        weights = {name: p.detach().clone() for name, p in supernet.named_parameters()}
        save_file(weights, str(folder / f"weights-{ranks.rank}.safetensors"))
        lone = make_supernet(seed=4)
        evaluator = SupernetEvaluator(
            lone, PlainBatches(data.train, data, 32, CPU), PlainBatches(data.val, data, 32, CPU), ranks=ranks
        )
        scores = evaluator(lone.space.random(5, np.random.default_rng(0)))
        save_file({"scores": torch.from_numpy(scores)}, str(folder / f"scores-{ranks.rank}.safetensors"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
