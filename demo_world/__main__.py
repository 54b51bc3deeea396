"""`python -m demo_world --out DIR`: render the five-domain street-scene set."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from datasets.labels import CLASS_NAMES
from demo_world.write import Frame, Summary, already_there, render_frame, write_domains
from utils import format_table, program_parser
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


def _table(summary: Summary) -> str:
    """Return the share of every class in per cent, per domain."""
    shares = [counts.sum(axis=0) / counts.sum() for counts in summary.pixels.values()]
    rows = [[name, *(f"{share[index]:.2%}" for share in shares)] for index, name in enumerate((*CLASS_NAMES, "void"))]
    return format_table([["class", *summary.roots], *rows])


def main(argv: Sequence[str] | None = None) -> None:
    parser = program_parser(
        "demo_world",
        "Render a five-domain street-scene set in the on-disk layouts of GTAV, Cityscapes, BDD-100K, SYNTHIA and "
        "Mapillary.",
        details="The same command resumes after an interruption.",
    )
    add = parser.add_argument
    add("--out", required=True, help="output folder: a new one, an empty one, or one made by this command")
    sizes = ", ".join(f"{name} {train}+{val} of {high}x{wide}" for name, (train, val, (high, wide)) in SIZES.items())
    text = f"training + validation frames per domain, size of the cityscapes frames: {sizes}; or HxW"
    add("--size", default="small", metavar="NAME|HxW", help=text)
    add("--train", type=int, help="training frames per domain, instead of those of --size")
    add("--val", type=int, help="validation frames per domain, instead of those of --size")
    add("--seed", type=int, default=0, help="random seed; output is byte-identical for equal seeds")
    add("--sheet", default="", metavar="FILE.png", help="also write a contact sheet of four frames per domain")
    args = parser.parse_args(argv)
    if args.sheet and not args.sheet.lower().endswith(".png"):
        raise UserError(f"--sheet {args.sheet}: the picture is a PNG file; end its name in .png")
    out, (train, val, size) = Path(args.out), _size(args.size)
    train, val = train if args.train is None else args.train, val if args.val is None else args.val
    if already_there(out, train=train, val=val, size=size, seed=args.seed):
        sys.stdout.write(f"{out}: the set of these options is there already\n")
    else:
        summary = write_domains(out, train=train, val=val, size=size, seed=args.seed)
        sys.stdout.write(f"{_table(summary)}\n{train} train and {val} val frames per domain in {out}\n")
    if args.sheet:  # a domain per row
        frames = [Frame(domain, "val", number) for domain, numbers in SHEET.items() for number in numbers]
        images = [render_frame(frame, size=size, seed=args.seed)[0] for frame in frames]
        captions = [f"{frame.domain} {frame.number}" for frame in frames]
        save_png(contact_sheet(images, columns=4, captions=captions, width=384), args.sheet)


if __name__ == "__main__":
    run_entry_point(main)
