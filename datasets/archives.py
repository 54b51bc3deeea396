"""Zip archives and folders as lists of files, and files put in place so that none is ever half there or overwritten."""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import IO, NamedTuple

from utils.errors import UserError
from utils.files import make_folder

TEMPORARY = ".prepare.tmp"  # what a killed run may leave; the next one removes it
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)  # RuntimeError: a password, a method not known

# another file system, a file of somebody else, a file with too many names, a file system without hard links
_NO_HARD_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class Member(NamedTuple):
    """A file that a source holds: a member of an archive, or (`archive` is "") a file with its whole path as `name`."""

    archive: str
    name: str
    size: int  # bytes, unpacked

    def __str__(self) -> str:
        return f"{self.archive}:{self.name}" if self.archive else self.name


def list_files(source: Path, *, wanted: Callable[[str], object], leave_out: Path) -> list[Member]:
    """Return the wanted files of an archive, of a folder and the zip archives in it, or a single .mat file; in order.

    `wanted` gets a path with "/": a member's name, or a file's whole path. The folder `leave_out` is not looked into.

    Raises:
        UserError: no such source, no readable zip archive, or a member that would leave the target.
    """
    if source.is_dir():
        found = []
        for folder, folders, names in os.walk(source, onerror=_refuse_folder):
            folders[:] = sorted(name for name in folders if os.path.join(folder, name) != str(leave_out))
            for path in (Path(folder, name) for name in sorted(names)):
                if path.suffix.lower() == ".zip":
                    found += _list_archive(path, wanted)
                elif wanted(path.as_posix()):
                    found.append(_file(path))
        return found
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; check the path")
    if source.suffix.lower() == ".mat":
        return [_file(source)] if wanted(source.as_posix()) else []
    return _list_archive(source, wanted)


def _refuse_folder(error: OSError) -> None:
    raise UserError(f"{error.filename}: the folder cannot be read ({error.strerror}); mend that or leave it out")


def _file(path: Path) -> Member:
    try:
        return Member("", str(path), path.stat().st_size)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); mend or remove it") from error


def _list_archive(path: Path, wanted: Callable[[str], object]) -> list[Member]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (*_DAMAGED, OSError, ValueError) as error:
        raise UserError(
            f"{path}: is not a zip archive that can be read ({error}); download it again, or unpack it yourself "
            "(another kind of archive, such as RAR) and give the folder"
        ) from error
    for info in infos:
        reason = _leaves(info)
        if reason:
            raise UserError(f"{path}: refused, its member {info.orig_filename!r} {reason}; get the provider's own file")
    return [Member(str(path), info.filename, info.file_size) for info in infos if wanted(info.filename)]


def _leaves(info: zipfile.ZipInfo) -> str:
    """Return why a member could be written outside the target, or "" for a harmless one."""
    name = info.orig_filename
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "is an absolute path"
    if "\\" in name:
        return "has a backslash"
    if ".." in name.split("/"):
        return "leads out of the target folder"
    return "is a symbolic link" if stat.S_ISLNK(info.external_attr >> 16) else ""


def read_bytes(member: Member) -> bytes:
    """Return the content of a small member."""
    with zipfile.ZipFile(member.archive) if member.archive else nullcontext() as archive:
        try:
            return archive.read(member.name) if archive else Path(member.name).read_bytes()
        except (*_DAMAGED, OSError) as error:
            raise UserError(f"{member}: cannot be read ({error}); download it again") from error


def bytes_to_write(member: Member, mode: str, *, device: int) -> int:
    """Return how many bytes a member adds to the file system with that device number."""
    if member.archive or mode == "copy":
        return member.size
    return member.size if mode == "move" and os.stat(member.name).st_dev != device else 0


def remove_temporary(folders: Sequence[Path]) -> None:
    """Remove what a killed run left in some folders."""
    for folder in folders:
        for name in os.listdir(folder) if folder.is_dir() else ():
            if name.startswith(".") and name.endswith(TEMPORARY):
                (folder / name).unlink(missing_ok=True)


def place(jobs: Sequence[tuple[Member, Path]], mode: str) -> Iterator[Path]:
    """Put members at their targets, one by one, and yield each target when it is there.

    Members of archives are unpacked whatever the mode. Files are linked ("link"), copied ("copy") or moved ("move").
    A target appears whole or not at all.

    Raises:
        UserError: a target has appeared meanwhile, an archive is damaged, or the disk refuses.
    """
    for name, group in itertools.groupby(jobs, key=lambda job: job[0].archive):
        with zipfile.ZipFile(name) if name else nullcontext() as archive:
            for member, target in group:
                make_folder(target.parent)
                try:
                    if archive:
                        with archive.open(member.name) as reader:
                            _write(reader, target)
                    else:
                        _place_file(member.name, target, mode)
                except FileExistsError as error:
                    raise UserError(f"{target}: has appeared meanwhile and is not overwritten; remove it") from error
                except OSError as error:
                    reason = error.strerror or error
                    raise UserError(
                        f"{target}: cannot be made from {member} ({reason}); mend that and run the command again, "
                        "it goes on from here"
                    ) from error
                except _DAMAGED as error:
                    raise UserError(f"{member}: cannot be unpacked ({error}); download the archive again") from error
                yield target


def _place_file(name: str, target: Path, mode: str) -> None:
    """Link, copy or move a file. A move is a hard link, or else a copy, before the old name goes: no moment without."""
    source = os.path.realpath(name)  # a link of the user's own: its file, not the link, which may be relative
    if not _linked(source, target, mode):
        with open(source, "rb") as reader:
            _write(reader, target)
    if mode == "move":
        os.unlink(name)


def _linked(source: str, target: Path, mode: str) -> bool:
    if mode == "copy":
        return False
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINK:
            raise
        if mode == "move":
            return False
        os.symlink(source, target)
    return True


def _write(reader: IO[bytes], target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}{TEMPORARY}")
    try:
        with open(temporary, "wb") as file:
            shutil.copyfileobj(reader, file, 1 << 20)
        if os.path.lexists(target):
            raise FileExistsError(target)
        os.rename(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
