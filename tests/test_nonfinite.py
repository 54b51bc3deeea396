"""Steps and weights that are not finite: left out, kept, repeated, refused; never passed on in silence."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import config
import inference
import nonfinite
import train
from scripts import export
from tests.runs import REPOSITORY, build_run, launch, read_weights, run_folder, save_random, train_arguments
from tests.test_train import assert_same
from utils import checkpoint
from utils.errors import UserError
from utils.logs import read_history

SMALL = ("--method", "base", "--backbone", "mobilenet_v2", "--val_dataset", "--no_val_source")


def poison(monkeypatch: pytest.MonkeyPatch, *, steps: Any = (1,)) -> list[dict[str, float]]:
    """Let the loss, and a batch norm's mean, be nan in some steps; return the terms that they would have had."""
    original, terms_of = train.add_gradient, []

    def poisoned(run: Any, *arguments: Any, **named: Any) -> Any:
        terms, total = original(run, *arguments, **named)
        if run.progress.step not in steps:
            return terms, total
        terms_of.append({name: value.item() for name, value in terms.items()})
        next(run.network.buffers()).fill_(math.nan)
        return terms, total * math.nan

    monkeypatch.setattr(train, "add_gradient", poisoned)
    return terms_of


def test_a_skipped_step_changes_nothing_but_the_schedule_and_is_repeated_by_its_file(
    small_camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (*SMALL, "--nan", "skip", "--ema_decay", "0.5", "--clip_grad_norm", "1", "--color_aug", "1")
    original = train.train_step
    with pytest.MonkeyPatch.context() as patch:

        def leaves_out(run: Any, *arguments: Any) -> Any:
            return run.scheduler.step() if run.progress.step == 1 else original(run, *arguments)

        patch.setattr(train, "train_step", leaves_out)
        train.main(train_arguments(small_camvid, tmp_path / "a", *flags))
    with pytest.MonkeyPatch.context() as patch:
        terms_of = poison(patch)
        train.main(train_arguments(small_camvid, tmp_path / "b", *flags))
    expected, folder = read_weights(run_folder(tmp_path / "a") / "last.pth"), run_folder(tmp_path / "b")
    found = read_weights(folder / "last.pth")
    for key in ("network", "average", "optimizer", "scheduler", "progress"):
        assert_same(expected[key], found[key], key)
    history = {line["step"]: line for line in read_history(folder / "history.jsonl")}
    assert "train/skipped_steps" not in history[1] and history[4]["train/skipped_steps"] == 1
    assert "loss/train_loss" not in history[2] and history[3]["loss/train_loss"] > 0

    kept = json.loads((folder / "nonfinite/step_1.json").read_text())
    names = [sample["name"] for batch in kept["batches"] for sample in batch["samples"]]
    log = (folder / "log.txt").read_text()
    assert "step 1 is left out (1 so far): the loss is nan (" in log
    assert f"on the files {', '.join(names)}; kept in {folder}/nonfinite/step_1.json" in log
    capsys.readouterr()
    train.main(["--replay", str(folder / "nonfinite/step_1.json")])
    first, line, last = capsys.readouterr().out.splitlines()
    assert first.endswith("step_1.pth, the weights before it") and last.endswith("not finite: none")
    assert line.endswith(f"on the files {', '.join(names)}")
    (of_step,) = terms_of
    assert {
        name: float(value) for name, value in re.findall(r"(\w+) ([\d.e+-]+)[,)]", line.partition("(")[2])
    } == pytest.approx(of_step, rel=1e-3)

    weights = read_weights(folder / "nonfinite/step_1.pth")
    weights["network"]["backbone.features.3.conv.0.0.weight"] *= 1e38
    torch.save(weights, folder / "nonfinite/step_1.pth")
    train.main(["--replay", str(folder / "nonfinite/step_1.json"), "--num_workers", "0"])
    *_, line, last = capsys.readouterr().out.splitlines()
    assert "the loss is nan" in line
    assert last == "first value that is not finite: the output of backbone.features.3.conv.0.0 (Conv2d)"


def test_a_run_that_stops_keeps_its_step(
    small_camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch)
    with pytest.raises(UserError, match=r"step 1: the loss is nan .* \(--replay (.*)step_1.json repeats the step\)"):
        train.main(train_arguments(small_camvid, tmp_path, *SMALL))
    monkeypatch.undo()
    folder = run_folder(tmp_path) / "nonfinite"
    assert sorted(path.name for path in folder.iterdir()) == ["step_1.json", "step_1.pth"]
    (folder / "step_1.pth").unlink()
    monkeypatch.chdir(folder)
    for name in ("step_1.json", str(folder / "step_1.json")):
        with pytest.raises(UserError, match=r"neither step_1.pth is beside it nor last.pth in the run folder"):
            train.main(["--replay", name])
    (folder / "other.json").write_text("{}")
    with pytest.raises(UserError, match="other.json: not a step that a run has kept"):
        train.main(["--replay", str(folder / "other.json")])


def test_weights_that_give_nothing_finite_end_the_run(
    small_camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, steps=range(1, 99))
    monkeypatch.setattr(nonfinite, "MOST_IN_A_ROW", 2)
    with pytest.raises(UserError, match="step 2: 2 steps in a row are not finite"):
        train.main(train_arguments(small_camvid, tmp_path, *SMALL, "--nan", "skip"))
    names = sorted(path.name for path in (run_folder(tmp_path) / "nonfinite").iterdir())
    assert names == ["step_1.json", "step_1.pth", "step_2.json"]


def test_a_gradient_alone_counts(small_camvid: Path, tmp_path: Path) -> None:
    run = build_run(train_arguments(small_camvid, tmp_path, *SMALL))
    (part,) = train.add_gradients(run, [next(run.loader.epoch(0))])
    assert nonfinite.is_finite(run, [part], shared=True)
    gradient = next(run.network.parameters()).grad
    assert gradient is not None
    gradient.view(-1)[0] = math.inf
    assert not nonfinite.is_finite(run, [part], shared=True) and nonfinite.is_finite(run, [part], shared=False)


POISONED = f"""
import os, sys
sys.path.insert(0, {str(REPOSITORY)!r})
import train

def poisoned(run, *arguments, original=train.add_gradient, **named):
    terms, total = original(run, *arguments, **named)
    return terms, total * float("nan") if run.progress.step == 1 and os.environ["RANK"] == "1" else total

train.add_gradient = poisoned
train.main()
"""


def test_processes_leave_the_same_step_out(full_camvid: Path, tmp_path: Path) -> None:
    program = tmp_path / "poisoned.py"
    program.write_text(POISONED)
    flags = train_arguments(full_camvid, tmp_path / "out", *SMALL, "--nan", "skip", "--bs_mult", "1", "--max_iter", "3")
    launch(str(program), flags, processes=2)
    folder = run_folder(tmp_path / "out")
    assert read_weights(folder / "last.pth")["progress"]["step"] == 3
    batches = json.loads((folder / "nonfinite/step_1.json").read_text())["batches"]
    assert [batch["rank"] for batch in batches] == [0, 1]
    (name,) = (sample["name"] for sample in batches[1]["samples"])
    (line,) = re.findall("step 1 is left out.*", (folder / "log.txt").read_text())
    assert f"on the files {name}; kept in" in line and line.count("the loss is nan") == 1


def test_weights_that_are_not_finite_are_refused_by_every_program(small_camvid: Path, tmp_path: Path) -> None:
    save_random(file := tmp_path / "w.pth", "--backbone", "mobilenet_v2", "--method", "base")
    content = read_weights(file)
    content["network"]["backbone.features.3.conv.0.1.running_var"][0] = math.inf
    torch.save(content, file)
    backbone = {n.removeprefix("backbone."): v for n, v in content["network"].items() if n.startswith("backbone.")}
    torch.save(backbone, tmp_path / "pretrained.pth")
    first = r"features.3.conv.0.1.running_var; take another file"
    with pytest.raises(UserError, match=rf"w.pth: holds values that are nan or infinite, in backbone.{first}"):
        inference.load(file)
    with pytest.raises(UserError, match=first):
        inference.load_network(config.parse(["--snapshot", str(file)], program="valid"), checkpoint.read(file))
    with pytest.raises(UserError, match=first):
        export.load(str(file))
    for flags in (("--snapshot", str(file)), ("--pretrained", str(tmp_path / "pretrained.pth"))):
        with pytest.raises(UserError, match=first):
            build_run(train_arguments(small_camvid, tmp_path, *SMALL, *flags))
