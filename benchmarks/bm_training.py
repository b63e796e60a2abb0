"""What a supernet's training step costs, and whether killed training ends with the same bits.

    python benchmarks/bm_training.py step      # time of a step against plain training of the same MACs
    python benchmarks/bm_training.py resume    # kill -9 at 20 random moments, then compare all tensors

``step``: a bilateral step at the uniform half width (left and right, one update) against two steps of
the extracted network (the same two image passes, two updates), both with loading and augmentation,
taken in turns; the ratio of the medians. A second copy of the plain network, timed alike, gives the noise
floor. Results go to ``benchmarks/results/training/``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bcnet_deploy as bd
from bcnet_deploy import files
from bcnet_deploy.data import Augmentation, BatchLoader, MemoryImages
from bcnet_deploy.runtime.machine import describe_machine
from bcnet_deploy.train import TrainConfig, Trainer, WidthGrid
from bcnet_deploy.train.checkpoint import load_checkpoint
from bcnet_deploy.train.samplers import Step, WidthSampler, both_sides

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "training"
CASES = (
    ("channel_bench_macro_mobilenet", (3, 16, 16), 128, 4),
    ("mobilenet_v2_cifar10", (3, 32, 32), 64, 20),
    ("resnet18", (3, 64, 64), 32, 20),
    ("resnet18", (3, 64, 64), 128, 20),
    ("demo", (1, 16, 16), 64, 20),
)


class Fixed(WidthSampler):
    """The same widths in every step."""

    def __init__(self, grid: WidthGrid, widths: Any) -> None:
        super().__init__(grid, np.random.default_rng(0))
        self.widths = widths

    def draw(self) -> list[Step]:
        return [both_sides(self.widths)]


def trainers(
    name: str, size: tuple[int, int, int], batch: int, levels: int, folder: Path
) -> dict[str, Trainer]:
    """Trainers of a supernet and of two equal plain networks on the same random images."""
    torch.manual_seed(0)
    model = bd.build_model(name, num_classes=10)
    space = bd.WidthSpace.from_model(model, size, levels=levels)
    widths = space.uniform(0.5)
    plain = space.extract(model, widths)
    supernet = bd.Supernet(model, space)
    images = torch.randint(0, 256, (4 * batch, *size), dtype=torch.uint8)
    data = MemoryImages(images, torch.arange(4 * batch) % 10)
    config = TrainConfig(
        batch_size=batch, epochs=1e6, log_every=10**6, checkpoint_every=10**6, learning_rate=0.01
    )
    channels = (0.5,) * size[0]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def loader() -> BatchLoader:
        return BatchLoader(data, batch, Augmentation("crop-flip", channels, channels), device)

    grid = WidthGrid.of(supernet)
    return {
        "supernet": Trainer(supernet, loader(), config, folder / "s", sampler=Fixed(grid, widths)),
        "plain": Trainer(plain, loader(), config, folder / "p"),
        "again": Trainer(space.extract(model, widths), loader(), config, folder / "a"),
    }


def measure_step(rounds: int, only: list[int]) -> None:
    """Times of the cases with numbers ``only`` (all by default); rows of the others stay in the file."""
    path = RESULTS / "step.json"
    former = json.loads(path.read_text())["cases"] if only and path.exists() else []
    rows = []
    for name, size, batch, levels in [CASES[i] for i in only] or CASES:
        with tempfile.TemporaryDirectory() as folder:
            both = trainers(name, size, batch, levels, Path(folder))
            times: dict[str, list[float]] = {kind: [] for kind in both}
            for turn in range(rounds + 2):
                for kind, trainer in both.items():
                    _wait(trainer.device)
                    start = time.perf_counter()
                    for _ in range(1 if kind == "supernet" else 2):
                        trainer._advance()
                    _wait(trainer.device)
                    if turn >= 2:
                        times[kind].append(time.perf_counter() - start)
                    trainer.journal.pending.clear()
        middle = {kind: statistics.median(values) for kind, values in times.items()}
        rows.append(
            {
                "model": name, "input_size": list(size), "batch_size": batch, "rounds": rounds,
                "supernet_ms": 1e3 * middle["supernet"], "plain_ms": 1e3 * middle["plain"],
                "ratio": middle["supernet"] / middle["plain"],
                "ratio_of_minima": min(times["supernet"]) / min(times["plain"]),
                "noise_floor": abs(middle["again"] / middle["plain"] - 1),
                "supernet_image_passes_per_second": 2 * batch / middle["supernet"],
                "plain_images_per_second": 2 * batch / middle["plain"],
            }
        )  # fmt: skip
        print(rows[-1], flush=True)
    about = {
        "machine": describe_machine(), "threads": torch.get_num_threads(), "torch": torch.__version__
    }  # fmt: skip
    measured = [(row["model"], row["batch_size"]) for row in rows]
    kept = [row for row in former if (row["model"], row["batch_size"]) not in measured]
    files.write_json(path, {**about, "cases": kept + rows})


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


CHILD = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import bcnet_deploy as bd
from bcnet_deploy.data import load_data
from bcnet_deploy.train import TrainConfig, train_supernet
torch.manual_seed(0)
model = bd.build_model("tests.train.cli_model:net", num_classes=10)
space = bd.WidthSpace.from_model(model, (1, 8, 8), levels=4)
config = TrainConfig(
    epochs=40, batch_size=64, augment="crop-flip", ema_decay=0.99, checkpoint_every=10, workers=0
)
train_supernet(bd.Supernet(model, space), load_data("digits", (1, 8, 8)), config, Path(sys.argv[1]))
"""


def measure_resume(kills: int, seed: int) -> None:
    rng = random.Random(seed)
    root = HERE.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder) / "whole", Path(folder) / "broken"

        def start(target: Path) -> subprocess.Popen[bytes]:
            return subprocess.Popen([sys.executable, "-c", CHILD, str(target)], env=environment, cwd=root)

        assert start(whole).wait() == 0
        tensors, state = load_checkpoint(whole / "checkpoint.safetensors")
        total, killed = state["step"], []
        for target in sorted(rng.sample(range(1, total), kills)):
            process = start(broken)
            while _step_of(broken) < target and process.poll() is None:
                time.sleep(0.002)
            # A moment more, so that kills fall between, into and after the writing of checkpoints.
            time.sleep(rng.uniform(0, 0.2))
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed.append({"aimed_at_step": target, "killed": process.returncode == -signal.SIGKILL})
            print(killed[-1], flush=True)
        assert start(broken).wait() == 0
        ended, _ = load_checkpoint(broken / "checkpoint.safetensors")
        different = [name for name in tensors if not torch.equal(tensors[name], ended[name])]
        same_records = (whole / "records.jsonl").read_bytes() == (broken / "records.jsonl").read_bytes()
    result = {
        "kills": killed, "kills_that_hit_a_running_process": sum(row["killed"] for row in killed),
        "steps": total, "tensors": len(tensors), "tensors_that_differ": different,
        "records_equal": same_records, "torch": torch.__version__,
    }  # fmt: skip
    print(result)
    files.write_json(RESULTS / "resume.json", result)


def _step_of(folder: Path) -> int:
    """Steps recorded so far, also those that no checkpoint has yet."""
    path = folder / "records.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["step", "resume"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cases", type=int, nargs="*", default=[], help="numbers in CASES; default: all")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.action == "step":
        measure_step(options.rounds, options.cases)
    else:
        measure_resume(options.kills, options.seed)


if __name__ == "__main__":
    main()
