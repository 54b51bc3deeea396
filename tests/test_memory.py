"""Freed memory is used again, and given back in the end."""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path

import pytest
import torch

from utils.memory import freed_memory_kept

MEBIBYTES = 64


def faults() -> int:
    """Return how many pages the system handed out for three large tensors, one after the other."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.full((MEBIBYTES << 20,), 1, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1])


def test_large_tensors_take_the_memory_of_those_before() -> None:
    if not hasattr(ctypes.CDLL(None), "mallopt") or not Path("/proc/self/statm").exists():
        pytest.skip("needs glibc on Linux")
    pages = (MEBIBYTES << 20) // resource.getpagesize()
    with freed_memory_kept():
        faults()
        assert faults() < pages / 10
        kept = resident()
    assert resident() < kept - pages / 2, "given back"
    with pytest.raises(KeyError), freed_memory_kept():
        raise KeyError
    torch.full((MEBIBYTES << 20,), 1, dtype=torch.uint8)


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with freed_memory_kept():
        assert torch.ones(3).sum() == 3
