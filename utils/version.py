"""The version of the project."""

from __future__ import annotations

import re
from pathlib import Path


def version() -> str:
    """Return the version that pyproject.toml states."""
    text = (Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    match = re.search(r'^version = "(.+)"$', text, re.MULTILINE)
    assert match, "pyproject.toml states a version"
    return match[1]
