"""The memory of this process: its peak, and what the C library does with what tensors have freed."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

import torch


def keep_freed_memory(device: torch.device) -> None:
    """Let glibc keep what tensors on the CPU have freed; else every step gets the same pages from the system again.

    Nothing happens on a GPU, whose memory torch keeps itself, or with another C library.
    """
    arenas, mapped, trim = -8, -4, -1  # M_ARENA_MAX, M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
    if device.type == "cpu" and sys.platform == "linux":
        with suppress(AttributeError, OSError):
            for option, value in ((arenas, 1), (mapped, 0), (trim, 2**31 - 1)):
                ctypes.CDLL(None).mallopt(option, value)


def peak_memory(device: torch.device) -> float:
    """Return the largest MiB that this process has held so far: of a GPU its tensors, else the resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    path = Path("/proc/self/status")
    if path.exists():  # getrusage tells the parent's peak where that is larger
        return float(next(line.split()[1] for line in path.read_text().splitlines() if line.startswith("VmHWM"))) / 1024
    import resource  # not on Windows

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
