"""Processes and runs that get in each other's way: each ends with a sentence, none waits for ever."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

import train
from tests.runs import REPOSITORY, free_port, launch, read_weights, run_folder, train_arguments
from utils import distributed
from utils.errors import UserError, explain
from utils.runs import hold

TOGETHER = """
import os, signal, sys, time
from utils import distributed, errors
def main():
    with distributed.process_group(distributed.choose_device("cpu", -1), save_memory="", timeout=5):
        distributed.all_max(0)
        number = distributed.rank()
        {code}
errors.run_entry_point(main)
"""


def run_two(code: str) -> list[subprocess.CompletedProcess[str]]:
    """Run two processes of a group, each of which may take a minute."""
    port, running = str(free_port()), []
    for rank in "01":
        group = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "-c", TOGETHER.format(code=code)]
        running.append(
            subprocess.Popen(
                command, cwd=REPOSITORY, env={**os.environ, **group, "OMP_NUM_THREADS": "1"}, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
    done = []
    for process in running:
        try:
            out, err = process.communicate(timeout=90)
        finally:
            process.kill()
        done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    return done


def test_the_others_of_a_process_that_died_end_with_a_sentence() -> None:
    alone, dead = run_two("os.kill(os.getpid(), signal.SIGKILL) if number else distributed.all_max(1)")
    assert dead.returncode == -9
    assert alone.returncode == 2 and "another process of this run has ended" in alone.stderr, alone.stderr


def test_a_collective_that_hangs_ends_with_a_sentence() -> None:
    alone, hanging = run_two("sys.stdin.read() if number else distributed.all_max(1)")
    assert alone.returncode == 2 and "within --dist_timeout" in alone.stderr, alone.stderr
    assert hanging.returncode in (1, 2)


def test_processes_with_other_flags_or_code_are_told_on_all_of_them() -> None:
    for done in run_two("distributed.check_same({'OPTIM.LR': str(number), 'git': 'abc'})"):
        sentence = "error: process 1 runs with another OPTIM.LR: 1 instead of 0 than process 0; start all processes"
        assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(sentence), done.stderr


def test_a_process_of_a_run_with_another_seed_ends_it(small_camvid: Path, tmp_path: Path) -> None:
    program = tmp_path / "other.py"
    program.write_text(
        f"import os, sys; sys.path.insert(0, {str(REPOSITORY)!r}); sys.argv += ['--seed', os.environ['RANK']]\n"
        "import train; from utils.errors import run_entry_point; run_entry_point(train.main)"
    )
    flags = train_arguments(small_camvid, tmp_path / "out", "--method", "base")
    done = launch(str(program), flags, processes=2, check=False)
    assert done.returncode == 2 and not (tmp_path / "out").exists(), done.stderr
    # once or twice: torchrun ends the second process as soon as the first has ended
    assert "error: process 1 runs with another RUN.SEED: 1 instead of 0" in done.stderr, done.stderr


@pytest.mark.parametrize(
    "words",
    [
        "DataLoader worker (pid(s) 7) exited unexpectedly: Bus error. It is possible that dataloader's workers are out",
        "unable to allocate shared memory(shm) for file </torch_7>: Resource temporarily unavailable (11)",
    ],
)
def test_a_lack_of_shared_memory_is_one_sentence(words: str) -> None:
    known = explain(RuntimeError(words), save_memory="")
    assert isinstance(known, UserError) and "--shm-size" in str(known) and "--num_workers 0" in str(known)


def test_shared_memory_of_a_gpu_is_another() -> None:
    error = RuntimeError("out of resource: shared memory, Required: 262144, Hardware limit: 232448.")
    assert explain(error, save_memory="") is error


def test_a_folder_has_one_run_at_a_time(small_camvid: Path, tmp_path: Path) -> None:
    flags = train_arguments(small_camvid, tmp_path, "--method", "base", "--max_iter", "1")
    train.main(flags)
    folder = run_folder(tmp_path)
    before = (folder / "last.pth").stat().st_mtime_ns
    (folder / ".last.pth.1.ff.tmp").touch()  # of the save of the other run
    with ExitStack() as other:
        hold(folder, other)
        (folder / ".last.pth.1.ff.tmp").touch()
        sentence = rf"{folder}: another run writes there \(process {os.getpid()} on .+\); wait for its end"
        with pytest.raises(UserError, match=sentence):
            train.main([*flags, "--resume", "auto", "--max_iter", "2"])
        assert (folder / ".last.pth.1.ff.tmp").exists() and (folder / "last.pth").stat().st_mtime_ns == before
    train.main([*flags, "--resume", "auto", "--max_iter", "2"])
    assert (folder / "last.pth").stat().st_mtime_ns > before and not list(folder.glob(".*.tmp"))


def test_the_folder_of_a_dead_process_is_free(tmp_path: Path) -> None:
    code = (
        "import os, sys; from contextlib import ExitStack; from pathlib import Path; from utils.runs import hold\n"
        "held = ExitStack(); hold(Path(sys.argv[1]), held); print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:  # fmt: skip
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with ExitStack() as held, pytest.raises(UserError, match=re.escape(f"process {other.pid} on")):
            hold(tmp_path, held)
        other.kill()
        other.wait(timeout=20)
    with ExitStack() as held:
        hold(tmp_path, held)


def test_a_disk_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import filelock

    def no_lock(*_: object, **__: object) -> contextlib.AbstractContextManager[None]:
        raise NotImplementedError("no flock here")

    monkeypatch.setattr(filelock, "FileLock", no_lock)
    with ExitStack() as held:
        hold(tmp_path, held)
    assert "cannot be locked (no flock here)" in caplog.text


def descendants(process: int) -> list[int]:
    """Return the processes below one, those in sessions of their own, as torchrun's are, too."""
    below = subprocess.run(["pgrep", "-P", str(process)], capture_output=True, text=True, check=False).stdout.split()
    return [number for child in map(int, below) for number in (child, *descendants(child))]


def wait_for_end(processes: list[int], *, within: float) -> float:
    """Return after how many seconds the last process had ended; kill what is there after too many of them."""
    start = time.monotonic()
    while alive := [number for number in processes if Path(f"/proc/{number}").exists()]:
        if time.monotonic() - start > within:
            for number in alive:
                os.kill(number, signal.SIGKILL)
            raise AssertionError(f"{len(alive)} of {len(processes)} processes wait for ever")
        time.sleep(0.1)
    return time.monotonic() - start


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="processes are looked for in /proc")
@pytest.mark.parametrize("processes", [0, 2])
def test_nothing_stays_behind_a_launcher_that_was_killed(processes: int, small_camvid: Path, tmp_path: Path) -> None:
    """Neither processes nor their loaders' workers; what was trained is saved where a launcher was killed."""
    flags = train_arguments(small_camvid, tmp_path, "--method", "base")
    flags += ["--max_iter", "100000", "--num_workers", "2", "--bs_mult", "1"]
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={free_port()}"]
    with (
        (tmp_path / "stderr").open("w") as stderr,
        subprocess.Popen(
            [sys.executable, *launcher[: 4 * processes], "train.py", *flags], cwd=REPOSITORY, stderr=stderr,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        ) as run,
    ):  # fmt: skip
        for _ in range(600):
            if "step 3/" in (tmp_path / "stderr").read_text():
                break
            time.sleep(0.1)
        below = descendants(run.pid)
        run.kill()
    assert len(below) >= 2 * max(processes, 1)
    wait_for_end(below, within=20)
    if processes:
        text = (tmp_path / "stderr").read_text()
        assert f"the launcher of this process ({run.pid}) was killed" in text and "Traceback" not in text
        log = (run_folder(tmp_path) / "log.txt").read_text()
        step = read_weights(run_folder(tmp_path) / "last.pth")["progress"]["step"]
        assert step >= 3 and f"saved step {step};" in log


def test_workers_of_a_server_of_forks_end_with_a_killed_program(tmp_path: Path) -> None:
    """Python 3.14 starts workers so: torch's look at their parent sees the server, which waits for the workers."""
    program = tmp_path / "loads.py"
    program.write_text(
        f"import sys, time; sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from torch.utils.data import DataLoader\n"
        "from utils.parallel import leave_to_parent\n"
        "if __name__ == '__main__':\n"
        "    how = {'worker_init_fn': leave_to_parent, 'multiprocessing_context': 'forkserver'}\n"
        "    batches = iter(DataLoader([1.5] * 99, num_workers=2, **how))\n"
        "    print(next(batches), flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, str(program)], cwd=REPOSITORY, text=True, stdout=subprocess.PIPE) as run:
        assert run.stdout is not None and "1.5" in run.stdout.readline()
        below = descendants(run.pid)
        run.kill()
    assert len(below) >= 3
    wait_for_end(below, within=15)


def test_a_process_that_waits_in_torch_ends_with_its_launcher(tmp_path: Path) -> None:
    program = tmp_path / "waits.py"
    program.write_text(
        f"import signal, sys, time; sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from utils import distributed, parallel, signals\n"
        "parallel.GRACE = 1\n"
        "with signals.handled(), distributed.process_group(distributed.choose_device('cpu', -1), save_memory=''):\n"
        "    distributed.all_max(0)\n"
        "    sys.stdout.write('waits\\n')\n"  # at once: two processes write it
        "    with signals.deferred():\n"
        "        time.sleep(600) if distributed.rank() else distributed.all_max(0)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    with subprocess.Popen([*command, str(program)], cwd=REPOSITORY, text=True, stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        lines, below = [run.stdout.readline() for _ in range(2)], descendants(run.pid)
        run.kill()
    assert lines == ["waits\n"] * 2
    assert len(below) == 2
    wait_for_end(below, within=15)


def test_a_launcher_that_was_killed_before_its_processes_met_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    group = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in {**group, "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(name, value)
    group_of_two = distributed.process_group(torch.device("cpu"), save_memory="")
    sentence = r"^torchrun does not answer at 127\.0\.0\.1:\d+ \(.*refused.*\); was it killed"
    with pytest.raises(UserError, match=sentence), group_of_two:
        pass


def test_the_sentence_of_a_hang_names_process_and_step(small_camvid: Path, tmp_path: Path) -> None:
    program = tmp_path / "hangs.py"
    program.write_text(
        f"import os, sys, time; sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "import train; from utils.errors import run_entry_point\n"
        "step = train.train_step\n"
        "def hang(run, *rest):\n"
        "    if run.progress.step == 2 and os.environ['RANK'] == '1': time.sleep(12)\n"
        "    return step(run, *rest)\n"
        "train.train_step = hang; run_entry_point(train.main)"
    )
    flags = train_arguments(small_camvid, tmp_path / "out", "--method", "base")
    done = launch(str(program), [*flags, "--bs_mult", "1", "--dist_timeout", "6"], processes=2, check=False)
    sentence = "process 0 at step 2: another process of this run has not answered within --dist_timeout"
    assert sentence in done.stderr.replace("error: ", ""), done.stderr[-3000:]
    assert sentence in (run_folder(tmp_path / "out") / "log.txt").read_text()
