"""Mixed precision: what a device computes in and what stays in float32; freed memory stays with the process."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import config
import predict
from network.diia import LayoutBranch, TripleAggregation
from tests.runs import REPOSITORY
from utils import device as device_module
from utils.device import autocast_dtype, bfloat16_factor
from utils.errors import UserError

CPU, GPU = torch.device("cpu"), torch.device("cuda")
HALF, WIDE = torch.float16, torch.bfloat16


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    device_module._resolve.cache_clear()
    yield
    device_module._resolve.cache_clear()


@pytest.mark.parametrize(
    ("line", "amp"),
    [
        ("", "off"),
        ("--fp16", "auto"),
        ("--amp bf16", "bf16"),
        ("--fp16 --amp off", "off"),
        ("--opts OPTIM.AMP=off", "off"),
        ("--opts OPTIM.FP16=true", "auto"),
        ("--opts OPTIM.FP16=false", "off"),
    ],
)
def test_flags_and_former_keys_name_the_precision(line: str, amp: str) -> None:
    for program in ("train", "valid"):
        assert config.parse(line.split(), program=program).OPTIM.AMP == amp


def test_files_of_older_versions_and_yamls_off_are_read() -> None:
    former = {word: config.from_dict({"OPTIM": {"FP16": word}}).OPTIM.AMP for word in (True, False)}
    assert former == {True: "auto", False: "off"}
    assert config.from_dict({"OPTIM": {"AMP": False}}).OPTIM.AMP == "off"
    words = ("w.pth", "a.png", "--out", "o")
    assert predict.parse_arguments([*words, "--fp16"]).changed == {"amp": "auto"}
    assert predict.parse_arguments([*words, "--amp", "bf16"]).changed == {"amp": "bf16"}


@pytest.mark.parametrize(
    ("amp", "has_bfloat16", "dtype"),
    [("off", True, None), ("auto", True, WIDE), ("auto", False, HALF), ("fp16", True, HALF), ("bf16", True, WIDE)],
)
def test_a_gpu_computes_in_bfloat16_where_it_has_it(
    monkeypatch: pytest.MonkeyPatch, amp: str, has_bfloat16: bool, dtype: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bfloat16)
    assert autocast_dtype(GPU, amp=amp) == dtype
    if not has_bfloat16:
        with pytest.raises(UserError, match=r"^--amp bf16: this GPU has no bfloat16; use --amp fp16 or auto$"):
            autocast_dtype(GPU, amp="bf16")


@pytest.mark.parametrize(("factor", "dtype"), [(0.6, WIDE), (1.7, None), (14.0, None)])
def test_a_cpu_computes_in_bfloat16_where_it_is_faster_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, factor: float, dtype: Any
) -> None:
    monkeypatch.setattr(device_module, "bfloat16_factor", lambda: factor)
    with caplog.at_level(logging.INFO, "utils.device"):
        assert [autocast_dtype(CPU, amp=amp) for amp in ("auto", "auto", "bf16", "off")] == [dtype, dtype, WIDE, None]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == (1 if factor < 1 else 2), "once, and a warning where the user asked for what is slower"
    assert f"{'bfloat16' if dtype else 'float32'}, because bfloat16 takes {factor:.2g} times as long" in told[0]
    assert [record.levelname for record in caplog.records][1:] == ["WARNING"][: len(told) - 1]
    with pytest.raises(UserError, match=r"^--amp fp16: float16 is for GPUs"):
        autocast_dtype(CPU, amp="fp16")


@pytest.mark.parametrize(
    ("times", "factor", "left"),
    [
        ([16.0, 1.0], 16.0, 0),  # hopeless after one run
        ([2.9, 1.0, 0.8, 1.2, 0.5, 1.0, 0.7, 1.1], 0.5, 0),  # the best of three
    ],
)
def test_the_best_of_some_runs_counts(monkeypatch: pytest.MonkeyPatch, times: Any, factor: float, left: int) -> None:
    monkeypatch.setattr(device_module, "_seconds", lambda dtype: times.pop(0))
    assert bfloat16_factor() == factor and len(times) == left


def test_measuring_takes_moments() -> None:
    assert bfloat16_factor() > 0


def test_what_overflows_in_float16_is_computed_in_float32() -> None:
    torch.manual_seed(0)
    tiam = TripleAggregation(32, feature_channels=16).requires_grad_(False)
    tiam.gamma.fill_(1.0)
    top, layout, edge = torch.randn(1, 32, 4, 5), torch.randn(1, 16, 4, 5) * 3e5, torch.randn(1, 16, 4, 5) * 100
    branch = LayoutBranch(output_stride=16, num_classes=19).eval().requires_grad_(False)
    for weights in branch.encoder.parameters():
        weights.mul_(6)
    picture = torch.randint(0, 256, (1, 64, 64))
    wanted = tiam(top, layout, edge), branch.encode(picture, dtype=torch.float32)
    with torch.autocast("cpu", dtype=HALF):
        found = tiam(top, layout, edge), branch.encode(picture, dtype=torch.float32)
        logits = branch.decode(found[1] * 1e4)
        assert not torch.isfinite(tiam.query(layout)).all(), "these features overflow in float16"
    torch.testing.assert_close(found[0], wanted[0], atol=2e-3, rtol=2e-3)  # up of top is in float16
    assert torch.equal(found[1], wanted[1]) and torch.equal(logits, branch.decode(wanted[1] * 1e4))


KEEPING = """
import resource, sys
import torch
from utils import device
if sys.argv[1] == "keep":
    device.keep_freed_memory(torch.device("cpu"))
sizes = [3_000_000, 20_000_000, 50_000_000]
def turn():
    return [torch.ones(size) for size in sizes][0][0]
faults = []
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    turn()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
sys.stdout.write(str(min(faults)))  # blocks take some turns to find their places
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_further_turns_take_no_pages_from_the_system() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    faults = {
        way: int(subprocess.check_output([sys.executable, "-c", KEEPING, way], cwd=REPOSITORY, env=environment))
        for way in ("keep", "return")
    }
    assert faults["keep"] < 0.05 * faults["return"], faults
