"""Two processes over gloo against one process on the joined batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bcnet_deploy.data import PlainBatches
from bcnet_deploy.errors import ConfigError, DeviceError
from bcnet_deploy.files import read_rows
from bcnet_deploy.train import SupernetEvaluator
from bcnet_deploy.train.distributed import pick_device, process_group
from tests.train.distributed_child import CPU, gradients
from tests.train.helpers import make_supernet, splits


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a run of two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = Path(__file__).resolve().parents[2]
    common = {
        **os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.train.distributed_child", str(folder)], cwd=root,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors.decode()[-3000:]
    return folder


def test_gradients_equal_one_process_on_the_joined_batch(two_ranks: Path, tmp_path: Path) -> None:
    expected = gradients(tmp_path)
    for rank in range(2):
        found = load_file(str(two_ranks / f"gradients-{rank}.safetensors"))
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7)


def test_ranks_keep_the_same_weights_and_one_of_them_writes(two_ranks: Path) -> None:
    one, two = (load_file(str(two_ranks / f"weights-{rank}.safetensors")) for rank in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (two_ranks / "run-0" / "supernet.safetensors").exists()
    assert not (two_ranks / "run-1").exists()
    records = read_rows(two_ranks / "run-0" / "records.jsonl")
    assert [row["step"] for row in records] == list(range(1, 9))


def test_evaluations_between_logs_keep_the_ranks_in_step(two_ranks: Path) -> None:
    """An evaluation fetches losses, which all ranks must do alike: every 3 of 4 steps here, logs every 4."""
    rows = read_rows(two_ranks / "retrain-0" / "curves.jsonl")
    assert [row["step"] for row in rows if "val_top1" in row] == [3, 6, 8]
    assert [row["step"] for row in rows if "loss" in row] == [3, 4, 6, 8]
    assert (two_ranks / "retrain-0" / "result.json").exists()
    assert not (two_ranks / "retrain-1").exists()


def test_evaluation_is_split_and_gathered(two_ranks: Path) -> None:
    supernet, data = make_supernet(seed=4), splits()
    evaluator = SupernetEvaluator(
        supernet, PlainBatches(data.train, data, 32, CPU), PlainBatches(data.val, data, 32, CPU)
    )
    expected = evaluator(supernet.space.random(5, np.random.default_rng(0))).tolist()
    for rank in range(2):
        assert load_file(str(two_ranks / f"scores-{rank}.safetensors"))["scores"].tolist() == expected


def test_devices_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    count = torch.cuda.device_count()
    with pytest.raises(DeviceError, match=f"this machine has {count} usable CUDA GPU"):
        pick_device(f"cuda:{count + 1}")
    for name in ("gpu", "mps"):
        with pytest.raises(DeviceError, match="allowed: auto, cpu, cuda"):
            pick_device(name)
    assert pick_device("cpu").type == "cpu"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match="RANK.* is not; start with torchrun"), process_group(CPU):
        pass
