"""Importing a module does nothing: seen in a fresh process, one module after the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.test_layering import FILES, LAZY, ROOT, module_name

WATCH = """
import importlib, json, logging, os, random, sys, threading
import numpy, torch, torchvision
import torch.distributed as dist

def state():
    return {
        "python random state": random.getstate(),
        "numpy random state": numpy.random.get_state()[1].tobytes() + bytes([numpy.random.get_state()[2] % 256]),
        "torch random state": torch.get_rng_state().numpy().tobytes(),
        "CUDA": torch.cuda.is_initialized(),
        "process group": dist.is_initialized(),
        "environment": dict(os.environ),
        "threads": (threading.active_count(), torch.get_num_threads(), torch.get_num_interop_threads()),
        "default dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "log handlers": list(logging.root.handlers),
        "working folder": (os.getcwd(), sorted(os.listdir())),
    }

report, *modules = sys.argv[1:]
before, changes, name = state(), [], ""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
ACTIONS = {"os.mkdir", "os.remove", "os.rename", "os.system", "subprocess.Popen", "socket.connect", "shutil.rmtree"}

def watch(event, arguments):
    if event in ACTIONS or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING):
        changes.append(f"{name} did {event} {arguments[:2]}")

sys.addaudithook(watch)
for name in modules:
    importlib.import_module(name)
    after = state()
    changes += [f"{name} changed: {what}" for what in before if before[what] != after[what]]
    before = after
name = "the report"
watched = list(changes)
with open(report, "w") as file:
    json.dump({"changes": watched, "loaded": sorted(sys.modules)}, file)
"""


def test_importing_does_nothing(tmp_path: Path) -> None:
    report, folder = tmp_path / "report.json", tmp_path / "empty"
    folder.mkdir()
    names = [module_name(path) for path in FILES]
    run = subprocess.run(
        [sys.executable, "-B", "-c", WATCH, str(report), *names],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert (run.stdout, run.stderr) == ("", "")
    found = json.loads(report.read_text())
    assert not found["changes"]
    assert not LAZY & set(found["loaded"]), "loaded by an import, not by the function that needs it"


def test_the_configuration_needs_no_torch() -> None:
    code = "import config, sys; config.parse([], program='train'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
