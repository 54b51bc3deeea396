"""Pipes and devices in place of settings, records and archives: nothing waits for ever or reads without end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import config
import nonfinite
from datasets.custom_domains import read_domains
from datasets.domains import BUILTIN
from datasets.files import members
from datasets.splits import read_lists
from scripts import compare_runs, prepare_data
from tests.runs import REPOSITORY, watched
from tests.street_data import make_cfg, write_domain
from utils.errors import UserError
from utils.files import read_whole
from utils.logs import read_history

READERS: dict[str, tuple[Callable[[Path], object], str]] = {  # and the name of the file in a folder
    "settings": (lambda path: config.parse(["--config", str(path)], program="train"), "c.yaml"),
    "domains": (read_domains, "d.yaml"),
    "scores": (lambda path: compare_runs.main([str(path.parent)]), "scores.json"),
    "history": (read_history, "history.jsonl"),
    "lists": (lambda path: read_lists(BUILTIN["gtav"], path.parent), "gtav_split_train.txt"),
    "archive": (lambda path: members(str(path)), "a.zip"),
    "source": (lambda path: prepare_data.main(["gtav", str(path)]), "split.mat"),
    "step": (
        lambda path: nonfinite.replay(
            make_cfg(REPLAY=str(path)), device=torch.device("cpu"), gradients=None  # type: ignore[arg-type]
        ),
        "s.json",
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _watch() -> Iterator[None]:
    with watched(60):
        yield


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "/dev/tty"])
@pytest.mark.parametrize("reader", READERS)
def test_what_has_no_end_or_waits_is_a_sentence(reader: str, kind: str, tmp_path: Path) -> None:
    read, name = READERS[reader]
    path = tmp_path / name
    os.mkfifo(path) if kind == "pipe" else path.symlink_to(kind)
    with pytest.raises((UserError, OSError)) as caught:
        read(path)
    text = str(caught.value)
    assert name in text and "\n" not in text and len(text) < 700
    assert isinstance(caught.value, UserError) or getattr(
        caught.value, "filename", None
    )  # of which the entry point makes one


def test_a_pipe_with_a_writer_is_read(tmp_path: Path) -> None:
    os.mkfifo(path := tmp_path / "pipe")

    def write() -> None:
        with path.open("wb") as file:  # waits for the reader
            time.sleep(0.3)
            for _ in range(200):  # more than a pipe holds at once
                file.write(b"x" * 1000)

    writer = threading.Thread(target=write)
    writer.start()
    time.sleep(0.2)
    assert len(read_whole(path)) == 200_000
    writer.join()
    assert len(read_whole(path)) == 200_000, "settings may be read several times"
    assert read_whole(os.devnull) == b""


@pytest.mark.parametrize("program", ["valid.py", "train.py", "-m scripts.check_data"])
def test_settings_from_a_command(program: str) -> None:
    """As `--config <(command)` gives them, the command slow."""
    words = "--config <(sleep 0.5; echo 'OPTIM: {LR: nosuch}')"
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} {program} {words}"],
        capture_output=True, text=True, cwd=REPOSITORY, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "/dev/fd/" in done.stderr and "'nosuch'" in done.stderr, done.stderr


def test_domains_from_a_command(tmp_path: Path) -> None:
    write_domain(tmp_path, "camvid")
    fields = "images: '{split}/*.png', label: {'{split}/': '{split}annot/'}, splits: [val], encoding: camvid"
    words = f'mine --quick --domains <(echo "mine: {{root: {tmp_path}, {fields}}}")'
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m scripts.check_data {words}"],
        capture_output=True, text=True, cwd=REPOSITORY, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "faults: 0" in done.stdout, done.stdout + done.stderr


def test_an_archive_is_still_one(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("x", "y")
    (tmp_path / "b.zip").symlink_to("a.zip")
    assert list(members(str(tmp_path / "b.zip"))) == ["x"]
