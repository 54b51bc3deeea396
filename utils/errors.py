"""What a user can cause: errors that an entry point shows as one line."""

from __future__ import annotations

import difflib
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, TextIO, cast

TRY_AGAIN = 75  # exit code of a run that a signal ended (EX_TEMPFAIL): started again it goes on
NO_SHARED_MEMORY = (
    "the memory that loader processes share (/dev/shm) is full, or there is none: give more of it (docker --shm-size "
    "8g; Kubernetes: a volume emptyDir of medium Memory at /dev/shm), or --num_workers 0"
)
REASONS = {  # what torch says -> what it means for the user
    "gloo.*(by peer|reset)|Broken pipe|failed to recv": "another process of this run has ended; it says why",
    "(?s)gloo.*Timed out|Application timeout|Watchdog caught collective operation timeout": "another process of this "
    "run has not answered within --dist_timeout; its own log says where it is, or it hangs",
    "Bus error|shared memory(?!, Required)": NO_SHARED_MEMORY,
    "^DataLoader worker": "a loader process was killed, most likely for want of memory: lower --num_workers (0 for "
    "none); a training resumes with --resume auto",
    "Expected more than 1 (value|spatial)": "an image, or a crop of --crop_size, is too small for this network: its "
    "strides leave one pixel to a norm, which needs two; give larger ones",
}
_NO_MEMORY = "out of memory|can't allocate memory|ALLOC_FAILED|bad_alloc"


class UserError(ValueError):
    """Something that the user can fix: the message names the value, the rule and how to fix it."""


class ImageError(UserError):
    """One image is at fault; a program that has others goes on with them."""


class WriteError(UserError):
    """A file cannot be written; what was there stays."""


class Stopped(BaseException):  # like KeyboardInterrupt not to be caught with errors
    """A signal ended the program; `agreed`: all of its processes, at the same place."""

    def __init__(self, signal: str, *, agreed: bool = False) -> None:
        super().__init__(f"stopped by {signal}; start again to go on (exit code {TRY_AGAIN})")
        self.agreed = agreed


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the candidate closest to a misspelt name, or an empty string."""
    match = difflib.get_close_matches(name, list(candidates), n=1)
    return f"; did you mean {match[0]!r}?" if match else ""


def first_few(names: Sequence[str], *, count: int = 3) -> str:
    """Return the first names and how many more there are, so that a message stays a sentence."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def one_line(error: BaseException) -> str:
    """Return the sentence of an error, also where a loader's worker wrapped it in its own traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return re.sub(r"^(\w+\.)*UserError: ", "", lines[-1])


def reason(error: BaseException) -> str:
    """Return what an error says in at most 300 letters: an OSError without its file, others their first line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0][:300]


def lacks_memory(error: BaseException) -> bool:
    """Return whether memory is used up; CUDA's libraries say so with a plain RuntimeError."""
    return isinstance(error, MemoryError) or re.search(_NO_MEMORY, str(error)) is not None


def explain(error: BaseException, *, save_memory: str) -> BaseException:
    """Return the `UserError` for `REASONS` and for a lack of memory, with what helps, and any other error as it is."""
    if isinstance(error, UserError) or not isinstance(error, (RuntimeError, ValueError, MemoryError)):
        return error
    if lacks_memory(error):
        owner = "the GPU" if re.search("CUDA|CUBLAS|CUDNN|HIP", str(error)) else "this machine"
        return UserError(f"the memory of {owner} is used up: {save_memory}")
    reasons = (sentence for pattern, sentence in REASONS.items() if re.search(pattern, str(error)))
    return next(map(UserError, reasons), error)


def port_taken(error: Exception) -> str:
    """Return a sentence on the port that processes were to meet at, where an error says that it is taken, else ""."""
    if not re.search("EADDRINUSE|already in use", str(error)):
        return ""
    port = re.search(r"(?:port: |]:)(\d+)", str(error))
    return (
        f"port {port[1] if port else os.environ.get('MASTER_PORT', '')} of this machine is taken, most likely by "
        "another run: choose another one with PET_MASTER_PORT (torchrun's --master_port; without torchrun MASTER_PORT)"
    )


class Steady:
    """A stream that ends no program: its terminal may be closed, its reader gone, its disk full."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self.stream.flush()


def run_entry_point(main: Callable[[], object]) -> None:
    """Run a program's main; a `UserError` becomes one line on stderr and exit code 2, a signal one and `TRY_AGAIN`.

    So does what the system says of a file, where no program has caught it. Ctrl-C, where it ends the program at once,
    becomes exit code 130.

    File names may be any bytes: those that are no UTF-8 are read as Python holds them in names, and printed as escapes.
    """
    streams = {sys.stdin: "surrogateescape", sys.stdout: "backslashreplace", sys.stderr: "backslashreplace"}
    for stream, errors in streams.items():
        if isinstance(stream, io.TextIOWrapper):  # not where something has put a stream of its own in its place
            stream.reconfigure(errors=errors)
    if not isinstance(sys.stderr, Steady):
        sys.stderr = cast(TextIO, Steady(sys.stderr))
    try:
        main()
    except UserError as error:
        sys.stderr.write(f"error: {one_line(error)}\n")
        sys.exit(2)
    except OSError as error:
        if "No usable temporary directory" in str(error):  # which importing torchvision asks for
            sentence = "no folder for temporary files can be written to; set TMPDIR to one that can"
        elif error.filename is None:
            raise
        else:  # for instance a name too long, or a folder that only its owner may read
            sentence = f"{os.fsdecode(error.filename)}: {error.strerror}; give a path that can be read or written"
        sys.stderr.write(f"error: {sentence}\n")
        sys.exit(2)
    except Stopped as stop:
        sys.stderr.write(f"{stop}\n")
        sys.exit(TRY_AGAIN)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
