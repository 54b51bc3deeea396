"""`python -m datasets.demo --out DIR`: draw the five-domain street-scene set."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from datasets.demo.write import Summary, already_there, write_domains
from datasets.labels import CLASS_NAMES
from utils.errors import UserError, run_entry_point


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise UserError(f"--size {text}: must be HEIGHTxWIDTH in pixels, such as 256x512")
    return int(height), int(width)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m datasets.demo",
        description="Draw a small five-domain street-scene set "
        "in the on-disk layouts of GTAV, Cityscapes, BDD-100K, SYNTHIA and Mapillary.",
    )
    parser.add_argument(
        "--out", required=True, help="folder to make: a new one, an empty one, or one made by this command"
    )
    parser.add_argument("--train", type=int, default=40, help="training frames per domain (%(default)s)")
    parser.add_argument("--val", type=int, default=8, help="validation frames per domain (%(default)s)")
    parser.add_argument("--size", default="256x512", metavar="HxW", help="size of the cityscapes frames (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (%(default)s)")
    return parser


def _table(summary: Summary) -> str:
    """Return a table of frames per domain and the share of every class in per cent."""
    domains = list(summary.roots)
    lines = ["".join(["class".ljust(16), *(domain.rjust(12) for domain in domains)])]
    for split in ("train", "val"):
        lines.append(f"{split + ' frames':16s}" + "".join(f"{summary.frames[domain][split]:12d}" for domain in domains))
    for index, name in enumerate((*CLASS_NAMES, "void")):
        shares = [summary.pixels[domain][:, index].sum() / summary.pixels[domain].sum() for domain in domains]
        lines.append(f"{name:16s}" + "".join(f"{100 * share:11.2f}%" for share in shares))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the set that the command line asks for, unless it is there already."""
    arguments = _parser().parse_args(argv)
    out, size = Path(arguments.out), _size(arguments.size)
    if already_there(out, train=arguments.train, val=arguments.val, size=size, seed=arguments.seed):
        sys.stdout.write(f"{out}: the set of these options is there already\n")
        return
    summary = write_domains(
        out, train=arguments.train, val=arguments.val, size=size, seed=arguments.seed, progress=True
    )
    sys.stdout.write(f"{_table(summary)}\nwritten to {out}\n")


if __name__ == "__main__":
    run_entry_point(main)
