"""The one module that talks to torch.distributed; every function also works without a process group."""

from __future__ import annotations

import datetime
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, TypedDict, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous

from utils.errors import Stopped, UserError, explain, first_few, port_taken
from utils.parallel import follow_launcher

Result = TypeVar("Result")
# SLURM's are those of srun's step: in a batch script itself the job's are set too, for one process alone.
LAUNCHER_NAMES = {
    "RANK": ("SLURM_PROCID", "OMPI_COMM_WORLD_RANK"),
    "WORLD_SIZE": ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"),
    "LOCAL_RANK": ("SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK"),
}
PORTS = 20000  # the first of 10,000 that jobs choose from by their number
_groups: dict[str, Any] = {}  # "cpu": of gloo, beside that of nccl


def is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if is_initialized() else 1


class Share(TypedDict):
    rank: int
    world_size: int


def share() -> Share:
    """Return the arguments that say which share of the work this process has."""
    return {"rank": rank(), "world_size": world_size()}


def is_main() -> bool:
    return rank() == 0


def adopt_launcher(environment: MutableMapping[str, str]) -> None:
    """Set torchrun's variables for a process that srun or mpirun started with others; those that are set stay.

    Raises:
        UserError: a variable of a launcher is missing or no number.
    """
    if "RANK" not in environment and "WORLD_SIZE" not in environment:
        for launcher in zip(*LAUNCHER_NAMES.values(), strict=True):
            if environment.get(launcher[1], "1") != "1":
                found = {name: environment.get(other) for name, other in zip(LAUNCHER_NAMES, launcher, strict=True)}
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


def choose_device(name: str, local_rank: int) -> torch.device:
    """Return the device of this process, or raise `UserError`; the launcher's LOCAL_RANK outranks `local_rank`.

    Without either, processes that know their rank alone take the GPUs of a node in turn.

    `name` is auto, cpu or cuda.
    """
    adopt_launcher(os.environ)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    in_turn = int(os.environ.get("RANK", "0")) % max(count, 1)
    index = int(os.environ.get("LOCAL_RANK", local_rank if local_rank >= 0 else in_turn))
    if name == "cuda" and not count:
        raise UserError("--device cuda: no GPU is visible (CUDA_VISIBLE_DEVICES, nvidia-smi); or use --device cpu")
    if name == "cpu" or not count:
        return torch.device("cpu")
    if index >= count:
        raise UserError(
            f"process {index} of this node has no GPU, {count} visible: start one process per GPU (--nproc_per_node)"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def set_deterministic(*, wanted: bool) -> None:
    """Choose kernels that give the same bits every time, where there are any; call it before CUDA starts."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if wanted != torch.are_deterministic_algorithms_enabled():  # the call imports torch's compiler: a second or two
        torch.use_deterministic_algorithms(wanted, warn_only=True)


@contextmanager
def process_group(
    device: torch.device, dist_url: str = "env://", *, save_memory: str, timeout: float = 7200
) -> Iterator[None]:
    """Hold the process group that the launcher announced (nccl on GPUs, gloo on CPUs); none without a launcher.

    After an error nobody waits for the others: the launcher ends them when this one exits.
    Where all processes have stopped together, none leaves before the others are ready to.
    What torch raises for `REASONS` becomes a `UserError`, and a lack of memory one that ends with `save_memory`: which
    flags of this program help. A process waits for the others at most `timeout` seconds.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ and not is_initialized():
        limit = datetime.timedelta(seconds=timeout)
        follow_launcher()
        _check_launcher()
        try:
            number, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
            backend = "nccl" if device.type == "cuda" else "gloo"
            store = _fresh_store(dist_url, rank=number, world_size=count, timeout=limit)
            dist.init_process_group(
                backend, None if store else dist_url, store=store, timeout=limit, rank=number, world_size=count
            )
            if backend == "nccl":
                _groups["cpu"] = dist.new_group(backend="gloo", timeout=limit)
        except (ValueError, RuntimeError) as error:
            sentence = f"--dist_url {dist_url}: the processes cannot meet there ({error}); start with torchrun"
            raise UserError(port_taken(error) or sentence) from error
    try:
        yield
    except Stopped as stop:
        if stop.agreed:
            _leave()
        raise
    except Exception as error:
        _end_threads()
        if (known := explain(error, save_memory=save_memory)) is not error:
            raise known from error
        raise
    _leave()


def _end_threads() -> None:
    """Let gloo's threads end: one that still runs while Python ends can abort the process, whose exit code is lost."""
    if is_initialized() and dist.get_backend() == "gloo":
        thread = threading.Thread(target=dist.destroy_process_group, daemon=True)
        thread.start()
        thread.join(3)  # they may wait for another process


def _fresh_store(dist_url: str, *, rank: int, world_size: int, timeout: datetime.timedelta) -> dist.Store | None:
    """Return where processes meet that torchrun may have started again (--max_restarts), and None where it has not.

    torchrun's own store still holds the addresses of those that have ended, at which others would wait for them. Nodes
    count their restarts apart: what is new is agreed on. Process 0 names a part of the store after a number of its own,
    the others write theirs there, and it answers with all of them, which only one that lives can.
    """
    if os.environ.get("GROUP_WORLD_SIZE", "1") == "1" and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return None
    store, _, _ = next(rendezvous(dist_url, rank, world_size, timeout=timeout))
    store.set_timeout(timeout)
    own, end = secrets.token_hex(8), time.monotonic() + timeout.total_seconds()
    if rank == 0:
        store.set("meeting", own)
        others = [store.get(f"{own}/{number}").decode() for number in range(1, world_size)]  # waits for each
        store.set(f"{own}/all", " ".join(others))
        return dist.PrefixStore(own, store)
    while time.monotonic() < end:
        meeting = store.get("meeting").decode()
        store.set(f"{meeting}/{rank}", own)
        if store.check([f"{meeting}/all"]) and own in store.get(f"{meeting}/all").decode().split():
            return dist.PrefixStore(meeting, store)
        time.sleep(0.1)
    raise RuntimeError("process 0 has not come")


def _check_launcher() -> None:
    """Raise `UserError` where torchrun, at which its processes meet, was killed while this one started.

    torch would try to reach it for as long as processes wait for each other.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        try:
            socket.create_connection(address, timeout=60).close()
        except OSError as error:
            place = ":".join(map(str, address))
            raise UserError(f"torchrun does not answer at {place} ({error}); was it killed?") from error


def _leave() -> None:
    if is_initialized():
        barrier()  # torch 2.6's gloo may hang for ever where one process leaves while another still receives
        dist.destroy_process_group()
        _groups.clear()


def barrier() -> None:
    if is_initialized():
        dist.barrier(device_ids=[torch.cuda.current_device()] if dist.get_backend() == "nccl" else None)


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over the processes, in place, and return it."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


class _MeanOverProcesses(torch.autograd.Function):
    """The mean over the processes; it is its own backward, because every process's loss depends on every input."""

    @staticmethod
    def forward(_: Any, tensor: torch.Tensor) -> torch.Tensor:
        return all_reduce_sum(tensor.clone(memory_format=torch.contiguous_format)) / world_size()

    @staticmethod
    def backward(_: Any, *gradients: torch.Tensor) -> Any:
        return all_reduce_mean(gradients[0])


def all_reduce_mean(tensor: torch.Tensor) -> torch.Tensor:
    """Return the mean of a tensor over the processes, through which gradients flow back to all of them."""
    return _MeanOverProcesses.apply(tensor) if world_size() > 1 else tensor  # type: ignore[no-untyped-call]


def compress_gradients(model: nn.parallel.DistributedDataParallel) -> None:
    """Let processes send each other their gradients as bfloat16; what each adds to its weights is float32 again."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

    model.register_comm_hook(None, bf16_compress_hook)


def all_max(*values: int) -> list[int]:
    """Return the largest of each number over the processes; over the CPUs, so that nothing waits for a GPU's work."""
    if world_size() == 1:
        return list(values)
    tensor = torch.tensor(values)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=_groups.get("cpu"))
    return [int(value) for value in tensor]


def all_reduce_min(value: int, device: torch.device) -> int:
    if world_size() == 1:
        return value
    tensor = torch.tensor(value, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
    return int(tensor.item())


def gather(value: Result) -> list[Result]:
    """Return what every process gives (anything that pickles), in order, on all of them; over the CPUs."""
    results: list[Any] = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(results, value, group=_groups.get("cpu"))
    return results


def from_main(make: Callable[[], Result]) -> Result:
    """Return on every process what rank 0 makes (anything that pickles); its `UserError` is raised on all of them."""
    results: list[Any] = [None]
    if is_main():
        try:
            results = [make()]
        except UserError as error:
            results = [error]
    if world_size() > 1:
        dist.broadcast_object_list(results, src=0, group=_groups.get("cpu"))
    if isinstance(results[0], UserError):
        raise results[0]
    return results[0]


def check_same(facts: Mapping[str, str]) -> None:
    """Raise `UserError` on every process where one of them has other facts (by name) than rank 0, or knows others."""
    gathered = gather(dict(facts))
    for number, other in enumerate(gathered):
        differing = sorted({name for name, _ in gathered[0].items() ^ other.items()})
        if differing:
            pairs = [f"{name}: {other.get(name)} instead of {gathered[0].get(name)}" for name in differing]
            raise UserError(
                f"process {number} runs with another {first_few(pairs)} than process 0; start all processes with the "
                "same flags, code and data"
            )


def broadcast_buffers(module: nn.Module) -> None:
    """Give every process rank 0's buffers (batch-norm statistics differ where batch norm is not synchronised)."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)
