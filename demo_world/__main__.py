"""`python -m demo_world --out DIR`: draw the five-domain street-scene set."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from datasets.labels import CLASS_NAMES
from demo_world.write import Frame, Summary, already_there, draw_frame, write_domains
from utils.errors import UserError, run_entry_point
from utils.pictures import contact_sheet, save_png

SIZES = {  # training and validation frames per domain, height and width of the cityscapes frames
    "small": (60, 20, (256, 512)),
    "medium": (600, 150, (256, 512)),
    "large": (3000, 500, (512, 1024)),
}

SHEET = {  # the numbers of frames in all the light and weather of their domain
    "gtav": (5, 6, 8, 13),
    "cityscapes": (3, 4, 13, 15),
    "bdd100k": (1, 2, 6, 10),
    "synthia": (0, 1, 4, 8),
    "mapillary": (12, 14, 18, 20),
}


def _size(text: str) -> tuple[int, int, tuple[int, int]]:
    """Return frames and their size for a name of `SIZES`, or for HEIGHTxWIDTH with the frames of "small"."""
    height, _, width = text.lower().partition("x")
    if text in SIZES:
        return SIZES[text]
    if not (height.isdecimal() and width.isdecimal()):
        raise UserError(f"--size {text}: must be {', '.join(SIZES)}, or HEIGHTxWIDTH in pixels, such as 256x512")
    return (*SIZES["small"][:2], (int(height), int(width)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m demo_world",
        description="Draw a five-domain street-scene set in the on-disk layouts of GTAV, Cityscapes, BDD-100K, "
        "SYNTHIA and Mapillary. The same command goes on after an interruption.",
    )
    parser.add_argument(
        "--out", required=True, help="folder to make: a new one, an empty one, or one made by this command"
    )
    sizes = ", ".join(f"{name} {train}+{val} of {high}x{wide}" for name, (train, val, (high, wide)) in SIZES.items())
    parser.add_argument(
        "--size",
        default="small",
        metavar="NAME|HxW",
        help=f"training + validation frames per domain, size of the cityscapes frames: {sizes}; or HxW (%(default)s)",
    )
    parser.add_argument("--train", type=int, help="training frames per domain, instead of those of --size")
    parser.add_argument("--val", type=int, help="validation frames per domain, instead of those of --size")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (%(default)s)")
    parser.add_argument("--sheet", default="", metavar="FILE.png", help="draw a sheet of four frames per domain too")
    return parser


def _table(summary: Summary) -> str:
    """Return the share of every class in per cent, per domain."""
    domains = list(summary.roots)
    lines = ["class".ljust(16) + "".join(domain.rjust(12) for domain in domains)]
    for index, name in enumerate((*CLASS_NAMES, "void")):
        shares = [summary.pixels[domain][:, index].sum() / summary.pixels[domain].sum() for domain in domains]
        lines.append(name.ljust(16) + "".join(f"{100 * share:11.2f}%" for share in shares))
    return "\n".join(lines)


def _draw_sheet(path: str, *, size: tuple[int, int], seed: int) -> None:
    """Draw validation frames of every domain on one sheet, a domain per row."""
    frames = [Frame(domain, "val", number) for domain, numbers in SHEET.items() for number in numbers]
    images = [draw_frame(frame, size=size, seed=seed)[0] for frame in frames]
    captions = [f"{frame.domain} {frame.number}" for frame in frames]
    save_png(contact_sheet(images, columns=4, captions=captions, width=384), path)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the set that the command line asks for, unless it is there already."""
    given = _parser().parse_args(argv)
    out, (train, val, size) = Path(given.out), _size(given.size)
    train, val = train if given.train is None else given.train, val if given.val is None else given.val
    if already_there(out, train=train, val=val, size=size, seed=given.seed):
        sys.stdout.write(f"{out}: the set of these options is there already\n")
    else:
        summary = write_domains(out, train=train, val=val, size=size, seed=given.seed, progress=True)
        sys.stdout.write(f"{_table(summary)}\n{train} train and {val} val frames per domain in {out}\n")
    if given.sheet:
        _draw_sheet(given.sheet, size=size, seed=given.seed)


if __name__ == "__main__":
    run_entry_point(main)
