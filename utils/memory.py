"""What the C library does with memory that tensors have freed."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # parameters of glibc's mallopt
_LARGEST = 32 << 20  # bytes: what glibc's own mmap threshold grows to once a larger block was freed


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let large blocks come from memory that was freed before, where the C library is glibc; then give it back.

    By default every tensor above 32 MiB is mapped anew, and the system fills its pages with zeros one by one, which
    takes a third of the time of a pass over large images on a CPU. Needs more memory, as blocks leave gaps.
    """
    try:
        library = ctypes.CDLL("libc.so.6")
        mallopt, trim = library.mallopt, library.malloc_trim
    except (OSError, AttributeError):  # another C library
        yield
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        mallopt(_MMAP_MAX, 1 << 16)  # glibc's defaults, which no longer adapt by themselves
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, 2 * _LARGEST)
        trim(0)
