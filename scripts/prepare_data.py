"""From the providers' files to the layout that is read: `python -m scripts.prepare_data gtav SOURCE... --out DIR`."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from glob import glob
from pathlib import Path, PurePosixPath

from datasets.archives import Member, bytes_to_write, list_files, place, remove_temporary
from datasets.domains import BUILTIN, PUBLISHED, Domain
from scripts.options import make_parser
from scripts.provided import (
    LISTED,
    RULES,
    SPLIT_DATA,
    UNEQUAL,
    WITHOUT_LABELS,
    is_needed,
    is_split_mat,
    read_splits,
)
from utils.errors import UserError, did_you_mean, run_entry_point
from utils.files import make_folder, write_text
from utils.tables import format_table


@dataclass(frozen=True)
class Job:
    """A file and its place; `target` is relative to the target folder."""

    member: Member
    kind: str
    split: str
    target: str


@dataclass
class Plan:
    """What a run does: jobs to do, jobs that are done already, lists (file -> text) to write, and what to tell."""

    domain: Domain
    out: Path
    todo: list[Job] = field(default_factory=list)
    there: list[Job] = field(default_factory=list)
    lists: dict[Path, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def splits(self) -> list[str]:
        """train, val and, where there is one, test."""
        return [split for split, _ in self.domain.splits]

    def folder(self, split: str) -> str:
        """Return the name that the layout has for a split."""
        return dict(self.domain.splits)[split][0]

    def labels_of(self, image: str, split: str) -> set[str]:
        """Return where the label of an image may be; all paths are relative to the target folder."""
        return {layout.label_path(image, self.folder(split)) for layout in self.domain.layouts}

    def existing(self, split: str, kind: str) -> set[str]:
        """Return the images or labels of a split that the target folder holds."""
        layout, folder = self.domain.layouts[0], self.folder(split)
        pattern = layout.images.replace("{split}", folder)
        return set(glob(pattern if kind == "image" else layout.label_path(pattern, folder), root_dir=self.out))


def make_plan(name: str, sources: Sequence[Path], *, out: Path, split_data: Path) -> Plan:
    """Return what is to be done for a data set; nothing is written.

    Raises:
        UserError: a source, a list or the target folder is not as it should be.
    """
    plan = Plan(BUILTIN[name], out)
    wanted = partial(is_needed, name)
    members = []
    for source in sources:
        found = list_files(source, wanted=wanted, leave_out=out)
        if not found:
            examples = " or ".join(rule.example for rule in RULES[name])
            raise UserError(f"{source}: holds nothing of {name}, no file such as {examples}; leave it out")
        members += found
    split_of = None
    if name in LISTED:
        mats = [member for member in members if is_split_mat(member.name)]
        split_of, plan.lists = read_splits(name, plan.splits, folder=split_data, mats=mats)
        plan.notes += [f"the lists are made from {mats[0]}; {UNEQUAL}"] if plan.lists and mats else []
    jobs = _jobs(plan, members, split_of)
    if split_of is not None:
        _compare_with_lists(plan, jobs, split_of, split_data)
    _need_labels(plan, jobs)
    for job in jobs:
        (plan.there if _is_there(plan.out / job.target, job.member) else plan.todo).append(job)
    return plan


def _jobs(plan: Plan, members: Sequence[Member], split_of: Mapping[str, str] | None) -> list[Job]:
    """Return one job per target; of equal files in two sources the first is taken."""
    name, jobs, unlisted = plan.domain.name, dict[str, Job](), list[Member]()
    for member in members:
        for rule in RULES[name]:
            match = rule.match(member.name)
            if match is None:
                continue
            stem = PurePosixPath(match["file"]).stem
            if split_of is None:
                split = next(split for split, names in plan.domain.splits if match["split"] in names)
            elif stem in split_of:
                split = split_of[stem]
            else:
                unlisted += [member] if rule.kind == "image" else []
                continue
            part = f"{(int(stem) - 1) // 2500 + 1:02d}" if "{part}" in rule.target else ""  # the provider's ten parts
            target = rule.target.format(folder=plan.folder(split), part=part, file=match["file"])
            job = jobs.setdefault(target, Job(member, rule.kind, split, target))
            if job.member.size != member.size:
                raise UserError(f"{job.member} and {member} are different files for {target}; leave one of them out")
    if unlisted:
        plan.notes.append(f"{len(unlisted):,} images are left out, no list names them; the first is {unlisted[0]}")
    return list(jobs.values())


def _compare_with_lists(plan: Plan, jobs: Sequence[Job], split_of: Mapping[str, str], split_data: Path) -> None:
    """Note listed names that are nowhere, and refuse a target folder that other lists have filled."""
    targets = {PurePosixPath(job.target).stem: job.target for job in jobs if job.kind == "image"}
    there = {path: split for split in plan.splits for path in plan.existing(split, "image")}
    for path in sorted(there):
        stem = PurePosixPath(path).stem
        if split_of.get(stem) != there[path] or targets.get(stem, path) != path:
            raise UserError(
                f"{plan.out / path}: the lists in {split_data} put it into {split_of.get(stem, 'no split')}, to be "
                f"{targets.get(stem, 'nowhere')}; the folder was filled in another way: choose another --out"
            )
    missing = sorted(split_of.keys() - targets.keys() - {PurePosixPath(path).stem for path in there})
    if len(missing) == len(split_of):
        raise UserError(f"{plan.domain.name}: no source holds an image that a list in {split_data} names; check both")
    if missing:
        plan.notes.append(f"{len(missing):,} names of the lists are in no source; the first is {missing[0]}")


def _need_labels(plan: Plan, jobs: Sequence[Job]) -> None:
    planned = {job.target for job in jobs}
    images = [job for job in jobs if job.kind == "image" and (plan.domain.name, job.split) not in WITHOUT_LABELS]
    bare = [
        job
        for job in images
        if not any(path in planned or (plan.out / path).exists() for path in plan.labels_of(job.target, job.split))
    ]
    if bare:
        raise UserError(
            f"{plan.domain.name}: {len(bare):,} of {len(images):,} images have no label in the sources, the first is "
            f"{bare[0].member}; give the provider's labels too"
        )


def _is_there(target: Path, member: Member) -> bool:
    if not os.path.lexists(target):
        return False
    size = target.stat().st_size if target.is_file() else -1
    if size != member.size:
        found = f"has {size:,} bytes" if size >= 0 else "is no file or a broken link"
        raise UserError(
            f"{target}: {found} where {member} has {member.size:,}; nothing is overwritten: remove it or choose "
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
    for path, text in plan.lists.items():
        write_text(path, text)
    make_folder(plan.out)
    remove_temporary(sorted({(plan.out / job.target).parent for job in plan.todo}))
    jobs = [(job.member, plan.out / job.target) for job in plan.todo]
    symbolic = 0
    for target in tqdm(place(jobs, mode), total=len(jobs), desc=plan.domain.name, unit="file", disable=None):
        symbolic += target.is_symlink()
    if symbolic:
        plan.notes.append(
            f"{symbolic:,} files are symbolic links, no hard link is possible from there; do not move the sources"
        )


def space(plan: Plan, mode: str) -> tuple[int, int]:
    """Return the bytes that the jobs write and those that are free."""
    folder = next(path for path in (plan.out, *plan.out.parents) if path.is_dir())
    device = folder.stat().st_dev
    needed = sum(bytes_to_write(job.member, mode, device=device) for job in plan.todo)
    return needed, shutil.disk_usage(folder).free


def table(plan: Plan, *, made: str) -> str:
    """Return the counts of each split, images against those that the provider published."""
    lines = [["split", "images", "published", "labels", made, "already there"]]
    todo, there = (Counter(job.split for job in jobs) for jobs in (plan.todo, plan.there))
    for split, (published, *_) in PUBLISHED[plan.domain.name].items():
        images, labels = (
            plan.existing(split, kind) | {job.target for job in plan.todo if (job.kind, job.split) == (kind, split)}
            for kind in ("image", "label")
        )
        counts = (len(images), published, len(labels), todo[split], there[split])
        lines.append([split, *(f"{count:,}" for count in counts)])
    return format_table(lines)


def dry_run(plan: Plan, mode: str, *, shown: int | None) -> str:
    """Return what a run would do, with the first files of each split (None: all)."""
    lines = []
    for split in plan.splits:
        jobs = [job for job in plan.todo if job.split == split]
        lines += [f"{job.member} -> {plan.out / job.target}" for job in jobs[:shown]]
        rest = len(jobs[shown:]) if shown is not None else 0
        lines += [f"... and {rest:,} more of {split}, listed with --verbose"] if rest else []
    needed, free = space(plan, mode)
    lines += [f"would write the list {path}" for path in plan.lists]
    return "\n".join([*lines, table(plan, made="to make"), f"{needed:,} bytes are needed and {free:,} are free"])


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "prepare_data",
        "Arrange what a data set's provider hands out, as the domain of that name reads it.",
        details="Nothing is overwritten; after an interruption the same command resumes.",
    )
    parser.add_argument("name", metavar="DOMAIN", help=", ".join(RULES))
    parser.add_argument(
        "sources",
        nargs="+",
        type=Path,
        metavar="SOURCE",
        help="the provider's zip archives and unpacked folders, mixed, in any order (a folder may hold archives); "
        "for gtav also read_mapping.zip or its split.mat. Their names do not matter, what they hold does",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the data set, made if missing"
    )
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        "--link",
        dest="mode",
        action="store_const",
        const="link",
        default="link",
        help="unpacked files: hard links, which take no space and stay good when the source is moved or removed; "
        "symbolic links where those are impossible, as between two disks (the default)",
    )
    modes.add_argument("--copy", dest="mode", action="store_const", const="copy", help="unpacked files: copies")
    modes.add_argument(
        "--move",
        dest="mode",
        action="store_const",
        const="move",
        help="unpacked files: moved, unless the target is there. Archives are unpacked in each mode and never removed",
    )
    parser.add_argument("--dry_run", action="store_true", help="say what would be done, and write nothing")
    parser.add_argument("--verbose", action="store_true", help="with --dry_run: name every file")
    parser.add_argument(
        "--split_data", type=Path, default=SPLIT_DATA, metavar="DIR", help="folder of the lists of gtav and synthia"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    given = _parser().parse_args(argv)
    if given.name not in RULES:
        raise UserError(
            f"unknown data set {given.name!r}; there are {', '.join(RULES)}{did_you_mean(given.name, RULES)}"
        )
    paths = (given.out, given.split_data, *given.sources)
    out, split_data, *sources = (Path(os.path.abspath(path.expanduser())) for path in paths)
    plan = make_plan(given.name, sources, out=out, split_data=split_data)
    if given.dry_run:
        text = dry_run(plan, given.mode, shown=None if given.verbose else 3)
    else:
        carry_out(plan, given.mode)
        text = table(plan, made="made now")
    notes = [f"note: {note}" for note in plan.notes]
    opts = shlex.quote(f"{plan.domain.root_key}={out}")
    notes += [] if given.dry_run else [f"next: python -m scripts.check_data {given.name} --opts {opts}"]
    sys.stdout.write("\n".join([text, *notes]) + "\n")


if __name__ == "__main__":
    run_entry_point(main)
