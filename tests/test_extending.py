"""The examples of docs/extending.md, applied to a copy of the project in their order, work as they stand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_docs import blocks
from tests.test_scripts import ROOT

PAGE = ROOT / "docs" / "extending.md"
SECTIONS = {  # title -> its code blocks
    "A method": 2,
    "A domain": 3,
    "A backbone": 2,
    "A foundation model": 1,
    "A loss": 3,
    "An option": 3,
}


def apply(folder: Path, patch: str) -> None:
    """Apply a block `--- FILE`, then lines of a diff; `@@` parts them where lines of the file are left out."""
    name, _, lines = patch.partition("\n")
    file = folder / name.removeprefix("--- ")
    text = file.read_text(encoding="utf-8")
    for hunk in lines.split("@@\n"):
        old, new = (
            "".join(line[1:] for line in hunk.splitlines(keepends=True) if line[0] in kept) for kept in (" -", " +")
        )
        assert text.count(old) == 1, f"{name}: these lines are not there once:\n{old}"
        text = text.replace(old, new)
    file.write_text(text, encoding="utf-8")


def run(folder: Path, *command: str) -> None:
    env = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project without what tools and runs leave behind."""
    folder = tmp_path_factory.mktemp("copy") / "project"
    skipped = shutil.ignore_patterns(".*", "__pycache__", "*.txt", "tests", "data", "demo", "logs", "cache", "runs")
    shutil.copytree(ROOT, folder, ignore=skipped)
    shutil.copy(ROOT / "requirements.txt", folder)
    return folder


def test_the_page_has_the_examples() -> None:
    titles = re.findall(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert titles == list(SECTIONS)
    assert len(blocks(PAGE, "diff", "python", "bash", "yaml")) == sum(SECTIONS.values())


@pytest.mark.parametrize("title", SECTIONS)
def test_the_example_works(title: str, project: Path, tmp_path: Path) -> None:
    page = tmp_path / "section.md"  # one section; those before it have been applied to the copy
    page.write_text(PAGE.read_text(encoding="utf-8").partition(f"## {title}\n")[2].partition("\n## ")[0])
    steps = blocks(page, "diff", "python", "bash", "yaml")
    assert len(steps) == SECTIONS[title]
    for language, text in steps:
        if language == "diff":
            apply(project, text)
        elif language == "yaml":
            (project / text.split()[1]).write_text(text)
        elif language == "python":
            run(project, sys.executable, "-c", text)
        else:
            # a small network of the same kind, without a download
            text = text.replace("vit_small_patch14_dinov2.lvd142m --pretrained timm", "test_vit --pretrained none")
            run(project, "bash", "-euc", f'python() {{ {sys.executable} "$@"; }}\n{text}')
