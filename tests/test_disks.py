"""Disks that are full, read-only or gone: records never end a run, and a whole checkpoint always stays."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import count, cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorboardX
import torch

import train
import utils.runs
from datasets import segmentation
from datasets.segmentation import FrameCache
from evaluation import Report
from tests.runs import REPOSITORY, read_weights, run_folder, train_arguments, watched
from tests.street_data import paint, save
from tests.test_checkpoint import content
from tests.test_signals import assert_same_run
from utils import checkpoint, files, logs
from utils.errors import UserError, WriteError
from utils.logs import read_history

FULL = OSError(errno.ENOSPC, "No space left on device")
# What a disk says one after the other: over its owner's quota, full, read-only, damaged, a mount that is gone.
SAYS = (errno.EDQUOT, errno.ENOSPC, errno.EROFS, errno.EIO, errno.ENOENT)


@pytest.fixture(autouse=True)
def watch() -> Iterator[None]:
    with watched(240):
        yield
    files._failing.clear()


def arguments(camvid: Path, out: Path, *more: str) -> list[str]:
    flags = ("--method", "base", "--save_interval", "1", "--val_interval", "1")
    return train_arguments(camvid, out, *flags, *more)


@pytest.fixture(scope="module")
def straight(small_camvid: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight")
    train.main(arguments(small_camvid, out))
    return run_folder(out)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_checkpoint_is_refused_and_the_one_before_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    last, weights = tmp_path / "run" / "last.pth", {"weight": torch.randn(10_000)}
    for number in range(3):
        checkpoint.save(last, content(best={"step": number}, network=weights))
    assert sorted(os.listdir(last.parent)) == ["last.pth", "previous.pth"]
    assert checkpoint.latest(tmp_path) == last
    flip_a_bit(last)
    with pytest.raises(UserError, match=r"last\.pth: not a readable.*it is damaged: the checksum of .* is another"):
        checkpoint.read(last)
    previous = checkpoint.latest(tmp_path)
    assert previous == last.with_name("previous.pth") and "the checkpoint before it is taken" in caplog.text
    assert checkpoint.read(previous)["best"] == {"step": 1}
    flip_a_bit(previous)
    assert checkpoint.latest(tmp_path) is None


def test_what_does_not_read_back_never_gets_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path / "last.pth", content(kind="old"))
    original = torch.save

    def broken(value: Any, file: Any) -> None:
        original(value, file)
        file.seek(-300, os.SEEK_END)
        file.write(b"x" * 300)

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(WriteError, match="last.pth: the checkpoint cannot be written .it is damaged"):
        checkpoint.save(tmp_path / "last.pth", content(kind="new"))
    assert os.listdir(tmp_path) == ["last.pth"] and checkpoint.read(tmp_path / "last.pth")["kind"] == "old"


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    straight: Path, small_camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = train.train_step, count(1)

    def dies(*arguments: Any, **named: Any) -> Any:
        if next(calls) == 4:
            raise RuntimeError("dies")
        return original(*arguments, **named)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="dies"):
        patch.setattr(train, "train_step", dies)
        train.main(arguments(small_camvid, tmp_path))
    folder = run_folder(tmp_path)
    flip_a_bit(folder / "last.pth")
    train.main(arguments(small_camvid, tmp_path, "--resume", "auto"))
    assert "checkpoint before it is taken" in (folder / "log.txt").read_text()
    assert_same_run(straight, folder)


@pytest.mark.parametrize(("cured", "number"), [(False, errno.ENOSPC), (False, errno.EDQUOT), (True, errno.EDQUOT)])
def test_a_run_without_room_for_checkpoints_goes_on_and_says_so_at_the_end(
    cured: bool, number: int, small_camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = torch.save, 0

    def full(value: Any, file: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2 or (calls > 2 and not cured):
            file.write(b"half")
            raise OSError(number, os.strerror(number))
        original(value, file)

    monkeypatch.setattr(torch, "save", full)
    flags = arguments(small_camvid, tmp_path, "--val_interval", "0")
    if cured:
        train.main(flags)
        words = "last.pth can be written again"
    else:
        with pytest.raises(
            UserError, match=rf"^trained to the end, but not all is saved: .*last\.pth.*{os.strerror(number)}"
        ):
            train.main(flags)
        words = "the run goes on from what it has in memory, and tries again"
    folder = run_folder(tmp_path)
    assert words in (folder / "log.txt").read_text()
    assert read_weights(folder / "last.pth")["progress"]["step"] == (4 if cured else 1)
    assert not list(folder.glob(".*.tmp"))
    assert read_history(folder / "history.jsonl")[-1]["step"] == 4


def break_record(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let a record of a run fail for ever, and return words of the warning."""

    said = cycle(SAYS)

    def fails(*_: Any, **__: Any) -> None:
        number = next(said)
        error = OSError(number, os.strerror(number))
        raise error if name in ("events", "log", "cache", "history") else WriteError(str(error))

    if name == "history":
        original = Path.open

        def no_history(self: Path, mode: str = "r", *more: Any, **named: Any) -> Any:
            if self.name == "history.jsonl" and mode == "a":
                fails()
            return original(self, mode, *more, **named)

        monkeypatch.setattr(Path, "open", no_history)
        return "history.jsonl cannot be written ([Errno 122] Disk quota exceeded)"
    if name == "events":
        monkeypatch.setattr(tensorboardX.event_file_writer.EventsWriter, "write_event", fails)
        return "the events for TensorBoard cannot be written"
    if name == "pictures":
        monkeypatch.setattr(utils.runs, "save_png", fails)
        return "a picture cannot be written"
    if name == "scores":
        monkeypatch.setattr(Report, "write", fails)
        return "the table of scores cannot be written"
    if name == "cache":
        monkeypatch.setattr(segmentation.np, "save", fails)
        return "the frame cache"
    monkeypatch.setattr(logging.FileHandler, "flush", fails)
    return "log.txt cannot be written"


@pytest.mark.parametrize("record", ["history", "events", "pictures", "scores", "log", "cache"])
def test_a_record_that_cannot_be_written_ends_no_run(
    record: str, straight: Path, small_camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    flags = arguments(
        small_camvid, tmp_path, *(["--frame_cache", str(tmp_path / "cache")] if record == "cache" else [])
    )
    words = break_record(record, monkeypatch)
    train.main(flags)
    assert capfd.readouterr().err.count(words) == 1, "once"
    assert_same_run(straight, run_folder(tmp_path))


def test_nobody_has_to_read_what_a_run_says(small_camvid: Path, tmp_path: Path) -> None:
    command = [sys.executable, "train.py", *train_arguments(small_camvid, tmp_path, "--method", "base")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with open("/dev/full", "w") as full:
        subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=full, stderr=full, check=True, timeout=300)
    assert (run_folder(tmp_path) / "last.pth").exists()


def test_what_could_not_be_written_of_the_history_follows(tmp_path: Path) -> None:
    writer = utils.runs.logs.MetricWriter(tmp_path / "tb", tmp_path / "history.jsonl", first_step=0)
    writer.scalars({"a": 1.0}, 1)
    (tmp_path / "history.jsonl").rename(tmp_path / "away")
    (tmp_path / "history.jsonl").mkdir()
    writer.scalars({"a": 2.0}, 2)
    writer.scalars({"a": 3.0}, 3)
    (tmp_path / "history.jsonl").rmdir()
    (tmp_path / "away").rename(tmp_path / "history.jsonl")
    writer.scalars({"a": 4.0}, 4)
    writer.close()
    assert [line["a"] for line in read_history(tmp_path / "history.jsonl")] == [1, 2, 3, 4]


def test_a_frame_cache_of_a_run_tells_once_and_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    image = save(tmp_path / "image.png", paint(np.zeros((8, 8), np.uint8)))
    cache = FrameCache(tmp_path / "frames")
    with monkeypatch.context() as patch:
        patch.setattr(segmentation.np, "save", lambda *_: (_ for _ in ()).throw(FULL))
        first, second = cache.read(str(image)), cache.read(str(image))
    assert np.array_equal(first, second) and caplog.text.count("tries again") == 1
    cache.read(str(image))
    assert "can be written again" in caplog.text and len(list((tmp_path / "frames").glob("??/*.npy"))) == 1


@pytest.fixture
def small_disk(straight: Path, tmp_path: Path) -> Iterator[Path]:
    """A disk with room for one checkpoint and a half, where this may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = [
        "mount",
        "-t",
        "tmpfs",
        "-o",
        f"size={(straight / 'last.pth').stat().st_size * 3 // 2}",
        "tmpfs",
        str(folder),
    ]
    if os.getuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounts no disk: needs root")
    yield folder
    logs.setup_logging()  # closes the log
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_keeps_a_whole_checkpoint(small_disk: Path, small_camvid: Path) -> None:
    with pytest.raises(UserError, match=r"not all is saved: .*last\.pth"):
        train.main(arguments(small_camvid, small_disk))
    folder = run_folder(small_disk)
    assert checkpoint.read_checkpoint(folder / "last.pth")["progress"]["step"] >= 1
    assert not list(folder.glob(".*.tmp"))


def test_a_log_that_cannot_be_opened_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logs.setup_logging(tmp_path)
    assert f"{tmp_path} cannot be written" in caplog.text
    logs.setup_logging()
