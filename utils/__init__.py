"""What every storey uses; here what programs print: their help and version, and tables."""

from __future__ import annotations

import argparse
import csv
import io
import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

IGNORE = 255  # of labels: a pixel without a class
Style = Literal["text", "markdown", "latex"]
REPOSITORY = Path(__file__).resolve().parents[1]
_FORMATS: dict[Style, str] = {"text": "simple", "markdown": "pipe", "latex": "latex_booktabs"}


def version() -> str:
    """Return the version that pyproject.toml states."""
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    return re.findall(r'^version = "(.+)"$', text, re.MULTILINE)[0]


class Help(argparse.HelpFormatter):
    """Breaks lines at spaces alone, so that names with hyphens stay whole; shows the default of a flag as [value]."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _get_help_string(self, action: argparse.Action) -> str:
        value = " ".join(map(str, action.default)) if isinstance(action.default, list) else action.default
        shown = action.option_strings and action.nargs != 0 and value not in (None, "")
        return f"{action.help} [{value}]" if shown else action.help or ""


def program_parser(name: str, description: str, *, details: str = "") -> argparse.ArgumentParser:
    """Return the parser of `python -m NAME`: one sentence of what it does, details below the flags."""
    parser = argparse.ArgumentParser(f"python -m {name}", formatter_class=Help, allow_abbrev=False)
    parser.description, parser.epilog = description, details
    parser.add_argument("--version", action="version", version=f"DIIA {version()}")
    return parser


def format_table(table: Sequence[Sequence[str]], style: Style = "text") -> str:
    """Lay out a table, heading first: the first column left, the others right, every cell as it is written."""
    from tabulate import tabulate  # slow to import

    heading, *rows = table
    align = ["left", *["right"] * (len(heading) - 1)]
    if style == "markdown":  # names of files and runs are text, whatever they look like
        rows = [[cell.replace("<", "&lt;").replace("|", "\\|") for cell in row] for row in rows]
    text = tabulate(rows, heading, tablefmt=_FORMATS[style], colalign=align, disable_numparse=True)
    return "\n".join(line.rstrip() for line in text.splitlines())


def format_csv(table: Iterable[Sequence[Any]]) -> str:
    """Lay out lines of cells as CSV, None empty; no spreadsheet takes a text of them, out of a file, for a formula."""
    lines = (
        [re.sub(r"^(?=[=+@\t\r-])", "'", cell) if isinstance(cell, str) else cell for cell in row] for row in table
    )
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue()


def percent(value: float) -> str:
    """Format a fraction as a percentage; `-` where there is none."""
    return "-" if math.isnan(value) else f"{100 * value:.2f}"
