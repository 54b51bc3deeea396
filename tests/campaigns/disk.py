"""`python -m tests.campaigns.disk`: every file operation of a training fails once, each in a run of its own.

A run is done once undisturbed and its operations below the run's folders are counted: files opened for writing, which
also stand for writes that find the disk full midway, renames, new folders. Then for each of them a run in which that
one fails: it must end with a result or one sentence, and after --resume auto have the weights, masks and scores of the
undisturbed run. Exit code 1: it did not.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import logging
import os
import resource
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

import train
from tests.campaigns.kill import results
from tests.conftest import make_camvid
from tests.runs import differences, train_arguments
from utils.errors import UserError

OPERATIONS = {"open": "opened", "os.rename": "renamed", "os.mkdir": "made"}


class Disk:
    """Counts the operations below a folder and lets one of them fail."""

    def __init__(self) -> None:
        self.folder, self.count, self.failing, self.full, self.name = "", 0, -1, False, ""
        self._limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a file that grows too large becomes an error
        sys.addaudithook(self._see)

    def watch(self, folder: Path | None, *, failing: int = -1, full: bool = False) -> None:
        """Count from now on below this folder; of the operations number `failing` fails, or its writes do if `full`."""
        self.folder, self.count, self.failing, self.full = str(folder or ""), 0, failing, full
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limit)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.folder or event not in OPERATIONS or not str(arguments[0]).startswith(self.folder):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limit)
        self.count += 1
        if self.count - 1 == self.failing:
            self.name = f"{event} {Path(os.fsdecode(arguments[0])).relative_to(self.folder)}"
            if not (self.full and event == "open"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(arguments[0]))
            resource.setrlimit(resource.RLIMIT_FSIZE, (10, self._limit[1]))


def run(camvid: Path, out: Path) -> str:
    """Train or resume in this process; return the sentence that it ended with, empty for a whole run."""
    words = train_arguments(camvid, out, "--method", "isw", "--cov_stat_epoch", "0")
    words += ["--wt_layer", "0", "0", "2", "2", "0", "0", "0", "--max_iter", "3", "--save_interval", "1"]
    words += ["--val_interval", "1", "--resume", "auto", "--frame_cache", str(out / "frames"), "--max_epoch", "1"]
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a file there would be full too
            train.main(words)
    except UserError as error:
        return str(error)
    except SystemExit as end:
        return f"exit code {end.code}"
    finally:
        logging.getLogger().handlers.clear()
    return ""


def campaign(folder: Path, *, every: int) -> tuple[Counter[str], list[str]]:
    """Let every so manieth operation fail; return how runs ended, and what was wrong, one line each."""
    camvid, disk, ends, faults = make_camvid(folder / "camvid", train=3, val=1), Disk(), Counter[str](), list[str]()
    (folder / "whole").mkdir()
    disk.watch(folder / "whole")
    assert run(camvid, folder / "whole") == ""
    total, expected = disk.count, results(folder / "whole")
    for number in tqdm(range(0, total, every), desc="disk", unit="run"):
        for full in (False, True):
            out = folder / f"trial{number}{full}"
            out.mkdir()
            disk.watch(out, failing=number, full=full)
            try:
                sentence = run(camvid, out)
            except Exception as error:  # the fault that the campaign is for
                sentence = f"{type(error).__name__}: {error}"
                faults.append(f"{disk.name}: {sentence}")
            disk.watch(None)
            ends["ended with a sentence" if sentence else "went on"] += 1
            again = run(camvid, out)
            if again:
                faults.append(f"{disk.name}: resumed: {again}")
            else:
                wrong = [name for name in differences(results(out), expected) if not name.startswith("/history")]
                faults += [f"{disk.name} ({sentence}): {', '.join(wrong[:5])}"] if wrong else []
    return ends, faults


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="try every so manieth operation")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        ends, faults = campaign(Path(folder), every=args.every)
    print(", ".join(f"{count} {end}" for end, count in ends.items()), f"{len(faults)} faults", sep="; ")
    print("\n".join(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
