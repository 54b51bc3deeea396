"""The folder of a run: where it is, what it starts with, and what a resume may not change."""

from __future__ import annotations

import datetime
import json
import logging
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from utils import checkpoint, distributed, logs
from utils.errors import UserError, WriteError, one_line
from utils.files import make_folder, tolerated, write_text
from utils.options import flatten
from utils.pictures import Picture, save_png

if TYPE_CHECKING:
    from config import Config

# Keys that decide what a step computes, or the scores by which the best is kept: a resumed run should agree on them.
SEQUENCE = re.compile(
    r"RUN\.SEED$|(DATASET|NETWORK|WHITENING|LOSS|AUGMENT|OPTIM)\.|"
    r"EVAL\.(PROTOCOL|WINDOW|STRIDE|SCALES|FLIP|AVERAGE|LIMIT)$"
)
# Those of them that say where things lie or how fast they go.
PLACES = re.compile(
    r"NETWORK\.PRETRAINED|OPTIM\.COMPILE|DATASET\.(CENTROID_CACHE|FRAME_CACHE|NUM_WORKERS|DOMAINS_FILE|.*_DIR)"
)
logger = logging.getLogger(__name__)


class Start(NamedTuple):
    """What a run starts from: `checkpoint` to resume (None: step 0) and `folder` to write to (None: a new one)."""

    checkpoint: Path | None = None
    folder: Path | None = None


def find_start(cfg: Config) -> Start:
    """Find what --resume or --snapshot with --restore_optimizer name; rank 0 looks, every process gets its answer.

    A file to resume from that is not there raises `UserError`.
    """

    def find() -> Start:
        if cfg.RUN.RESUME == "auto":
            if newest := checkpoint.latest(_root(cfg)):
                return Start(newest, newest.parent)
        elif cfg.RUN.RESUME:
            file = Path(cfg.RUN.RESUME)
            if not file.is_file():
                raise UserError(f"--resume {file}: there is no such file")
            # an older checkpoint, or one outside of a run, is resumed in a new folder, so that nothing is overwritten
            in_run = file.name in (checkpoint.LAST, checkpoint.PREVIOUS) and (file.parent / "config.yaml").is_file()
            return Start(file, file.parent if in_run else None)
        return Start(Path(cfg.RUN.SNAPSHOT)) if cfg.RUN.RESTORE_OPTIMIZER and cfg.RUN.SNAPSHOT else Start()

    return distributed.from_main(find)


def _root(cfg: Config) -> Path:
    return Path(cfg.RUN.CKPT) / cfg.RUN.DATE / cfg.RUN.EXP


def open_folder(cfg: Config, start: Start) -> Path:
    """Return the folder of `start`, or a new `{ckpt}/{date}/{exp}/{time}`, made by rank 0, or raise `UserError`."""

    def make() -> Path:
        make_folder(Path(cfg.RUN.TB_PATH))  # before the run's, so that a refusal leaves no empty one
        try:
            return start.folder or _new_folder(_root(cfg))
        except OSError as error:
            raise UserError(
                f"--ckpt {cfg.RUN.CKPT}: the run folder cannot be made ({error.strerror}); choose another"
            ) from error

    return distributed.from_main(make)


def hold(folder: Path, held: ExitStack) -> None:
    """Keep other runs out of a folder until `held` is left, and remove what a kill in the middle of a save left there.

    It becomes the one that was started last of those beside it.

    The system frees the folder of a process that dies. Where a disk knows no locks, a warning says so.

    Raises:
        UserError: another run writes there.
    """
    from filelock import FileLock, Timeout

    owner = folder / ".owner"
    try:
        held.enter_context(FileLock(folder / ".lock", timeout=0))
        owner.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        last = max(map(checkpoint.start_of, folder.parent.iterdir()))
        (folder / checkpoint.START).write_text(str(last + 1), encoding="ascii")
        for file in folder.glob(".*.tmp"):
            file.unlink(missing_ok=True)
    except Timeout as error:
        name = owner.read_text(encoding="utf-8") if owner.exists() else "it has not said which"
        raise UserError(
            f"{folder}: another run writes there ({name}); wait for its end, or start a new run with another --exp"
        ) from error
    except (OSError, NotImplementedError) as error:
        logger.warning("%s: cannot be locked (%s); start no second run there", folder, one_line(error))


def _new_folder(root: Path, number: int = 1) -> Path:
    stamp = f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}"
    folder = root / (stamp if number == 1 else f"{stamp}_{number}")
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if not folder.is_dir():  # a link to nowhere above it
            raise
        return _new_folder(root, number + 1)
    return folder


@dataclass
class Records:
    """Where a run writes what it does."""

    folder: Path
    versions: dict[str, str]
    writer: logs.MetricWriter
    meter: logs.LossMeter
    evaluated_at: int = -1  # step
    saved_at: int = -1  # step of last.pth
    whole: bool = True  # False where a step or another change of what a checkpoint holds was cut short
    unsaved: dict[str, str] = field(default_factory=dict)  # kind of checkpoint -> why it could not be written
    told_of_slow_data: bool = False
    bar: Any = None  # tqdm's, of the steps
    profiled: Callable[[], object] = lambda: None  # tells the profiler, where there is one, that a step is done
    held: ExitStack = field(default_factory=ExitStack)  # closes all and frees the folder

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Mark what a checkpoint holds as not whole, until the block has ended without an error."""
        self.whole = False
        yield
        self.whole = True

    def show(self, plots: Sequence[Picture], step: int) -> None:
        """Write pictures to the run's folder, in the place of those before, and to TensorBoard."""
        for tag, file, image in plots:
            self.save_picture(image, file)
            self.writer.picture(tag, image, step)

    def save_picture(self, image: Any, file: str) -> None:
        with tolerated("a picture"):
            save_png(image, self.folder / "pictures" / file)

    @contextmanager
    def saving(self, kind: str) -> Iterator[None]:
        """Let a checkpoint fail to be written, which `check_saved` tells at the end unless it was written later."""
        try:
            yield
        except WriteError as error:
            self.unsaved[kind] = str(error)
            logger.error("%s; the run goes on from what it has in memory, and tries again", error)
        else:
            if self.unsaved.pop(kind, ""):
                logger.info("%s.pth can be written again", kind)

    def check_saved(self) -> None:
        """Raise `UserError` on every process where a checkpoint of the run could not be written to the end."""

        def check() -> None:
            if self.unsaved:
                raise UserError(f"trained to the end, but not all is saved: {'; '.join(self.unsaved.values())}")

        distributed.from_main(check)


def open_records(cfg: Config, start: Start, *, step: int, config_yaml: str) -> Records:
    """Open the run's folder with its log and metrics; write the resolved config, the command and package versions.

    A resumed run adds files named by its first step and leaves those of the start as they are.
    """
    folder, held = open_folder(cfg, start), ExitStack()
    distributed.from_main(lambda: hold(folder, held))
    logs.setup_logging(folder / "log.txt")
    logger.info("run folder %s", folder)
    versions = logs.versions()
    if distributed.is_main():
        mark = f".from-step-{step}" if (folder / "config.yaml").exists() else ""
        write_text(folder / f"config{mark}.yaml", config_yaml)
        write_text(folder / f"command{mark}.txt", shlex.join([sys.executable, *sys.argv]) + "\n")
        write_text(folder / f"versions{mark}.json", json.dumps(versions, indent=1) + "\n")
    events = Path(cfg.RUN.TB_PATH) / cfg.RUN.DATE / cfg.RUN.EXP / folder.name / f"tb{cfg.RUN.TB_TAG}"
    writer = logs.MetricWriter(events, folder / "history.jsonl", first_step=step)
    held.callback(writer.close)
    profiled = held.enter_context(logs.profiled(folder, steps=cfg.RUN.PROFILE, first=step))
    return Records(folder, versions, writer, logs.LossMeter(), profiled=profiled, held=held)


def check_processes(cfg: Config) -> None:
    """Raise `UserError` on every process where they run with different flags, code or packages."""
    if distributed.world_size() > 1:
        versions = logs.versions()
        facts = {name: versions[name] for name in ("git", "python", "torch")}
        distributed.check_same({key: str(value) for key, value in flatten(cfg) if key != "RUN.LOCAL_RANK"} | facts)


def check_continuation(
    content: Mapping[str, Any],
    saved: Mapping[str, Any],
    current: Mapping[str, Any],
    *,
    path: Path,
    steps_per_epoch: int,
    global_batch: int,
) -> None:
    """Refuse to continue a checkpoint in a way that cannot work, and log what a step will compute differently.

    Args:
        saved, current: the config of the checkpoint and that of now.
        steps_per_epoch, global_batch: optimizer steps of an epoch and images of a step, now.
    """
    optim, name, step = saved["OPTIM"], current["OPTIM"]["NAME"], content["progress"]["step_in_epoch"]
    before = optim["BATCH_SIZE"] * optim["ACCUMULATE"] * content["world_size"]
    zeroed = [tree["NETWORK"]["ZERO_UNREACHED_TAPS"] for tree in (saved, current)]
    refusals = {
        f"was trained with --optimizer {optim['NAME']}, whose state {name} cannot use: resume with it, or start a new "
        "run from the weights (--snapshot without --restore_optimizer)": optim["NAME"] != name,
        f"was saved at step {step} of an epoch, but an epoch has only {steps_per_epoch} steps now; continue with the "
        "same images and batch": step > steps_per_epoch,
        f"was saved in the middle of an epoch at {before} images per step, now there are {global_batch}; continue with "
        "the same --bs_mult x --accumulate x processes": step and before != global_batch,
        "was started with another --zero_unreached_taps, which acts at the start alone: resume with the same, or start "
        "a new run from the weights (--snapshot without --restore_optimizer)": zeroed[0] != zeroed[1],
    }
    for sentence, refused in refusals.items():
        if refused:
            raise UserError(f"{path} {sentence}")
    old, new = dict(flatten(saved)), dict(flatten(current))
    for key in sorted(new, key=lambda key: key != "RUN.SEED"):
        if old[key] != new[key] and SEQUENCE.match(key) and not PLACES.fullmatch(key):
            logger.warning("continuing with another %s: %s -> %s", key, old[key], new[key])


def check_lists(
    saved: Mapping[str, Mapping[str, Any]], current: Mapping[str, Mapping[str, Any]], *, path: Path, accepted: bool
) -> None:
    """Refuse to continue a checkpoint on other images under the same names, or log it where that is `accepted`.

    Args:
        saved, current: number of images and hash of their list by domain and split, when it was saved and now. Older
            checkpoints hold none; splits that only one side has are named by other settings, which are logged.
    """
    for name in (name for name in current if saved.get(name, current[name]) != current[name]):
        old, new = ("{images} images (list {list})".format(**lists[name]) for lists in (saved, current))
        sentence = f"{path} was trained on {name} with {old}, now there are {new}"
        if not accepted:
            raise UserError(f"{sentence}: restore the files, or add --other_data to resume with those of now")
        logger.warning(sentence)
