"""`python -m benchmarks` times every part of a run, beside a plain implementation of the same work.

Shared here: works that take turns, in this process or each in its own, the peak of memory, the name of the machine.
"""

from __future__ import annotations

import multiprocessing
import platform
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import Any, NamedTuple

import torch

from utils.device import peak_memory
from utils.errors import UserError

Work = Iterator[object]  # sets up and runs once at the first `next`, runs again at every further one
Build = Callable[[], Work]
Clock = Callable[[], float]  # seconds
WARM_UP = 2  # runs that do not count


class Row(NamedTuple):
    """What is timed."""

    ours: Build
    plain: Build | None = None
    alone: bool = False  # each in a process of its own, whose peak of memory is told; the works must be picklable
    threads: int = 0  # of torch where the user gives no number; 0 as many as there are cores
    processor_time: bool = False  # in any case


class Settings(NamedTuple):
    device: torch.device
    threads: int
    processor_time: bool

    def clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        if not self.processor_time:
            return time.perf_counter()
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(part.ru_utime + part.ru_stime for part in used)


class Here:
    """A work of this process."""

    idle: float | None = None
    peak: float | None = None

    def __init__(self, build: Build, clock: Clock) -> None:
        self.work, self.clock = build(), clock

    def run(self) -> float:
        """Run once and return the seconds."""
        start = self.clock()
        next(self.work)
        return self.clock() - start

    def close(self) -> None:
        pass


class Alone:
    """A work in a process of its own; its memory in MiB before the work and its `peak` are known once it is closed."""

    idle: float | None = None
    peak: float | None = None

    def __init__(self, build: Build, settings: Settings) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, end = context.Pipe()
        self.process = context.Process(target=_serve, args=(end, build, settings), daemon=True)
        self.process.start()
        end.close()

    def run(self) -> float:
        """Run once and return the seconds, as the process measures them."""
        self.pipe.send(True)
        return self._receive()

    def close(self) -> None:
        self.pipe.send(False)
        self.idle, self.peak = self._receive()
        self.process.join()

    def _receive(self) -> Any:
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join()
            raise UserError(
                f"a timed process ended with exit code {self.process.exitcode}; its message is above, and there is "
                "none where the memory was used up: give fewer rows, or --tiny"
            ) from None


def _serve(pipe: Any, build: Build, settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    idle, work = peak_memory(settings.device), Here(build, settings.clock)
    while pipe.recv():
        pipe.send(work.run())
    pipe.send((idle, peak_memory(settings.device)))


def take_turns(works: Sequence[Here | Alone], *, runs: int) -> list[list[float]]:
    """Return the seconds of each work, run by run; they take turns, and `WARM_UP` runs come before those that count."""
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(WARM_UP + runs):
        for work, seconds in zip(works, taken, strict=True):
            seconds.append(work.run())
    for work in works:
        work.close()
    return [seconds[WARM_UP:] for seconds in taken]


def measure(row: Row, settings: Settings, *, against: bool, runs: int) -> dict[str, dict[str, Any]]:
    """Return of `ours`, and of `plain` where it is wanted and exists, the times in ms, their spread and the peak."""
    settings = settings._replace(processor_time=settings.processor_time or row.processor_time)
    torch.set_num_threads(settings.threads)
    builds = {"ours": row.ours} | ({"plain": row.plain} if against and row.plain else {})
    works: list[Here | Alone] = [
        Alone(build, settings) if row.alone else Here(build, settings.clock) for build in builds.values()
    ]
    figures: dict[str, dict[str, Any]] = {}
    for name, work, seconds in zip(builds, works, take_turns(works, runs=runs), strict=True):
        times = [1000 * second for second in seconds]
        low, _, high = quantiles(times, n=4, method="inclusive") if runs > 1 else times * 3
        figures[name] = {"median_ms": median(times), "mean_ms": fmean(times), "slowest_ms": max(times)}
        figures[name] |= {"quartiles_ms": [low, high], "runs_ms": times}
        figures[name] |= {"idle_mib": work.idle, "peak_mib": work.peak}
    return figures


def repeated(function: Callable[..., object], *args: Any, **kwargs: Any) -> Work:
    while True:
        yield function(*args, **kwargs)


def machine(device: torch.device) -> dict[str, Any]:
    """Return what figures depend on: the device's name, the vector instructions that torch uses, cores, versions."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        path = Path("/proc/cpuinfo")
        lines = path.read_text().splitlines() if path.exists() else []
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        name = f"{[*names, platform.processor()][0]} ({torch.backends.cpu.get_cpu_capability()})"
    cores = torch.get_num_threads()
    return {"processor": name, "cores": cores, "torch": torch.__version__, "python": platform.python_version()}
