"""Fixtures shared by the tests: where the real frames and the reference values are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from datasets.labels import CAMVID_IDS
from tests.street_data import write_pair

# The same examples in every run; `--hypothesis-profile explore` looks for new ones.
settings.register_profile("fixed", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile("fixed")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder with `data/` (real frames) and `golden/` (reference values), from the variable DIIA_TEST_DATA."""
    value = os.environ.get("DIIA_TEST_DATA", "")
    if not value:
        pytest.skip("DIIA_TEST_DATA is not set: real frames and reference values are not here")
    return Path(value).resolve()


@pytest.fixture(scope="session")
def golden(test_data: Path) -> Path:
    """Folder of the reference values of the original implementation."""
    return test_data / "golden"


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    """Keep the number of threads the same from the first fixture on: sums in another order have other last bits."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture(scope="module", autouse=True)
def _no_weights_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Remove the checkpoints of a module's own fixtures: those of all modules would take several GB."""
    yield
    for file in tmp_path_factory.getbasetemp().rglob("*.pth"):
        if file.is_file():
            file.unlink()


@pytest.fixture(scope="module", autouse=True)
def _no_curves(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave the curves out of every run's page, a fifth of a short run; an error in them ends no run anyway."""
    with pytest.MonkeyPatch.context() as patch:
        if request.module.__name__ not in ("tests.test_page", "tests.test_valid"):
            patch.setattr("evaluation.page.history_curves", lambda _: [])
        yield


def make_camvid(
    root: Path, *, train: int = 8, val: int = 5, size: tuple[int, int] = (96, 128), ignored: bool = True
) -> Path:
    """Make a small data set in CamVid's layout: blocks of class ids, each class with its own colour and some noise."""
    rng, train_ids = np.random.default_rng(7), np.array(list(CAMVID_IDS.values()), np.uint8)
    colours = rng.integers(0, 256, (12, 3))
    for split, count in (("train", train), ("val", val), ("test", val)):
        for index in range(count):
            blocks = rng.integers(0, 12 if ignored else 11, (size[0] // 16, size[1] // 16))
            label = np.kron(blocks, np.ones((16, 16), dtype=int)).astype(np.uint8)  # (h,w)
            image = np.clip(colours[label] + rng.normal(0, 20, (*size, 3)), 0, 255).astype(np.uint8)  # (h,w,3)
            write_pair(root, "camvid", split, index, train_ids[label], image=image)
    return root


@pytest.fixture(scope="session")
def small_camvid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small data set in CamVid's layout, some pixels unlabelled."""
    return make_camvid(tmp_path_factory.mktemp("camvid"))


@pytest.fixture(scope="session")
def full_camvid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with every pixel labelled."""
    return make_camvid(tmp_path_factory.mktemp("camvid_full"), ignored=False)
