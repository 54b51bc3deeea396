"""From the providers' files to the layout that is read: `python -m scripts.prepare_data gtav SOURCE... --out DIR`."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from glob import glob
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from datasets.domains import BUILTIN, PUBLISHED, Domain
from datasets.files import glob_regex
from datasets.splits import SPLIT_DATA
from scripts.options import make_parser
from scripts.provided import Member, list_files, make_lists, place, remove_temporary
from utils.errors import UserError, did_you_mean, run_entry_point
from utils.files import make_folder, write_text
from utils.tables import format_table

NAMES = ("gtav", "synthia", "cityscapes", "bdd100k", "mapillary")
LISTED = ("gtav", "synthia")  # a list says which split a file is in, not the provider's folders
WITHOUT_LABELS = (("cityscapes", "test"), ("bdd100k", "test"), ("mapillary", "test"))  # or with empty ones
UNEQUAL = (
    "the published list for training names 12,388 of the 12,403: it leaves out pairs whose image and label differ in "
    "size, which training here skips with a count"
)


class Job(NamedTuple):
    """A file and its place; `stem` is as `Domain.paths` takes it, `target` is relative to the target folder."""

    member: Member
    kind: str
    split: str
    stem: str
    target: str


@cache
def _rules(name: str) -> list[tuple[str, re.Pattern[str]]]:
    """Return (kind, end of a path in a source) of what is needed, from the layouts of a row."""
    domain, rules = BUILTIN[name], []
    folders = "|".join(folder for _, names in domain.splits for folder in names)
    for layout in domain.layouts:
        images, labels = layout.patterns("{split}")
        kinds = {"image": images, "label": labels}
        kinds |= {"colour": labels.replace("LABELS", "COLOR")} if name == "synthia" else {}
        for kind, source in kinds.items():
            source = source.replace("/*", "/**/*") if layout.listed else source  # parts, each unpacked into a folder
            end = glob_regex(source).replace(re.escape("{split}"), f"(?P<split>{folders})")
            rules.append((kind, re.compile(f"(?:^|/){end}$")))
    return rules


def needed(name: str, path: str) -> tuple[str, str, str] | None:
    """Return kind (image, label, colour), folder of the split (or "") and stem of a file; None: it is not needed.

    Any folders may lie above; of several rules the nearest folder and the longest ending decide.
    """
    hits = [(hit, kind) for kind, end in _rules(name) if (hit := end.search(path))]
    if not hits:
        return None
    hit, kind = max(hits, key=lambda entry: (entry[0].start(), len(entry[0].re.pattern)))
    *folders, stem = (part for index, part in enumerate(hit.groups(), 1) if index != hit.re.groupindex.get("split"))
    if name == "gtav":  # the provider's ten parts of 2,500 frames
        folders = [f"{(int(stem) - 1) // 2500 + 1:02d}" if stem.isdigit() else "00"]
    return kind, hit.groupdict().get("split") or "", "/".join([*(folders if name != "synthia" else ()), stem])


@dataclass
class Plan:
    """What a run does: jobs to do, jobs that are done already, lists (file -> text) to write, and what to tell."""

    domain: Domain
    out: Path
    split_of: Mapping[str, str] | None = None  # by name without suffix, where lists say it
    todo: list[Job] = field(default_factory=list)
    done: list[Job] = field(default_factory=list)
    lists: dict[Path, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def existing(self, split: str, kind: str) -> set[str]:
        """Return the images or labels of a split that the target folder holds."""
        patterns = self.domain.layouts[0].patterns(dict(self.domain.splits)[split][0])
        return set(glob(patterns[kind == "label"], root_dir=self.out))


def make_plan(name: str, sources: Sequence[Path], *, out: Path | None, split_data: Path) -> Plan:
    """Return what is to be done for a data set; nothing is written. Without a target folder only lists are made.

    Raises:
        UserError: a source, a list or the target folder is not as it should be.
    """
    domain = BUILTIN[name]
    plan, members, mats = Plan(domain, out or Path()), list[Member](), list[Member]()
    for source in sources:
        files = list_files(source, wanted=lambda path: _is_mat(name, path) or needed(name, path), leave_out=out)
        if not files and out is not None:
            images, labels = (min((layout.patterns("train")[k] for layout in domain.layouts), key=len) for k in (0, 1))
            raise UserError(f"{source}: holds nothing of {name}, no file such as {images} or {labels}; leave it out")
        for member in files:
            (mats if _is_mat(name, member.name) else members).append(member)
    if name in LISTED:
        plan.split_of, plan.lists = make_lists(domain, split_data, mats)
        plan.notes += [f"the lists are made from {mats[0]}; {UNEQUAL}"] if plan.lists and mats else []
    if out is None:
        return plan
    jobs = _jobs(plan, members)
    if plan.split_of is not None:
        _compare_with_lists(plan, plan.split_of, jobs, split_data)
    _need_labels(plan, jobs)
    for job in jobs:
        (plan.done if _is_done(out / job.target, job.member) else plan.todo).append(job)
    return plan


def _is_mat(name: str, path: str) -> bool:
    return name == "gtav" and PurePosixPath(path).name == "split.mat"


def _jobs(plan: Plan, members: Sequence[Member]) -> list[Job]:
    """Return one job per target; of equal files in two sources the first is taken."""
    domain, jobs, unlisted = plan.domain, dict[str, Job](), list[Member]()
    for member in members:
        kind, folder, stem = needed(domain.name, member.name) or ("", "", "")
        name = PurePosixPath(stem).name
        if plan.split_of is None:
            split = next(split for split, folders in domain.splits if folder in folders)
        elif name in plan.split_of:
            split = plan.split_of[name]
        else:
            unlisted += [member] if kind == "image" else []
            continue
        image, label = domain.paths(split, stem)
        target = {"image": image, "label": label}.get(kind, label.replace("LABELS", "COLOR"))
        job = jobs.setdefault(target, Job(member, kind, split, stem, target))
        if job.member.size != member.size:
            raise UserError(f"{job.member} and {member} are different files for {target}; leave one of them out")
    if unlisted:
        plan.notes.append(f"{len(unlisted):,} images are left out, no list names them; the first is {unlisted[0]}")
    return list(jobs.values())


def _compare_with_lists(plan: Plan, split_of: Mapping[str, str], jobs: Sequence[Job], split_data: Path) -> None:
    """Note listed names that are nowhere, and refuse a target folder that other lists have filled."""
    targets = {PurePosixPath(job.target).stem: job.target for job in jobs if job.kind == "image"}
    existing = {path: split for split, _ in plan.domain.splits for path in plan.existing(split, "image")}
    for path in sorted(existing):
        stem = PurePosixPath(path).stem
        if split_of.get(stem) != existing[path] or targets.get(stem, path) != path:
            raise UserError(
                f"{plan.out / path}: the lists in {split_data} put it into {split_of.get(stem, 'no split')}, to be "
                f"{targets.get(stem, 'nowhere')}; the folder was filled in another way: choose another --out"
            )
    missing = sorted(split_of.keys() - targets.keys() - {PurePosixPath(path).stem for path in existing})
    if len(missing) == len(split_of):
        raise UserError(f"{plan.domain.name}: no source holds an image that a list in {split_data} names; check both")
    if missing:
        plan.notes.append(f"{len(missing):,} names of the lists are in no source; the first is {missing[0]}")


def _need_labels(plan: Plan, jobs: Sequence[Job]) -> None:
    name, planned = plan.domain.name, {job.target for job in jobs if job.kind == "label"}
    images = [job for job in jobs if job.kind == "image" and (name, job.split) not in WITHOUT_LABELS]
    labels = [plan.domain.paths(job.split, job.stem)[1] for job in images]
    bare = [
        job
        for job, label in zip(images, labels, strict=True)
        if label not in planned and not (plan.out / label).exists()
    ]
    if bare:
        raise UserError(
            f"{name}: {len(bare):,} of {len(images):,} images have no label in the sources, the first is "
            f"{bare[0].member}; give the provider's labels too"
        )


def _is_done(target: Path, member: Member) -> bool:
    if not os.path.lexists(target):
        return False
    size = target.stat().st_size if target.is_file() else -1
    if size != member.size:
        state = f"has {size:,} bytes" if size >= 0 else "is no file or a broken link"
        raise UserError(
            f"{target}: {state} where {member} has {member.size:,}; nothing is overwritten: remove it or choose "
            "another --out"
        )
    return True


def carry_out(plan: Plan, mode: str) -> None:
    """Do what is to be done, with a progress bar."""
    from tqdm import tqdm

    needed, free = space(plan, mode)
    if needed > free:
        raise UserError(
            f"{plan.out}: {needed:,} bytes are needed and {free:,} are free; make room or choose another --out"
        )
    make_folder(plan.out)
    remove_temporary({(plan.out / job.target).parent for job in plan.todo})
    symbolic = 0
    for job in tqdm(plan.todo, desc=plan.domain.name, unit="file", disable=None):
        place(job.member, plan.out / job.target, mode)
        symbolic += (plan.out / job.target).is_symlink()
    if symbolic:
        plan.notes.append(
            f"{symbolic:,} files are symbolic links, no hard link is possible from there; do not move the sources"
        )


def space(plan: Plan, mode: str) -> tuple[int, int]:
    """Return the bytes that the jobs write and those that are free."""
    folder = next(path for path in (plan.out, *plan.out.parents) if path.is_dir())
    device, needed = folder.stat().st_dev, 0
    for member in (job.member for job in plan.todo):
        moved_away = mode == "move" and not member.archive and os.stat(member.name).st_dev != device
        needed += member.size if member.archive or mode == "copy" or moved_away else 0
    return needed, shutil.disk_usage(folder).free


def table(plan: Plan, *, made: str) -> str:
    """Return the counts of each split, images against those that the provider published."""
    lines = [["split", "images", "published", "labels", made, "already there"]]
    todo, done = (Counter(job.split for job in jobs) for jobs in (plan.todo, plan.done))
    for split, (published, *_) in PUBLISHED[plan.domain.name].items():
        images, labels = (
            plan.existing(split, kind) | {job.target for job in plan.todo if (job.kind, job.split) == (kind, split)}
            for kind in ("image", "label")
        )
        counts = (len(images), published, len(labels), todo[split], done[split])
        lines.append([split, *(f"{count:,}" for count in counts)])
    return format_table(lines)


def dry_run(plan: Plan, mode: str, *, shown: int | None) -> str:
    """Return what a run would do, with the first files of each split (None: all)."""
    lines = []
    for split, _ in plan.domain.splits:
        jobs = [job for job in plan.todo if job.split == split]
        lines += [f"{job.member} -> {plan.out / job.target}" for job in jobs[:shown]]
        rest = len(jobs[shown:]) if shown is not None else 0
        lines += [f"... and {rest:,} more of {split}, listed with --verbose"] if rest else []
    needed, free = space(plan, mode)
    return "\n".join([*lines, table(plan, made="to make"), f"{needed:,} bytes are needed and {free:,} are free"])


MODES = {
    "link": "unpacked files: hard links, which take no space and stay good when the source is moved or removed; "
    "symbolic links where those are impossible, as between two disks (the default)",
    "copy": "unpacked files: copies",
    "move": "unpacked files: moved, unless the target exists. Archives are unpacked in each mode and never removed",
}


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "prepare_data",
        "Arrange what a data set's provider hands out, as the domain of that name reads it.",
        details="Nothing is overwritten; an interrupted run resumes when it is started again. Archives at the top of a "
        "data set's folder are also read where they lie: gtav then needs its lists alone, made without --out.",
    )
    sources = "the provider's zip archives and unpacked folders, mixed, in any order (a folder may hold archives); for "
    sources += "gtav also read_mapping.zip or its split.mat. Their names do not matter, what they hold does"
    parser.add_argument("name", metavar="DOMAIN", help=", ".join(NAMES))
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help=sources)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the data set, made if missing")
    modes = parser.add_mutually_exclusive_group()
    for mode, text in MODES.items():
        modes.add_argument(f"--{mode}", dest="mode", action="store_const", const=mode, default="link", help=text)
    parser.add_argument("--dry_run", action="store_true", help="say what would be done, and write nothing")
    parser.add_argument("--verbose", action="store_true", help="with --dry_run: name every file")
    parser.add_argument(
        "--split_data", type=Path, default=SPLIT_DATA, metavar="DIR", help="folder of the lists of gtav and synthia"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    name = args.name
    if name not in NAMES:
        raise UserError(f"unknown data set {name!r}; there are {', '.join(NAMES)}{did_you_mean(name, NAMES)}")
    if args.out is None and name not in LISTED:
        raise UserError(
            f"{name}: give --out DIR, or prepare nothing and set {BUILTIN[name].root_key} to the folder of the "
            "archives, which are read where they lie"
        )
    split_data, *sources = (Path(os.path.abspath(path.expanduser())) for path in (args.split_data, *args.sources))
    out = Path(os.path.abspath(args.out.expanduser())) if args.out else None
    plan = make_plan(name, sources, out=out, split_data=split_data)
    lines = [f"would write the list {path}" for path in plan.lists] if args.dry_run else []
    if out is not None and args.dry_run:
        lines.append(dry_run(plan, args.mode, shown=None if args.verbose else 3))
    if not args.dry_run:
        for path, text in plan.lists.items():
            write_text(path, text)
            lines.append(f"list: {path}")
    if out is not None and not args.dry_run:
        carry_out(plan, args.mode)
        lines.append(table(plan, made="made now"))
    lines += [f"note: {note}" for note in plan.notes]
    opts = shlex.quote(f"{plan.domain.root_key}={out or next((path for path in sources if path.is_dir()), 'FOLDER')}")
    lines += [] if args.dry_run else [f"next: python -m scripts.check_data {name} --opts {opts}"]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    run_entry_point(main)
