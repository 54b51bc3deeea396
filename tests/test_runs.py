"""Where a run starts from and which folder it goes on in."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path

import pytest
import torch

import config
from utils import distributed
from utils.errors import UserError
from utils.runs import Start, check_continuation, find_start, open_folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Folder of an earlier run with two checkpoints."""
    folder = tmp_path / "date" / "exp" / "time"
    folder.mkdir(parents=True)
    for name in ("last.pth", "best_source.pth", "config.yaml"):
        (folder / name).touch()
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
        config.to_dict(config.parse(line.split(), program="train")) for line in ("", f"--lr 0.5 --seed 1 {places}")
    )
    content = {"progress": {"step_in_epoch": 0}, "world_size": 1}
    check_continuation(content, saved, now, path=Path("old.pth"), steps_per_epoch=5, global_batch=2)
    words = [record.getMessage().rpartition("another ")[2] for record in caplog.records]
    assert words == ["RUN.SEED: 304 -> 1", "OPTIM.LR: 0.01 -> 0.5"]


@pytest.mark.parametrize("url", ["bogus", "env://"])  # the second needs MASTER_ADDR
def test_processes_that_cannot_meet_are_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    refused = pytest.raises(UserError, match=f"--dist_url {url}: the processes cannot meet")
    with refused, distributed.process_group(torch.device("cpu"), url):
        pass


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "lower --bs_mult"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [::1]:85"), "another process"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "lower --num_workers"),
        (RuntimeError("something else"), "something else"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(error: RuntimeError, message: str) -> None:
    kind = RuntimeError if message in str(error) else UserError
    with pytest.raises(kind, match=message), distributed.process_group(torch.device("cpu")):
        raise error
