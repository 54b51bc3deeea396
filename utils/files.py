"""Files that appear whole under their final name or not at all; YAML files that a user wrote."""

from __future__ import annotations

import errno
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from stat import S_ISFIFO, S_ISREG
from typing import Any

import yaml

from utils.errors import UserError, WriteError, one_line

log = logging.getLogger(__name__)
_failing = set[str]()
_pipes = dict[str, bytes]()  # what was read from them


def make_folder(folder: Path) -> None:
    """Make a folder and those above it where they are missing, or raise `UserError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"{folder}: the folder cannot be made ({error.strerror}); choose another one") from error


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Make a folder as `make_folder` does; after an error those that were made and are empty are removed."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        make_folder(folder)
        yield
    except BaseException:
        for path in missing:
            with suppress(OSError):  # not empty, or another process was first
                path.rmdir()
        raise


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
        WriteError: the file cannot be written; what was there stays.
    """
    make_folder(path.parent)
    try:
        with atomic_path(path) as temporary:
            save(temporary)
    except (OSError, RuntimeError) as error:  # torch raises the second over a full disk
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        reason = getattr(cause, "strerror", None) or error
        raise WriteError(f"{path}: {what} cannot be written ({reason}); free space or choose another folder") from error


@contextmanager
def tolerated(what: str, *, buffered: bool = False) -> Iterator[None]:
    """Let a record of a run fail to be written without ending it; the log says so once, and when it works again.

    The second it cannot know of one that is `buffered`.
    """
    try:
        yield
    except (OSError, WriteError) as error:
        if what not in _failing:
            _failing.add(what)
            reason = one_line(error)
            log.warning("%s cannot be written (%s); the run goes on without, and tries again", what, reason)
    else:
        if what in _failing and not buffered:
            _failing.remove(what)
            log.info("%s can be written again", what)


def sync_folder(folder: Path) -> None:
    """Wait until the names of a folder's files are on the disk; some network disks cannot say so."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file as `write` does; the bytes of file names that are no UTF-8 are written as escapes."""
    write(path, partial(Path.write_text, data=text, encoding="utf-8", errors="backslashreplace"))


def likely_cause(path: str | Path, otherwise: str) -> str:
    """Return why a file cannot be read and how to fix it, by its first bytes; `otherwise` where they do not say."""
    if not os.path.isfile(path):  # a pipe would wait
        return otherwise
    try:
        with open(path, "rb") as file:
            start = file.read(200).strip().lower()
    except OSError:
        return otherwise
    if not start:
        return "it is empty; download or copy it again"
    if start.startswith((b"<!doctype html", b"<html")):
        return "it is a web page; download the file that the page is about"
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS; fetch the file by git lfs pull"
    return otherwise


def read_whole(path: str | Path) -> bytes:
    """Return what a file or pipe holds; `OSError` at what has no end or waits: a device, a pipe without a writer."""

    def at_once(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)  # opening a pipe waits for its writer otherwise

    with open(path, "rb", opener=at_once) as file:
        kind = os.fstat(file.fileno()).st_mode
        if not (S_ISREG(kind) or S_ISFIFO(kind) or os.path.samefile(path, os.devnull)):
            raise OSError(errno.EINVAL, "neither a file nor a pipe", str(path))
        os.set_blocking(file.fileno(), True)
        content = file.read()
    if S_ISFIFO(kind) and not content and not (content := _pipes.get(str(path), b"")):
        raise OSError(errno.EPIPE, "a pipe that nobody writes to, or that was read already", str(path))
    if S_ISFIFO(kind):
        _pipes[str(path)] = content  # a second reading finds nothing
    return content


def read_yaml(path: Path, *, flag: str, hint: str = "") -> Any:
    """Return what the YAML file of a flag holds, or raise `UserError`, with a hint on how it should look."""
    try:
        return yaml.safe_load(read_whole(path))
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be read ({error.strerror}); give another file") from error
    except (yaml.YAMLError, ValueError) as error:  # the second of 2026-02-30 and the like
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark else ""
        raise UserError(f"{flag} {path}: not valid YAML{place}{hint or '; correct it'}") from error
