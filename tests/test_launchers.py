"""Processes that srun or mpirun started find each other as torchrun's do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runs import REPOSITORY, free_port
from utils import distributed
from utils.errors import UserError

SLURM = {
    "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08,12],big3", "SLURM_JOB_ID": "1234567",
}  # fmt: skip
MPI = {
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (SLURM, "5 8 1 gpu07 24567"),
        ({**SLURM, "SLURM_STEP_NODELIST": "node-a,node-b", "MASTER_PORT": "3"}, "5 8 1 node-a 3"),
        (MPI, "1 2 1 127.0.0.1 20000"),
        ({**MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, "1 2 1 None 20000"),  # nobody says where: a sentence follows
        ({**SLURM, "RANK": "0", "WORLD_SIZE": "1"}, "0 1 None None None"),  # srun torchrun
        (
            {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"},
            "None None None None None",
        ),  # a batch script
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}, "None None None None None"),  # srun --pty bash
        ({}, "None None None None None"),
    ],
)
def test_the_variables_of_other_launchers(given: dict[str, str], expected: str) -> None:
    environment = dict(given)
    distributed.adopt_launcher(environment)
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    assert " ".join(str(environment.get(name)) for name in names) == expected


@pytest.mark.parametrize("given", [{"RANK": "0"}, {"WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x"}])
def test_half_of_the_variables_is_one_sentence(given: dict[str, str]) -> None:
    with pytest.raises(UserError, match="set both, to the number of this process"):
        distributed.adopt_launcher(given)


def test_processes_that_know_their_rank_alone_take_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    for rank, local, index in (("5", -1, 1), ("5", 3, 3), ("0", -1, 0)):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "8")
        assert distributed.choose_device("auto", local) == torch.device("cuda", index)


CODE = """
import torch
from utils import distributed
device = distributed.choose_device("cpu", -1)
with distributed.process_group(device, save_memory=""):
    print("largest", *distributed.all_max(distributed.rank() + 10, distributed.world_size()))
"""


def test_processes_of_mpirun_and_srun_meet() -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI", "SLURM", "PET"))}
    named: dict[str, Any] = {"cwd": REPOSITORY, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    for launcher in range(2):
        rank, size, local = (names[launcher] for names in distributed.LAUNCHER_NAMES.values())
        port, running = str(free_port()), []
        for number in "01":
            own = {rank: number, size: "2", local: number, "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "MASTER_PORT": port}
            own |= {"SLURM_STEP_NODELIST": "localhost"} if launcher == 0 else {}
            running.append(subprocess.Popen([sys.executable, "-c", CODE], env={**kept, **own}, **named))
        for process in running:
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0 and out == "largest 11 2\n", err


STUB = """#!/usr/bin/env bash
name=$(basename "$0")
[[ $name != scontrol || $1 != show ]] || { printf 'node7\\nnode8\\n'; exit; }
echo "$name $*" >> calls
[[ $name != srun ]] || { env | grep PET_ | sort >> calls; exit "$CODE"; }
"""


@pytest.mark.parametrize("code", [0, 2, 75])
def test_a_slurm_job_queues_again_where_a_signal_ended_it(code: int, tmp_path: Path) -> None:
    for name in ("srun", "scontrol"):
        (tmp_path / name).write_text(STUB)
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "1234567", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2"}
    job |= {"SLURM_SUBMIT_DIR": str(tmp_path), "CODE": str(code), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PET_")}
    command = [str(REPOSITORY / "scripts" / "slurm.sh"), "./scripts/train_r50os16_gtav_isw.sh", "--seed", "7"]
    done = subprocess.run(command, env={**kept, **job}, check=False, timeout=60)
    assert done.returncode == code
    started, *rest = (tmp_path / "calls").read_text().splitlines()
    assert started == "srun --kill-on-bad-exit=0 ./scripts/train_r50os16_gtav_isw.sh --seed 7 --resume auto"
    assert rest[:5] == [
        "PET_MAX_RESTARTS=3", "PET_NNODES=2", "PET_RDZV_BACKEND=c10d", "PET_RDZV_ENDPOINT=node7:24567",
        "PET_RDZV_ID=1234567",
    ]  # fmt: skip
    assert rest[5:] == (["scontrol requeue 1234567"] if code == 75 else [])


def test_a_slurm_job_does_not_resume_twice() -> None:
    command = [str(REPOSITORY / "scripts" / "slurm.sh"), "./scripts/train_r50os16_gtav_isw.sh", "--resume", "a.pth"]
    environment = {**os.environ, "SLURM_JOB_ID": "7"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2 and "--snapshot FILE --restore_optimizer" in done.stderr


def test_a_slurm_job_without_slurm_is_one_sentence() -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    command = [str(REPOSITORY / "scripts" / "slurm.sh"), "train.py"]
    done = subprocess.run(command, env=kept, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2 and done.stderr.startswith("error: start it with sbatch")
