"""The text log, the scalars for TensorBoard, running means that stay on the device, and what a run was made with."""

from __future__ import annotations

import json
import logging
import math
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from importlib import metadata
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from utils import REPOSITORY, distributed
from utils.errors import Stopped, UserError, explain, first_few, one_line
from utils.files import read_whole, tolerated, write, write_text

log = logging.getLogger(__name__)

WARM_UP = 3  # steps before those that are profiled
TIME = "%Y-%m-%d %H:%M:%S"
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pillow", "opencv-python-headless", "scikit-image", "kmeans1d")


class _BarHandler(logging.Handler):
    """Writes above a running tqdm bar instead of through it.

    `tqdm.contrib.logging` does so for a `with` block alone, at whose end it would undo what `setup_logging` did inside.
    """

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class _FileHandler(logging.FileHandler):
    """Says once that its file cannot be written; what it did not write stays in its buffer for the next try."""

    failing = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 logging's name
        if not self.failing:
            reason = sys.exc_info()[1]
            tqdm.write(f"warning: {self.baseFilename} cannot be written ({reason}); the run goes on", file=sys.stderr)
        self.failing = True


def setup_logging(file: Path | None = None) -> None:
    """Send the log to stderr and, where given, append it to a file; processes other than rank 0 only report errors.

    A second call replaces the handlers of the first; the file then also gets what was said before there was one.
    """
    root = logging.getLogger()
    held = [handler for handler in root.handlers if isinstance(handler, MemoryHandler)]
    for handler in list(root.handlers):
        if isinstance(handler, (_BarHandler, logging.FileHandler, MemoryHandler)):
            root.removeHandler(handler)
            if isinstance(handler, logging.FileHandler):
                with suppress(OSError):  # what is left in the buffer of a full disk
                    handler.close()
    form = logging.Formatter("%(asctime)s %(levelname).1s %(message)s", TIME)
    to_file: logging.Handler = MemoryHandler(10_000, flushLevel=logging.CRITICAL + 1)
    if file is not None and distributed.is_main():
        with tolerated(str(file)):
            to_file = _FileHandler(file, encoding="utf-8", errors="backslashreplace")
    for handler in (_BarHandler(), to_file):
        handler.setFormatter(form)
        root.addHandler(handler)
    for memory in held:
        memory.setTarget(to_file)
        memory.close()
    root.setLevel(logging.INFO if distributed.is_main() else logging.ERROR)
    logging.captureWarnings(True)


@contextmanager
def last_words(folder: Path, *, save_memory: str, step: Callable[[], int]) -> Iterator[None]:
    """Append the last sentence of what ends the block to a run's log, from any process; stderr gets it elsewhere.

    Of several processes it says which one, at which step; so does the `UserError` for what torch raises where one of
    them does not answer.
    """
    try:
        yield
    except Stopped as stop:
        if not stop.agreed or distributed.is_main():
            log.info("%s", stop)
        raise
    except (Exception, KeyboardInterrupt) as error:
        known, name = explain(error, save_memory=save_memory), type(error).__name__
        sentence = one_line(known)
        if not isinstance(known, UserError) and not sentence.startswith(name):
            sentence = f"{name}: {sentence}"
        if distributed.world_size() > 1:
            sentence = f"process {distributed.rank()} at step {step()}: {sentence}"
        with suppress(OSError), (folder / "log.txt").open("a", encoding="utf-8") as file:  # full, or the folder is gone
            file.write(f"{time.strftime(TIME)} E {sentence}\n")
        if known is not error:
            raise UserError(sentence) from error
        raise


@contextmanager
def profiled(folder: Path, *, steps: int, first: int) -> Iterator[Callable[[], object]]:
    """Record steps of rank 0 with torch.profiler; yield what is to be called after every step of the run.

    After `WARM_UP` steps the next `steps` are recorded, then `profile_from_step_N.trace.json` (for chrome://tracing or
    Perfetto) and the table `profile_from_step_N.txt` are written, N = `first` + `WARM_UP`, and the run goes on.
    """
    if not steps or not distributed.is_main():
        yield lambda: None
        return
    from torch.profiler import profile, schedule

    name = folder / f"profile_from_step_{first + WARM_UP}"

    def keep(profiler: profile) -> None:
        if profiler.step_num < WARM_UP + steps:  # the run ends: what follows its steps would be in it
            return
        averages = profiler.key_averages()
        device = "device" if torch.cuda.is_available() else "cpu"
        with tolerated("the profile"):
            write(Path(f"{name}.trace.json"), lambda path: profiler.export_chrome_trace(str(path)))
            write_text(Path(f"{name}.txt"), averages.table(sort_by=f"self_{device}_time_total", row_limit=60))
        log.info("profile of %d steps: %s.txt and .trace.json", steps, name)

    plan = schedule(wait=WARM_UP - 1, warmup=1, active=steps, repeat=1)
    with profile(schedule=plan, on_trace_ready=keep) as profiler:
        yield profiler.step
    if profiler.step_num < WARM_UP + steps:
        message = "--profile %d: no profile, it needs %d steps and this run did %d; raise --max_iter"
        log.warning(message, steps, WARM_UP + steps, profiler.step_num)


def write_line(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def versions() -> dict[str, str]:
    """Return the versions of python and packages, platform, GPU and the code's git commit.

    The commit has `+changes` where files differ from it, and is `unknown` outside a checkout.
    """
    table = {"python": platform.python_version(), "platform": platform.platform(), "git": "unknown"}
    with suppress(OSError, subprocess.CalledProcessError):
        describe = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]  # no tag
        run = subprocess.run(describe, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        table["git"] = run.stdout.strip()
    for package in PACKAGES:
        table[package] = "not installed"
        with suppress(metadata.PackageNotFoundError):
            table[package] = metadata.version(package)
    if torch.cuda.is_available():
        table["gpu"] = torch.cuda.get_device_name()
    return table


def describe_loss(terms: dict[str, Tensor], total: Tensor, names: Sequence[str]) -> str:
    values = ", ".join(f"{name} {value.item():.4g}" for name, value in terms.items())
    return f"the loss is {total.item():.6g} ({values}) on the files {', '.join(names)}"


class LossMeter:
    """Loss terms since the last read or check; nothing here waits for the device until then.

    `keep` writes what repeats a step and returns the file; `skipped` steps were left out (--nan skip).
    """

    keep: Callable[[int], Path] | None = None
    skipped = skipped_in_a_row = 0

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: Counter[str] = Counter()
        self._unchecked: list[tuple[int, dict[str, Tensor], Tensor, list[str]]] = []

    def add(self, step: int, terms: dict[str, Tensor], total: Tensor, names: list[str]) -> None:
        """Add the terms of one micro-batch (scalars), their weighted sum and the names of its files."""
        terms, total = {name: value.detach() for name, value in terms.items()}, total.detach()
        self._unchecked.append((step, terms, total, names))
        for name, value in {"train_loss": total, **terms}.items():
            self._sums[name] = self._sums.get(name, 0) + value.double()
            self._counts[name] += 1

    def check_finite(self) -> None:
        """Stop the run at the first loss since the last check that is nan or infinite; waits for the device.

        Every process calls it at the same steps. The one that met the loss first raises `UserError`, the others leave.
        """
        if not self._unchecked:
            return
        totals = torch.stack([total for _, _, total, _ in self._unchecked])
        finite, processes = totals.isfinite().tolist(), distributed.world_size()
        first = [*finite, False].index(False)
        code = distributed.all_reduce_min(first * processes + distributed.rank(), totals.device)
        first, owner = divmod(code, processes)
        if first < len(finite):
            if owner != distributed.rank():
                raise SystemExit(2)
            step, terms, total, names = self._unchecked[first]
            again = f" (--replay {self.keep(step)} repeats the step)" if self.keep else ""
            raise UserError(
                f"step {step}: {describe_loss(terms, total, names)}; nothing was "
                f"saved since the last checkpoint: look at these files{again}, or lower --lr and resume with "
                "--resume auto"
            )
        self._unchecked.clear()

    def is_finite(self) -> bool:
        """Return whether all losses of this process since the last check are finite; asks no other process."""
        return all(bool(total.isfinite()) for _, _, total, _ in self._unchecked)

    def read(self) -> dict[str, float]:
        """Return the means over all processes and start over; waits for the device."""
        if not self._sums:
            return {}
        names = list(self._sums)  # the same on every process: terms depend on the method and the epoch alone
        means = torch.stack([self._sums[name] / self._counts[name] for name in names])
        values = (distributed.all_reduce_sum(means) / distributed.world_size()).tolist()
        self._sums.clear()
        self._counts.clear()
        return dict(zip(names, values, strict=True))


@cache
def _summary_writer() -> Any:
    """Return tensorboardX's `SummaryWriter` with a thread that waits for two minutes at most, whatever the clock says.

    Where that was set back, its own waits as long, and ends where that is above 24 days; its queue then fills, and the
    run would wait for room in it for ever.
    """
    from tensorboardX import SummaryWriter, event_file_writer

    class EventThread(event_file_writer._EventLoggerThread):  # type: ignore[misc]
        def run(self) -> None:
            get = self._queue.get
            self._queue.get = lambda block, timeout=0: get(block, min(timeout, 120))
            super().run()

    event_file_writer._EventLoggerThread = EventThread
    return SummaryWriter


class MetricWriter:
    """Scalars and pictures of a run, written by rank 0 alone: for TensorBoard, and the numbers as `history.jsonl`."""

    def __init__(self, event_folder: Path, history: Path, *, first_step: int) -> None:
        """Open both files; what an earlier try wrote after step `first_step` is hidden or dropped."""
        self._history, self._first_step = history, first_step
        place: dict[str, Any] = {"logdir": str(event_folder), "purge_step": first_step + 1}
        self._writer: Any = _summary_writer()(**place, write_to_disk=False)
        self._waiting = ""  # lines that could not be written yet
        if distributed.is_main():  # its thread would end with a full disk, and then every call wait for it
            safely = partial(tolerated, "the events for TensorBoard", buffered=True)
            with safely():
                self._writer = _summary_writer()(**place)
                events = self._writer.file_writer.event_writer._ev_writer
                for name in ("write_event", "flush", "close"):
                    setattr(events, name, safely()(getattr(events, name)))
        self.close = self._writer.close  # flushes too
        if distributed.is_main():
            kept = [line for line in read_history(history) if line["step"] <= first_step]
            # An evaluation after the last checkpoint is done again, and gives the same numbers.
            self._there = [{*line} for line in kept if line["step"] == first_step]
            write_text(history, "".join(json.dumps(line) + "\n" for line in kept))

    def scalars(self, values: dict[str, float], step: int) -> None:
        """Write numbers by tag, as they are after `step` steps; JSON has no nan and no infinity: they are left out."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)
        line = {"step": step, **{tag: value for tag, value in values.items() if math.isfinite(value)}}
        if distributed.is_main() and not (step == self._first_step and {*line} in self._there):
            self._waiting += json.dumps(line) + "\n"
            with tolerated(str(self._history)):
                with self._history.open("a", encoding="utf-8") as file:
                    file.write(self._waiting)
                self._waiting = ""
            if self._waiting[:1] not in ("", "\n"):
                self._waiting = f"\n{self._waiting}"  # behind what was written of a line

    def picture(self, tag: str, image: Any, step: int) -> None:
        self._writer.add_image(tag, image, step, dataformats="HWC")


def read_history(path: Path) -> list[dict[str, float]]:
    """Return the lines of a run's history.jsonl; a last line that a kill cut short is left out.

    So are others that are no numbers by tag, which a crash of the machine leaves behind; a warning names them.
    """
    if not path.exists():
        return []
    kept, damaged = list[dict[str, float]](), list[str]()
    for number, line in enumerate(read_whole(path).split(b"\n")[:-1], start=1):
        try:
            content = json.loads(line)
        except ValueError:  # also of bytes that are no text
            content = None
        if isinstance(content, dict) and isinstance(content.get("step"), int):
            kept.append(content)
        elif line:
            damaged.append(str(number))
    if damaged:
        log.warning("%s: line %s damaged and left out", path, first_few(damaged))
    return kept
