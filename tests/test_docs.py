"""The pages: links and Python examples hold, and the picture of DIIA's structure is that of the code."""

from __future__ import annotations

import io
import json
from pathlib import Path

from PIL import Image

from docs import structure

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "split_data" / "README.md"])


def test_the_picture_of_the_structure_is_that_of_the_code() -> None:
    assert structure.FILE.stat().st_size < 150_000
    for file in (structure.FILE, io.BytesIO(structure.plot())):
        with Image.open(file) as picture:
            assert json.loads(picture.info["facts"]) == structure.facts(), "run python -m docs.structure"
            assert picture.size == (1638, 858)
