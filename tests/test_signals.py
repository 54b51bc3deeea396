"""A run that a signal ends goes on as if nothing had happened."""

from __future__ import annotations

import os
import pkgutil
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from datasets.loaders import _Loader
from tests.runs import REPOSITORY, launch, read_weights, run_folder, train_arguments
from tests.test_train import assert_same, resumable
from utils import signals
from utils.errors import TRY_AGAIN, Stopped
from utils.parallel import leave_to_parent

# A program that sends itself (process RANK of several) a signal in the CALL-th call of a function.
SIGNALLED = f"""
import os, pkgutil, signal, sys
sys.path.insert(0, {str(REPOSITORY)!r})
from utils.errors import run_entry_point
program, name, call, number, rank = sys.argv[1:6]
del sys.argv[1:6]
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may run where a shell has it ignored
module, calls = __import__(program), 0
owner, _, function = name.rpartition(".")
owner = pkgutil.resolve_name(owner)
original = getattr(owner, function)
def signalled(*arguments, **named):
    global calls
    calls += 1
    if calls == int(call) and os.environ.get("RANK", rank) == rank:
        for part in number.split(","):
            os.kill(os.getpid(), getattr(signal, part))
    return original(*arguments, **named)
setattr(owner, function, signalled)
run_entry_point(module.main)
"""
PARTS = ("network", "criterion", "optimizer", "scheduler", "progress", "best")


@pytest.fixture
def signalled(tmp_path: Path) -> str:
    path = tmp_path / "signalled.py"
    path.write_text(SIGNALLED)
    return str(path)


@pytest.fixture(scope="module")
def straight(small_camvid: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of four uninterrupted steps in two epochs, masks and evaluation after each."""
    out = tmp_path_factory.mktemp("straight")
    train.main(arguments(small_camvid, out))
    return run_folder(out)


@pytest.fixture(autouse=True)
def hangup() -> Iterator[None]:
    """SIGHUP is not ignored, as it is where the tests are started by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def arguments(camvid: Path, out: Path, *more: str) -> list[str]:
    return resumable(camvid, out, "--method", "isw", "--trials", "2", "--save_interval", "0", *more)


def assert_same_run(expected: Path, found: Path) -> None:
    first, second = read_weights(expected / "last.pth"), read_weights(found / "last.pth")
    for part in PARTS:
        assert_same(first[part], second[part], part)


@pytest.mark.parametrize(
    ("place", "step"),
    [
        ("train.train_step 1 SIGTERM", 1),
        ("train.train_step 3 SIGUSR1,SIGUSR1,SIGTERM", 3),
        ("loss.whitening.MaskStatistics.update 2 SIGUSR2", 2),
        ("loss.whitening.MaskStatistics.update 3 SIGHUP", 2),  # in the second pass
        ("evaluation.evaluator.confusion_matrix 3 SIGUSR1", 2),
        ("evaluation.evaluator.confusion_matrix 8 SIGTERM", 4),  # in the evaluation after the last step
    ],
)
def test_a_signalled_run_saves_its_step_and_goes_on(
    place: str, step: int, straight: Path, small_camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, last_call, numbers = place.split()
    owner, _, function = name.rpartition(".")
    original, calls = pkgutil.resolve_name(name), count(1)

    def signalled(*arguments: Any, **named: Any) -> Any:
        if next(calls) == int(last_call):
            for number in numbers.split(","):
                os.kill(os.getpid(), getattr(signal, number))
        return original(*arguments, **named)

    flags = arguments(small_camvid, tmp_path / "out")
    sentence = f"stopped by {numbers.split(',')[0]}; start again to go on (exit code 75)"
    monkeypatch.setattr(pkgutil.resolve_name(owner), function, signalled)
    with pytest.raises(Stopped, match=re.escape(sentence)):
        train.main(flags)
    monkeypatch.undo()
    folder = run_folder(tmp_path / "out")
    saved, last = (folder / "log.txt").read_text().splitlines()[-2:]
    assert f"saved step {step};" in saved and last.endswith(sentence)
    assert read_weights(folder / "last.pth")["progress"]["step"] == step
    train.main([*flags, "--resume", "auto"])
    assert_same_run(straight, folder)


def test_processes_end_at_the_same_step_when_one_gets_the_signal(
    signalled: str, small_camvid: Path, tmp_path: Path
) -> None:
    flags = {name: arguments(small_camvid, tmp_path / name, "--bs_mult", "1") for name in ("straight", "out")}
    launch("train.py", flags["straight"], processes=2)
    for place, step, launcher in (
        ("train.train_step 1", 1, "scripts.launch"),
        ("evaluation.evaluator.confusion_matrix 2", 2, ""),
    ):
        done = launch(
            signalled,
            ["train", *place.split(), "SIGUSR1", "1", *flags["out"], "--resume", "auto"],
            processes=2,
            check=False,
            launcher=launcher,
        )
        assert done.returncode == TRY_AGAIN, done.stderr
        assert done.stderr.count("stopped by SIGUSR1; start again") >= 2, "on every process"
        assert read_weights(run_folder(tmp_path / "out") / "last.pth")["progress"]["step"] == step
    launch("train.py", [*flags["out"], "--resume", "auto"], processes=2)
    assert_same_run(run_folder(tmp_path / "straight"), run_folder(tmp_path / "out"))


@pytest.mark.parametrize(("launcher", "number"), [(True, signal.SIGUSR1), (False, signal.SIGTERM)])
def test_a_signal_to_all_processes_ends_the_run_between_steps(
    launcher: bool, number: signal.Signals, small_camvid: Path, tmp_path: Path
) -> None:
    """As a scheduler sends it: to the launcher, the run and its loaders' workers."""
    flags = train_arguments(small_camvid, tmp_path, "--method", "base")
    flags += ["--max_iter", "100000", "--num_workers", "2"]
    command = [sys.executable, *(["-m", "scripts.launch", "--nproc_per_node=1", "--standalone"] if launcher else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        [*command, "train.py", *flags], cwd=REPOSITORY, env=environment, text=True, stderr=subprocess.PIPE,
        start_new_session=True,
    ) as run:  # fmt: skip
        assert run.stderr is not None
        seen = next(line for line in run.stderr if "step 3/" in line)
        assert seen
        start = time.monotonic()
        os.killpg(run.pid, number)
        rest = run.stderr.read()
        assert run.wait(timeout=60) == TRY_AGAIN, rest
    assert time.monotonic() - start < 30
    assert "Traceback" not in rest and f"stopped by {number.name}" in rest
    folder = run_folder(tmp_path)
    step = read_weights(folder / "last.pth")["progress"]["step"]
    assert step >= 3 and f"saved step {step};" in (folder / "log.txt").read_text()


def test_a_closed_connection_does_not_end_what_nohup_started(small_camvid: Path, tmp_path: Path) -> None:
    flags = train_arguments(small_camvid, tmp_path, "--method", "base", "--max_iter", "6", "--log_interval", "1")
    launcher = ["nohup", sys.executable, "-m", "scripts.launch", "--nproc_per_node=1", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        [*launcher, "train.py", *flags], cwd=REPOSITORY, env=environment, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    ) as run:  # fmt: skip
        assert run.stderr is not None and next(line for line in run.stderr if "step 2/" in line)
        os.killpg(run.pid, signal.SIGHUP)
        rest = run.stderr.read()
        assert run.wait(timeout=60) == 0, rest
    assert read_weights(run_folder(tmp_path) / "last.pth")["progress"]["step"] == 6


def test_a_second_interrupt_ends_at_once(signalled: str, small_camvid: Path, tmp_path: Path) -> None:
    flags = arguments(small_camvid, tmp_path / "out")
    done = launch(signalled, ["train", "train.train_step", "2", "SIGINT,SIGINT", "0", *flags], check=False)
    assert done.returncode == 130 and done.stderr.splitlines()[-1] == "interrupted"
    assert not (run_folder(tmp_path / "out") / "last.pth").exists()


def test_scores_are_written_whole_or_not_at_all(
    signalled: str, straight: Path, small_camvid: Path, tmp_path: Path
) -> None:
    flags = ["--snapshot", str(straight / "last.pth"), "--val_dataset", "camvid", "--out", str(tmp_path / "out")]
    flags += ["--device", "cpu", "--num_workers", "0", "--opts", f"DATASET.CAMVID_DIR={small_camvid}"]
    place = ["evaluation.evaluator.confusion_matrix", "2", "SIGTERM", "1"]
    for processes in (0, 2):
        done = launch(signalled, ["valid", *place, *flags], check=False, processes=processes)
        assert done.returncode == TRY_AGAIN, done.stderr
        assert "stopped by SIGTERM; start again to go on (exit code 75)" in done.stderr
        assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()
    # the last moment is too late: the results are there
    done = launch(signalled, ["valid", "evaluation.Report.write", "1", "SIGTERM", "0", *flags])
    assert (tmp_path / "out" / "scores.json").exists()


def test_own_images_are_written_whole(signalled: str, straight: Path, small_camvid: Path, tmp_path: Path) -> None:
    flags = [str(straight / "last.pth"), str(small_camvid), "--out", str(tmp_path / "out"), "--device", "cpu"]
    done = launch(signalled, ["predict", "inference.Model.maps", "4", "SIGINT", "0", *flags], check=False)
    assert done.returncode == TRY_AGAIN and "stopped by SIGINT;" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) <= 3 and all(path.suffix == ".png" for path in written)


@pytest.fixture
def with_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with signals.handled():
        yield
    signal.signal(signal.SIGINT, before[signal.SIGINT])
    assert signal.getsignal(signal.SIGUSR1) == before[signal.SIGUSR1]


@pytest.mark.usefixtures("with_handlers")
def test_a_signal_ends_what_nothing_defers() -> None:
    with pytest.raises(Stopped, match="^stopped by SIGUSR1;") as caught:
        os.kill(os.getpid(), signal.SIGUSR1)
    assert not caught.value.agreed
    os.kill(os.getpid(), signal.SIGTERM)  # it is ending already
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("with_handlers")
@pytest.mark.parametrize("look", [signals.check, lambda: list(signals.stoppable([1]))])
def test_a_deferred_signal_waits_for_a_check(look: Callable[[], Any]) -> None:
    with signals.deferred():
        look()
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(Stopped) as caught:
            look()
        assert caught.value.agreed


def test_other_threads_get_no_handlers() -> None:
    failures = list[BaseException]()

    def work() -> None:
        try:
            with signals.handled():
                pass
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=10)
    assert not failures


class Pids(torch.utils.data.Dataset[int]):
    def __len__(self) -> int:
        return 100

    def __getitem__(self, _: int) -> int:
        return os.getpid()


@pytest.mark.parametrize("start", ["fork", "forkserver"])  # the second is Python 3.14's
def test_workers_ignore_the_signals_of_others_and_end_with_their_parent(start: str) -> None:
    how: dict[str, Any] = {"multiprocessing_context": start, "worker_init_fn": leave_to_parent}
    loader: Any = _Loader(Pids(), num_workers=1, persistent_workers=True, **how)
    batches = iter(loader)
    worker = int(next(batches))
    for number in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGINT", "SIGTERM"):  # from another process
        subprocess.run(["kill", f"-{number[3:]}", str(worker)], check=True)
    assert {int(pid) for pid in batches} == {worker}
    began, process = time.monotonic(), batches._workers[0]
    process.terminate()
    process.join(timeout=20)
    assert process.exitcode == 0 and time.monotonic() - began < 10
    del batches, loader
