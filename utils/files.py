"""Files that appear whole under their final name or not at all, YAML files that a user wrote, weights on a hub.

A hub is huggingface.co, or the one that HF_ENDPOINT names: its files are downloaded once, then read from the cache.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from stat import S_ISFIFO, S_ISREG
from typing import Any

import yaml

from utils.errors import UserError, WriteError, one_line

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"  # of a folder of weights
_SCHEME = re.compile(r"hf:/{1,2}")  # a path has one of the two slashes
log = logging.getLogger(__name__)
_failing = set[str]()
_pipes = dict[str, bytes]()  # what was read from them


def make_folder(folder: Path) -> None:
    """Make a folder and those above it where they are missing; `UserError` where it is none to write to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, "nothing can be written there")
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


class _Loader(yaml.SafeLoader):
    """Refuses a key that a mapping has twice, of which YAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set[str]()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, *, flag: str, hint: str = "") -> Any:
    """Return what the YAML file of a flag holds, or raise `UserError`, with a hint on how it should look."""
    try:
        return _Loader(read_whole(path)).get_single_data()
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be read ({error.strerror}); give another file") from error
    except (yaml.YAMLError, ValueError) as error:  # the second of 2026-02-30 and the like
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1} ({getattr(error, 'problem', '')})" if mark else ""
        raise UserError(f"{flag} {path}: not valid YAML{place}{hint or '; correct it'}") from error


def local_path(weights: str | Path) -> Path:
    """Return where weights lie on this machine, those of `hf://OWNER/NAME[@REVISION]` after a download.

    Raises:
        UserError: another form of name, or neither the hub nor the cache has them.
    """
    scheme = _SCHEME.match(str(weights))
    if not scheme:
        return Path(weights)
    name, _, revision = str(weights)[scheme.end() :].partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"{weights}: weights on the hub are named hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    from huggingface_hub import snapshot_download  # slow to import

    try:
        with quick_to_give_up():
            return Path(snapshot_download(name, revision=revision or None, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except Exception as error:  # of the hub, of the connection, of the disk
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"{weights}: cannot be downloaded ({reason}); check its name and the connection, or give a local copy"
        ) from error


def beside(weights: str | Path, name: str) -> Path:
    """Return the path of a file or folder beside weights, for those of a hub in the working folder."""
    if _SCHEME.match(str(weights)):
        return Path(name)
    path = Path(weights)
    return (Path(os.path.abspath(path)) if path.name in ("", "..") else path).with_name(name)


@contextmanager
def quick_to_give_up() -> Iterator[None]:
    """Let downloads look into the cache alone where the hub does not answer, which is tried once.

    huggingface_hub would try six times, with 23 s of waits and six timeouts, and has no setting for it. How long one
    try may take is HF_HUB_ETAG_TIMEOUT.
    """
    from huggingface_hub import constants  # slow to import
    from huggingface_hub.utils import get_session

    silence: Exception | None = None
    for chatty in ("httpx", "httpx2"):  # a line per request
        logging.getLogger(chatty).setLevel(logging.WARNING)
    if not constants.HF_HUB_OFFLINE:
        try:
            get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except Exception as error:  # of the HTTP client, which its versions change
            silence = error
    if silence is None:
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    except OSError as error:
        text = f"{constants.ENDPOINT} does not answer, {constants.HF_HUB_CACHE} does not hold it: {silence}"
        raise ConnectionError(text) from error
    finally:
        constants.HF_HUB_OFFLINE = False
