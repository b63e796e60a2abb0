"""Line-by-line logs that survive a kill: loss records of run vectors, and training curves."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from bcnet_deploy.errors import CheckpointError, RunDirError


class JsonLines:
    """A file of one JSON object a line, that can be cut back to the length a checkpoint knows of."""

    def __init__(self, path: Path, keep_bytes: int | None = None) -> None:
        """Open for appending after the first ``keep_bytes`` bytes (None: start anew).

        Raises:
            RunDirError: the file cannot be written.
            CheckpointError: the file is shorter than the checkpoint says.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if keep_bytes is None:
                self._file: IO[str] = path.open("w", encoding="utf-8")
            else:
                size = path.stat().st_size if path.exists() else 0
                if size < keep_bytes:
                    raise CheckpointError(
                        f"{path} has {size} bytes, the checkpoint was written with {keep_bytes}; "
                        "restore the file or start in another folder"
                    )
                self._file = path.open("a", encoding="utf-8")
                self._file.truncate(keep_bytes)
        except OSError as error:
            raise RunDirError(f"cannot write {path}: {error.strerror or error}") from error

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add lines. Raises :class:`RunDirError` on a full disk."""
        try:
            for row in rows:
                self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise RunDirError(f"cannot write {self.path}: {error.strerror or error}") from error

    def sync(self) -> int:
        """Force the lines to disk; returns the length in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self.path.stat().st_size

    def close(self) -> None:
        self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a :class:`JsonLines` file; a last line that a kill cut short is left out.

    Raises:
        CheckpointError: another line is damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    complete = lines[:-1]
    try:
        return [json.loads(line) for line in complete]
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} has a damaged line: {error}; restore a copy") from error
