"""Files that are either whole or absent, and readers that a damaged or hostile file cannot hurt.

Everything a user could miss is written to a temporary file beside its target and renamed, so that
a kill, a full disk or a power cut leaves the former file in place. Logs are the exception: they grow by
whole lines (:class:`JsonLines`).

Readers take regular files of limited size and depth only. Anything else is one line of a typed error.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
import reprlib
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from bcnet_deploy.errors import BCNetError, CheckpointError, RunDirError, names_nothing

if TYPE_CHECKING:
    import torch

MAX_BYTES = 2**27
"""Of a text or JSON file that is read whole."""
MAX_YAML_BYTES = 2**21
MAX_LINE_BYTES = 2**20
MAX_DEPTH = 64
MAX_WHOLE = 2**256
"""Whole numbers stay below it: states of random generators have 128 bits, and a float holds them all."""
MAX_YAML_NODES = 250_000
"""After aliases are written out."""
AGAIN = "make it again or restore a copy"
"""What helps against most damaged files."""

# -- writing --------------------------------------------------------------------------------------


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; rename it onto ``path`` if the block succeeds.

    The file gets the permissions that the user's umask gives to new files, whoever wrote it.

    Raises:
        RunDirError: the folder cannot be created or written, or the disk is full.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        mode = stat.S_IMODE(os.fstat(handle).st_mode)
        os.close(handle)
    except (OSError, ValueError) as error:
        raise RunDirError(f"cannot write {target}: {reason(error)}; choose a writable folder") from error
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        # A library may have put a private file of its own in the temporary's place.
        temporary.chmod(mode)
        os.replace(temporary, target)
    except OSError as error:
        raise RunDirError(
            f"cannot write {target}: {reason(error)}; the former file, if any, is unchanged"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically. Raises :class:`RunDirError`."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` (UTF-8) to ``path`` atomically. Raises :class:`RunDirError`."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, data: Any, *, indent: int | None = 1) -> None:
    """Write ``data`` as strict JSON (no NaN) to ``path`` atomically. Raises :class:`RunDirError`."""
    write_text(path, json.dumps(data, indent=indent, allow_nan=False) + "\n")


def write_yaml(path: str | Path, data: Any) -> None:
    """Write ``data`` as YAML, keys in the order given, atomically.

    Raises:
        RunDirError: the file cannot be written, or a text is not Unicode: nobody could read it.
    """
    try:
        text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    except UnicodeEncodeError as error:
        raise RunDirError(
            f"cannot write {path}: the text {ascii(error.object)} is not UTF-8; "
            "rename the file or folder that is called so"
        ) from error
    write_text(path, text)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """A value that occurs twice is written twice: people read these files."""
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """In double quotes where it has line ends other than \\n: they are escaped there, else lost."""
        data.encode()  # half of a pair, as names of files that are not UTF-8 have: YAML has none
        style = '"' if re.search("[\r\x85\u2028\u2029]", data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


def write_tensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors and text as a safetensors file atomically. Raises :class:`RunDirError`.

    Tensors that share memory (a weight that two layers have in common) are written under each name.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    known: set[int] = set()
    alone: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        alone[name] = tensor.clone() if memory in known else tensor
        known.add(memory)
    with replacing(path) as temporary:
        try:
            save_file(alone, str(temporary), metadata=None if metadata is None else dict(metadata))
        except SafetensorError as error:  # a full disk, mostly
            raise OSError(str(error)) from error


# -- reading --------------------------------------------------------------------------------------


def reason(error: BaseException) -> str:
    """Why a file cannot be used, on one short line."""
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON at column {error.colno}: {error.msg}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, RecursionError):
        return f"it is nested more than {MAX_DEPTH} deep"
    lines = str(error).splitlines()
    return lines[0][:300] if lines else type(error).__name__


@contextmanager
def malformed(source: str | Path, error: type[BCNetError], remedy: str) -> Iterator[None]:
    """Taking apart what was read: whatever that raises becomes one ``error`` that names the file.

    Our own errors say what is wrong themselves; those that are values' get the file's name too.

    Args:
        source: the file, or what is called so in messages.
        error: raised.
        remedy: what to do next.
    """
    try:
        yield
    except BCNetError as cause:
        if isinstance(cause, error) or not isinstance(cause, ValueError):
            raise
        raise error(f"{source}: {cause}; {remedy}") from cause
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as cause:
        why = f"the key {cause} is missing" if isinstance(cause, KeyError) else reason(cause)
        raise error(f"{source} is damaged, or of another version ({why}); {remedy}") from cause


def require_file(path: str | Path, error: type[BCNetError], what: str, remedy: str = "") -> None:
    """Raise ``error`` unless there is a regular file: a pipe would block, a device would never end."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise names_nothing(error(f"no {what} at {path}" + (f"; {remedy}" if remedy else ""))) from None
    except (OSError, ValueError) as cause:
        raise error(f"cannot read {what} {path}: {reason(cause)}") from cause
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise error(f"cannot read {what} {path}: it is {kind}; give a regular file")


def is_file(path: str | Path) -> bool:
    """Whether there is a regular file. None is where the system can have no path: too long, with a NUL."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def read_bytes(path: str | Path, error: type[BCNetError], what: str, limit: int = MAX_BYTES) -> bytes:
    """The content of ``path``; ``error`` naming ``what`` and the file when it cannot be read."""
    require_file(path, error, what)
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as cause:
        raise error(f"cannot read {what} {path}: {reason(cause)}") from cause
    if len(content) > limit:
        raise error(f"{what} {path} is larger than {limit} bytes, which no {what} needs")
    return content


def content_hash(path: str | Path, error: type[BCNetError] = RunDirError) -> str:
    """SHA-256 of a file's content; ``error`` where it cannot be read."""
    try:
        with open(path, "rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as cause:
        raise error(f"cannot read {path}: {reason(cause)}; run the same command again") from cause


def read_text(path: str | Path, error: type[BCNetError], what: str, limit: int = MAX_BYTES) -> str:
    """The text (UTF-8) of ``path``; ``error`` naming ``what`` and the file when it cannot be read."""
    try:
        return read_bytes(path, error, what, limit).decode()
    except UnicodeDecodeError as cause:
        raise error(f"cannot read {what} {path}: {reason(cause)}") from cause


def read_json(path: str | Path, error: type[BCNetError], what: str) -> Any:
    """The JSON value in ``path``; ``error`` with the line and column when it is not valid JSON."""
    return parse_json(read_text(path, error, what), error, f"{what} {path}")


def parse_json(text: str, error: type[BCNetError], source: str) -> Any:
    """The value of a JSON text; ``error`` naming ``source`` when it cannot be used."""
    try:
        return _parse_json(text)
    except json.JSONDecodeError as cause:
        raise error(
            f"{source} is not valid JSON at line {cause.lineno}, column {cause.colno}: {cause.msg}; "
            f"it may be truncated: {AGAIN}"
        ) from cause
    except (ValueError, RecursionError) as cause:
        raise error(f"{source} cannot be used: {reason(cause)}; {AGAIN}") from cause


def read_yaml(path: str | Path, error: type[BCNetError], what: str) -> Any:
    """The YAML value in ``path``; ``error`` with the place when it is not valid YAML. Dates stay text."""
    return parse_yaml(read_text(path, error, what, MAX_YAML_BYTES), error, f"{what} {path}")


def parse_yaml(text: str, error: type[BCNetError], source: str) -> Any:
    """The value of a YAML text; ``error`` naming ``source`` when it is not valid, too deep or too large."""
    try:
        _check_events(text)
        return _plain(yaml.load(text, Loader=_loader()))
    except yaml.YAMLError as cause:
        place = getattr(cause, "problem_mark", None)
        where = f" at line {place.line + 1}, column {place.column + 1}" if place else ""
        problem = getattr(cause, "problem", None) or getattr(cause, "reason", None) or reason(cause)
        raise error(f"{source} is not valid YAML{where}: {problem}") from cause
    except (ValueError, TypeError, AttributeError, RecursionError) as cause:
        raise error(f"{source} cannot be used: {reason(cause)}") from cause


def read_tensors(
    path: str | Path, error: type[BCNetError], what: str
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors, on the CPU, and the text of a safetensors file; ``error`` when it cannot be read."""
    from safetensors import SafetensorError, safe_open

    require_file(path, error, what)
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as cause:
        raise error(f"{what} {path} is damaged: {reason(cause)}; {AGAIN}") from cause


def read_json_lines(
    path: str | Path, error: type[BCNetError], what: str, remedy: str = "restore a copy or delete it"
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each whole line of ``path``.

    A last line without its line break was cut off by a kill and is left out. So are empty lines.

    Raises:
        BCNetError: of class ``error``: no such file, or a line that holds no JSON object, by its number.
    """
    require_file(path, error, what)
    try:
        with open(path, "rb") as file:
            for number in range(1, 2**62):
                line = file.readline(MAX_LINE_BYTES + 1)
                if len(line) <= MAX_LINE_BYTES and not line.endswith(b"\n"):
                    return
                if line.isspace():
                    continue
                try:
                    yield number, _object(line)
                except (ValueError, RecursionError) as cause:
                    raise error(
                        f"{what} {path}, line {number}: {reason(cause)}; the file is damaged: {remedy}"
                    ) from cause
    except OSError as cause:
        raise error(f"cannot read {what} {path}: {reason(cause)}") from cause


def read_rows(
    path: str | Path, error: type[BCNetError] = CheckpointError, what: str = "log"
) -> list[dict[str, Any]]:
    """The objects of :func:`read_json_lines`; none where there is no file."""
    return [row for _, row in read_json_lines(path, error, what)] if Path(path).exists() else []


class JsonLines:
    """A log that only grows: one JSON object a line.

    Opening it drops a last line that a kill cut off. An appended batch of lines is there as a whole or not at
    all, as long as one process writes.

    Args:
        path: the file; made when absent.
        what: it is called in messages.
        header: what the lines are about; the first line of the file.
        put_aside: a file with another header is renamed (``.old``) instead of refused.
        keep_bytes: cut the file back to this length, which :meth:`sync` gave; 0 starts anew.
        durable: every :meth:`append` waits for the disk; otherwise only :meth:`sync` does.
        error: raised for a damaged file or another header.
        remedy: what a message advises then.

    Raises:
        RunDirError: the file cannot be written.
        CheckpointError: (or ``error``) it has another header, is damaged or shorter than ``keep_bytes``.
    """

    def __init__(
        self,
        path: str | Path,
        what: str = "log",
        *,
        header: Mapping[str, Any] | None = None,
        put_aside: bool = False,
        keep_bytes: int | None = None,
        durable: bool = True,
        error: type[BCNetError] = CheckpointError,
        remedy: str = "restore a copy or delete it",
    ) -> None:
        self.path = Path(path)
        self._what, self._error, self._remedy, self._durable = what, error, remedy, durable
        self._header = None if header is None else json.loads(json.dumps(header))
        if self._header is not None and self.path.exists():
            try:
                self._check_header()
            except BCNetError:
                if not put_aside:
                    raise
                self.path.rename(self.path.with_name(self.path.name + ".old"))
        if self._header is not None and not self.path.exists():
            write_text(self.path, json.dumps(self._header) + "\n")
        self._file = -1
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o666)
            self._cut(keep_bytes)
        except (OSError, ValueError) as cause:
            self.close()
            raise RunDirError(f"cannot write {path}: {reason(cause)}; choose a writable folder") from cause
        except BCNetError:
            self.close()
            raise

    def _check_header(self) -> None:
        assert self._header is not None
        _, found = next(self.read(header=True), (0, {}))
        if not found.keys() & self._header.keys():
            raise self._error(f"{self.path} is no {self._what}; {self._remedy}")
        for key, wanted in self._header.items():
            if found.get(key) != wanted:
                raise self._error(
                    f"{self._what} {self.path} is of {key} {reprlib.repr(found.get(key))}, "
                    f"now it is {reprlib.repr(wanted)}; {self._remedy}"
                )

    def _cut(self, keep_bytes: int | None) -> None:
        size = os.fstat(self._file).st_size
        if keep_bytes is None:
            tail = os.pread(self._file, MAX_LINE_BYTES, max(0, size - MAX_LINE_BYTES))
            keep_bytes = size - (len(tail) - tail.rfind(b"\n") - 1)
        if size < keep_bytes:
            raise self._error(
                f"{self.path} has {size} bytes, the checkpoint was written with {keep_bytes}; {self._remedy}"
            )
        if size > keep_bytes:
            os.ftruncate(self._file, keep_bytes)

    def read(self, *, header: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
        """(line number, object) of each line, without the header unless asked for."""
        for number, row in read_json_lines(self.path, self._error, self._what, self._remedy):
            if header or self._header is None or number > 1:
                yield number, row

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add a line for each of ``rows``. Raises :class:`RunDirError` (a full disk); then none is added."""
        data = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()
        before = os.fstat(self._file).st_size
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            if self._durable:
                os.fsync(self._file)
        except OSError as cause:
            os.ftruncate(self._file, before)
            raise RunDirError(
                f"cannot write {self.path}: {reason(cause)}; its former lines are kept"
            ) from cause

    def sync(self) -> int:
        """Force the lines to disk; the file's length in bytes. Raises :class:`RunDirError`."""
        try:
            os.fsync(self._file)
            return os.fstat(self._file).st_size
        except OSError as cause:
            raise RunDirError(f"cannot write {self.path}: {reason(cause)}; free some space") from cause

    def close(self) -> None:
        """Close the file. Closing twice does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


# -- limits ---------------------------------------------------------------------------------------


_UNUSUAL = re.compile(r"\d{25}|[eE]\+?\d{3}|NaN|Infinity")
"""What a text must hold for a number in it to be out of range."""


def _parse_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError (also for a number out of range) or RecursionError."""
    if _UNUSUAL.search(text):
        value = json.loads(text, parse_constant=_number, parse_float=_number, parse_int=_number)
    else:
        value = json.loads(text)
    return value if text.count("[") + text.count("{") < MAX_DEPTH else _plain(value)


def _number(text: str) -> float:
    if len(text) <= 400:
        value = float(text)
        if math.isfinite(value) and not (text.lstrip("-").isdecimal() and abs(value) >= MAX_WHOLE):
            return int(text) if text.lstrip("-").isdecimal() else value
    raise ValueError(f"the number {text[:20]}{'...' * (len(text) > 20)} is out of range")


def _object(line: bytes) -> dict[str, Any]:
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"it is longer than {MAX_LINE_BYTES} bytes")
    value = _parse_json(line.decode())
    if not isinstance(value, dict):
        raise ValueError(f"it is {type(value).__name__}, not keys and values")
    return value


def _plain(root: Any) -> Any:
    """``root``, if it is made of text, numbers in range, lists and mappings. Raises ValueError."""
    waiting = [(root, 1)]
    while waiting:
        value, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise RecursionError
        if isinstance(value, dict):
            waiting += [(part, depth + 1) for pair in value.items() for part in pair]
        elif isinstance(value, list):
            waiting += [(part, depth + 1) for part in value]
        elif isinstance(value, int):
            if abs(value) >= MAX_WHOLE:
                raise ValueError(f"a whole number of {value.bit_length()} bits is out of range")
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise ValueError(f"the number {value} is not finite")
        elif not isinstance(value, str | None):
            raise ValueError(
                f"a value is {type(value).__name__}; allowed: text, numbers, lists, keys and values"
            )
    return root


LARGEST = 1e18
"""Of any figure that a file of results holds."""
_COUNTED = ("macs", "params", "channels", "evaluations", "images", "steps", "runs", "rounds", "seconds")


def check_figures(root: Any, accuracies: tuple[float, float] | None = None) -> None:
    """Raise ValueError where a figure in nested lists and mappings is none that there can be.

    Its key says what it is: milliseconds (``..._ms``) and what is counted are not negative.

    Args:
        root: what was read.
        accuracies: the least and the largest that there can be.
    """
    low, high = (-LARGEST, LARGEST) if accuracies is None else accuracies
    waiting = [("", root)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(str(inner), part) for inner, part in value.items()]
        elif isinstance(value, list | tuple):
            waiting += [(key, part) for part in value]
        elif isinstance(value, int | float):
            least, most = -LARGEST, LARGEST
            if key.endswith("_ms"):
                least, most = 0, 1e9
            elif key in _COUNTED or key.endswith("_bytes"):
                least = 0
            elif key.endswith("accuracy"):
                least, most = low, high
            if not least <= value <= most:
                raise ValueError(f"{key[:40]} is {value:.3g}; allowed: {least:.3g} to {most:.3g}")


@functools.cache
def _loader() -> Any:
    """PyYAML's fast safe loader, without dates: 2020-01-31 is text."""

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        yaml_implicit_resolvers = {
            first: [(tag, form) for tag, form in known if tag != "tag:yaml.org,2002:timestamp"]
            for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    return Loader


def _check_events(text: str) -> None:
    """Refuse depth, and aliases that expand to too much, before anything is built.

    Raises:
        ValueError, RecursionError: too large, or too deep.
    """
    nodes = [0]
    """Of each open collection, aliases written out."""
    anchors: list[str | None] = [None]
    sizes: dict[str, int] = {}
    for event in yaml.parse(text, Loader=_loader()):
        size = 0
        if isinstance(event, yaml.CollectionStartEvent):
            nodes.append(1)
            anchors.append(event.anchor)
            if len(nodes) > MAX_DEPTH:
                raise RecursionError
        elif isinstance(event, yaml.CollectionEndEvent):
            size, anchor = nodes.pop(), anchors.pop()
            if anchor is not None:
                sizes[anchor] = size
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
            if len(event.value) > 400 and event.implicit[0] and event.value.lstrip("+-").isdecimal():
                _number(event.value)
            if event.anchor is not None:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f"the alias *{event.anchor} stands for nothing, or for what it is in")
            size = sizes[event.anchor]
        nodes[-1] += size
        if nodes[-1] > MAX_YAML_NODES:
            raise ValueError(f"it has more than {MAX_YAML_NODES} values, aliases written out")
