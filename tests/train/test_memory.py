"""Freed memory stays with the process while passes run, and goes back afterwards."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

import pytest
import torch

from bcnet_deploy.train.memory import memory_kept

CPU = torch.device("cpu")
BLOCKS, FLOATS = 8, 6_000_000
PAGES = BLOCKS * FLOATS * 4 // 4096

glibc = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="another C library",
)


def faults_of_a_pass() -> int:
    """Pages asked of the system while blocks of 24 MB are filled and freed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.empty(FLOATS).fill_(1.0) for _ in range(BLOCKS)]
    del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1])


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)


@glibc
def test_pages_are_asked_for_once_and_given_back():
    with memory_kept(CPU):
        for _ in range(3):
            faults_of_a_pass()
        with memory_kept(CPU):
            assert faults_of_a_pass() < PAGES // 4
        # The inner one ended; the outer one still keeps.
        assert faults_of_a_pass() < PAGES // 4
        kept = resident()
    assert kept - resident() > PAGES // 2


@glibc
def test_an_error_ends_it_too():
    with pytest.raises(RuntimeError), memory_kept(CPU):
        faults_of_a_pass()
        kept = resident()
        raise RuntimeError
    assert kept - resident() > PAGES // 2


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_user_set_stays(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("the C library was asked"))
    with memory_kept(CPU):
        pass


def test_other_devices_and_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("the C library was asked"))
    with memory_kept(torch.device("cuda")):
        pass
    monkeypatch.setattr(sys, "platform", "win32")
    with memory_kept(CPU):
        pass
