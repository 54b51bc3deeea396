"""What the providers hand out: which files of archives and folders are needed, and how they are put in place."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from datasets.domains import BUILTIN
from datasets.files import DamagedArchiveError, glob_regex, members, open_file, open_member, stamp
from utils.errors import UserError
from utils.files import atomic_path, make_folder

# another file system, a file of somebody else, a file with too many names, a file system without hard links
NO_HARD_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
REFUSED = {  # members that could be written outside the target
    r"^(/|[A-Za-z]:)": "is an absolute path",
    r"\\": "has a backslash",
    r"(^|/)\.\.(/|$)": "leads out of the target folder",
}


class File(NamedTuple):
    """A file that a source holds: a member of an archive, or (`archive` is "") a file with its whole path as `name`."""

    archive: str
    name: str
    size: int  # bytes, unpacked
    kind: str  # image, label, colour; mat for the ids of GTAV's splits
    folder: str  # of its split, or ""
    stem: str  # as `Domain.paths` takes it

    def __str__(self) -> str:
        return f"{self.archive}:{self.name}" if self.archive else self.name

    def open(self) -> AbstractContextManager[IO[bytes]]:
        return open_member(self.archive, self.name) if self.archive else open_file(self.name)


def kinds(name: str, image: str, label: str) -> dict[str, str]:
    """Return the paths of a frame, or their patterns, by kind."""
    colour = {"colour": label.replace("LABELS", "COLOR")} if name == "synthia" else {}
    return {"image": image, "label": label, **colour}


@cache
def _rules(name: str) -> list[tuple[str, re.Pattern[str]]]:
    """Return (kind, end of a path in a source) of what is needed, from the layouts of a row."""
    domain, rules = BUILTIN[name], []
    folders = "|".join(folder for _, names in domain.splits for folder in names)
    for layout in domain.layouts:
        for kind, source in kinds(name, *layout.patterns("{split}")).items():
            end = glob_regex(source).replace(re.escape("{split}"), f"(?P<split>{folders})")
            if layout.listed and name == "gtav":  # its parts, each unpacked into a folder or two
                end = end.replace("/", "/(?:(?!images/|labels/)[^/]+/){0,2}", 1)
            rules.append((kind, re.compile(f"(?:^|/){end}$")))
    return rules


def needed(name: str, path: str) -> tuple[str, str, str] | None:
    """Return kind, folder of the split (or "") and stem of a file, or None where it is not needed.

    Any folders may lie above; of several rules the nearest folder and the longest ending decide.
    """
    if name == "gtav" and PurePosixPath(path).name == "split.mat":
        return "mat", "", ""
    hits = [(hit, kind) for kind, end in _rules(name) if (hit := end.search(path))]
    if not hits:
        return None
    hit, kind = max(hits, key=lambda entry: (entry[0].start(), len(entry[0].re.pattern)))
    *folders, stem = (part for index, part in enumerate(hit.groups(), 1) if index != hit.re.groupindex.get("split"))
    if name == "gtav":  # the provider's ten parts of 2,500 frames
        if not re.fullmatch("[0-9]{5}", stem):
            return None
        folders = [f"{(int(stem) - 1) // 2500 + 1:02d}"]
    return kind, hit.groupdict().get("split") or "", "/".join([*(folders if name != "synthia" else ()), stem])


def list_files(source: Path, name: str, *, leave_out: Path | None) -> list[File]:
    """Return what a data set needs of an archive, of a folder and the zip archives in it, or a .mat file; in order.

    The folder `leave_out` is not looked into; a member that would leave the target raises `UserError`.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); fix that or leave it out") from error

    if not source.exists():
        raise UserError(f"{source}: no such file or folder; check the path")
    paths, files = [] if source.is_dir() else [source], list[File]()
    for folder, folders, names in os.walk(source, onerror=refuse) if source.is_dir() else ():
        folders[:] = sorted(part for part in folders if os.path.join(folder, part) != str(leave_out))
        paths += [Path(folder, part) for part in sorted(names)]
    for path in paths:
        if path.suffix.lower() != ".zip" and (path != source or path.suffix.lower() == ".mat"):
            if about := needed(name, path.as_posix()):
                files.append(File("", str(path), stamp(str(path))[0], *about))
            continue
        for info in members(str(path)).values():
            member = info.orig_filename
            reasons = [reason for part, reason in REFUSED.items() if re.search(part, member)]
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where it was packed on Windows
            reasons += ["is a symbolic link"] * (kind == stat.S_IFLNK)
            reasons += ["is no regular file"] * (kind not in (0, stat.S_IFLNK, stat.S_IFREG))
            if reasons:
                raise UserError(f"{path}: refused, its member {member!r} {reasons[0]}; get the provider's own file")
            if about := needed(name, info.filename):
                files.append(File(str(path), info.filename, info.file_size, *about))
    return files


def place(file: File, target: Path, mode: str) -> None:
    """Put a file at its target, which appears whole or not at all.

    Members of archives are unpacked whatever the mode. Files are linked ("link"), copied ("copy") or moved ("move"): a
    move is a hard link, or else a copy, before the old name goes. `UserError` where the target has appeared meanwhile,
    an archive is damaged, or the disk refuses.
    """
    make_folder(target.parent)
    try:
        # of a link of the user's own its file, not the link
        source = file if file.archive else file._replace(name=os.path.realpath(file.name))
        if file.archive or mode == "copy" or not _linked(source.name, target, mode):
            with atomic_path(target) as temporary:
                with source.open() as reader, open(temporary, "wb") as writer:
                    shutil.copyfileobj(reader, writer, 1 << 20)
                if os.path.lexists(target):
                    raise FileExistsError(target)
        if mode == "move" and not file.archive:
            os.unlink(file.name)
    except FileExistsError as error:
        raise UserError(f"{target}: has appeared meanwhile and is not overwritten; remove it") from error
    except DamagedArchiveError as error:
        raise UserError(f"{file}: cannot be unpacked ({error.strerror}); download the archive again") from error
    except OSError as error:
        raise UserError(
            f"{target}: cannot be made from {file} ({error.strerror or error}); fix that and run the command again, "
            "it resumes from here"
        ) from error


def _linked(source: str, target: Path, mode: str) -> bool:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in NO_HARD_LINK:
            raise
        if mode == "move":
            return False
        os.symlink(source, target)
    return True
