"""What every storey uses: errors, files, processes, options, checkpoints, runs, logs, pictures, tables."""

from __future__ import annotations

import re
from pathlib import Path


def version() -> str:
    """Return the version that pyproject.toml states."""
    text = (Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    return re.findall(r'^version = "(.+)"$', text, re.MULTILINE)[0]
