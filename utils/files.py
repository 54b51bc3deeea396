"""Files that appear whole under their final name or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from utils.errors import UserError


def make_folder(folder: Path) -> None:
    """Make a folder and those above it where they are missing, or raise `UserError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: the folder cannot be made ({error.strerror}); choose another one") from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path`, which it becomes at the end; after an error nothing of it is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, save: Callable[[Path], object], *, what: str = "the file") -> None:
    """Let `save` write a file that appears under its final name in one step, making its folder.

    Raises:
        UserError: the file cannot be written; what was there stays.
    """
    make_folder(path.parent)
    try:
        with atomic_path(path) as temporary:
            save(temporary)
    except (OSError, RuntimeError) as error:  # torch raises the second over a full disk
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: {what} cannot be written ({reason}); free space or choose another folder") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file as `write` does."""
    write(path, partial(Path.write_text, data=text, encoding="utf-8"))
