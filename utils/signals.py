"""Signals that ask a run to end: at its next whole step, on every process of it, with the exit code "try again"."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from utils import distributed
from utils.errors import Stopped
from utils.parallel import SIGNALS

Item = TypeVar("Item")


@dataclass
class _State:
    received: list[int] = field(default_factory=list)
    deferred: bool = False


_state = _State()


@contextmanager
def handled() -> Iterator[None]:
    """Let the first signal raise `Stopped`: at once, or inside `deferred` where `check` or `stoppable` look for it.

    Further ones change nothing, but a second SIGINT raises KeyboardInterrupt at once. Outside of the main thread, which
    alone gets signals, this does nothing; a SIGINT that is ignored, as in a shell's background, stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    wanted = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _receive) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _state.received.clear()


def _receive(number: int, _frame: Any) -> None:
    again = number == signal.SIGINT and number in _state.received
    _state.received.append(number)
    if again:
        raise KeyboardInterrupt
    if not _state.deferred and len(_state.received) == 1:
        raise Stopped(signal.Signals(number).name)


@contextmanager
def deferred() -> Iterator[None]:
    """Let signals wait for the next `check` of the block; one that came after the last of them ends nothing."""
    before, _state.deferred = _state.deferred, True
    try:
        yield
    finally:
        _state.deferred = before


def check() -> None:
    """Raise `Stopped` on every process where one of them got a signal; all of them call it at the same place."""
    _agree(working=False)


def stoppable(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items, of which every process may have another number, with a `check` before each."""
    for item in items:
        _agree(working=True)
        yield item
    while _agree(working=False):  # others have items left, and ask before each
        pass


def _agree(*, working: bool) -> bool:
    """Return whether a process is working, or raise `Stopped` where one got a signal."""
    number, anyone = distributed.all_max(next(iter(_state.received), 0), int(working))
    if number:
        raise Stopped(signal.Signals(number).name, agreed=True)
    return bool(anyone)
