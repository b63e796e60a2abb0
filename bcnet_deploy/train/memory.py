"""Memory that a pass frees is kept for the next pass, where the C library would give it back.

On a CPU the activations of one pass are tens of megabytes, freed and asked for again milliseconds later.
glibc returns such memory to the system, which zeroes every page anew when it is asked for: a third of the
time of scoring Channel-Bench-Macro's networks (docs/search.md).
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_KEEP = 2**31 - 1
"""No free memory is returned below so many bytes, and no smaller block is mapped by itself."""
_USUAL_TRIM, _USUAL_MMAP = 2**26, 2**25
"""What glibc's own thresholds grow to in a process that frees large blocks."""
_OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")

_inside = 0


@contextmanager
def memory_kept(device: torch.device) -> Iterator[None]:
    """While it lasts, what passes on a CPU free stays with the process; then it goes back to the system.

    Does nothing for other devices, for another C library, and where the user set glibc's thresholds.
    """
    global _inside
    libc = _glibc() if device.type == "cpu" else None
    if libc is None:
        yield
        return
    if not _inside:
        libc.mallopt(_TRIM_THRESHOLD, _KEEP)
        libc.mallopt(_MMAP_THRESHOLD, _KEEP)
    _inside += 1
    try:
        yield
    finally:
        _inside -= 1
        if not _inside:
            libc.mallopt(_TRIM_THRESHOLD, _USUAL_TRIM)
            libc.mallopt(_MMAP_THRESHOLD, _USUAL_MMAP)
            libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux") or any(os.environ.get(name) for name in _OWN_SETTINGS):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
