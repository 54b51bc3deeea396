"""From the providers' files to the layout that is read: `python -m scripts.prepare_data gtav SOURCE... --out DIR`."""

from __future__ import annotations

import argparse
import io
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from glob import glob
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

from datasets.domains import BUILTIN, PUBLISHED, Domain
from datasets.splits import SPLIT_DATA, is_known_gap, read_lists, split_of_stems
from scripts.provided import File, kinds, list_files, place
from utils import format_table, program_parser
from utils.errors import UserError, did_you_mean, run_entry_point
from utils.files import make_folder, write_text

NAMES = ("gtav", "synthia", "cityscapes", "bdd100k", "mapillary")
LISTED = ("gtav", "synthia")  # a list says which split a file is in, not the provider's folders
WITHOUT_LABELS = (("cityscapes", "test"), ("bdd100k", "test"), ("mapillary", "test"))  # or with empty ones
UNEQUAL = (
    "the published list for training names 12,388 of the 12,403: it leaves out pairs whose image and label differ in "
    "size, which training here skips with a count"
)
SYNTHIA_IMAGES, SYNTHIA_TRAIN, SYNTHIA_SEED = 9_400, 6_580, 304
MODES = {
    "link": "unpacked files: hard links, which take no space and stay good when the source is moved or removed; "
    "symbolic links where those are impossible, as between two disks (the default)",
    "copy": "unpacked files: copies",
    "move": "unpacked files: moved, unless the target exists. Archives are unpacked in each mode and never removed",
}
Jobs = dict[str, tuple[str, File]]  # target, relative to the target folder -> split and file


def make_lists(
    domain: Domain, folder: Path, files: Sequence[File], notes: list[str]
) -> tuple[dict[str, str], dict[Path, str]]:
    """Return the split of every listed file by its name without suffix, and the lists (file -> text) to be written.

    A list in the folder is taken as it is. One that is missing is made: GTAV's from the provider's split.mat (the
    first in `files`), SYNTHIA's from the recorded seed. Without any, or with a name in two of them, `UserError`.
    """
    lists, made = read_lists(domain, folder), dict[str, list[str]]()
    mat = next((file for file in files if file.kind == "mat"), None)
    if len(lists) < len(domain.splits) and (mat or domain.name == "synthia"):
        made = gtav_lists(mat) if mat else synthia_lists()
        made = {split: names for split, names in made.items() if split not in lists}
        notes += [f"the lists are made from {mat}; {UNEQUAL}"] if mat else []
    if not lists | made:
        raise UserError(
            f"{domain.name}: no source holds split.mat and {folder} has no {domain.name}_split_train.txt; give the "
            "provider's read_mapping.zip too, or put lists of your own there"
        )
    texts = {folder / f"{domain.name}_split_{split}.txt": "\n".join([*names, ""]) for split, names in made.items()}
    return split_of_stems(domain, lists | made, folder), texts


def gtav_lists(mat: File) -> dict[str, list[str]]:
    """Return the names of each split from the provider's split.mat, whose ids count from 1."""
    from scipy.io import loadmat

    try:
        with mat.open() as file:
            content = loadmat(io.BytesIO(file.read()))
        ids = {split: np.sort(content[f"{split}Ids"], axis=None) for split in ("train", "val", "test")}
        return {split: [f"{int(i):05d}.png" for i in ids[split]] for split in ids}
    except Exception as error:  # the reader raises many kinds on a damaged file
        raise UserError(
            f"{mat}: cannot be read as the provider's split.mat ({type(error).__name__}: {error}); download it again"
        ) from error


def synthia_lists() -> dict[str, list[str]]:
    """Return this project's split of SYNTHIA-RAND-CITYSCAPES, sampled from a recorded seed."""
    order = np.random.default_rng(SYNTHIA_SEED).permutation(SYNTHIA_IMAGES)
    halves = {"train": order[:SYNTHIA_TRAIN], "val": order[SYNTHIA_TRAIN:]}
    return {split: [f"{i:07d}.png" for i in sorted(ids)] for split, ids in halves.items()}


def make_jobs(domain: Domain, files: Sequence[File], split_of: Mapping[str, str] | None, notes: list[str]) -> Jobs:
    """Return one job per target; of equal files in two sources the first is taken."""
    jobs, unlisted = Jobs(), list[File]()
    split_of_folder = {folder: split for split, folders in domain.splits for folder in folders}
    for file in (file for file in files if file.kind != "mat"):
        split = split_of_folder[file.folder] if split_of is None else split_of.get(PurePosixPath(file.stem).name)
        if split is None:
            unlisted += [file] if file.kind == "image" else []
            continue
        target = kinds(domain.name, *domain.paths(split, file.stem))[file.kind]
        _, first = jobs.setdefault(target, (split, file))
        if first.size != file.size:
            raise UserError(f"{first} and {file} are different files for {target}; leave one of them out")
    if unlisted:
        notes.append(f"{len(unlisted):,} images are left out, no list names them; the first is {unlisted[0]}")
    return jobs


def existing(domain: Domain, out: Path, split: str, kind: str) -> set[str]:
    """Return the images or labels of a split that the target folder holds."""
    patterns = domain.layouts[0].patterns(dict(domain.splits)[split][0])
    return set(glob(patterns[kind == "label"], root_dir=out))


def compare_with_lists(
    domain: Domain, jobs: Jobs, split_of: Mapping[str, str], *, out: Path, lists: Path, notes: list[str]
) -> None:
    """Note listed names that are nowhere, and refuse a target folder that other lists have filled."""
    targets = {PurePosixPath(target).stem: target for target, (_, file) in jobs.items() if file.kind == "image"}
    splits = {path: split for split, _ in domain.splits for path in existing(domain, out, split, "image")}
    for path in sorted(splits):
        stem = PurePosixPath(path).stem
        if split_of.get(stem) != splits[path] or targets.get(stem, path) != path:
            raise UserError(
                f"{out / path}: the lists in {lists} put it into {split_of.get(stem, 'no split')}, to be "
                f"{targets.get(stem, 'nowhere')}; the folder was filled in another way: choose another --out"
            )
    missing = sorted(split_of.keys() - targets.keys() - {PurePosixPath(path).stem for path in splits})
    if len(missing) == len(split_of):
        raise UserError(f"{domain.name}: no source holds an image that a list in {lists} names; check both")
    if missing:
        notes.append(f"{len(missing):,} names of the lists are in no source; the first is {missing[0]}")


def need_labels(domain: Domain, jobs: Jobs, out: Path, notes: list[str]) -> None:
    """Refuse images without a label, but for the few that the published files lack, which are noted."""
    images = [job for job in jobs.values() if job[1].kind == "image" and (domain.name, job[0]) not in WITHOUT_LABELS]
    bare = []
    for split, file in images:  # a label may lie in the folder already, under the name of any layout
        image, folder = domain.paths(split, file.stem)[0], dict(domain.splits)[split][0]
        labels = {layout.label_path(image, folder) for layout in domain.layouts}
        bare += [] if any(label in jobs or (out / label).exists() for label in labels) else [file]
    if bare and is_known_gap(domain, len(bare), of=len(images)):
        notes.append(f"{len(bare):,} images have no label, as published: {', '.join(map(str, bare))}")
    elif bare:
        raise UserError(
            f"{domain.name}: {len(bare):,} of {len(images):,} images have no label in the sources, the first is "
            f"{bare[0]}; give the provider's labels too"
        )


def _is_done(target: Path, file: File) -> bool:
    if not os.path.lexists(target):
        return False
    state = f"has {target.stat().st_size:,} bytes" if target.is_file() else "is no file or a broken link"
    if state != f"has {file.size:,} bytes":
        raise UserError(
            f"{target}: {state} where {file} has {file.size:,}; nothing is overwritten: remove it or choose "
            "another --out"
        )
    return True


def arrange(domain: Domain, jobs: Jobs, todo: Jobs, out: Path, args: argparse.Namespace, notes: list[str]) -> str:
    """Put every file of `todo` at its target, or say what would be done; return what to print, or raise `UserError`."""
    folder, lines = next(path for path in (out, *out.parents) if path.is_dir()), []
    device, free, size = folder.stat().st_dev, shutil.disk_usage(folder).free, 0
    for _, file in todo.values():
        moved_away = args.mode == "move" and not file.archive and os.stat(file.name).st_dev != device
        size += file.size if file.archive or args.mode == "copy" or moved_away else 0
    needed = f"{size:,} bytes are needed and {free:,} are free"
    if args.dry_run:
        for split, _ in domain.splits:
            moves = [f"{file} -> {out / target}" for target, (of, file) in todo.items() if of == split]
            shown = len(moves) if args.verbose else 3
            lines += moves[:shown]
            lines += [f"... and {len(moves) - shown:,} more of {split}, listed with --verbose"] * (len(moves) > shown)
        return "\n".join([*lines, _table(domain, jobs, todo, out, made="to make"), needed])
    if size > free:
        raise UserError(f"{out}: {needed}; make room or choose another --out")
    make_folder(out)
    for folder in {(out / target).parent for target in todo}:
        for path in folder.glob(".*.[0-9]*.????????.tmp"):  # what a killed run may leave
            path.unlink(missing_ok=True)
    for target, (_, file) in tqdm(todo.items(), desc=domain.name, unit="file", disable=None):
        place(file, out / target, args.mode)
    if symbolic := sum((out / target).is_symlink() for target in todo):
        notes.append(
            f"{symbolic:,} files are symbolic links, no hard link is possible from there; do not move the sources"
        )
    return _table(domain, jobs, todo, out, made="made now")


def _table(domain: Domain, jobs: Jobs, todo: Jobs, out: Path, *, made: str) -> str:
    """Return the counts of each split, images against those that the provider published."""
    rows = [["split", "images", "published", "labels", made, "already there"]]
    for split, (published, *_) in PUBLISHED[domain.name].items():
        targets = {target: file.kind for target, (of, file) in jobs.items() if of == split}
        images, labels = (
            existing(domain, out, split, kind) | {target for target in targets if targets[target] == kind}
            for kind in ("image", "label")
        )
        new = len(targets.keys() & todo.keys())
        counts = (len(images), published, len(labels), new, len(targets) - new)
        rows.append([split, *(f"{count:,}" for count in counts)])
    return format_table(rows)


def _parser() -> argparse.ArgumentParser:
    parser = program_parser(
        "scripts.prepare_data",
        "Arrange what a data set's provider hands out, as the domain of that name reads it.",
        details="Nothing is overwritten; an interrupted run resumes when it is started again. Archives at the top of a "
        "data set's folder are also read where they lie: gtav then needs its lists alone, made without --out.",
    )
    sources = "the provider's zip archives and unpacked folders, mixed, in any order (a folder may hold archives); for "
    sources += "gtav also read_mapping.zip or its split.mat. Their names do not matter, what they hold does"
    parser.add_argument("name", metavar="DOMAIN", help=", ".join(NAMES))
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help=sources)
    text = "folder of the data set, made if missing; without it only the missing lists of gtav or synthia are made"
    parser.add_argument("--out", type=Path, metavar="DIR", help=text)
    modes = parser.add_mutually_exclusive_group()
    for mode, text in MODES.items():
        modes.add_argument(f"--{mode}", dest="mode", action="store_const", const=mode, default="link", help=text)
    parser.add_argument("--dry_run", action="store_true", help="say what would be done, and write nothing")
    parser.add_argument("--verbose", action="store_true", help="with --dry_run: name every file")
    text = "folder of the lists of gtav and synthia"
    parser.add_argument("--split_data", type=Path, default=SPLIT_DATA, metavar="DIR", help=text)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    name = args.name
    if name not in NAMES:
        raise UserError(f"unknown data set {name!r}; there are {', '.join(NAMES)}{did_you_mean(name, NAMES)}")
    domain = BUILTIN[name]
    if args.out is None and name not in LISTED:
        raise UserError(
            f"{name}: give --out DIR, or prepare nothing and set {domain.root_key} to the folder of the archives, "
            "which are read where they lie"
        )
    split_data, *sources = (
        Path(os.path.abspath(os.path.expanduser(path))) for path in (args.split_data, *args.sources)
    )
    out = Path(os.path.abspath(os.path.expanduser(args.out))) if args.out else None
    files, split_of, lists, jobs, todo = list[File](), None, dict[Path, str](), Jobs(), Jobs()
    lines, notes = list[str](), list[str]()
    for source in sources:
        held = list_files(source, name, leave_out=out)
        if not held and out is not None:
            patterns = zip(*(layout.patterns("train") for layout in domain.layouts), strict=True)
            examples = " or ".join(min(paths, key=len) for paths in patterns)
            raise UserError(f"{source}: holds nothing of {name}, no file such as {examples}; leave it out")
        files += held
    if name in LISTED:
        split_of, lists = make_lists(domain, split_data, files, notes)
    if out is not None:
        jobs = make_jobs(domain, files, split_of, notes)
        if split_of is not None:
            compare_with_lists(domain, jobs, split_of, out=out, lists=split_data, notes=notes)
        need_labels(domain, jobs, out, notes)
        todo = {target: (split, file) for target, (split, file) in jobs.items() if not _is_done(out / target, file)}
    for path, text in lists.items():
        lines.append(f"{'would write the list' if args.dry_run else 'list:'} {path}")
        if not args.dry_run:
            write_text(path, text)
    if out is not None:
        lines.append(arrange(domain, jobs, todo, out, args, notes))
    lines += [f"note: {note}" for note in notes]
    if not args.dry_run:
        root = out or next((path for path in sources if path.is_dir()), "FOLDER")
        lines.append(f"next: python -m scripts.check_data {name} --opts {shlex.quote(f'{domain.root_key}={root}')}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    run_entry_point(main)
