"""What a file may claim before it is read, and what is said of one that cannot be decoded."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from PIL import Image, UnidentifiedImageError

from utils.errors import UserError, reason
from utils.files import likely_cause

# Environment variables (a worker process has them too) and their defaults: a small file may unpack to any size.
LIMITS = {
    "DIIA_MAX_PIXELS": 178_956_970,  # of an image, where Pillow by itself stops; frames of 100 million are fine
    "DIIA_MAX_MEMBER_BYTES": 1 << 30,  # of one unpacked file of an archive
    "DIIA_MAX_MEMBERS": 1_000_000,  # files of an archive
}


def limit(name: str) -> int:
    """Return a limit, from its environment variable where that is set."""
    text = os.environ.get(name, "")
    if text and not text.isdecimal():
        raise UserError(f"environment variable {name}: must be a whole number, not {text!r}")
    return int(text or LIMITS[name])


@cache
def _limit_pixels() -> None:
    Image.MAX_IMAGE_PIXELS = limit("DIIA_MAX_PIXELS") // 2  # Pillow refuses twice as many, and warns in between
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


@contextmanager
def decode_errors(path: str) -> Iterator[None]:
    """Turn what goes wrong with an image file into a `UserError` with its path."""
    _limit_pixels()
    try:
        yield
    except (UserError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{path}: has more than {limit('DIIA_MAX_PIXELS'):,} pixels, which may be an attack on the memory; if the "
            "file is sound, raise the environment variable DIIA_MAX_PIXELS"
        ) from error
    except Exception as error:  # Pillow's are of many kinds, OpenCV's are its own
        unknown = isinstance(error, UnidentifiedImageError) or not str(error)
        text = "its format is not known" if unknown else reason(error)
        cause = likely_cause(path, "it is damaged or not an image")
        raise UserError(f"{path}: this file cannot be decoded ({text}); {cause}") from error
