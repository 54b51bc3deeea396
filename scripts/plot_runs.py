"""`python -m scripts.plot_runs --out curves.png RUN_FOLDER ...`: curves of one or several runs as a picture."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from utils import program_parser
from utils.errors import UserError, reason, run_entry_point


def make_parser() -> argparse.ArgumentParser:
    parser = program_parser("scripts.plot_runs", "Plot the losses and scores of runs over their steps.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_FOLDER", help="run folders of train.py")
    text = "picture to write, in the format of its suffix"
    parser.add_argument("--out", type=Path, default=Path("curves.png"), metavar="FILE", help=text)
    text = "only panels with one of these in their names, such as loss/ or mean_iu"
    parser.add_argument("--panels", nargs="+", default=[""], metavar="PART", help=text)
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and wrong flags are answered before the slow imports below

from utils.files import atomic_path
from utils.logs import read_history, write_line
from utils.pictures import new_figure

ORDER = ("loss/train_loss", "mean_iu", "val_loss", "loss/")  # of the panels, by a part of their tags; then the others


def plot_curves(folders: Sequence[Path], out: Path, *, panels: Sequence[str] = ("",)) -> None:
    """Plot loss terms and scores of the runs' histories over the steps, one panel per tag, or raise `UserError`.

    Tags without any of `panels` in them are left out. A run has the same colour in all panels.
    """
    histories = {folder: read_history(folder / "history.jsonl") for folder in folders}
    names = {folder: Path(os.path.realpath(folder)).parent.name for folder in histories}  # the --exp of the run
    names = {folder: name if [*names.values()].count(name) == 1 else str(folder) for folder, name in names.items()}
    for folder, lines in histories.items():
        if not any(line.keys() - {"step"} for line in lines):
            raise UserError(f"{folder}: has no history.jsonl with numbers; give run folders of train.py")
    known = {tag for lines in histories.values() for line in lines for tag in line} - {"step"}
    tags = {tag for tag in known if any(part in tag for part in panels)}
    if not tags:
        raise UserError(f"--panels {' '.join(panels)}: in no name; the panels are {', '.join(sorted(known))}")
    columns = min(4, len(tags))
    rows = -(-len(tags) // columns)
    figure = new_figure(4 * columns, 2.8 * rows)
    for number, tag in enumerate(sorted(tags, key=lambda tag: (*(part not in tag for part in ORDER), tag)), start=1):
        panel = figure.add_subplot(rows, columns, number)
        for colour, (folder, lines) in enumerate(histories.items()):
            points = [(line["step"], line[tag]) for line in lines if tag in line]
            if points:
                marker = "." if len(points) < 20 else ""
                steps, values = zip(*points, strict=True)
                panel.plot(steps, values, label=names[folder], color=f"C{colour}", linewidth=1.2, marker=marker)
        panel.set_title(tag, fontsize=10)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.supxlabel("step")
    try:
        with atomic_path(out) as temporary:
            figure.savefig(temporary, dpi=90, format=out.suffix[1:] or "png")
    except (OSError, ValueError) as error:
        raise UserError(f"--out {out}: the picture cannot be written ({reason(error)}); choose another") from error


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    plot_curves(args.folders, args.out, panels=args.panels)
    write_line(f"curves: {args.out}")


if __name__ == "__main__":
    run_entry_point(main)
