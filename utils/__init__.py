"""What every storey uses: errors, files, processes, options, checkpoints, runs, logs, pictures, tables."""

from __future__ import annotations

import argparse
import re
import textwrap
from pathlib import Path


def version() -> str:
    """Return the version that pyproject.toml states."""
    text = (Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8")
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
