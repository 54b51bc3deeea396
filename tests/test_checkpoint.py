"""Checkpoints: whole or not at all, and safe to read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from network.weights import load_weights
from utils import checkpoint
from utils.errors import UserError


def content(**changes: Any) -> dict[str, Any]:
    entries: dict[str, Any] = {name: {} for name in checkpoint.KEYS - {"schema"}}
    return {**entries, "network": {"weight": torch.ones(2)}, **changes}


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "last.pth", content(kind="last", best={"source": 0.5}))
    read = checkpoint.read_checkpoint(tmp_path / "last.pth")
    assert read["kind"] == "last"
    assert read["best"] == {"source": 0.5}
    assert torch.equal(read["network"]["weight"], torch.ones(2))
    assert os.listdir(tmp_path) == ["last.pth"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pth"
    checkpoint.save(path, content(kind="old"))

    def fails(_value: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(UserError, match=r"last\.pth.*No space left"):
        checkpoint.save(path, content(kind="new"))
    assert os.listdir(tmp_path) == ["last.pth"]
    assert checkpoint.read_checkpoint(path)["kind"] == "old"


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_published_files_may_hold_a_numpy_number(tmp_path: Path, module: str) -> None:
    path = tmp_path / "published.pth"
    torch.save(
        {"state_dict": {"a": torch.ones(1)}, "mean_iu": np.float64(0.5)}, path, _use_new_zipfile_serialization=False
    )
    here = np.float64(0).__reduce__()[0].__module__
    path.write_bytes(path.read_bytes().replace(f"c{here}\n".encode(), f"c{module}\n".encode()))
    assert module.encode() in path.read_bytes()
    assert checkpoint.read(path)["mean_iu"] == 0.5


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("evil",)


def test_a_file_with_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"network": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"evil\.pth: not a readable weight file"):
        checkpoint.read(tmp_path / "evil.pth")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("data", [b"", b"not a weight file", b"PK\x03\x04 cut short"])
def test_a_damaged_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "broken.pth"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"broken\.pth"):
        checkpoint.read(path)


def test_a_download_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.pth"
    torch.save({"state_dict": {"a": torch.ones(3)}, "epoch": 3}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()  # in the format that published files have
    for end in range(0, len(data), 5):
        path.write_bytes(data[:end])
        with pytest.raises(UserError, match=r"cut\.pth"):
            checkpoint.read(path)


def test_a_missing_file_and_a_foreign_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such weight file"):
        checkpoint.read(tmp_path / "none.pth")
    torch.save({"state_dict": {}}, tmp_path / "published.pth")
    with pytest.raises(UserError, match="no run to continue"):
        checkpoint.read_checkpoint(tmp_path / "published.pth")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"schema": 99}, "schema 99, this program reads the schemas 1 and 2"),
        ({"schema": 1, "network": {}}, "not a whole checkpoint, best, .* missing"),
        ({"schema": 1, **content(config=3)}, "its config is a int"),
        ({1: 2}, "holds tensors by name"),
        ([1], "this one holds list"),
    ],
)
def test_what_is_no_whole_checkpoint_is_refused(tmp_path: Path, entries: Any, message: str) -> None:
    torch.save(entries, tmp_path / "other.pth")
    with pytest.raises(UserError, match=rf"other\.pth: .*{message}"):
        checkpoint.read(tmp_path / "other.pth")


def test_weights_that_do_not_fit_are_listed() -> None:
    state = {"schema": checkpoint.SCHEMA, "network": {"weight": torch.zeros(3, 2), "extra": torch.zeros(1)}}
    linear: Any = nn.Linear(2, 4)
    with pytest.raises(UserError) as caught:
        load_weights(linear, state, path="x.pth")
    message = str(caught.value)
    assert all(word in message for word in ("x.pth", "bias", "extra", "weight"))


def test_latest_is_the_newest_run(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    for index, name in enumerate(("b", "a")):
        checkpoint.save(tmp_path / name / "last.pth", content())
        os.utime(tmp_path / name / "last.pth", (index, index))
    (tmp_path / "z").mkdir()  # a run that was killed before its first checkpoint
    assert checkpoint.latest(tmp_path) == tmp_path / "a" / "last.pth"
