"""OpenCV without threads of its own and without warnings of its own."""

from __future__ import annotations

from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def opencv() -> Any:
    """Return the module cv2, set to one thread before its first use.

    Its pool of threads does not survive a fork: a loader worker forked from a process that has one hangs in its first
    call. Workers are as many as cores anyway. Its warnings of damaged files would stand beside our sentence.
    """
    import cv2

    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    return cv2
