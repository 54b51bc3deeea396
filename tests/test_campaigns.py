"""The campaigns of tests/campaigns in short."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import predict
from datasets.codec import read_photo
from datasets.files import members
from inference import load
from tests.campaigns import fuzz, inputs
from tests.runs import REPOSITORY, differences
from utils import checkpoint
from utils.errors import UserError


def test_bad_inputs_end_in_a_sentence(tmp_path: Path) -> None:
    counts, faults = inputs.campaign(tmp_path, every=18)
    assert not faults, "\n".join(faults)
    assert sum(counts.values()) > 30 and len(counts) > 8


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "it is empty; download or copy it again"),
        (b"\n<!DOCTYPE html><p>404", "it is a web page; download the file"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            "it is a pointer of Git LFS; fetch the file by git",
        ),
        (b"hello", "damaged|download it again"),
    ],
)
@pytest.mark.parametrize(
    ("read", "name"),
    [
        (checkpoint.read, "a.pth"), (checkpoint.read, "a.safetensors"), (read_photo, "a.png"), (members, "a.zip"),
        (lambda path: load(path, device="cpu"), "a.onnx"),
    ],
)  # fmt: skip
def test_what_a_file_is_instead_is_named(
    read: Callable[[str], object], name: str, content: bytes, cause: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: .*({cause})"):
        read(str(tmp_path / name))


def refuse(sentence: str) -> Any:
    raise UserError(sentence)


@pytest.mark.parametrize(
    ("main", "wrong"),
    [
        (lambda: refuse("a.png: cannot be read; give another"), ""),
        (lambda: 1 / 0, "a traceback, exit code -1"),
        (lambda: sys.exit(3), "exit code 3"),
        (lambda: None, "exit code 0"),
        (lambda: refuse("it cannot be read"), "names none of"),
        (lambda: refuse("a.png " + "is no image " * 70), "846 letters"),
        (lambda: Path("left").touch() or refuse("a.png: no"), "left behind"),  # type: ignore[func-returns-value]
    ],
)
def test_the_campaign_sees_every_fault(
    main: Callable[[], object], wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "main", main)
    monkeypatch.chdir(tmp_path)
    case = inputs.Case("predict", "image", {}, ("a.png",))
    (out := tmp_path / "out").mkdir()
    found = inputs.fault(case, tmp_path, inputs.tree(tmp_path))
    assert wrong in found if wrong else not found
    assert out.is_dir()


@pytest.mark.exhaustive
@pytest.mark.parametrize("words", ["kill --times 1 --steps 4", "disk --every 40"])
def test_interrupted_runs_lose_nothing(words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *f"tests.campaigns.{words}".split()],
        capture_output=True, text=True, cwd=REPOSITORY, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_fuzzed_inputs_end_in_a_result_or_a_sentence(kind: str, tmp_path: Path) -> None:
    fuzz.run_trial(fuzz.KINDS[kind](tmp_path), examples=15, number=0)


def test_a_traceback_is_a_fault() -> None:
    """What the trials let pass: no other exception, no other exit code, no endless sentence."""
    for error in (KeyError("x"), SystemExit(3)):
        with pytest.raises((KeyError, AssertionError)):
            fuzz.try_out(lambda error=error: (_ for _ in ()).throw(error))  # type: ignore[misc]


def test_differences_are_named() -> None:
    """What the campaigns and the tests of a resume compare runs by."""
    tree = {"a": [torch.ones(2), 1, math.nan], "b": {"c": None}}
    assert not differences(copy.deepcopy(tree), tree)
    others = ({"a": [torch.zeros(2), 1, math.nan]}, {"a": [torch.ones(2), 1.0, 0.0]}, {"a": [1]}, {"d": None}, {"b": 1})
    named = [["/a/0"], ["/a/1", "/a/2"], ["/a"], ["/d"], ["/b"]]
    assert [differences({**tree, **other}, tree) for other in others] == named
    assert differences({"a": tree["a"]}, tree) == ["/b"]
