"""`python -m scripts.plot_runs --out curves.png RUN_FOLDER ...`: curves of one or several runs as a picture."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError, run_entry_point
from utils.files import atomic_path
from utils.logs import read_history, write_line


def draw_curves(folders: Sequence[Path], out: Path) -> None:
    """Draw every loss term and every score of the runs' histories over the steps, one panel per tag.

    Raises:
        UserError: a folder has no history.jsonl, or the picture cannot be written.
    """
    from matplotlib.figure import Figure

    histories = {folder: read_history(folder / "history.jsonl") for folder in folders}
    for folder, lines in histories.items():
        if not lines:
            raise UserError(f"{folder}: has no history.jsonl with numbers; give run folders of train.py")
    tags = sorted({tag for lines in histories.values() for line in lines for tag in line if tag != "step"}, key=_place)
    columns = min(4, len(tags))
    rows = -(-len(tags) // columns)
    figure = Figure(figsize=(4 * columns, 2.8 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel in panels[len(tags) :]:
        panel.set_visible(False)
    for panel, tag in zip(panels, tags, strict=False):
        for folder, lines in histories.items():
            points = [(line["step"], line[tag]) for line in lines if tag in line]
            if points:
                panel.plot(
                    *zip(*points, strict=True),
                    label=_name(folder),
                    linewidth=1.2,
                    marker="." if len(points) < 20 else "",
                )
        panel.set_title(tag, fontsize=10)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.supxlabel("step")
    try:
        with atomic_path(out) as temporary:
            figure.savefig(temporary, dpi=90, format=out.suffix[1:] or "png")
    except (OSError, ValueError) as error:
        raise UserError(f"--out {out}: the picture cannot be written ({error})") from error


def _place(tag: str) -> tuple[int, str]:
    order = ("loss/train_loss", "mean_iu", "val_loss", "loss/")
    return next((index for index, part in enumerate(order) if part in tag), len(order)), tag


def _name(folder: Path) -> str:
    return folder.resolve().parent.name  # the --exp of the run


def main(argv: Any = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.plot_runs", description="Draw the curves of runs as a PNG."
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_FOLDER", help="run folders of train.py")
    parser.add_argument("--out", type=Path, default=Path("curves.png"), help="picture to write")
    arguments = parser.parse_args(argv)
    draw_curves(arguments.folders, arguments.out)
    write_line(f"curves: {arguments.out}")


if __name__ == "__main__":
    run_entry_point(main)
