"""Freed memory stays with the process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.runs import REPOSITORY

PROGRAM = """
import resource, sys
import torch
from utils import memory
if sys.argv[1] == "keep":
    memory.keep_freed_memory(torch.device("cpu"))
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
        way: int(subprocess.check_output([sys.executable, "-c", PROGRAM, way], cwd=REPOSITORY, env=environment))
        for way in ("keep", "return")
    }
    assert faults["keep"] < 0.05 * faults["return"], faults
