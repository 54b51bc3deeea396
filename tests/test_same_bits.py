"""One seed gives one run: the weights do not depend on loader workers, on how the files are packed, or on the cache."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import train
from tests.runs import read_weights, run_folder, train_arguments
from tests.street_data import write_domain
from tests.test_prepare import pack
from tests.test_train import assert_same

FLAGS = (
    *("--dataset", "gtav", "--val_dataset", "--no_val_source", "--covstat_val_dataset", "--method", "base"),
    *("--max_iter", "3", "--class_uniform_pct", "0.5", "--class_uniform_tile", "32"),
    *("--crop_size", "32", "--rrotate", "5", "--randaugment", "5", "--no_quick_check"),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """GTAV's frames as files and in a zip archive."""
    root = tmp_path_factory.mktemp("gtav")
    write_domain(root / "png", "gtav", train=6)
    (root / "zip").mkdir()
    pack(root / "png", root / "zip/all.zip")
    return {name: root / name for name in ("png", "zip")}


def test_workers_archives_and_the_cache_change_no_bit(folders: dict[str, Path], tmp_path: Path) -> None:
    cached = ("--frame_cache", str(tmp_path / "frames"))
    ways: dict[str, tuple[str, tuple[str, ...]]] = {
        "png 0": ("png", ()),
        "png 1": ("png", ("--num_workers", "1")),
        "png 4": ("png", ("--num_workers", "4")),
        "zip 1": ("zip", ("--num_workers", "1")),
        "zip cached 0": ("zip", cached),  # fills the cache
        "zip cached 4": ("zip", (*cached, "--num_workers", "4")),  # reads it
        "png cached 0": ("png", cached),  # other keys: fills it again
    }
    weights = {}
    for name, (kind, flags) in ways.items():
        out = tmp_path / name
        train.main(train_arguments(Path("none"), out, *FLAGS, *flags, "--opts", f"DATASET.GTAV_DIR={folders[kind]}"))
        weights[name] = read_weights(run_folder(out) / "last.pth")
    for name, found in weights.items():
        for key in ("network", "optimizer", "progress"):
            assert_same(weights["png 0"][key], found[key], f"{name}: {key}")
    shutil.rmtree(tmp_path / "frames")
    other = train_arguments(
        Path("none"), tmp_path / "seed", *FLAGS, "--seed", "1", "--opts", f"DATASET.GTAV_DIR={folders['png']}"
    )
    train.main(other)
    with pytest.raises(AssertionError):
        assert_same(weights["png 0"]["network"], read_weights(run_folder(tmp_path / "seed") / "last.pth")["network"])
