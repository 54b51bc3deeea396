"""Tables as text, Markdown and LaTeX."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal

from tabulate import tabulate

Style = Literal["text", "markdown", "latex"]
_FORMATS: dict[Style, str] = {"text": "simple", "markdown": "pipe", "latex": "latex_booktabs"}


def format_table(table: Sequence[Sequence[str]], style: Style = "text") -> str:
    """Lay out a table, heading first: the first column left, the others right, every cell as it is written."""
    heading, *rows = table
    align = ["left", *["right"] * (len(heading) - 1)]
    if style == "markdown":  # names of files and runs are text, whatever they look like
        rows = [[cell.replace("<", "&lt;").replace("|", "\\|") for cell in row] for row in rows]
    text = tabulate(rows, heading, tablefmt=_FORMATS[style], colalign=align, disable_numparse=True)
    return "\n".join(line.rstrip() for line in text.splitlines())


def no_formula(text: str) -> str:
    """Return a text for a CSV cell that no spreadsheet takes for a formula: it comes out of a file."""
    return re.sub(r"^(?=[=+@\t\r-])", "'", text)


def percent(value: float) -> str:
    """Format a fraction as a percentage; `-` where there is none."""
    return "-" if math.isnan(value) else f"{100 * value:.2f}"
