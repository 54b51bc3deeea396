"""The same work on many items, in worker processes or in threads; OpenCV, fit for them."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, TypeVar

from tqdm import tqdm

from utils.errors import NO_SHARED_MEMORY, TRY_AGAIN, UserError

logger = logging.getLogger("parallel")
Item = TypeVar("Item")
Result = TypeVar("Result")
# That ask a run to end: SIGHUP is a connection that closed, SIGUSR1 and SIGUSR2 are warnings of schedulers, minutes
# before the end. Windows lacks these three.
SIGNALS = [getattr(signal, f"SIG{name}") for name in "TERM INT HUP USR1 USR2".split() if hasattr(signal, f"SIG{name}")]
LAUNCHED = ("TORCHELASTIC_RUN_ID", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")  # by what stays as long as its processes
GRACE = 30.0  # s, for a step and its checkpoint after the launcher's end, as torchrun gives before it kills
_work: Callable[[Any], Any]  # of this worker: handed over once, it may hold the list of a whole data set


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def opencv() -> Any:
    """Return the module cv2, set to one thread before its first use.

    Its pool of threads does not survive a fork: a loader worker forked from a process that has one hangs in its first
    call. Workers are as many as cores anyway. Its warnings of damaged files would stand beside our sentence.
    """
    import cv2

    cv2.setNumThreads(1)
    set_level = cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel  # OpenCV 4, 5
    set_level(2)  # errors alone
    return cv2


def check_shared_memory(*, queues: int) -> None:
    """Raise `UserError` where the semaphores of so many queues between processes find no room in /dev/shm.

    A loader that finds out by itself leaves a traceback behind.
    """
    try:
        held: list[Any] = [multiprocessing.Queue() for _ in range(queues)]
        del held
    except (OSError, ImportError) as error:  # ImportError where the system has no semaphores
        raise UserError(NO_SHARED_MEMORY) from error


def parallel_map(
    work: Callable[[Item], Result], items: Sequence[Item], *, workers: int, title: str, unit: str
) -> Iterator[Result]:
    """Yield what `work` returns for every item, in order, with a progress bar; without workers in this process.

    Workers start as the platform starts processes, as those of a DataLoader do. Forked ones, on Linux, are there in
    0.2 s; spawned ones would import torch again (eight of them 20 s on two cores). A fork is safe because OpenCV
    (`opencv`) and torch use one thread in a worker. Items and results must pickle, and `work` outside Linux.

    They share memory; where there is none the work is done in this process.

    Raises:
        UserError: as `work` raised it, in a worker too; or a worker was killed.
    """
    bar, workers = partial(tqdm, total=len(items), desc=title, unit=unit, disable=None), min(workers, len(items))
    try:
        check_shared_memory(queues=4 * (workers > 0))
    except UserError as error:
        logger.warning("%s: %s; one process does the work", title, error)
        workers = 0
    if workers < 1:
        yield from bar(map(work, items))
        return
    pool, hook = ProcessPoolExecutor(workers, initializer=_start, initargs=(work,)), threading.excepthook
    # A pool whose workers ctrl-C has ended trips over futures that are cancelled already, in a thread of its own.
    threading.excepthook = lambda error: None if error.exc_type is InvalidStateError else hook(error)
    try:
        size = max(1, min(16, len(items) // (4 * workers)))  # handing over a task costs time too
        yield from bar(pool.map(_call, items, chunksize=size))
    except BrokenProcessPool as error:
        time.sleep(0.2)  # where ctrl-C has ended the workers, it reaches this process too and speaks for itself
        raise UserError(
            f"{title}: a worker process was killed, most likely for want of memory; use fewer than {workers}"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        threading.excepthook = hook


@contextmanager
def thread_pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads that the system, too, has ended afterwards, so that a process may be forked.

    Python lets go of a thread a moment before OpenCV has freed, under a lock, what it kept for it. A process forked in
    that moment would wait for the lock in its first call for ever.
    """
    numbers = list[int]()
    with ThreadPoolExecutor(threads, initializer=lambda: numbers.append(threading.get_native_id())) as pool:
        yield pool
    last = time.monotonic() + 5  # the system may give the number of an ended thread to another one
    while any(os.path.exists(f"/proc/self/task/{number}") for number in numbers) and time.monotonic() < last:
        time.sleep(0.001)


def threaded_map(work: Callable[[Item], Result], items: Iterable[Item], *, threads: int) -> Iterator[Result]:
    """Yield what `work` returns for every item, in order, while threads work on the items that lie ahead.

    The items are taken in the caller's thread. Not more of them than twice the threads are in work
    or wait to be yielded, so that what a slow caller has not taken yet does not fill the memory. What `work` raises is
    raised in the place of its result, and ends the work.
    """
    waiting = deque[Future[Result]]()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) == 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    if "torch" in sys.modules:  # its pool of threads does not survive a fork, and workers are as many as cores
        sys.modules["torch"].set_num_threads(1)
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as in a shell's background, where ctrl-C is for others
            signal.signal(number, signal.SIG_DFL)  # ctrl-C ends every process of a terminal: at once, no traceback
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    """End with a parent that was killed, instead of waiting for its next task for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def follow_launcher() -> None:
    """End this process when the launcher that started it is killed, which could then end nothing any more.

    It gets a SIGTERM, after which a training saves its step, and is ended `GRACE` seconds later where it waits in torch
    for a process that is gone. Without a launcher nothing is followed: the shell of a run in the background may end.
    """
    if any(name in os.environ for name in LAUNCHED):
        done = threading.Event()
        thread = threading.Thread(target=_follow_launcher, args=(os.getppid(), done), daemon=True)
        thread.start()
        atexit.register(thread.join)  # a thread that Python has to end at its exit can abort it
        atexit.register(done.set)  # before


def _follow_launcher(launcher: int, done: threading.Event) -> None:
    while os.getppid() == launcher:
        if done.wait(1):
            return
    last = threading.Timer(GRACE, os._exit, [TRY_AGAIN])  # first: a log may be held by a thread that waits for a disk
    last.daemon = True
    last.start()
    logger.error("the launcher of this process (%d) was killed, so it ends too; --resume auto goes on", launcher)
    os.kill(os.getpid(), signal.SIGTERM)


def _call(item: Any) -> Any:
    return _work(item)


@contextmanager
def starting_workers(number: int) -> Iterator[None]:
    """Start loader workers, with room for their queues, and with SIGTERM blocked, which `leave_to_parent` waits for.

    Libraries may give a forked process threads before it runs any code of ours; one of them would take the signal.
    """
    if number:
        check_shared_memory(queues=number + 2)
    waits = hasattr(signal, "sigwaitinfo")  # not on macOS
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]) if waits else set()
    try:
        yield
    finally:
        if waits:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_parent(_worker: int = 0) -> None:
    """Let a loader's worker ignore the signals that a scheduler sends to all processes of a run.

    Its parent still needs it for the step that it ends, and ends it with a SIGTERM of its own, which is obeyed. With a
    parent that was killed it ends by itself; torch looks at the process that forked it, which may be a server of forks.
    """
    for number in SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_obey_parent, daemon=True).start()
    threading.Thread(target=_follow_parent, daemon=True).start()  # now: threads inherit what is blocked


def _obey_parent() -> None:
    parent = multiprocessing.parent_process()  # of os.getppid() it differs where workers come out of a server of forks
    assert parent is not None
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent.pid:
        pass
    os._exit(0)
