"""What a user can cause: errors that an entry point shows as one line."""

from __future__ import annotations

import difflib
import io
import re
import sys
from collections.abc import Callable, Iterable, Sequence


class UserError(ValueError):
    """Something that the user can fix: the message names the value, the rule and how to fix it."""


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


def run_entry_point(main: Callable[[], None]) -> None:
    """Run a program's main; a `UserError` becomes one line on stderr and exit code 2, ctrl-C becomes exit code 130.

    File names may be any bytes: those that are no UTF-8 are read as Python holds them in names, and printed as escapes.
    """
    streams = {sys.stdin: "surrogateescape", sys.stdout: "backslashreplace", sys.stderr: "backslashreplace"}
    for stream, errors in streams.items():
        if isinstance(stream, io.TextIOWrapper):  # not where something has put a stream of its own in its place
            stream.reconfigure(errors=errors)
    try:
        main()
    except UserError as error:
        sys.stderr.write(f"error: {one_line(error)}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
