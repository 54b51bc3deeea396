"""Containers and restarts: no home, no /tmp, little or no shared memory, a process that dies and is started again."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import make_camvid
from tests.runs import REPOSITORY, free_port, launch, run_folder, train_arguments
from tests.test_signals import assert_same_run

SHORT = ("--method", "base", "--max_iter", "2", "--num_workers", "1")


def run_in(environment: dict[str, str], words: list[str], *, mounts: str = "") -> subprocess.CompletedProcess[str]:
    """Run a program of Python, with mounts that it alone sees."""
    command = [sys.executable, *words]
    if mounts:
        if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
            pytest.skip("mounts nothing: needs user namespaces")
        command = ["unshare", "-rm", "sh", "-c", f"{mounts} && exec {shlex.join(command)}"]
    inherited = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}  # set by torch
    named = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.run(
        command, cwd=REPOSITORY, env={**inherited, **named}, capture_output=True, text=True, timeout=240, check=False
    )


def train_in(environment: dict[str, str], flags: list[str], *, mounts: str = "") -> subprocess.CompletedProcess[str]:
    return run_in(environment, ["train.py", *flags], mounts=mounts)


@pytest.mark.exhaustive
@pytest.mark.parametrize("folder", ["/nonexistent", "/proc"])  # where not even root can write
def test_a_training_needs_no_home_and_no_folder_for_temporary_files(
    folder: str, small_camvid: Path, tmp_path: Path
) -> None:
    done = train_in(
        dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME"), folder), train_arguments(small_camvid, tmp_path, *SHORT)
    )
    assert done.returncode == 0 and (run_folder(tmp_path) / "last.pth").exists(), done.stderr


def test_a_training_writes_nowhere_but_where_it_is_told_to(tmp_path: Path) -> None:
    """As in a container whose file system is read-only but for a volume."""
    make_camvid(tmp_path / "camvid")
    folders = [folder for folder in ("/tmp", "/var/tmp") if Path(folder).is_dir()]
    here = ["mkdir -p $PWD", "mount -c --bind /proc/$$/cwd $PWD"]  # the repository may lie below one of them
    mounts = [f"mount --bind {tmp_path} /mnt", *(f"mount -t tmpfs tmpfs {folder}" for folder in folders), *here]
    mounts += [*(f"mount -o remount,ro {folder}" for folder in folders), "mount -o remount,bind,ro $PWD", "cd $PWD"]
    flags = train_arguments(Path("/mnt/camvid"), Path("/mnt"), *SHORT)
    for folder, code in (("/tmp", 2), ("/mnt", 0)):
        environment = {**dict.fromkeys(("HOME", "XDG_CACHE_HOME"), "/proc"), "TMPDIR": folder}
        done = train_in(environment, flags, mounts=" && ".join(mounts))
        assert done.returncode == code, done.stderr
        assert code == 0 or ("TMPDIR" in done.stderr and len(done.stderr.splitlines()) == 1), done.stderr
    assert (run_folder(tmp_path) / "last.pth").exists()


@pytest.mark.parametrize(  # too small for semaphores, for batches, for anything
    "options", ["size=8k", *(pytest.param(way, marks=pytest.mark.exhaustive) for way in ("size=64k", "ro"))]
)
def test_without_shared_memory_a_training_with_workers_ends_with_a_sentence(
    options: str, small_camvid: Path, tmp_path: Path
) -> None:
    flags = train_arguments(small_camvid, tmp_path, *SHORT, "--class_uniform_pct", "0.5")
    mount = f"mount -t tmpfs -o {options} tmpfs /dev/shm"
    done = train_in({}, flags, mounts=mount)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "/dev/shm" in last and "--num_workers 0" in last, done.stderr
    if options == "ro":
        done = train_in({}, [*flags, "--num_workers", "0"], mounts=mount)
        assert done.returncode == 0, done.stderr


def test_what_is_decoded_by_processes_is_decoded_by_one_without_shared_memory(small_camvid: Path) -> None:
    words = ["-m", "scripts.check_data", "camvid", "--workers", "2", "--opts", f"DATASET.CAMVID_DIR={small_camvid}"]
    done = run_in({}, words, mounts="mount -t tmpfs -o ro tmpfs /dev/shm")
    assert done.returncode == 0 and "one process does the work" in done.stderr, done.stderr


MEETS = f"""
import os, pathlib, signal, sys, time
sys.path.insert(0, {str(REPOSITORY)!r})
import torch
from utils import distributed
marker, rank = pathlib.Path(sys.argv[1]), os.environ["RANK"]
first = not marker.exists()
if not first and rank == "0":
    time.sleep(2)  # so that the other one would find its address of before the restart
with distributed.process_group(torch.device("cpu"), save_memory="", timeout=30):
    distributed.all_max(0)
    if first and rank == "1":
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if first:
        time.sleep(60)
    print("met")
"""


def launch_nodes(nodes: int, words: list[str], *, restarts: int = 0) -> list[subprocess.CompletedProcess[str]]:
    """Run a program in two processes that one torchrun starts, or two that meet at the first of them, NODE 0."""
    flags = [f"--nproc_per_node={2 // nodes}", f"--max_restarts={restarts}"]
    flags += ["--rdzv_backend=c10d", f"--rdzv_endpoint=localhost:{free_port()}"] if nodes > 1 else ["--standalone"]

    def start(node: int) -> subprocess.CompletedProcess[str]:
        host = [f"--rdzv_conf=is_host={int(node == 0)}"] * (nodes > 1)
        return run_in({"NODE": str(node)}, ["-m", "scripts.launch", f"--nnodes={nodes}", *flags, *host, *words])

    with ThreadPoolExecutor(nodes) as pool:
        return list(pool.map(start, range(nodes)))


@pytest.mark.parametrize("nodes", [1, 2])
def test_processes_that_are_started_again_meet_anew(nodes: int, tmp_path: Path) -> None:
    (tmp_path / "meets.py").write_text(MEETS)
    done = launch_nodes(nodes, [str(tmp_path / "meets.py"), str(tmp_path / "marker")], restarts=1)
    assert not any(node.returncode for node in done), [node.stderr[-3000:] for node in done]
    assert "".join(node.stdout for node in done).replace("\n", "") == "metmet"  # two processes, whose lines may mix


def test_a_node_whose_torchrun_ended_first_is_one_sentence_of_the_other(tmp_path: Path) -> None:
    program = tmp_path / "bad.py"
    program.write_text(
        f"import os, sys, time; sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from utils.errors import UserError, run_entry_point\n"
        "def main():\n"
        "    time.sleep(1 if os.environ['NODE'] == '0' else 90)\n"
        "    raise UserError('the cause')\n"
        "run_entry_point(main)\n"
    )
    done = launch_nodes(2, [str(program)])
    assert [node.returncode for node in done] == [2, 2] and "Traceback" not in done[0].stderr + done[1].stderr
    causes = [node.stderr.splitlines()[-1] for node in done]
    assert causes[0] == "error: the cause" and "which the nodes meet, has ended" in causes[1], causes


DIES = f"""
import os, signal, sys, time
if (os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ["RANK"]) == ("1", "0"):
    time.sleep(2)  # so that the other one would find its address of before the restart
sys.path.insert(0, {str(REPOSITORY)!r})
import train
from utils.errors import run_entry_point
step = train.train_step
def dies(run, *rest):
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first and os.environ["RANK"] == "1" and run.progress.step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(run, *rest)
train.train_step = dies
run_entry_point(train.main)
"""


@pytest.mark.exhaustive
def test_a_process_that_dies_is_started_again_and_nothing_is_lost(small_camvid: Path, tmp_path: Path) -> None:
    flags = {}
    for name in ("whole", "died"):
        flags[name] = train_arguments(small_camvid, tmp_path / name, *SHORT, "--max_iter", "5", "--save_interval", "2")
        flags[name] += ["--bs_mult", "1", "--num_workers", "0", "--resume", "auto"]
    launch("train.py", flags["whole"], processes=2)
    (tmp_path / "dies.py").write_text(DIES)
    command = [sys.executable, "-m", "scripts.launch", "--nproc_per_node=2", "--max_restarts=1"]
    done = subprocess.run(
        [*command, f"--master_port={free_port()}", str(tmp_path / "dies.py"), *flags["died"]], cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resuming" in (run_folder(tmp_path / "died") / "log.txt").read_text()
    assert_same_run(run_folder(tmp_path / "whole"), run_folder(tmp_path / "died"))
