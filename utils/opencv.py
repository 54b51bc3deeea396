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
    set_level = cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel  # OpenCV 4, 5
    set_level(2)  # errors alone
    return cv2
