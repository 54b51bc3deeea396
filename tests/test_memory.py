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
turn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    turn()
sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_a_second_turn_takes_no_pages_from_the_system() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    faults = {
        way: int(subprocess.check_output([sys.executable, "-c", PROGRAM, way], cwd=REPOSITORY, env=environment))
        for way in ("keep", "return")
    }
    assert faults["keep"] < 0.05 * faults["return"], faults
