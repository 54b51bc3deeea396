"""Clocks that are wrong, jump, or stand in another time zone: nothing is lost, and the newest run is the newest."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import train
import utils.runs
from tests.runs import read_weights, run_folder, train_arguments
from tests.test_disks import watch as watch  # ends what waits for ever
from tests.test_signals import assert_same_run
from utils import checkpoint
from utils.logs import read_history

YEAR = 365 * 24 * 3600


def arguments(camvid: Path, out: Path, *more: str) -> list[str]:
    flags = ("--method", "base", "--save_interval", "1", "--val_interval", "1")
    return train_arguments(camvid, out, *flags, "--class_uniform_pct", "0.5", *more)


@pytest.fixture(scope="module")
def straight(small_camvid: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight")
    train.main(arguments(small_camvid, out))
    return run_folder(out)


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Set the time zone of this process."""

    def move(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield move
    monkeypatch.undo()
    time.tzset()


def test_a_run_goes_on_in_another_time_zone(small_camvid: Path, tmp_path: Path, straight: Path, zone: Any) -> None:
    zone("Pacific/Kiritimati")  # UTC+14
    train.main(arguments(small_camvid, tmp_path, "--max_iter", "2"))
    first = run_folder(tmp_path)
    zone("Pacific/Niue")  # UTC-11: the day before
    train.main(arguments(small_camvid, tmp_path, "--resume", "auto"))
    assert run_folder(tmp_path) == first
    assert read_weights(first / "last.pth")["progress"] == read_weights(straight / "last.pth")["progress"]
    steps = [line["step"] for line in read_history(first / "history.jsonl") if "loss/train_loss" in line]
    assert steps == [1, 2, 3, 4]


@pytest.mark.parametrize("direction", [-1, 1])
def test_a_clock_that_jumps_changes_nothing(
    direction: int, small_camvid: Path, tmp_path: Path, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = time.time, count()
    monkeypatch.setattr(time, "time", lambda: original() + direction * YEAR * (next(calls) // 5))
    train.main(arguments(small_camvid, tmp_path, "--frame_cache", str(tmp_path / "frames")))
    assert next(calls) > 20, "the clock was asked"
    folder = run_folder(tmp_path)
    assert_same_run(straight, folder)
    expected, found = ([line["step"] for line in read_history(run / "history.jsonl")] for run in (straight, folder))
    assert found == expected


class Stopped(datetime.datetime):
    """A clock that always says the same."""

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return cls(1970, 1, 1, tzinfo=tz)


def test_the_newest_run_is_the_one_started_last_whatever_the_clock_says(
    small_camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a reboot with an empty battery: the first run is from 2126, the others from the same second in 1970."""
    folders, root = list[Path](), tmp_path / "d" / "e"
    for index in range(3):
        train.main(arguments(small_camvid, tmp_path, "--max_iter", str(index + 1), "--val_interval", "0"))
        (folder,) = {*root.iterdir()} - {*folders}
        folders.append(folder)
        for path in folder.glob("*.pth"):
            os.utime(path, ns=(100 * YEAR * 10**9 * (1 if index == 0 else -1),) * 2)
        monkeypatch.setattr(utils.runs.datetime, "datetime", Stopped)
    assert [folder.name for folder in folders[1:]] == ["1970-01-01_00-00-00", "1970-01-01_00-00-00_2"]
    assert checkpoint.latest(root) == folders[2] / "last.pth"
    train.main(arguments(small_camvid, tmp_path, "--resume", str(folders[1] / "last.pth"), "--max_iter", "3"))
    os.utime(folders[1] / "last.pth", ns=(0, 0))
    assert checkpoint.latest(root) == folders[1] / "last.pth", "resumed last"
    for folder in folders:
        (folder / ".start").unlink()
    assert checkpoint.latest(root) == folders[0] / "last.pth", "of older versions: the time decides"
