"""Training by 1, 2 and 4 processes on this machine, and what 8 to 256 GPUs would reach by computation.

Every process takes a batch of its own, steps with the exchange of gradients and without it take turns, and a hook of
DistributedDataParallel counts the bytes that are exchanged.
"""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import Settings
from benchmarks.works import make_batch, make_criterion, make_network
from optimizer import build_optimizer

PROCESSES, GPUS = (1, 2, 4), (8, 16, 32, 64, 128, 256)
BATCH, CROP = 8, 768  # of a GPU in the published recipe
CARD, REACHED = 801e12, 0.11  # an H100's bfloat16 operations per second, and the share of them that a step reached
NETWORK = 100e9 / 8  # bytes per second into and out of every GPU
LATENCY = 20e-6  # seconds of a small exchange per doubling of the GPUs
BUCKET = 25 * 2**20  # bytes that DistributedDataParallel exchanges together
BACKWARD = 2 / 3  # share of a step during which the exchange can hide


def train(rank: int, folder: str, processes: int, size: int, device_type: str, runs: int) -> None:
    """Be one of the processes; the first writes the seconds of steps with and without exchange, and the bytes."""
    device = torch.device(device_type, rank) if device_type == "cuda" else torch.device("cpu")
    torch.set_num_threads(max(torch.get_num_threads() // max(PROCESSES), 1))  # as many whatever the number of processes
    where = {"init_method": f"file://{folder}/{processes}", "rank": rank, "world_size": processes}
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=timedelta(minutes=5), **where)  # type: ignore[arg-type]
    network, cfg = make_network(device, ())
    criterion, optimizer = make_criterion(network, cfg, device), build_optimizer(cfg, network)
    model: Any = DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)
    images, labels, edges = make_batch(2, (size, size), device)
    clock, exchanged, taken = Settings(device, 1, processor_time=False).clock, [0], {"with": [0.0], "without": [0.0]}

    def count(group: Any, bucket: Any) -> Any:
        exchanged[0] += bucket.buffer().numel() * bucket.buffer().element_size()
        return allreduce_hook(group, bucket)

    model.register_comm_hook(None, lambda group, bucket: count(group, bucket))  # torch reads a function's annotations
    for _ in range(runs + 1):
        for kind, seconds in taken.items():
            distributed.barrier()
            start = clock()
            with contextlib.nullcontext() if kind == "with" else model.no_sync():
                criterion.total(criterion(model(images), labels, edges, whiten=True)).backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(clock() - start)
    if rank == 0:
        content = {kind: median(seconds[2:]) for kind, seconds in taken.items()}  # the first step does not count
        content["bytes"] = exchanged[0] // (runs + 1)
        Path(folder, "result.json").write_text(json.dumps(content))
    distributed.destroy_process_group()


def computed(step: float, *, gradients: int, norms: int, gpus: int) -> dict[str, float]:
    """Return what exchanging gradients and batch-norm statistics adds to a step (seconds), and the efficiency."""
    transfer = 2 * (gpus - 1) / gpus * gradients / NETWORK  # a ring
    doublings, buckets = math.log2(gpus), max(gradients / BUCKET, 1)
    waiting = max(transfer - BACKWARD * step, transfer / buckets)  # the last bucket has nothing to hide behind
    statistics = 2 * norms * doublings * LATENCY  # forward and backward; nothing goes on meanwhile
    return {"transfer": transfer, "waiting": waiting, "statistics": statistics, "total": step + waiting + statistics}


def measure_processes(device: torch.device, *, runs: int, tiny: bool) -> dict[str, Any]:
    """Return the figures of 1, 2 and 4 processes on this machine and the tables of both."""
    side, measured = 64 if tiny else 256, {}
    numbers = [n for n in PROCESSES if device.type == "cpu" or n <= torch.cuda.device_count()]
    for processes in numbers:
        with tempfile.TemporaryDirectory() as folder:
            arguments = (folder, processes, side, device.type, runs)
            torch.multiprocessing.spawn(train, arguments, nprocs=processes)
            measured[processes] = json.loads(Path(folder, "result.json").read_text())
    title = f"Steps of {numbers} processes, 2 x {side}x{side} each, one share of the threads each"
    rows = [["processes", "step", "without exchange", "images/s", "efficiency", "share of exchange", "bytes per step"]]
    alone = measured[1]["with"]
    for processes, found in measured.items():
        rate, share = 2 * processes / found["with"], 1 - found["without"] / found["with"]
        cells = [f"{1000 * found['with']:.0f} ms", f"{1000 * found['without']:.0f} ms", f"{rate:.2f}"]
        cells += [f"{100 * alone / found['with']:.0f} %", f"{100 * share:.0f} %", f"{found['bytes'] / 1e6:.1f} MB"]
        rows.append([str(processes), *cells])
    tables = {title: rows} | computed_table(max(found["bytes"] for found in measured.values()))
    return {"measured": measured, "tables": tables}


def computed_table(gradients: int) -> dict[str, list[list[str]]]:
    """Return the table of steps whose operations are counted on a GPU's batch, backward as twice the forward."""
    network, _ = make_network(torch.device("meta"), ())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.train()(torch.empty(BATCH, 3, CROP, CROP, device="meta"))
    operations = 3 * counter.get_total_flops()
    step = operations / (CARD * REACHED)
    norms = sum(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())
    title = (
        f"Computed, not measured: {BATCH} x {CROP}x{CROP} per GPU, {operations / 1e12:.1f} TFLOP at "
        f"{100 * REACHED:.0f} % of {CARD / 1e12:.0f} TFLOP/s = {1000 * step:.0f} ms; {gradients / 1e6:.0f} MB of "
        f"gradients in a ring at {8 * NETWORK / 1e9:.0f} Gbit/s per GPU, hidden behind the backward pass "
        f"({BACKWARD:.2f} of the step) but for the last {BUCKET / 2**20:.0f} MiB; {norms} synchronised batch norms, "
        f"twice {1e6 * LATENCY:.0f} us per doubling"
    )
    rows = [["GPUs", "transfer", "waiting for it", "batch norms", "step", "images/s", "efficiency"]]
    for gpus in GPUS:
        found = computed(step, gradients=gradients, norms=norms, gpus=gpus)
        times = [f"{1000 * found[name]:.1f} ms" for name in ("transfer", "waiting", "statistics", "total")]
        rows.append([str(gpus), *times, f"{gpus * BATCH / found['total']:.0f}", f"{100 * step / found['total']:.0f} %"])
    return {title: rows}
