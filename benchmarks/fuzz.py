"""Hostile files and options, for minutes: whatever is given is used or refused on one line.

    python -m benchmarks.fuzz --minutes 10 [--seed 0] [--family tables] [--seconds S] [--out fuzz.json]

A small run directory is made first (estimated table, one short training, one search). Each case copies it,
spoils one of its files or makes another hostile input, and runs a command on it in this process. Counted are
tracebacks, cases that take longer than 10 s, files written outside the run directory, and nonsense: a command
that ends well and shows a figure that no network or machine can have.

Minutes are of the processor's time in this process, so that a busy machine tries as much. With ``--seconds``
it stops after so long on the wall; the same command goes on where ``--out`` ends.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner

from benchmarks.small_run import MODULE

LIMIT_S = 10
MODEL = "tinynet:net"
OWN = (MODEL, "--input-size", "1x16x16")
FEW_STEPS = ("--config", "digits", "--set", "epochs=1", "--set", "batch_size=32", "-q")
TRAIN, RETRAIN, EXPORT = ("train", *FEW_STEPS), ("retrain", *FEW_STEPS), ("export", "-q")
# What is measured is little, so that what takes long is a hang.
BENCH = ("bench", "--no-layers", "--rounds=1", "--runs=1", "--warmup=0", "--batches=")
SEARCH = ("search", "--macs", "0.5x", "--evaluations", "12", "--population", "6", "-q", "--json")
VALUES: list[Any] = [
    None, True, False, "", "abc", "\x00", "[/red]", "a\nb", "../../out", "/tmp/out", "x" * 5000,
    0, -1, 1, 2, 0.5, 255, 2**31, 10**30, 10**400, -(10**18), 1e300, 1e-300, -0.0, float("inf"),
    float("nan"), [], {}, [[]], [1, -1, 16],
    {"a": {"b": []}}, "2020-13-45", "5ms", "!!python/object:os.system", "digits", "demo", "no:such", "a.py:f",
]  # fmt: skip
OPTIONS = [
    *("", "0", "-1", "1", "5", "5ms", "=5ms", "t4=5ms", "0.5x", "1e308x", "1e30G", "1e-9s", "abc"),
    *("[/red]", "../../x", "/", ".", "99999999999", "1x1000000x1000000", "3x8x8", "²", "9" * 5000, "a=b"),
    *("epochs=", "epochs=x", "epochs=!!python/object:x", "batch_size=10**9", "nan", "inf", "-inf"),
    *("1,2,3", ",", "t4,t4", "cpu", "digits"),
]  # fmt: skip
COMMANDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "inspect": (
        ("inspect", "demo"), ("--input-size", "--weights", "--num-classes", "--levels", "--min-level"),
    ),
    "profile": (
        ("profile", "--estimate"),
        (
            "--device", "--devices", "--model", "--input-size", "--levels", "--budget", "--table", "--seed",
            "--data",
        ),
    ),
    "search": (
        ("search", "--dry-run"),
        (
            "--latency", "--macs", "--params", "--peak-memory", "--weight-size", "--confidence",
            "--channel-steps", "--strategy", "--evaluations", "--population", "--patience", "--val-images",
            "--on-error", "--scores",
        ),
    ),
    "export": (("export",), ("--engine", "--which", "--precision", "--opset", "--device")),
    "bench": (
        BENCH,
        ("--device", "--rounds", "--runs", "--warmup", "--threads", "--batches"),
    ),
    "devices": (("devices",), ("",)),
    "table": (("table", "show"), ("",)),
}  # fmt: skip


class Hang(BaseException):
    """A case took too long."""


# -- spoiling -------------------------------------------------------------------------------------


def spoil_bytes(content: bytes, rng: random.Random) -> bytes:
    """Cut off, flipped, repeated, or with something put in."""
    how = rng.choice(("cut", "flip", "repeat", "insert", "empty", "zeros"))
    place = rng.randrange(len(content) + 1)
    if how == "cut":
        return content[:place]
    if how == "flip" and content:
        spoilt = bytearray(content)
        for _ in range(rng.choice((1, 3, 30))):
            spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
        return bytes(spoilt)
    if how == "repeat":
        return content + content
    if how == "insert":
        text = rng.choice(
            (b"\x00", b"[" * 100_000, b"9" * 5000, b"\xff\xfe", b"\n", b'"', b"&a [*a]", b"1e999", b"NaN")
        )
        return content[:place] + text + content[place:]
    return b"" if how == "empty" else b"\x00" * len(content)


def spoil_value(data: Any, rng: random.Random) -> Any:
    """One value somewhere in it replaced, removed, doubled or added."""
    data = copy.deepcopy(data)
    holders = [node for node in nodes(data) if isinstance(node, dict | list) and node]
    if not holders:
        return rng.choice(VALUES)
    for _ in range(rng.choice((1, 1, 1, 3))):
        holder = rng.choice(holders)
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            continue
        key, how = rng.choice(keys), rng.choice(("replace", "replace", "replace", "remove", "double", "add"))
        if how == "replace":
            holder[key] = rng.choice(VALUES)
        elif how == "remove":
            del holder[key]
        elif isinstance(holder, list):
            holder.append(holder[key])
        else:
            holder[rng.choice(("x", 5, "", f"{key}s"))] = holder[key]
    return data


def nodes(data: Any) -> Iterator[Any]:
    yield data
    for inner in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
        yield from nodes(inner)


def spoil_file(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    try:
        if path.suffix == ".json" and rng.random() < 0.75:
            path.write_text(json.dumps(spoil_value(json.loads(content), rng)))
        elif path.suffix in (".yaml", ".ofa") and rng.random() < 0.75:
            path.write_text(yaml.safe_dump(spoil_value(yaml.safe_load(content), rng), allow_unicode=True))
        elif path.suffix == ".jsonl" and rng.random() < 0.75:
            lines = [json.loads(line) for line in content.splitlines()]
            place = rng.randrange(len(lines))
            lines[place] = spoil_value(lines[place], rng)
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        elif path.suffix == ".csv" and rng.random() < 0.75:
            lines = [re.split(r"([,x: ])", line) for line in content.decode().splitlines()]
            words = rng.choice(lines)
            words[rng.randrange(len(words))] = str(rng.choice(VALUES))
            path.write_text("\n".join("".join(line) for line in lines) + "\n")
        else:
            path.write_bytes(spoil_bytes(content, rng))
    except (ValueError, IndexError):
        path.write_bytes(spoil_bytes(content, rng))


# -- families -------------------------------------------------------------------------------------

Case = tuple[str, Callable[[], Any]]
"""What is tried, in words, and the trial."""


def on_file(suffixes: tuple[str, ...], parts: tuple[str, ...], commands: tuple[tuple[str, ...], ...]) -> Any:
    """A family: one of the run's files that lies in ``parts``, spoilt, then one of ``commands``."""

    def make(run: Path, rng: random.Random) -> Case:
        found = [
            path
            for path in sorted(run.rglob("*"))
            if path.suffix in suffixes and path.relative_to(run).parts[0] in parts
        ]
        path = rng.choice(found)
        spoil_file(path, rng)
        command = [
            str(path) if word == "FILE" else word.replace("RUN", str(run)) for word in rng.choice(commands)
        ]
        return f"{path.relative_to(run)}: {' '.join(command)}", lambda: call(run, command)

    return make


def call(run: Path, command: list[str]) -> None:
    """Run a command; raise what it raised, or where its error is no single line."""
    from bcnet_deploy.cli.main import cli

    own = [] if command[0] in ("table", "devices", "inspect") else ["--run-dir", str(run)]
    result = CliRunner().invoke(cli, [*command, *own], catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if result.exit_code not in (0, 1, 2):
        raise AssertionError(f"exit code {result.exit_code}")
    if result.exit_code == 0:
        check_sense(result.stdout)
    error = [line for line in result.stderr.splitlines() if line.startswith("bcnet-deploy: error")]
    if result.exit_code and (len(error) != 1 or "Traceback" in result.stderr):
        raise AssertionError(f"no single line of an error: {result.stderr[-500:]!r}")


class Nonsense(AssertionError):
    """A figure that nothing can have was accepted."""


LARGEST = 1e18


def check_sense(output: str) -> None:
    """Raise :class:`Nonsense` for what is not finite or far beyond any cost, time or accuracy."""
    if re.search(r"(?<![a-z])(inf|nan)(?![a-z])", output, re.IGNORECASE):
        raise Nonsense(output[:500])
    try:
        data = json.loads(output)
    except ValueError:
        return
    waiting = [("", data)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(key, part) for part in value]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            wrong = not abs(value) <= LARGEST
            wrong |= key.endswith("_ms") and not 0 <= value <= 1e9
            wrong |= key in ("macs", "params", "channels", "evaluations") and not 0 <= value <= LARGEST
            wrong |= key == "accuracy" and not -10 <= value <= 110  # a regression's may be beyond 0 and 100
            if wrong:
                raise Nonsense(f"{key}: {value!r}")


def states(run: Path, rng: random.Random) -> Case:
    """What a checkpoint says of itself, spoilt; the training must go on from it or refuse it."""
    from safetensors.torch import load_file, safe_open, save_file

    path = run / "train" / "checkpoint.safetensors"
    with safe_open(str(path), framework="pt") as file:
        header = dict(file.metadata())
    state = spoil_value(json.loads(header["state"]), rng)
    text = (
        json.dumps(state)
        if rng.random() < 0.9
        else spoil_bytes(header["state"].encode(), rng).decode("latin1")
    )
    tensors = load_file(str(path))
    if rng.random() < 0.2:
        del tensors[rng.choice(list(tensors))]
    save_file(tensors, str(path), {**header, "state": text})
    for name in ("supernet.json", "supernet.safetensors"):
        (run / "train" / name).unlink()
    stamp = run / "steps" / "train.json"
    stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "finished": False}))
    return "checkpoint's state: train", lambda: call(run, list(TRAIN))


def torch_files(run: Path, rng: random.Random) -> Case:
    """Weights of the user's own: torch and safetensors files, whole, spoilt, or of something else."""
    import torch
    from safetensors.torch import load_file

    tensors: Any = {
        key.removeprefix("supernet."): value
        for key, value in load_file(str(run / "train" / "supernet.safetensors")).items()
    }
    how = rng.choice(("whole", "nested", "prefix", "values", "deep", "missing"))
    if how == "nested":
        tensors = {rng.choice(("state_dict", "model", "ema", "x")): tensors, "epoch": rng.choice(VALUES[:20])}
    elif how == "prefix":
        tensors = {
            f"{rng.choice(('module.', '_orig_mod.', 'x.'))}{key}": value for key, value in tensors.items()
        }
    elif how == "values":
        tensors[rng.choice(list(tensors))] = rng.choice((*VALUES, torch.zeros(3), torch.tensor(float("nan"))))
    elif how == "deep":
        for _ in range(rng.choice((3, 300))):
            tensors = {"state_dict": tensors}
    elif how == "missing":
        tensors = dict(list(tensors.items())[: rng.randrange(3)])
    path = run / rng.choice(("w.pth", "w.pt", "w.safetensors", "w"))
    torch.save(tensors, path, _use_new_zipfile_serialization=rng.random() < 0.7)
    if rng.random() < 0.4:
        path.write_bytes(spoil_bytes(path.read_bytes(), rng))
    return f"weights, {how}: inspect", lambda: call(run, ["inspect", *OWN, "--weights", str(path), "--json"])


def options(run: Path, rng: random.Random) -> Case:
    first, names = COMMANDS[rng.choice(list(COMMANDS))]
    given = [
        word
        for name in rng.sample(names, min(len(names), rng.choice((1, 1, 2))))
        for word in (name, rng.choice(OPTIONS))
    ]
    command = [*first, *(word for word in given if word != "" or first[0] not in ("devices", "table"))]
    return " ".join(map(repr, command)), lambda: call(run, command)


def quantities(run: Path, rng: random.Random) -> Case:
    from bcnet_deploy import units
    from bcnet_deploy.errors import UnitError

    number = rng.choice((*OPTIONS, str(rng.uniform(-1, 1) * 10 ** rng.uniform(-320, 308))))
    text = number + rng.choice(("", "x", "%", "ms", "s", "m", "h", "us", "k", "M", "G", "T", "MiB", "B"))

    def trial() -> None:
        for read, (least, largest, _) in (
            (units.parse_latency, units.LATENCIES_MS), (units.parse_count, units.COUNTS),
            (units.parse_bytes, units.BYTES),
        ):  # fmt: skip
            try:
                quantity = read(text)
            except UnitError:
                continue
            lower, upper = (units.SHARES[:2]) if quantity.relative else (least, largest)
            assert lower <= quantity.value <= upper, (text, quantity)
        for parse in (units.parse_duration, units.parse_size):
            try:
                parse(text)
            except UnitError:
                continue

    return repr(text), trial


def images(run: Path, rng: random.Random) -> Case:
    root = hostile_folder(run, rng)
    return "folder", lambda: load(root)


def archives(run: Path, rng: random.Random) -> Case:
    root = hostile_folder(run, rng)
    path = run / "set.tar"
    with tarfile.open(path, rng.choice(("w", "w:gz", "w:xz", "w:bz2"))) as tar:
        tar.add(root, "set")
        for name in rng.sample(("../../out", "/tmp/out", "set/train/a/link.png", "set/train"), 1):
            entry = tarfile.TarInfo(name)
            entry.type = rng.choice(
                (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)
            )
            entry.linkname = "../../../../etc/passwd"
            if rng.random() < 0.5:
                tar.addfile(entry)
    if rng.random() < 0.7:
        path.write_bytes(spoil_bytes(path.read_bytes(), rng))
    return "archive", lambda: load(path)


def load(path: Path) -> None:
    from bcnet_deploy.data import load_data
    from bcnet_deploy.errors import BCNetError

    try:
        data = load_data(str(path), (3, 16, 16), memory_bytes=random.choice((None, 10)))
        assert len(data.train) and len(data.val)
        data.train.read(0, None), data.train.target(0, None), data.train.read(0, 5)
        test = data.open_test()
        assert test is None or len(test)
    except BCNetError as error:
        assert str(error).isprintable(), repr(str(error))


def hostile_folder(run: Path, rng: random.Random) -> Path:
    """Classes, or images and masks, of good and spoilt pictures under good and odd names."""
    from PIL import Image

    root = run / "pictures"
    masked = rng.random() < 0.3
    kinds = ("images", "masks") if masked else ("a", "b", "c")
    for part in ("train", *rng.sample(("test", "val", ".x", "valid"), rng.randrange(3))):
        for kind in kinds if rng.random() < 0.8 else rng.sample((*kinds, "[red]", ".hidden", "a\nb"), 2):
            folder = root / part / kind
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(rng.choice((0, 2, 5, 5, 5))):
                mode = (
                    rng.choice(("L", "P"))
                    if kind == "masks"
                    else rng.choice(("RGB", "L", "P", "RGBA", "LA", "I;16", "1", "F"))
                )
                size = (20, 24) if rng.random() < 0.95 else (rng.randrange(1, 40), rng.randrange(1, 40))
                picture = Image.frombytes("L", size, rng.randbytes(size[0] * size[1]))
                if kind == "masks":
                    picture = picture.point(lambda value: value % 3)
                else:
                    picture = picture.convert("F" if mode == "F" else "I;16" if mode == "I;16" else mode)
                stream = io.BytesIO()
                picture.save(stream, "TIFF" if mode == "F" else "PNG")
                content = stream.getvalue()
                if rng.random() < 0.05:
                    content = spoil_bytes(content, rng)
                suffix = rng.choice(("png", "PNG", "jpg", "txt")) if rng.random() < 0.1 else "png"
                (folder / f"{index}.{suffix}").write_bytes(content)
    return root


SHOW, REPORT, DRY = ("table", "show", "FILE", "--json"), ("report", "-q"), ("search", "--dry-run", "--json")
LOOK = (REPORT, (*DRY, "--macs", "0.5x"), SEARCH)
ESTIMATE = ("profile", "--estimate", "--device", "FILE", "--fresh", "-q")
FEW = (
    "search", "--macs", "0.5x", "--evaluations", "2", "--population", "2", "--val-images", "50", "--fresh",
    "-q",
)  # fmt: skip
OUT = ("--out", "RUN/out.json", "--json")
IMPORTS = (("table", "from-csv", "FILE", *OUT), ("table", "from-ofa", "FILE", "--device", "mine", *OUT))
WEIGHTS = (FEW, TRAIN, ("inspect", *OWN, "--weights", "FILE"))
FINISHED = (
    REPORT, (*RETRAIN, "--json"), EXPORT, (*EXPORT, "--json"), (*EXPORT, "--force"), (*BENCH, "-q"),
    (*BENCH, "--json"), (*BENCH, "-q", "--fresh"),
)  # fmt: skip
OWN_WIDTHS = (
    ("retrain", "--widths", "FILE", "--fresh", *FEW_STEPS),
    ("retrain", "--widths", "FILE", *FEW_STEPS),
)
FAMILIES: dict[str, Callable[[Path, random.Random], Case]] = {
    "tables": on_file((".json",), ("latency",), (SHOW, REPORT, (*DRY, "--latency", "0.5x"))),
    "devices": on_file((".yaml",), ("devices",), (("devices", "FILE"), ESTIMATE)),
    "run.yaml": on_file((".yaml",), ("run.yaml",), LOOK),
    "steps": on_file((".json",), ("steps", ".writer.json"), LOOK),
    "journals": on_file((".jsonl",), ("search", "train", "latency"), (SEARCH, REPORT)),
    "states": states,
    "weights": torch_files,
    "checkpoints": on_file((".safetensors",), ("train",), WEIGHTS),
    "searched": on_file(
        (".json", ".yaml"),
        ("search", "train"),
        (*LOOK, TRAIN, (*TRAIN, "--json"), FEW, RETRAIN, (*EXPORT, "--force")),
    ),
    "widths": on_file((".yaml",), ("search",), OWN_WIDTHS),
    "finished": on_file((".json", ".yaml", ".jsonl", ".onnx"), ("retrain", "export", "bench"), FINISHED),
    "imports": on_file((".csv", ".ofa"), ("imports",), IMPORTS),
    "options": options,
    "quantities": quantities,
    "folders": images,
    "archives": archives,
}


# -- watching -------------------------------------------------------------------------------------


class Watch:
    """Notes every file that Python opens for writing, makes, renames or removes outside ``allowed``."""

    def __init__(self) -> None:
        self.allowed: tuple[str, ...] = ()
        self.outside: list[str] = []
        self.on = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if not writes and not (isinstance(mode, str) and set(mode) & set("wax+")):
                return
        elif event in (
            "os.rename",
            "os.mkdir",
            "os.remove",
            "os.rmdir",
            "os.symlink",
            "os.link",
            "os.truncate",
        ):
            path = arguments[1] if event in ("os.rename", "os.symlink", "os.link") else arguments[0]
        else:
            return
        if event in ("os.remove", "os.rmdir", "os.mkdir") and arguments[-1] != -1:
            return  # named within an open folder, whose own opening was seen
        if isinstance(path, str | bytes | os.PathLike):
            where = os.path.realpath(os.fsdecode(path))
            if not where.startswith(self.allowed):
                self.outside.append(f"{event} {where}")


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise :class:`Hang` after so much time of the processor, or where that stands still for long.

    A machine that is busy with other work gives a case little of the processor, but some.
    """
    used = time.process_time()

    def ring(number: int, frame: Any) -> None:
        nonlocal used
        before, used = used, time.process_time()
        if number == signal.SIGPROF or used - before < 0.05:
            raise Hang
        signal.setitimer(signal.ITIMER_REAL, 3 * seconds)

    bells = ((signal.SIGPROF, signal.ITIMER_PROF, seconds), (signal.SIGALRM, signal.ITIMER_REAL, 3 * seconds))
    before = [signal.signal(number, ring) for number, _, _ in bells]
    for _, timer, after in bells:
        signal.setitimer(timer, after)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(bells, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def prepare(folder: Path) -> Path:
    """A small run directory with everything that the cases spoil; one that is there is taken."""
    from bcnet_deploy import files

    run = folder / "base"
    if (run / "devices" / "mine.yaml").exists():
        return run
    for command in (
        (
            "profile", "--model", MODEL, "--data", "tinynet:few", "--input-size", "1x16x16", "--device", "t4",
            "--estimate", "--levels", "4", "-q",
        ),
        TRAIN, SEARCH, RETRAIN, EXPORT, (*BENCH, "-q"),
    ):  # fmt: skip
        call_checked(run, list(command))
    for name, text in (("table.csv", CSV), ("table.ofa", OFA)):
        files.write_text(run / "imports" / name, text)
    (run / "devices").mkdir(exist_ok=True)
    from bcnet_deploy.devices import known_devices

    shutil.copy(known_devices()["t4"], run / "devices" / "mine.yaml")
    return run


CSV = """\
# bcnet-deploy latency table: {"device": "mine", "source": "measured", "precision": "fp32", "batch": 1, \
"granularity": [8, 4], "provenance": {"threads": 1}}
key,channels,count,median_us,spread_us
conv,8x16,5,10.50,0.20
conv,16x32,5,30.00,0.40
linear,64,3,2.00,0.00
"""
OFA = """\
Conv-input:32x32x3-output:16x16x32: {count: 5, mean: 2.5}
expanded-input:16x16x32-output:16x16x16-expand:1-kernel:3: {count: 4, mean: 3.25}
expanded-input:16x16x16-output:8x8x24-expand:3-kernel:5: {count: 1, mean: 1.5}
Logits-input:7x7x128-output:10: 0.5
"""


def call_checked(run: Path, command: list[str]) -> None:
    from bcnet_deploy.cli.main import cli

    result = CliRunner().invoke(cli, [*command, "--run-dir", str(run)])
    if result.exit_code:
        raise SystemExit(f"{' '.join(command)}: {result.output}")


def fuzz(
    minutes: float,
    seed: int,
    families: list[str],
    cases: int | None = None,
    kept: Path | None = None,
    again: list[tuple[str, str]] | None = None,
    seconds: float = 1e9,
    former: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Cases for ``minutes``, or so many, or those ``again`` (family, case) that failed before.

    Returns counts by family, and each failure with what reproduces it; after those of ``former``, what an
    earlier call of the same seed and families returned.
    """
    former = former or {"minutes": 0.0, "cases": 0, "slowest_s": 0.0, "counts": {}, "failures": []}
    if again is not None:
        cases = len(again)
    import torch

    torch.set_num_threads(1)
    counts = {name: Counter(former["counts"].get(name, {})) for name in families}
    slowest = float(former["slowest_s"])
    failures: list[dict[str, str]] = list(former["failures"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        os.environ["BCNET_CACHE"] = str(folder / "cache")
        os.chdir(folder)
        (folder / "tinynet.py").write_text(MODULE)
        sys.path.insert(0, str(folder))
        (folder / "tmp").mkdir()
        tempfile.tempdir = str(folder / "tmp")
        base = prepare((kept or folder).resolve())
        watch = Watch()
        watch.allowed = (*(str(folder / own) for own in ("case", "cache", "tmp")), "/dev/", "/proc/")
        until, number, at_first = time.monotonic() + seconds, int(former["cases"]), time.process_time()

        def spent() -> float:
            return float(former["minutes"]) + (time.process_time() - at_first) / 60

        while time.monotonic() < until and (number < cases if cases is not None else spent() < minutes):
            family, case = families[number % len(families)], f"{seed} {number}"
            if again is not None:
                family, case = again[number]
            rng = random.Random(case)
            random.seed(int(case.split()[1]))
            run = folder / "case"
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(base, run)
            what, trial = FAMILIES[family](run, rng)
            began = time.process_time()
            outcome, detail = "ok", ""
            watch.outside.clear()
            try:
                with at_most(LIMIT_S):
                    watch.on = True
                    trial()
            except Hang:
                outcome, detail = "hang", traceback.format_exc(limit=-4)
            except Nonsense:
                outcome, detail = "nonsense", traceback.format_exc(limit=-2)
            except Exception:
                outcome, detail = "traceback", traceback.format_exc(limit=-4)
            finally:
                watch.on = False
            slowest = max(slowest, time.process_time() - began)
            strays = [line for line in watch.outside if "__pycache__" not in line]
            if strays:
                outcome, detail = "outside", "; ".join(strays[:5])
            counts[family][outcome] += 1
            if outcome != "ok":
                failures.append(
                    {
                        "family": family,
                        "case": case,
                        "what": what,
                        "how": outcome,
                        "detail": detail,
                    }
                )
                print(f"{family} {number}: {outcome}: {what[:200]}\n{detail}", flush=True)
            number += 1
        os.chdir("/")
    return {
        "minutes": round(spent(), 2),
        "seed": seed,
        "cases": sum(sum(count.values()) for count in counts.values()),
        "slowest_s": round(slowest, 1),
        "counts": {k: dict(v) for k, v in counts.items()},
        "failures": failures,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--cases", type=int, help="so many, instead of minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so long on the wall")
    parser.add_argument("--again", type=Path, help="only the cases that failed, by a result of --out")
    parser.add_argument("--kept", type=Path, help="folder that keeps the run that the cases spoil")
    parser.add_argument("--family", action="append", choices=list(FAMILIES))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    families = arguments.family or list(FAMILIES)
    again = None
    if arguments.again:
        again = [(one["family"], one["case"]) for one in json.loads(arguments.again.read_text())["failures"]]
        families = sorted({family for family, _ in again})
    former, out = None, arguments.out
    if out and out.exists() and again is None:
        former = json.loads(out.read_text())
        if (former["seed"], list(former["counts"])) != (arguments.seed, families):
            parser.error(f"{out} is of another seed or of other families")
    result = fuzz(
        arguments.minutes, arguments.seed, families, arguments.cases, arguments.kept, again,
        arguments.seconds, former,
    )  # fmt: skip
    for family, counts in result["counts"].items():
        print(f"{family:12} {counts}")
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(1 if result["failures"] else 0)


if __name__ == "__main__":
    main()
