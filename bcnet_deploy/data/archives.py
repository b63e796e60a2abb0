"""Tar archives of image folders, unpacked once into the user's cache."""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import Any, Self

from bcnet_deploy.errors import DataError


def cache_folder() -> Path:
    """Where archives are unpacked: ``$BCNET_CACHE``, or the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bcnet-deploy"
    return Path(os.environ.get("BCNET_CACHE") or default)


def unpack(archive: Path) -> Path:
    """The folder with ``train/`` in it, from a tar archive; unpacked once into :func:`cache_folder`.

    Raises:
        DataError: it is no whole tar archive, or it holds no folder ``train``.
    """
    stat = archive.stat()
    key = hashlib.sha256(f"{archive.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:12]
    target = cache_folder() / f"{archive.name.split('.')[0]}-{key}"
    if not (target / _COMPLETE).exists():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _unpack_into(archive, target)
        except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise _unreadable(archive, error) from error
        except OSError as error:
            if error.errno is None:  # no system call: gzip and bz2 say so that the content is damaged
                raise _unreadable(archive, error) from error
            raise DataError(
                f"cannot unpack {archive} into {target}: {error}; set BCNET_CACHE to a folder with space"
            ) from error
    for candidate in (target, *sorted(p for p in target.iterdir() if p.is_dir())):
        if (candidate / "train").is_dir():
            return candidate
    raise DataError(f"{archive} holds no folder 'train'; the layout is train/<class>/<image>")


def _unreadable(archive: Path, error: Exception) -> DataError:
    return DataError(f"{archive} is not a readable tar archive of an image folder: {error}")


_COMPLETE = ".whole"
"""Written when the archive's end has been seen. Another name than versions had that did not look for it."""


class _Entry(tarfile.TarInfo):
    """An entry that notes in its archive that the end mark was read; tarfile itself takes any end for one."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except _END:
            tarfile.has_end = True  # type: ignore[attr-defined]
            raise


_END: Any = tarfile.EOFHeaderError  # type: ignore[attr-defined]


def _unpack_into(archive: Path, target: Path) -> None:
    """Unpack beside ``target`` and move it there whole: several processes (torchrun's) may do so at once."""
    with tempfile.TemporaryDirectory(prefix=f"{target.name}-", dir=target.parent) as folder:
        fresh = Path(folder) / "files"
        with tarfile.open(archive, tarinfo=_Entry) as tar:
            tar.extractall(fresh, filter="data")
            if not getattr(tar, "has_end", False):
                raise tarfile.ReadError("it has no end: it was cut off or is damaged; get it again")
            while tar.fileobj is not None and tar.fileobj.read(2**20):
                pass  # to the end of a compressed file, where its checksum stands
        (fresh / _COMPLETE).touch()
        try:
            fresh.rename(target)
        except OSError:
            if (target / _COMPLETE).exists():
                return  # another process was quicker
            shutil.rmtree(target, ignore_errors=True)  # what a killed older version left
            fresh.rename(target)
