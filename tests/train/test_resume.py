"""A run that is killed anywhere ends with the bits of one that is not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from bcnet_deploy.errors import CheckpointError
from bcnet_deploy.files import read_rows
from bcnet_deploy.nn import Supernet
from bcnet_deploy.space import WidthSpace
from bcnet_deploy.train.checkpoint import load_checkpoint, save_checkpoint
from tests.train.helpers import make_plain_trainer, make_supernet, make_trainer, settings

VARIANTS = {
    "pairs": {"augment": "crop-flip"},
    "distilled": {"distillation": True, "ema_decay": 0.99, "clip_norm": 1.0, "label_smoothing": 0.1},
    "sandwich": {"rule": "sandwich", "distillation": True, "optimizer": "rmsprop", "learning_rate": 0.01},
    "cost": {"cost": 300.0, "schedule": "step", "milestones": [1.0], "augment": "resized-crop-flip"},
}


class Killed(Exception):
    """In place of a kill: nothing after it runs, and nothing is saved."""


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "checkpoint.safetensors")[0]


def assert_same_run(one: Path, two: Path) -> None:
    first, second = tensors_of(one), tensors_of(two)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert (one / "records.jsonl").read_bytes() == (two / "records.jsonl").read_bytes()
    curves = [
        [(row["step"], row["loss"]) for row in read_rows(folder / "curves.jsonl")] for folder in (one, two)
    ]
    assert {step for step, _ in curves[0]} <= {step for step, _ in curves[1]}


@pytest.mark.parametrize("variant", VARIANTS)
def test_resuming_after_kills_at_random_steps_gives_the_same_bits(variant: str, tmp_path: Path) -> None:
    config = settings(epochs=6, checkpoint_every=5, **VARIANTS[variant])
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    make_trainer(make_supernet(dropout=0.2), config, whole).run()
    length = load_checkpoint(whole / "checkpoint.safetensors")[1]["step"]
    rng = random.Random(variant)
    for kill_at in sorted(rng.sample(range(1, length), 4)):
        # Other initial weights: a resumed run must not depend on what it was built with.
        trainer = make_trainer(make_supernet(dropout=0.2, seed=kill_at), config, broken)
        if trainer.step == 0:
            trainer = make_trainer(make_supernet(dropout=0.2), config, broken)
        advance = trainer._advance

        def until(trainer=trainer, advance=advance, kill_at=kill_at):  # type: ignore[no-untyped-def]
            if trainer.step >= kill_at:
                raise Killed
            advance()

        trainer._advance = until  # type: ignore[method-assign]
        with pytest.raises(Killed):
            trainer.run()
    last = make_trainer(make_supernet(dropout=0.2, seed=99), config, broken)
    assert last.step > 0
    last.run()
    assert_same_run(whole, broken)


def test_a_state_out_of_range_is_refused(tmp_path: Path) -> None:
    make_trainer(make_supernet(), settings(epochs=1), tmp_path).run()
    tensors, state = load_checkpoint(tmp_path / "checkpoint.safetensors")
    state["sampler"]["generator"]["uinteger"] = -1
    save_checkpoint(tmp_path / "checkpoint.safetensors", tensors, state)
    with pytest.raises(CheckpointError, match="sampler.s state in the checkpoint is damaged"):
        make_trainer(make_supernet(), settings(epochs=1), tmp_path)


def _change(state: dict[str, Any], tensors: dict[str, torch.Tensor], *path: Any, to: Any) -> None:
    place: Any = state if path[0] in state else tensors
    for key in path[:-1]:
        place = place[key]
    if to is None:
        del place[path[-1]]
    else:
        place[path[-1]] = to


@pytest.mark.parametrize(
    ("path", "to", "message"),
    [
        (("optimizer", "groups", 0, "lr"), None, "the key 'lr' is missing"),
        (("optimizer", "groups", 0, "lr"), -1.0, "the optimiser's rate is -1.0"),
        (("optimizer", "groups", 0, "lr"), "abc", "could not convert"),
        (("optimizer", "groups", 0, "momentum"), "abc", "the optimiser's momentum is 'abc', now 0.9"),
        (("optimizer", "groups", 0, "nesterov"), [], r"the optimiser's nesterov is \[\]"),
        (("optimizer", "groups"), 5, "is damaged"),
        (("sampler", "pending"), [[{"widths": [10**6], "side": "left"}]], r"widths \[1000000\]"),
        (("sampler", "pending"), [[{"widths": "x", "side": "left"}]], "is damaged"),
        (("sampler", "pending"), 7, "is damaged"),
        (("step",), "3", "its step, '3'"),
        (("cost",), -1.0, "its cost -1.0"),
        (("logs", "records"), -4, "its length of a log, -4"),
        (("generator.cpu",), torch.zeros(3), "is damaged"),
        (("generator.cpu",), torch.zeros(3, dtype=torch.uint8), "is damaged"),
        (("optimizer.0.momentum_buffer",), torch.zeros(2, 5), r"momentum_buffer is of shape \(2, 5\)"),
    ],
)
def test_a_checkpoint_with_a_value_changed_is_refused_where_it_is_read(
    tmp_path: Path, path: tuple[Any, ...], to: Any, message: str
) -> None:
    """Not in the middle of the training, by whatever the value meets there."""
    make_trainer(make_supernet(), settings(epochs=1), tmp_path).run()
    tensors, state = load_checkpoint(tmp_path / "checkpoint.safetensors")
    _change(state, tensors, *path, to=to)
    save_checkpoint(tmp_path / "checkpoint.safetensors", tensors, state)
    with pytest.raises(CheckpointError, match=message) as caught:
        make_trainer(make_supernet(), settings(epochs=1), tmp_path)
    assert "\n" not in str(caught.value) and "--fresh" in str(caught.value)


def test_a_plain_network_in_channels_last_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    """The checkpoint holds tensors in plain order; the optimiser walks weights and momentum in theirs."""
    config = settings(epochs=4, checkpoint_every=5, channels_last=True)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    make_plain_trainer(config, whole).run()
    first = make_plain_trainer(config, broken)
    advance = first._advance

    def until() -> None:
        if first.step >= 7:
            raise Killed
        advance()

    first._advance = until  # type: ignore[method-assign]
    with pytest.raises(Killed):
        first.run()
    last = make_plain_trainer(config, broken, seed=9)
    assert last.step == 5
    last.run()
    one, two = tensors_of(whole), tensors_of(broken)
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    config = settings(epochs=1)
    make_trainer(make_supernet(), config, tmp_path).run()
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    again = make_trainer(make_supernet(seed=3), config, tmp_path)
    again._advance = None  # type: ignore[method-assign,assignment]
    assert again.run().steps == 4
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


def test_starting_anew_forgets_the_former_run_before_it_writes(tmp_path: Path) -> None:
    """A kill after --fresh, before the first checkpoint: the next run begins, and trips over no old file."""
    config = settings(epochs=1)
    make_trainer(make_supernet(), config, tmp_path).run()
    anew = make_trainer(make_supernet(), config, tmp_path, resume=False)

    def killed() -> None:
        raise Killed

    anew._advance = killed  # type: ignore[method-assign]
    with pytest.raises(Killed):
        anew.run()
    assert make_trainer(make_supernet(), config, tmp_path).step == 0
    assert make_trainer(make_supernet(), config, tmp_path).run().steps == 4


CHILD = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.train.helpers import make_supernet, make_trainer, settings
config = settings(epochs=60, checkpoint_every=7, augment="crop-flip")
make_trainer(make_supernet(dropout=0.2), config, Path(sys.argv[1])).run()
"""


def child(folder: Path) -> subprocess.Popen[bytes]:
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder)], env=environment, stderr=subprocess.PIPE, cwd=root
    )


def wait_for_checkpoint(folder: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint.safetensors").exists():
        assert process.poll() is None and time.monotonic() < deadline, "the child ended without a checkpoint"
        time.sleep(0.01)


def test_sigkill_and_sigterm_lose_nothing(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    reference = child(whole)
    killed = child(broken)
    wait_for_checkpoint(broken, killed)
    killed.kill()
    assert killed.wait(60) == -signal.SIGKILL
    killed.communicate()
    asked = child(broken)
    # It goes on from the kill's checkpoint; wait until it has written one of its own.
    stamp = (broken / "checkpoint.safetensors").stat().st_mtime_ns
    deadline = time.monotonic() + 120
    while (broken / "checkpoint.safetensors").stat().st_mtime_ns == stamp:
        assert asked.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    asked.send_signal(signal.SIGTERM)
    _, errors = asked.communicate(timeout=60)
    assert asked.returncode != 0 and b"KeyboardInterrupt" in errors
    step = load_checkpoint(broken / "checkpoint.safetensors")[1]["step"]
    assert step < 240
    last = child(broken)
    assert last.wait(120) == 0 and reference.wait(120) == 0
    last.communicate()
    reference.communicate()
    assert_same_run(whole, broken)


FROM_FILES = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from bcnet_deploy.data import View
from bcnet_deploy.data.folders import load_folder
from bcnet_deploy.train import train_supernet
from tests.train.helpers import make_supernet, settings
data = load_folder(Path(sys.argv[1]), View(input_size=(1, 8, 8)), 0.2, memory_bytes=10)
config = settings(epochs=3000, batch_size=8, workers=2, log_every=5, checkpoint_every=10**6)
train_supernet(make_supernet(), data, config, Path(sys.argv[2]), device=torch.device("cpu"))
"""


def test_weights_that_layers_share_are_kept_and_stay_shared(tmp_path: Path) -> None:
    def shared() -> Supernet:
        torch.manual_seed(0)
        again = nn.Conv2d(8, 8, 3, padding=1)
        like = nn.Conv2d(8, 8, 3, padding=1)
        like.weight = again.weight
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3), again, nn.ReLU(), again, nn.ReLU(), like, nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(8, 4),
        )  # fmt: skip
        return Supernet(model, WidthSpace.from_model(model, (1, 8, 8), levels=4))

    config = settings(epochs=2, ema_decay=0.9, checkpoint_every=3)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    make_trainer(shared(), config, whole).run()
    first = make_trainer(shared(), config, broken)
    advance = first._advance

    def until() -> None:
        if first.step >= 4:
            raise Killed
        advance()

    first._advance = until  # type: ignore[method-assign]
    with pytest.raises(Killed):
        first.run()
    resumed = shared()
    make_trainer(resumed, config, broken).run()
    assert_same_run(whole, broken)
    assert resumed.model[1].weight is resumed.model[3].weight is resumed.model[5].weight


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_spares_the_step_and_its_workers(number: int, tmp_path: Path) -> None:
    """Ctrl-C in a terminal, or a scheduler that ends a job: processes that decode get the signal as well."""
    for name in "ab":
        (tmp_path / "photos" / "train" / name).mkdir(parents=True)
        for index in range(10):
            Image.new("L", (8, 8), 20 * index).save(tmp_path / "photos" / "train" / name / f"{index}.png")
    root, folder = Path(__file__).resolve().parents[2], tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", FROM_FILES, str(tmp_path / "photos"), str(folder)], cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (folder / "curves.jsonl").exists() or not (folder / "curves.jsonl").stat().st_size:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in errors and b"DataLoader" not in errors, errors.decode()[-2000:]
    assert load_checkpoint(folder / "checkpoint.safetensors")[1]["step"] >= 5
