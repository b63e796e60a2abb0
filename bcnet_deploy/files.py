"""Files that are either whole or absent.

Everything a user could miss is written to a temporary file beside its target and renamed, so that
a kill, a full disk or a power cut leaves the former file in place.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from bcnet_deploy.errors import BCNetError, RunDirError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; rename it onto ``path`` if the block succeeds.

    Raises:
        RunDirError: the folder cannot be created or written, or the disk is full.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise RunDirError(f"cannot write {target}: {error.strerror}; choose a writable folder") from error
    temporary = Path(name)
    try:
        # mkstemp makes private files; ours are as readable as any other the user writes.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise RunDirError(
            f"cannot write {target}: {error.strerror or error}; the former file, if any, is unchanged"
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
    """Write ``data`` as YAML, keys in the order given, atomically. Raises :class:`RunDirError`."""
    write_text(path, yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


def read_text(path: str | Path, error: type[BCNetError], what: str) -> str:
    """The text of ``path``; ``error`` naming ``what`` and the file when it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise error(f"no {what} at {path}") from None
    except (OSError, UnicodeDecodeError) as cause:
        raise error(f"cannot read {what} {path}: {cause}") from cause


def read_json(path: str | Path, error: type[BCNetError], what: str) -> Any:
    """The JSON value in ``path``; ``error`` with the line and column when it is not valid JSON."""
    try:
        return json.loads(read_text(path, error, what))
    except json.JSONDecodeError as cause:
        raise error(
            f"{what} {path} is not valid JSON at line {cause.lineno}, column {cause.colno}: {cause.msg}; "
            "it may be truncated: make it again or restore a copy"
        ) from cause


def read_yaml(path: str | Path, error: type[BCNetError], what: str) -> Any:
    """The YAML value in ``path``; ``error`` with the place when it is not valid YAML."""
    try:
        return yaml.safe_load(read_text(path, error, what))
    except yaml.YAMLError as cause:
        place = getattr(cause, "problem_mark", None)
        where = f" at line {place.line + 1}, column {place.column + 1}" if place else ""
        raise error(f"{what} {path} is not valid YAML{where}: {getattr(cause, 'problem', cause)}") from cause
