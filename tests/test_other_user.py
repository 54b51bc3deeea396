"""Caches that belong to another user: a run goes on without them, or ends with one sentence."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import train
from datasets.segmentation import FrameCache
from network import pretrained
from tests.runs import run_folder, train_arguments
from tests.test_signals import assert_same_run
from utils import files, logs
from utils.errors import UserError

NOBODY = 65534
OVERRIDES = 0b1110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER: what root may do with the files of others


def give_away(*folders: Path) -> None:
    """Make folders those of another user, which all may read, or none but that one where the name ends in `closed`."""
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        closed = folder.name == "closed"
        if os.getuid() == 0:
            folder.chmod(0o700 if closed else 0o755)
            os.chown(folder, NOBODY, NOBODY)
        else:  # no other user to give it to
            folder.chmod(0o000 if closed else 0o555)


@pytest.fixture
def as_user() -> Iterator[None]:
    """Let permissions bite where the tests run as root."""
    header, before, bare = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    if os.getuid() == 0:
        libc = ctypes.CDLL(None)
        libc.capget(header, before)
        libc.capget(header, bare)
        bare[0] &= ~OVERRIDES
        assert libc.capset(header, bare) == 0
    yield
    if os.getuid() == 0:
        libc.capset(header, before)
    files._failing.clear()
    logs.setup_logging()


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize("name", ["closed", "open"])
def test_a_training_goes_on_without_the_caches_of_another(
    name: str, small_camvid: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["--method", "base", "--class_uniform_pct", "0.5", "--num_workers", "1"]
    train.main(train_arguments(small_camvid, tmp_path / "alone", *flags))
    give_away(tmp_path / name)
    capfd.readouterr()
    caches = ["--centroid_cache", str(tmp_path / name), "--frame_cache", str(tmp_path / name)]
    train.main(train_arguments(small_camvid, tmp_path / "other", *flags, *caches))
    assert_same_run(run_folder(tmp_path / "alone"), run_folder(tmp_path / "other"))
    said = capfd.readouterr().err
    assert said.count(f"the frame cache {tmp_path / name} cannot be written") == 1 and "Traceback" not in said
    assert said.count("it is made again") == (name == "closed"), "of the centroids alone"
    assert f"{tmp_path / name}/centroids_" in said and "it will be made again in the next run" in said


@pytest.mark.usefixtures("as_user")
def test_frames_that_only_another_may_read_are_decoded(
    small_camvid: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = str(small_camvid / "train" / "00000.png")
    expected = np.array(FrameCache(tmp_path).read(image))
    (kept,) = tmp_path.glob("??/*.npy")
    give_away(kept.parent)
    kept.chmod(0)
    for _ in range(2):
        np.testing.assert_array_equal(FrameCache(tmp_path).read(image), expected)
    assert caplog.text.count("tries again") == 1 and "not the decoded form" not in caplog.text


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize("name", ["closed", "open"])
def test_a_cache_of_torch_of_another_is_one_sentence(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / name))
    give_away(tmp_path / name)
    with pytest.raises(UserError, match=r"^--pretrained torchvision: .*Permission denied.*by --pretrained FILE"):
        pretrained._download("http://127.0.0.1:9/resnet50-12345678.pth")
