"""The same work on many items: in order, with the errors of the work, and no process outlives the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from utils.errors import UserError
from utils.parallel import parallel_map, thread_pool, threaded_map

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import os, signal, sys, time
from utils.errors import run_entry_point
from utils.parallel import parallel_map

def work(item):
    sys.stdout.write(f"{os.getpid()}\\n")
    sys.stdout.flush()
    time.sleep(0.2)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may run where a shell has it ignored
    run_entry_point(lambda: list(parallel_map(work, range(1000), workers=2, title="naps", unit="nap")))
"""


def _square(item: int) -> tuple[int, int]:
    if item == 37:
        raise UserError("frame 37: is damaged; unpack it again")
    return item * item, os.getpid()


def _convolve(item: int) -> float:
    return float(torch.nn.functional.conv2d(torch.ones(1, 8, 64, 64), torch.ones(8, 8, 3, 3)).mean())


def _end(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [0, 1, 3, 99])
@pytest.mark.parametrize("count", [0, 1, 36])
def test_results_come_in_order(workers: int, count: int) -> None:
    results = list(parallel_map(_square, range(count), workers=workers, title="squares", unit="number"))
    assert [value for value, _ in results] == [number**2 for number in range(count)]
    assert all((process == os.getpid()) == (workers == 0) for _, process in results)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mistake_in_the_data_is_told_as_it_is(workers: int) -> None:
    with pytest.raises(UserError) as caught:
        list(parallel_map(_square, range(99), workers=workers, title="squares", unit="number"))
    assert str(caught.value) == "frame 37: is damaged; unpack it again"


def test_a_killed_worker_is_one_sentence() -> None:
    with pytest.raises(UserError, match="centroids of x: a worker process was killed, most likely for want of memory"):
        list(parallel_map(_end, [0], workers=1, title="centroids of x", unit="label"))


def test_torch_may_have_been_used_before() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = _convolve(0)  # starts the pool of threads that a fork does not take along
        assert list(parallel_map(_convolve, range(4), workers=2, title="maps", unit="map")) == [expected] * 4
    finally:
        torch.set_num_threads(threads)


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_run(tmp_path: Path, stop: signal.Signals) -> None:
    (tmp_path / "naps.py").write_text(PROGRAM)
    run = subprocess.Popen(
        [sys.executable, str(tmp_path / "naps.py")], env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert run.stdout is not None and run.stderr is not None
    processes = {int(run.stdout.readline()) for _ in range(4)}
    assert processes and run.pid not in processes
    if stop == signal.SIGINT:
        os.killpg(run.pid, stop)  # as a terminal does
        assert run.wait(timeout=20) == 130 and run.stderr.read() == "interrupted\n"
    else:
        run.kill()
    deadline = time.monotonic() + 20
    while any(map(_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_alive, processes))
    run.communicate()


def test_threads_work_ahead_in_order_and_not_too_far() -> None:
    taken, done = list[int](), threading.Semaphore(0)

    def items() -> Iterator[int]:
        for item in range(20):
            taken.append(item)
            yield item

    def work(item: int) -> int:
        time.sleep(0.02 if item % 3 == 0 else 0)
        done.release()
        return item * item

    results = threaded_map(work, items(), threads=2)
    assert next(results) == 0 and taken == [0, 1, 2, 3], "twice the threads"
    for _ in range(4):
        assert done.acquire(timeout=5), "those ahead are worked on although nobody asks for them"
    assert [*results] == [item * item for item in range(1, 20)]
    assert list(threaded_map(work, [], threads=2)) == []


def test_an_error_in_a_thread_ends_the_work() -> None:
    seen = list[int]()

    def work(item: int) -> int:
        seen.append(item)
        if item == 3:
            raise UserError("item 3: is damaged")
        return item

    results = threaded_map(work, range(1000), threads=2)
    with pytest.raises(UserError, match="item 3"):
        list(results)
    assert len(seen) < 10


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not list a process's threads")
def test_threads_are_gone_from_the_system_before_a_fork() -> None:
    """Else the forked process would wait for a lock that an ending thread holds in OpenCV: 11 of 3785 did."""
    numbers, left = list[int](), list[int]()
    for _ in range(300):
        with thread_pool(8) as pool:
            numbers += pool.map(lambda _: threading.get_native_id(), range(16))
        left += [number for number in numbers[-16:] if Path(f"/proc/self/task/{number}").exists()]
    assert len(numbers) == 4800 and not left
