"""Small whole runs of the programs, in this process or in several."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import config
import run
from datasets.domains import load_domains
from datasets.splits import Splits
from network import Segmentor, build_network
from utils import checkpoint
from utils.runs import Start

REPOSITORY = Path(__file__).resolve().parents[1]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["train", "valid", "predict", "tests.runs"])


@contextmanager
def watched(seconds: int) -> Iterator[None]:
    """Let what waits for ever fail."""

    def late(*_: Any) -> None:
        raise AssertionError("waits for ever")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def train_arguments(camvid: Path, out: Path, *more: str) -> list[str]:
    """Return the arguments of a short run on a small CamVid; later ones win."""
    return [
        *("--dataset", "camvid", "--val_dataset", "camvid", "--covstat_val_dataset", "camvid"),
        *("--pretrained", "none", "--crop_size", "64", "--bs_mult", "2", "--num_workers", "0", "--device", "cpu"),
        *("--max_iter", "4", "--clusters", "3", "--trials", "1", "--stat_images", "2", "--val_interval", "0"),
        *("--pictures", "1", "--log_interval", "1", "--color_aug", "0.5", "--gblur"),
        *("--ckpt", str(out), "--tb_path", str(out), "--date", "d", "--exp", "e"),
        *("--centroid_cache", str(out / "cache"), "--backbone", "timm/test_resnet"),
        *("--opts", f"DATASET.CAMVID_DIR={camvid}"),
        *more,
    ]


def run_folder(out: Path) -> Path:
    """Return the only run folder below `out`."""
    folders = list((out / "d" / "e").iterdir())
    assert len(folders) == 1, folders
    return folders[0]


def build_run(arguments: list[str], start: Start | None = None) -> run.Run:
    """Return the parts of the run that train.py would do with these arguments."""
    cfg = config.parse(arguments, program="train")
    return run.build_run(cfg, Splits(load_domains(cfg)), device=torch.device("cpu"), start=start or Start())


def read_weights(file: Path) -> dict[str, Any]:
    """Return a checkpoint."""
    content: dict[str, Any] = torch.load(file, weights_only=True)
    return content


def differences(found: Any, expected: Any, name: str = "") -> list[str]:
    """Return the names of what differs, bit for bit or in type, in two trees of tensors and values."""
    if type(found) is not type(expected):
        return [name]
    if isinstance(expected, torch.Tensor):
        return [] if torch.equal(found, expected) else [name]
    if isinstance(expected, dict):
        missing = object()  # equal to no value, None included
        pairs = {key: (found.get(key, missing), expected.get(key, missing)) for key in {**expected, **found}}
    elif isinstance(expected, (list, tuple)) and len(found) == len(expected):
        pairs = dict(enumerate(zip(found, expected, strict=True)))
    else:
        same = found == expected or (found != found and expected != expected)  # nan is nan
        return [] if same else [name]
    return [part for key, pair in pairs.items() for part in differences(*pair, f"{name}/{key}")]


def save_random(path: Path, *flags: str) -> Segmentor:
    """Save a checkpoint of the network that these flags of train.py name, with random weights, and return the network.

    Its batch norms have seen two images, so that the predictions vary.
    """
    cfg = config.parse(flags, program="train")
    torch.manual_seed(0)
    network = build_network(cfg)
    with torch.no_grad():
        for _ in range(20):
            network.train()(torch.randn(2, 3, 64, 64))
    empty: dict[str, Any] = {part: {} for part in ("criterion", "optimizer", "scheduler", "scaler", "best", "versions")}
    progress = {"epoch": 0, "step_in_epoch": 0, "step": 0}
    about = {"kind": "last", "progress": progress, "config": config.to_dict(cfg), "world_size": 1}
    checkpoint.save(path, {"network": network.state_dict(), **empty, **about})
    return network.eval()


def launch(
    program: str, arguments: list[str], *, processes: int = 0, check: bool = True, launcher: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own or in several, by a launcher or, sooner, as forks of one that has torch."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    words = [str(REPOSITORY / program), *arguments]
    group = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    if launcher:
        command = [sys.executable, "-m", launcher, f"--nproc_per_node={processes}", f"--master_port={free_port()}"]
        done = subprocess.run(
            [*command, *words],
            capture_output=True, text=True, cwd=REPOSITORY, env=environment, timeout=600, check=False,
        )  # fmt: skip
    else:
        with tempfile.TemporaryDirectory() as folder:
            written = [Path(folder, name) for name in ("stdout", "stderr")]
            running = []
            for rank in map(str, range(max(processes, 1))):
                own = {**environment, **({**group, "RANK": rank, "LOCAL_RANK": rank} if processes else {})}
                running.append(FORKS.Process(target=_run_fork, args=(words, own, written)))
                running[-1].start()
            for process in running:
                process.join(timeout=300)
                process.kill()
                process.join()
            code = next((process.exitcode for process in running if process.exitcode), 0)
            done = subprocess.CompletedProcess(words, code, *(path.read_text() for path in written))
    assert not check or done.returncode == 0, done.stderr[-4000:]
    return done


def _run_fork(words: list[str], environment: dict[str, str], written: list[Path]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)  # OMP_NUM_THREADS was read when torch was imported
    for number, path in enumerate(written, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), number)
    os.chdir(REPOSITORY)
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
