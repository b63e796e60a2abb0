"""A run that takes seconds, for trials of kills, full disks and second writers.

Its commands are carried out in processes forked from one that has loaded everything: they begin within
milliseconds, so that hundreds of trials are affordable. A forked process does what a new one does from the
command line on; it has its own files, locks and signals.
"""

from __future__ import annotations

import argparse
import atexit
import hashlib
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from bcnet_deploy import files
from tests.run.tinynet import MODEL

MODULE = f"""
{MODEL}

def few():
    from sklearn.datasets import load_digits
    digits = load_digits()
    images = (digits.images[:400, None] / 16).astype("float32").repeat(2, 2).repeat(2, 3)
    labels = digits.target[:400]
    return {{"train": (images[:300], labels[:300]), "test": (images[300:], labels[300:])}}
"""
"""The user's module: a network of three layers and a few digits."""
RECIPE = {"augment": "none", "batch_size": 32, "checkpoint_every": 2, "evaluate_every": 1}
EPOCHS = {"train": 3, "retrain": 6}
CONFIG: dict[str, Any] = {
    "model": "tinynet:net", "input_size": "1x16x16", "data": "tinynet:few", "device": "cpu-1thread",
    "estimate": True, "levels": 8, "latency": "0.7x", "confidence": 0.5,
    **{name: {"recipe": "digits", **RECIPE, "epochs": epochs} for name, epochs in EPOCHS.items()},
    "search": {"evaluations": 40, "population_size": 8, "val_images": 100},
    "networks": ["found"],
    "bench": {"rounds": 1, "runs": 3, "batches": [1], "layers": False},
}  # fmt: skip
TRAINING = {
    name: [
        "--config", "digits",
        *(f"--set={key}={value}" for key, value in {**RECIPE, "epochs": epochs}.items()),
    ]
    for name, epochs in EPOCHS.items()
}  # fmt: skip
ABOUT = [
    "--model", "tinynet:net", "--input-size", "1x16x16", "--levels", "8", "--data", "tinynet:few",
    "--device", "cpu-1thread",
]  # fmt: skip
STEPS: dict[str, list[str]] = {
    "profile": ["profile", *ABOUT, "--estimate"],
    "train": ["train", *TRAINING["train"]],
    "search": [
        "search", "--latency", "0.7x", "--confidence", "0.5", "--evaluations", "40", "--population", "8",
        "--val-images", "100",
    ],
    "retrain": ["retrain", *TRAINING["retrain"]],
    "export": ["export"],
    "bench": ["bench", "--rounds", "1", "--runs", "3", "--batches", "1", "--no-layers"],
    "report": ["report"],
}  # fmt: skip
MEASURED = ["profile", *ABOUT, "--budget", "4s"]
RUN = ["run", "--config", "config.yaml"]
PATIENCE_S = 600.0
"""A command of some seconds that takes longer than this hangs; less could be a starved machine."""
ANEW = {"export": "--force", "report": "--force"}
"""What makes a step work again; of all others it is ``--fresh``."""


def prepare(folder: Path) -> None:
    """Make ``folder`` the current one, with the model and the configuration, and load all that steps need."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tinynet.py").write_text(MODULE)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    # What the commands import, as one process says that has carried them all out.
    names = folder / "modules.json"
    if not names.exists():
        Child([], folder / "modules.log", work=lambda: _all_steps(folder / "first", names)).wait()
    for name in json.loads(names.read_text()):
        with suppress(Exception):
            importlib.import_module(name)


def _all_steps(run: Path, names: Path) -> None:
    for arguments in STEPS.values():
        if _call([*arguments, "--quiet", "--run-dir", str(run)]):
            raise RuntimeError(" ".join(arguments))
    names.write_text(json.dumps(sorted(sys.modules)))


class Child:
    """A command in a process group of its own; its output goes into a file."""

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        work: Callable[[], Any] | None = None,
    ) -> None:
        self.log = log
        self.code: int | None = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.environ.update(environment or {})
            code = 70  # a defect
            try:
                stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(stream, 1)
                os.dup2(stream, 2)
                code = _call(arguments) if work is None else int(bool(work()))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        atexit.register(self.kill)  # none outlives a check that is stopped

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, seconds: float = PATIENCE_S) -> int:
        """The exit code; a process that takes longer is killed and counts as a hang (code -9)."""
        end = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                self.kill()
            time.sleep(0.002)
        return code

    def kill(self, number: int = signal.SIGKILL) -> None:
        """To the whole group."""
        if self.poll() is None:
            os.killpg(self.pid, number)

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")


def _call(arguments: Sequence[str]) -> int:
    from bcnet_deploy.cli.main import cli

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        cli(list(arguments), prog_name="bcnet-deploy")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return 0


def carried_out(arguments: Sequence[str], run: Path, log: Path | None = None) -> float:
    """Run a command to its end; its seconds. Raises RuntimeError where it fails."""
    began = time.monotonic()
    child = Child([*arguments, "--quiet", "--run-dir", str(run)], log or run.with_suffix(".log"))
    if child.wait():
        raise RuntimeError(f"{' '.join(arguments)}: exit code {child.code}: {child.text[-2000:]}")
    return time.monotonic() - began


def outcome(run: Path) -> dict[str, Any]:
    """What must not depend on kills, full disks or other writers; only what there is."""
    found: dict[str, Any] = {}
    for name in (
        "train/supernet.safetensors",
        *(f"retrain/{n}/weights.safetensors" for n in ("uniform", "found")),
    ):
        if (run / name).exists():
            found[name] = hashlib.sha256((run / name).read_bytes()).hexdigest()
    for path in (run / "train/records.jsonl", *sorted((run / "search").glob("journal-*.jsonl"))):
        if path.exists():
            # In any order: what went on after a kill may ask for what is lacking in another one.
            found[str(path.relative_to(run))] = sorted(path.read_text().splitlines())
    if (run / "search/widths.yaml").exists():
        said = yaml.safe_load((run / "search/widths.yaml").read_text())
        found["widths"] = {
            "found": said["widths"], "uniform": said["compared_with"]["uniform"]["widths"],
            "scores": said["scores"],
        }  # fmt: skip
    for name in ("uniform", "found"):
        path = run / "retrain" / name / "result.json"
        if path.exists():
            said = json.loads(path.read_text())
            found[str(path.relative_to(run))] = {
                key: said[key] for key in ("val_top1", "test_top1", "widths")
            }
    table = run / "latency/cpu-1thread.json"
    if table.exists() and json.loads(table.read_text())["source"] == "estimated":
        said = json.loads(table.read_text())
        found["latency"] = {key: said[key] for key in ("networks", "models", "entries")}
    return found


def damaged(run: Path) -> list[str]:
    """Files that cannot be read as what they are; half a last line of a log is allowed: readers drop it."""
    from safetensors import safe_open

    bad = []
    for path in sorted(run.rglob("*")):
        if not path.is_file() or path.name.startswith("."):
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".yaml":
                yaml.safe_load(path.read_text())
            elif path.suffix == ".jsonl":
                whole, _, _ = path.read_text().rpartition("\n")
                for line in whole.splitlines():
                    json.loads(line)
            elif path.suffix == ".safetensors":
                with safe_open(str(path), framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118
                        file.get_tensor(name)
            elif path.suffix == ".onnx":
                import onnx

                onnx.checker.check_model(onnx.load(str(path)))
        except Exception as error:
            bad.append(f"{path.relative_to(run)}: {type(error).__name__}: {error}"[:300])
    return bad


def unlike(run: Path, expected: Mapping[str, Any]) -> list[str]:
    """Files that are damaged, and what differs from the outcome of an undisturbed run; empty: all is well."""
    found = outcome(run)
    return damaged(run) + [f"{key} differs" for key in expected if found.get(key) != expected[key]]


class Trials:
    """Trials that go on where a check was stopped; one with problems is shown as it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if row["problems"]:
            print(json.dumps(row), flush=True)
        files.write_json(self._path, self.rows)


def options_of(description: str | None, count: str) -> argparse.ArgumentParser:
    """The options that all checks have; ``count`` is what the number of trials is called."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument(f"--{count}", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1e9, help="no new trial after so long")
    parser.add_argument("--out", type=Path)
    return parser


def refusal(text: str) -> str:
    """The one line of a typed error, or what else there is: a traceback, nothing."""
    lines = [line for line in text.splitlines() if line.startswith("bcnet-deploy: error:")]
    if "Traceback" in text or len(lines) != 1:
        return "TRACEBACK " + text[-1500:] if "Traceback" in text else f"NO ERROR LINE {text[-500:]}"
    return lines[0].removeprefix("bcnet-deploy: error: ")
