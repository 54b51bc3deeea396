"""--find_batch and --profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import batch_search
import train
from tests.runs import launch, run_folder, train_arguments
from utils.logs import profiled

SMALL = ("--backbone", "resnet18", "--output_stride", "32", "--method", "isw", "--crop_size", "64", "--bs_mult", "2")


@pytest.mark.parametrize(("room", "found", "divisor"), [(1, 1, 1), (5, 5, 4), (7, 7, 4), (8, 8, 8), (21, 21, 16)])
def test_the_largest_batch_is_found(
    room: int, found: int, divisor: int,
    small_camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tried = list[int]()

    def fits(_self: Any, _run: Any, _batch: Any, size: int, _gradients: Any) -> bool:
        tried.append(size)
        return size <= room

    monkeypatch.setattr(batch_search._OnCpu, "__call__", fits)
    train.main(train_arguments(small_camvid, tmp_path, *SMALL, "--find_batch"))
    said = capsys.readouterr().out
    assert f"--bs_mult {found}; the recipe of isw has 16 images per step: --bs_mult {divisor} " in said
    assert f"--accumulate {16 // divisor} " in said and len(set(tried)) == len(tried)
    assert not (tmp_path / "d").exists(), "no run folder"


def test_steps_are_done_while_their_growth_leaves_room(
    small_camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = list[int]()

    def gradients(_run: Any, batches: Any) -> Any:
        sizes.extend(len(batch.images) for batch in batches)
        return train.add_gradients(_run, batches)

    from tests.runs import build_run

    parts = build_run(train_arguments(small_camvid, tmp_path, *SMALL))
    batch_search._with_every_loss(parts)
    batch, fits = next(iter(parts.loader.epoch(0))), batch_search._OnCpu(limit=1e12)
    assert fits(parts, batch, 1, gradients) and fits(parts, batch, 3, gradients) and sizes == [1, 1, 3, 3]
    fits.peaks = {1: 100, 2: 200}
    fits.limit = 399
    assert not fits(parts, batch, 4, gradients) and len(sizes) == 4, "400 would not fit: not tried"
    fits.limit = 1e12
    assert fits(parts, batch, 16, gradients) and sizes[4:] == [16], "the recipe's images: nothing is accumulated"
    parts.cfg.OPTIM.COMPILE = True
    monkeypatch.setattr(torch.compiler, "reset", lambda: sizes.append(0))
    assert fits(parts, batch, 1, gradients) and sizes[5:] == [0, 1, 1], "each size is compiled anew"


@pytest.mark.parametrize("text", ["CUDA out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED", "shapes differ"])
def test_a_step_that_lacks_memory_on_a_gpu_does_not_fit(
    text: str, small_camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gradients(*_: Any) -> Any:
        raise RuntimeError(text)

    from tests.runs import build_run

    parts = build_run(train_arguments(small_camvid, tmp_path, *SMALL))
    batch = next(iter(parts.loader.epoch(0)))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    if text == "shapes differ":
        with pytest.raises(RuntimeError, match=text):
            batch_search._on_gpu(parts, batch, 1, gradients)
    else:
        assert not batch_search._on_gpu(parts, batch, 1, gradients)


def test_a_system_says_how_much_memory_there_is(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  9 kB\nMemAvailable:   1000 kB\n")
    assert 0.9 * 1000 * 1024 < batch_search._memory(tmp_path / "meminfo") < 1e11


def test_one_process_alone(small_camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.distributed.world_size", lambda: 2)
    with pytest.raises(batch_search.UserError, match="--find_batch: .* without a launcher"):
        batch_search.find_batch(None, device=None, gradients=None)  # type: ignore[arg-type]


def test_a_profile_of_some_steps(small_camvid: Path, tmp_path: Path) -> None:
    flags = ("--max_iter", "6", "--profile", "2", "--val_limit", "1", "--no_val_source")
    launch("train.py", train_arguments(small_camvid, tmp_path, *SMALL, *flags))
    folder = run_folder(tmp_path)
    events = json.loads((folder / "profile_from_step_3.trace.json").read_text())["traceEvents"]
    steps = {event["name"] for event in events if str(event.get("name")).startswith("ProfilerStep#")}
    assert steps == {"ProfilerStep#3", "ProfilerStep#4"}
    assert "aten::convolution_backward" in (folder / "profile_from_step_3.txt").read_text()
    assert (folder / "last.pth").exists(), "the run goes on"


def test_a_run_that_ends_before_has_no_profile(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with profiled(tmp_path, steps=2, first=0) as step_done:
        for _ in range(4):
            step_done()
    assert not list(tmp_path.iterdir())
    assert "--profile 2: no profile, it needs 5 steps and this run did 4" in caplog.text
