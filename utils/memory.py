"""What the C library does with memory that tensors have freed."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

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
