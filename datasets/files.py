"""Files by path, in folders and in zip archives: `ROOT/ARCHIVE.zip/MEMBER` is a member, read where it lies.

Also what a file may claim before it is read, and what is said of one that cannot be decoded.
"""

from __future__ import annotations

import errno
import glob
import lzma
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache, lru_cache
from stat import S_ISDIR, S_ISREG
from typing import IO

from PIL import Image, UnidentifiedImageError

from utils.errors import UserError, reason
from utils.files import likely_cause

# RuntimeError: a password, a method not known
DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)
_WILDCARDS = {"**/": r"((?:(?!\.)[^/]+/)*)", "*": "([^/]*)", "?": "([^/])"}
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


def split_path(path: str) -> tuple[str, str]:
    """Return (archive, member) of a path, or ("", path) for a file of its own."""
    end = path.find(".zip/")
    while end >= 0 and not os.path.isfile(path[: end + 4]):
        end = path.find(".zip/", end + 1)
    return (path[: end + 4], path[end + 5 :]) if end >= 0 else ("", path)


class DamagedArchiveError(OSError):
    """A member cannot be read because of its archive."""


def open_file(path: str) -> AbstractContextManager[IO[bytes]]:
    """Open a file or a member for reading; raises as `open_member` does, and `OSError` at what has no end or waits."""
    archive, member = split_path(path)
    if archive:
        return open_member(archive, member)
    kind = os.stat(path).st_mode
    if not (S_ISREG(kind) or S_ISDIR(kind)):  # a pipe, a socket, a device; open itself speaks of folders
        raise OSError(errno.EINVAL, "neither a file nor a folder", path)
    return open(path, "rb")


@contextmanager
def open_member(archive: str, member: str) -> Iterator[IO[bytes]]:
    """Open a member of a zip archive for reading; `OSError` where there is none, or, while it is read, for damage.

    Any number of threads and processes may do so at once, started in any way: every call has a handle of its own, and
    the directory of an archive, parsed once, never changes.
    """
    with open(archive, "rb") as file:
        try:
            status = os.fstat(file.fileno())
            info = _directory(archive, status.st_size, status.st_mtime_ns).get(member)
            if info is None:
                raise FileNotFoundError(f"{archive}/{member}")
            if info.flag_bits & 1:
                raise RuntimeError("it is encrypted")
            if info.file_size > limit("DIIA_MAX_MEMBER_BYTES"):
                raise UserError(
                    f"{archive}/{member}: has {info.file_size:,} bytes unpacked, above the limit of "
                    f"{limit('DIIA_MAX_MEMBER_BYTES'):,}; if the archive is sound, raise the environment variable "
                    "DIIA_MAX_MEMBER_BYTES"
                )
            file.seek(info.header_offset)
            local = file.read(30)  # signature .. lengths of the name and of the extra field, which come next
            if local[:4] != b"PK\3\4":
                raise zipfile.BadZipFile("its header is damaged")
            file.seek(int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little"), os.SEEK_CUR)
            with zipfile.ZipExtFile(file, "r", info) as reader:  # type: ignore[arg-type]
                yield reader  # type: ignore[misc]
        except DAMAGED as error:
            raise DamagedArchiveError(0, str(error) or "it ends too early") from error


def read_bytes(path: str, size: int = -1) -> bytes:
    """Return the content of a file or member, or its first `size` bytes; raises as `open_member` does."""
    with open_file(path) as file:
        return file.read(size)


def stamp(path: str) -> tuple[int, ...]:
    """Return what changes with a file, for keys of caches: size and time; of a member also its checksum."""
    archive, member = split_path(path)
    try:
        status = os.stat(archive or path)
        if not archive:
            return status.st_size, status.st_mtime_ns
        info = members(archive)[member]
    except (KeyError, OSError) as error:
        text = "no such member" if isinstance(error, KeyError) else error.strerror
        raise UserError(f"{path}: cannot be read ({text})") from error
    return info.file_size, status.st_mtime_ns, info.CRC


def members(archive: str) -> Mapping[str, zipfile.ZipInfo]:
    """Return the files of a zip archive by name, or raise `UserError` where it cannot be read."""
    try:
        status = os.stat(archive)
        if not S_ISREG(status.st_mode):  # a pipe would wait
            raise OSError(errno.EINVAL, "not a file")
        found = _directory(archive, status.st_size, status.st_mtime_ns)
    except (*DAMAGED, OSError, ValueError) as error:
        hint = "download it again, or unpack it yourself (another kind, such as RAR) and give the folder"
        hint = likely_cause(archive, hint)
        raise UserError(f"{archive}: is not a zip archive that can be read ({reason(error)}); {hint}") from error
    if len(found) > limit("DIIA_MAX_MEMBERS"):
        raise UserError(
            f"{archive}: holds {len(found):,} files, above the limit of {limit('DIIA_MAX_MEMBERS'):,}; if it is sound, "
            "raise the environment variable DIIA_MAX_MEMBERS"
        )
    return found


@lru_cache(maxsize=64)
def _directory(archive: str, size: int, time: int) -> dict[str, zipfile.ZipInfo]:
    with zipfile.ZipFile(archive) as file:
        return {info.filename: info for info in file.infolist() if not info.is_dir()}


def archived(root: str) -> dict[str, str]:
    """Return the path of every member of the archives in a folder by its name, of equal names the first archive's."""
    archives = sorted(filter(os.path.isfile, glob.glob(f"{glob.escape(root)}/*.zip")), reverse=True)
    return {name: f"{archive}/{name}" for archive in archives for name in members(archive)}


def find(root: str, pattern: str, members: Mapping[str, str]) -> dict[str, str]:
    """Return the paths of files in a folder, and of archived members, by their relative names that match a glob."""
    match = re.compile(glob_regex(pattern)).fullmatch if members else None
    archived = {name: path for name, path in members.items() if match and match(name)}
    return archived | {name: f"{root}/{name}" for name in _on_disk(root, pattern)}


def _on_disk(root: str, pattern: str) -> Iterator[str]:
    """Yield what `glob.glob` does, relative to a folder, but enter each real folder below `**/` only once.

    Folders come before links to folders: a link to a parent, which would have no end, adds nothing.
    """
    above, recursive, _ = pattern.partition("**/")
    if not recursive:
        yield from (name.replace(os.sep, "/") for name in glob.glob(pattern, root_dir=root, recursive=True))
        return
    match, entered = re.compile(glob_regex(pattern)).fullmatch, set[str]()
    starts = [name.replace(os.sep, "/") for name in glob.glob(above, root_dir=root)] if above else [""]
    links = [name for name in starts if os.path.islink(f"{root}/{name}".rstrip("/"))]
    folders = [name for name in starts if name not in links]
    while folders or links:
        folder = folders.pop() if folders else links.pop(links.index(min(links)))
        if (real := os.path.realpath(f"{root}/{folder}")) in entered:
            continue
        entered.add(real)
        with suppress(OSError), os.scandir(f"{root}/{folder}") as entries:  # one that may not be read holds nothing
            for entry in entries:
                name, is_link = folder + entry.name, entry.is_symlink()
                if (os.path.isdir(entry.path) if is_link else entry.is_dir()) and entry.name[0] != ".":
                    (links if is_link else folders).append(f"{name}/")
                if match(name):
                    yield name


def glob_regex(pattern: str) -> str:
    """Return a glob with `*`, `**/`, `?` and `[...]` as a regular expression; every wildcard is a group."""
    text, before = "", "/"
    for part in filter(None, re.split(r"(\*\*/|\*|\?|\[[^]]+])", pattern)):
        hidden = r"(?!\.)" if before.endswith("/") else ""  # no wildcard stands for the dot of a hidden file
        if part in _WILDCARDS:
            text += hidden + _WILDCARDS[part]
        elif part[0] == "[":
            excluded = "^" if part[1] == "!" else ""
            characters = re.sub(r"([\[^&~|])", r"\\\1", part[1:-1].removeprefix("!"))  # letters in a glob
            text += f"{hidden}([{excluded}{characters}])"
        else:
            text += re.escape(part)
        before = part
    return text
