"""What launchers other than torchrun tell a process, in torchrun's variables, and the end of a launcher."""

from __future__ import annotations

import atexit
import logging
import os
import re
import signal
import threading
from collections.abc import MutableMapping

from utils.errors import TRY_AGAIN, UserError

# SLURM's are those of srun's step: in a batch script itself the job's are set too, for one process alone.
NAMES = {
    "RANK": ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK"),
    "WORLD_SIZE": ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"),
    "LOCAL_RANK": ("SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK"),
}
LAUNCHED = ("TORCHELASTIC_RUN_ID", *NAMES["RANK"])  # set by launchers that stay as long as their processes
PORTS = 20000  # the first of 10,000 that jobs choose from by their number
GRACE = 30.0  # s, for a step and its checkpoint after the launcher's end, as torchrun gives before it kills
log = logging.getLogger(__name__)


def adopt(environment: MutableMapping[str, str]) -> None:
    """Set torchrun's variables for a process that srun or mpirun started with others; those that are set stay.

    Raises:
        UserError: a variable of a launcher is missing or no number.
    """
    if "RANK" not in environment and "WORLD_SIZE" not in environment:
        for launcher in zip(*NAMES.values(), strict=True):
            if environment.get(launcher[1], "1") != "1":
                found = {name: environment.get(other) for name, other in zip(NAMES, launcher, strict=True)}
                environment.update({name: value for name, value in found.items() if value is not None})
                _meet(environment)
                break
    numbers = [environment.get(name) for name in ("RANK", "WORLD_SIZE")]
    if numbers == [None, None]:
        return
    if not all(number and number.isdecimal() for number in numbers) or int(numbers[0] or 0) >= int(numbers[1] or 0):
        raise UserError(
            f"RANK is {numbers[0]} and WORLD_SIZE {numbers[1]}: set both, to the number of this process from 0 and to "
            "how many there are, or start with torchrun"
        )


def _meet(environment: MutableMapping[str, str]) -> None:
    """Choose where the processes meet: on the first node of a SLURM step, or on this machine."""
    job, here = environment.get("SLURM_JOB_ID", "0"), environment.get("OMPI_COMM_WORLD_LOCAL_SIZE")
    nodes = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", ""))
    if first := re.match(r"([^\[,]+)(?:\[(\d+))?", nodes):  # node[07-09,12] begins with node07
        environment.setdefault("MASTER_ADDR", "".join(filter(None, first.groups())))
    elif here == environment["WORLD_SIZE"]:
        environment.setdefault("MASTER_ADDR", "127.0.0.1")
    environment.setdefault("MASTER_PORT", str(PORTS + int(job) % 10_000))


def follow() -> None:
    """End this process when the launcher that started it is killed, which could then end nothing any more.

    It gets a SIGTERM, after which a training saves its step, and is ended `GRACE` seconds later where it waits in torch
    for a process that is gone. Without a launcher nothing is followed: the shell of a run in the background may end.
    """
    if any(name in os.environ for name in LAUNCHED):
        done = threading.Event()
        thread = threading.Thread(target=_follow, args=(os.getppid(), done), daemon=True)
        thread.start()
        atexit.register(thread.join)  # a thread that Python has to end at its exit can abort it
        atexit.register(done.set)  # before


def _follow(launcher: int, done: threading.Event) -> None:
    while os.getppid() == launcher:
        if done.wait(1):
            return
    last = threading.Timer(GRACE, os._exit, [TRY_AGAIN])  # first: a log may be held by a thread that waits for a disk
    last.daemon = True
    last.start()
    log.error("the launcher of this process (%d) was killed, so it ends too; --resume auto goes on", launcher)
    os.kill(os.getpid(), signal.SIGTERM)
