"""Tables as text and Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def align(table: Sequence[Sequence[str]]) -> str:
    """Lay out a table for a terminal: first column left, the others right, a rule under the heading."""
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    lines = [
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in table
    ]
    return "\n".join([lines[0].rstrip(), "-" * len(lines[0]), *(line.rstrip() for line in lines[1:])])


def markdown(table: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, first column left, the others right."""
    rule = ["---", *["---:"] * (len(table[0]) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(table[0]), rule, *map(list, table[1:])])
