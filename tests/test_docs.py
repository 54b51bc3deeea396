"""The pages: links and Python examples hold, and the picture of DIIA's structure is that of the code."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import train
from scripts import plot_structure as structure
from tests.runs import run_folder, train_arguments
from tests.test_layering import FILES
from tests.test_scripts import PAGES, ROOT

FOLDERS = sorted(path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != ".")


def blocks(page: Path, *languages: str) -> list[tuple[str, str]]:
    """Language and text of a page's code blocks in these languages."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [(language, text) for language, text in found if language in languages]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    assert not [link for link in links if not (page.parent / link).exists()]
    paths = set(re.findall(rf"`((?:{'|'.join(FOLDERS)})/[a-z0-9_/]+\.(?:py|sh|json|md))`", text))
    assert not [path for path in paths if not (ROOT / path).exists()], "named, but not there"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_prose_is_wrapped(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    long = [line for line in prose.splitlines() if len(line) > 100 and " " in line and not line.startswith(("|", "!["))]
    assert not long


def test_the_example_of_the_use_from_python_runs(small_camvid: Path, tmp_path: Path) -> None:
    train.main(train_arguments(small_camvid, tmp_path, "--method", "base", "--max_iter", "1"))
    (run_folder(tmp_path) / "last.pth").rename(tmp_path / "last.pth")
    Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(tmp_path / "street.png")
    (_, code), _ = blocks(ROOT / "docs" / "evaluation.md", "python")  # test_export.py runs the other
    lines = [line for line in code.splitlines() if line and "import" not in line]
    assert len(lines) <= 2
    check = "\nassert labels.shape == (64, 96) and str(labels.dtype) == 'uint8' and labels.max() < 19"
    subprocess.run([sys.executable, "-c", code + check], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, check=True)


def test_the_version_is_the_same_everywhere() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert version and citation["version"] == version[1]
    assert f"## {version[1]}\n" in (ROOT / "CHANGELOG.md").read_text()
    assert citation["preferred-citation"]["journal"] == "Neurocomputing" and "RobustNet" in str(citation["references"])


def test_the_page_of_parity_names_every_file_with_a_mark() -> None:
    marked = {str(path.relative_to(ROOT)) for path in FILES if "# Parity:" in path.read_text(encoding="utf-8")}
    page = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
    assert len(marked) > 5 and not [name for name in marked if f"`{name}`" not in page]


def test_the_picture_of_the_structure_is_that_of_the_code() -> None:
    assert structure.FILE.stat().st_size < 150_000
    for file in (structure.FILE, io.BytesIO(structure.plot())):
        with Image.open(file) as picture:
            assert json.loads(picture.info["facts"]) == structure.facts(), "run python -m scripts.plot_structure"
            assert picture.size == (1638, 858)
