"""Where a run starts from and which folder it goes on in."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import config
import inference
import predict
import train
from tests.runs import REPOSITORY, save_random
from tests.test_checkpoint import content
from utils import checkpoint, distributed
from utils.errors import UserError
from utils.runs import Start, check_continuation, find_start, open_folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Folder of an earlier run with two checkpoints."""
    folder = tmp_path / "date" / "exp" / "time"
    for name in ("last.pth", "best_source.pth"):
        checkpoint.save(folder / name, content())
    (folder / "config.yaml").touch()
    return folder


def start(tmp_path: Path, line: str) -> Start:
    return find_start(config.parse(shlex.split(f"--ckpt {tmp_path} --date date {line}"), program="train"))


def test_a_refused_folder_leaves_no_other(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folders in ("--ckpt {0}/runs --tb_path {0}/file/tb", "--ckpt {0}/file/runs --tb_path {0}"):
        cfg = config.parse(shlex.split(folders.format(tmp_path)), program="train")
        with pytest.raises(UserError, match="file/.*cannot be made"):
            open_folder(cfg, Start())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_auto_goes_on_where_there_is_something(run: Path, tmp_path: Path) -> None:
    assert start(tmp_path, "--exp exp --resume auto") == Start(run / "last.pth", run)
    assert start(tmp_path, "--exp other --resume auto") == Start()
    assert start(tmp_path, "--exp exp") == Start()


def test_auto_falls_back_to_the_snapshot_that_is_to_be_restored(run: Path, tmp_path: Path) -> None:
    snapshot = f"--resume auto --restore_optimizer --snapshot {run}/best_source.pth"
    assert start(tmp_path, f"--exp other {snapshot}") == Start(run / "best_source.pth")
    assert start(tmp_path, f"--exp exp {snapshot}") == Start(run / "last.pth", run)
    assert start(tmp_path, "--exp other --resume auto --restore_optimizer") == Start()


def test_a_link_to_nowhere_on_the_way_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "scratch").symlink_to(tmp_path / "unmounted")
    cfg = config.parse(shlex.split(f"--ckpt {tmp_path}/scratch --tb_path {tmp_path}/tb"), program="train")
    with pytest.raises(UserError, match=r"scratch.*the run folder cannot be made \(File exists\)"):
        open_folder(cfg, Start())


def test_only_the_last_checkpoint_of_a_run_is_continued_in_place(run: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "last.pth"
    foreign.touch()
    assert start(tmp_path, f"--resume {run}/last.pth") == Start(run / "last.pth", run)
    assert start(tmp_path, f"--resume {run}/best_source.pth") == Start(run / "best_source.pth")
    assert start(tmp_path, f"--resume {foreign}") == Start(foreign)
    with pytest.raises(UserError, match="there is no such file"):
        start(tmp_path, "--resume none.pth")


@pytest.mark.parametrize(
    ("step", "flags", "steps_per_epoch", "words"),
    [
        (3, "--optimizer adamw", 5, "was trained with --optimizer sgd, whose state adamw cannot use"),
        (3, "", 2, "saved at step 3 of an epoch, but an epoch has only 2 steps now"),
        (3, "--bs_mult 3", 5, "in the middle of an epoch at 4 images per step, now there are 3"),
        (0, "--bs_mult 3", 5, ""),  # between two epochs
        (3, "--accumulate 2 --bs_mult 2", 5, ""),  # was two processes
        (0, "--zero_unreached_taps", 5, "was started with another --zero_unreached_taps, which acts at the start"),
    ],
)
def test_what_a_resume_may_not_change(step: int, flags: str, steps_per_epoch: int, words: str) -> None:
    saved, now = (config.to_dict(config.parse(line.split(), program="train")) for line in ("--bs_mult 2", flags))
    content = {"progress": {"step_in_epoch": step}, "world_size": 2}
    batch = now["OPTIM"]["BATCH_SIZE"] * now["OPTIM"]["ACCUMULATE"]
    with pytest.raises(UserError, match=f"old.pth.*{words}") if words else contextlib.nullcontext():
        check_continuation(
            content, saved, now, path=Path("old.pth"), steps_per_epoch=steps_per_epoch, global_batch=batch
        )


def test_a_resume_says_what_a_step_computes_differently_but_not_where_data_lies(
    caplog: pytest.LogCaptureFixture,
) -> None:
    places = "--frame_cache f --centroid_cache c --num_workers 3 --domains d --pretrained none --opts DATASET.BDD_DIR=b"
    saved, now = (
        config.to_dict(config.parse(line.split(), program="train"))
        for line in ("", f"--lr 0.5 --seed 1 --val_limit 9 --pictures 1 {places}")
    )
    content = {"progress": {"step_in_epoch": 0}, "world_size": 1}
    check_continuation(content, saved, now, path=Path("old.pth"), steps_per_epoch=5, global_batch=2)
    words = [record.getMessage().rpartition("another ")[2] for record in caplog.records]
    assert words == ["RUN.SEED: 304 -> 1", "OPTIM.LR: 0.01 -> 0.5", "EVAL.LIMIT: 0 -> 9"]


@pytest.mark.parametrize("url", ["bogus", "env://"])  # the second needs MASTER_ADDR
def test_processes_that_cannot_meet_are_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    refused = pytest.raises(UserError, match=f"--dist_url {url}: the processes cannot meet")
    with refused, distributed.process_group(torch.device("cpu"), url, save_memory=""):
        pass


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "^the memory of the GPU is used up: use less$"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when"), "^the memory of the GPU is used up: use less$"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you"), "^the memory of this machine is used up"),
        (MemoryError(), "^the memory of this machine is used up: use less$"),
        (ValueError("Expected more than 1 value per channel when training"), "is too small for this network"),
        (UserError("Expected more than 1 value"), "^Expected more than 1 value$"),
        (ValueError("another value"), "another value"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [::1]:85"), "another process"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "lower --num_workers"),
        (RuntimeError("something else"), "something else"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(error: Exception, message: str) -> None:
    kind = type(error) if message in str(error) else UserError
    group = distributed.process_group(torch.device("cpu"), save_memory="use less")
    with pytest.raises(kind, match=message) as caught, group:
        raise error
    assert isinstance(caught.value, UserError) == (kind is UserError or isinstance(error, UserError))


@pytest.mark.parametrize(
    ("program", "advice"),
    [("train", train.SAVE_MEMORY), ("valid", inference.SAVE_MEMORY), ("predict", inference.SAVE_MEMORY)],
)
def test_advice_about_memory_names_flags_of_the_program(program: str, advice: str) -> None:
    words = re.findall(r"--\w+", advice)
    flags = {row.flag for row in config.KEYS.values() if program in row.programs}
    assert words and {*words} <= (flags if program != "predict" else {*predict.FLAGS})


def test_a_frame_that_does_not_fit_the_memory_is_one_sentence(tmp_path: Path) -> None:
    save_random(tmp_path / "w.pth", "--backbone", "mobilenet_v2", "--method", "base")
    Image.new("RGB", (4000, 3000)).save(tmp_path / "large.png")
    code = (
        "import mmap, resource, predict; from utils.errors import run_entry_point\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "resource.setrlimit(resource.RLIMIT_AS, (pages * mmap.PAGESIZE + 2 * 10**9,) * 2)\n"
        "run_entry_point(predict.main)"
    )
    words = [str(tmp_path / "w.pth"), str(tmp_path / "large.png"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == f"error: the memory of this machine is used up: {inference.SAVE_MEMORY}"
    assert "Traceback" not in done.stderr
