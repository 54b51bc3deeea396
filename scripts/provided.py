"""What the providers hand out: files of archives and folders, how they are put in place, the lists of the splits."""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from datasets.domains import Domain
from datasets.files import DamagedArchiveError, members, open_member
from datasets.splits import read_lists, split_of_stems
from utils.errors import UserError
from utils.files import make_folder

SYNTHIA_IMAGES, SYNTHIA_TRAIN, SYNTHIA_SEED = 9_400, 6_580, 304
TEMPORARY = ".prepare.tmp"  # what a killed run may leave; the next one removes it
# another file system, a file of somebody else, a file with too many names, a file system without hard links
_NO_HARD_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_MAT_KEYS = {"train": "trainIds", "val": "valIds", "test": "testIds"}


class Member(NamedTuple):
    """A file that a source holds: a member of an archive, or (`archive` is "") a file with its whole path as `name`."""

    archive: str
    name: str
    size: int  # bytes, unpacked

    def __str__(self) -> str:
        return f"{self.archive}:{self.name}" if self.archive else self.name

    def open(self) -> AbstractContextManager[IO[bytes]]:
        return open_member(self.archive, self.name) if self.archive else open(self.name, "rb")


def list_files(source: Path, *, wanted: Callable[[str], object], leave_out: Path | None) -> list[Member]:
    """Return the wanted files of an archive, of a folder and the zip archives in it, or a single .mat file; in order.

    `wanted` gets a path with "/": a member's name, or a file's whole path. The folder `leave_out` is not looked into.

    Raises:
        UserError: no such source, no readable zip archive, or a member that would leave the target.
    """
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; check the path")
    if not source.is_dir():
        mat = source.suffix.lower() == ".mat"
        return [_file(source)] * bool(wanted(source.as_posix())) if mat else _list_archive(source, wanted)
    files = []
    for folder, folders, names in os.walk(source, onerror=_refuse_folder):
        folders[:] = sorted(name for name in folders if os.path.join(folder, name) != str(leave_out))
        for path in (Path(folder, name) for name in sorted(names)):
            if path.suffix.lower() == ".zip":
                files += _list_archive(path, wanted)
            elif wanted(path.as_posix()):
                files.append(_file(path))
    return files


def _refuse_folder(error: OSError) -> None:
    raise UserError(f"{error.filename}: the folder cannot be read ({error.strerror}); fix that or leave it out")


def _file(path: Path) -> Member:
    try:
        return Member("", str(path), path.stat().st_size)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fix or remove it") from error


def _list_archive(path: Path, wanted: Callable[[str], object]) -> list[Member]:
    infos = members(str(path)).values()
    for info in infos:
        if reason := _leaves(info):
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


def remove_temporary(folders: Iterable[Path]) -> None:
    """Remove what a killed run left in some folders."""
    for path in (path for folder in folders for path in folder.glob(f".*{TEMPORARY}")):
        path.unlink(missing_ok=True)


def place(member: Member, target: Path, mode: str) -> None:
    """Put a member at its target, which appears whole or not at all.

    Members of archives are unpacked whatever the mode. Files are linked ("link"), copied ("copy") or moved ("move"): a
    move is a hard link, or else a copy, before the old name goes.

    Raises:
        UserError: the target has appeared meanwhile, an archive is damaged, or the disk refuses.
    """
    make_folder(target.parent)
    try:
        if member.archive:
            _write(member, target)
        else:
            source = os.path.realpath(member.name)  # a link of the user's own: its file, not the link
            if not _linked(source, target, mode):
                _write(member._replace(name=source), target)
            if mode == "move":
                os.unlink(member.name)
    except FileExistsError as error:
        raise UserError(f"{target}: has appeared meanwhile and is not overwritten; remove it") from error
    except DamagedArchiveError as error:
        raise UserError(f"{member}: cannot be unpacked ({error.strerror}); download the archive again") from error
    except OSError as error:
        raise UserError(
            f"{target}: cannot be made from {member} ({error.strerror or error}); fix that and run the command again, "
            "it resumes from here"
        ) from error


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


def _write(member: Member, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}{TEMPORARY}")
    try:
        with member.open() as reader, open(temporary, "wb") as file:
            shutil.copyfileobj(reader, file, 1 << 20)
        if os.path.lexists(target):
            raise FileExistsError(target)
        os.rename(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def make_lists(domain: Domain, folder: Path, mats: Sequence[Member]) -> tuple[dict[str, str], dict[Path, str]]:
    """Return the split of every listed file by its name without suffix, and the lists (file -> text) to be written.

    A list in the folder is taken as it is. One that is missing is made: GTAV's from the provider's split.mat (the
    first of `mats`), SYNTHIA's from the recorded seed.

    Raises:
        UserError: there are neither lists nor split.mat, one of them cannot be read, or a name is listed twice.
    """
    lists, written = read_lists(domain, folder), {}
    if len(lists) < len(domain.splits) and (mats or domain.name == "synthia"):
        made = synthia_lists() if domain.name == "synthia" else gtav_lists(mats[0])
        for split in made.keys() - lists.keys():
            lists[split] = made[split]
            written[folder / f"{domain.name}_split_{split}.txt"] = "".join(f"{line}\n" for line in made[split])
    if not lists:
        raise UserError(
            f"{domain.name}: no source holds split.mat and {folder} has no {domain.name}_split_train.txt; give the "
            "provider's read_mapping.zip too, or put lists of your own there"
        )
    return split_of_stems(domain, lists, folder), written


def gtav_lists(mat: Member) -> dict[str, list[str]]:
    """Return the names of each split from the provider's split.mat, whose ids count from 1."""
    from scipy.io import loadmat

    try:
        with mat.open() as file:
            content = loadmat(io.BytesIO(file.read()))
        return {
            split: [f"{int(i):05d}.png" for i in np.sort(content[key], axis=None)] for split, key in _MAT_KEYS.items()
        }
    except Exception as error:  # the reader raises many kinds on a damaged file
        raise UserError(
            f"{mat}: cannot be read as the provider's split.mat ({type(error).__name__}: {error}); download it again"
        ) from error


def synthia_lists() -> dict[str, list[str]]:
    """Return this project's split of SYNTHIA-RAND-CITYSCAPES, sampled from a recorded seed."""
    order = np.random.default_rng(SYNTHIA_SEED).permutation(SYNTHIA_IMAGES)
    halves = {"train": order[:SYNTHIA_TRAIN], "val": order[SYNTHIA_TRAIN:]}
    return {split: [f"{i:07d}.png" for i in sorted(ids)] for split, ids in halves.items()}
