"""Whole runs: they learn, resume bit for bit, stop at nan, and leave what they should."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, Mock

import pytest
import torch
import yaml
from torch import Tensor

import config
import train
import valid
from run import Run, log_start, restore, update_masks
from tests.runs import build_run, differences, launch, read_weights, run_folder, train_arguments
from tests.test_loaders import join
from utils.errors import UserError
from utils.logs import LossMeter, MetricWriter, read_history
from utils.runs import Records, Start

REAL_SCALER = torch.amp.GradScaler


@pytest.fixture(scope="module")
def straight(small_camvid: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of four uninterrupted DIIA steps in two epochs: masks after the first, whitening in the second."""
    out = tmp_path_factory.mktemp("straight")
    train.main(resumable(small_camvid, out))
    return run_folder(out)


def resumable(camvid: Path, out: Path, *more: str) -> list[str]:
    steps = ("--accumulate", "2", "--cov_stat_epoch", "0", "--save_interval", "1", "--class_uniform_pct", "0.5")
    return train_arguments(camvid, out, *steps, "--class_uniform_tile", "64", "--val_interval", "1", *more)


def assert_same(first: Any, second: Any, where: str = "") -> None:
    """Compare two trees of tensors and values bit for bit."""
    assert not differences(second, first, where)


class Killed(BaseException):
    """Stands for a signal that ends the process between two instructions."""


@pytest.mark.parametrize("where", ["train_step 2", "save 2", "update_masks 1", "evaluate 2"])
def test_killed_anywhere_and_resumed_gives_the_same_weights(
    where: str, straight: Path, small_camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, call = where.split()
    original = getattr(train, name)
    calls = 0

    def dies(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == int(call):
            raise Killed
        return original(*arguments, **named)

    monkeypatch.setattr(train, name, dies)
    with pytest.raises(Killed):
        train.main(resumable(small_camvid, tmp_path))
    monkeypatch.undo()
    train.main(resumable(small_camvid, tmp_path, "--resume", "auto"))
    finished = max((tmp_path / "d" / "e").iterdir(), key=lambda folder: (folder / "last.pth").exists())
    expected, found = read_weights(straight / "last.pth"), read_weights(finished / "last.pth")
    for key in ("network", "criterion", "optimizer", "scheduler", "progress", "best"):
        assert_same(expected[key], found[key], key)


def test_a_run_leaves_what_it_was_made_with(straight: Path) -> None:
    names = {path.name for path in straight.iterdir()}
    assert {
        "config.yaml",
        "command.txt",
        "versions.json",
        "log.txt",
        "history.jsonl",
        "last.pth",
        "best_source.pth",
    } <= names
    assert {"best_camvid.pth", "scores", "pictures", "tb"} <= names
    saved = yaml.safe_load((straight / "config.yaml").read_text())
    assert saved["OPTIM"]["ACCUMULATE"] == 2
    assert {"torch", "git", "python"} <= json.loads((straight / "versions.json").read_text()).keys()
    log = (straight / "log.txt").read_text()
    assert f"run folder {straight}" in log
    for word in ("built", "DIIA", "ISW", "4 per step, 2 steps per epoch", "whitening masks keep"):
        assert word.lower() in log.lower(), word


def test_every_loss_term_is_logged_by_name(straight: Path) -> None:
    lines = [json.loads(line) for line in (straight / "history.jsonl").read_text().splitlines()]
    training = [line for line in lines if "loss/train_loss" in line]
    assert [line["step"] for line in training] == [1, 2, 3, 4]
    terms = {"coarse", "aux", "fused", "layout", "edge_logits", "edge"}
    assert {f"loss/{term}" for term in terms} <= training[0].keys()
    assert "loss/whitening" not in training[1]
    assert training[2]["loss/whitening"] > 0
    assert [line["step"] for line in lines if "camvid/mean_iu" in line] == [2, 4]


def test_restoring_a_snapshot_continues_in_a_new_folder(straight: Path, small_camvid: Path, tmp_path: Path) -> None:
    snapshot = ("--snapshot", str(straight / "last.pth"))
    before = {path.name: path.stat().st_mtime_ns for path in straight.iterdir()}
    train.main(resumable(small_camvid, tmp_path, *snapshot, "--restore_optimizer", "--max_iter", "5"))
    content = read_weights(run_folder(tmp_path) / "last.pth")
    assert content["progress"] == {"epoch": 2, "step_in_epoch": 1, "step": 5}
    assert before == {path.name: path.stat().st_mtime_ns for path in straight.iterdir()}
    assert "OPTIM.MAX_ITER: 4 -> 5" in (run_folder(tmp_path) / "log.txt").read_text()
    assert (run_folder(tmp_path) / "best_source.pth").exists(), "of the new run, however good the first one was"


def test_accumulated_batches_give_the_gradients_of_one(full_camvid: Path, tmp_path: Path) -> None:
    plain = ("--method", "base", "--scale_min", "1.0")  # no pixel is ignored
    arguments = train_arguments(full_camvid, tmp_path, *plain)
    torch.manual_seed(0)  # the weights
    run = build_run(arguments)
    run.model.eval()  # batch norm would see another batch, dropout other masks
    batches = run.loader.epoch(0)
    first, second = next(batches), next(batches)
    gradients = []
    for micro_batches in ([first, second], [join([first, second])]):
        run.optimizer.param_groups[0]["lr"] = 0.0  # the weights stay
        train.train_step(run, LossMeter(), micro_batches)
        gradients.append([parameter.grad.clone() for parameter in run.network.parameters()])  # type: ignore[union-attr]
    for accumulated, whole in zip(*gradients, strict=True):
        torch.testing.assert_close(accumulated, whole, rtol=1e-3, atol=1e-6)


def test_a_resumed_run_takes_the_rate_that_it_is_given(
    straight: Path, small_camvid: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = ("--snapshot", str(straight / "last.pth"), "--restore_optimizer", "--max_iter", "8", "--lr", "0.5")
    start = Start(straight / "last.pth")
    run = build_run(resumable(small_camvid, tmp_path, *more, "--momentum", "0.8"), start)
    restore(run, start)
    (group,) = run.optimizer.param_groups
    assert group["lr"] == pytest.approx(0.5 * (1 - 4 / 8) ** 0.9)
    assert group["momentum"] == 0.8
    assert "continuing with another OPTIM.LR: 0.01 -> 0.5" in caplog.text


def test_masks_are_collected_once_by_a_run_that_goes_on_after_their_epoch(
    small_camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was started with a later --cov_stat_epoch."""
    flags = ("--method", "isw", "--stat_images", "1", "--val_interval", "0", "--cov_stat_epoch")
    for latest, epochs in (("2", [3]), ("9", [])):
        run, collect = build_run(train_arguments(small_camvid, tmp_path, *flags, latest)), Mock(wraps=update_masks)
        monkeypatch.setattr(train, "update_masks", collect)
        monkeypatch.setattr(train, "save", Mock())
        run.progress.epoch, seen = 3, list[int]()
        for _ in range(2):
            before = collect.call_count
            train.end_epoch(run, MagicMock())
            seen += [run.progress.epoch - 1] * (collect.call_count - before)
        assert seen == epochs and run.criterion.whitening is not None
        assert run.criterion.whitening.has_masks == bool(epochs)


@pytest.mark.parametrize(("last_epoch", "said"), [("1", True), ("0", False)])
def test_a_run_too_short_to_whiten_says_so(
    last_epoch: str, said: bool, small_camvid: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = ("--method", "isw", "--max_epoch", "2", "--cov_stat_epoch", last_epoch)
    log_start(build_run(train_arguments(small_camvid, tmp_path, *flags, "--max_iter", "1000")), Start(None))
    assert ("come too late to whiten anything: lower --cov_stat_epoch" in caplog.text) == said


def test_parameter_groups_are_logged_and_those_of_another_run_refused(
    straight: Path, small_camvid: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = Start(straight / "last.pth")
    run = build_run(resumable(small_camvid, tmp_path, "--backbone_lr", "0.1", "--lr", "0.02"), start)
    with pytest.raises(UserError, match="other parameter groups: resume with --tune, --backbone_lr"):
        restore(run, start)
    caplog.set_level("INFO")
    log_start(run, start)
    pretrained = sum(parameter.numel() for parameter in run.network.backbone.parameters())  # ISW's sites have none
    new = sum(parameter.numel() for parameter in run.network.parameters()) - pretrained
    for rate, count in (("0.02", new), ("0.002", pretrained)):
        assert f"learning rate {rate}, weight decay 0.0005: {count / 1e6:.3f} M parameters" in caplog.text


def test_options_that_an_older_checkpoint_lacks_have_not_changed(
    straight: Path, small_camvid: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = read_weights(straight / "last.pth")
    del content["config"]["OPTIM"]["EMA_DECAY"], content["config"]["LOSS"]
    torch.save(content, tmp_path / "older.pth")
    start = Start(tmp_path / "older.pth")
    restore(build_run(resumable(small_camvid, tmp_path, "--lr", "0.02"), start), start)
    assert re.findall(r"continuing with another (\S+):", caplog.text) == ["OPTIM.LR"]


def test_a_resume_on_other_images_is_refused_until_it_is_asked_for(
    straight: Path, small_camvid: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content, start = read_weights(straight / "last.pth"), Start(straight / "last.pth")
    names = sorted(f"train/{path.name}" for path in (small_camvid / "train").iterdir())
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]
    about = {"images": 8, "list": digest}
    assert content["data"] == {"camvid/train": about, "camvid/train (statistics)": about}
    data = shutil.copytree(small_camvid, tmp_path / "data")
    for folder in ("train", "trainannot"):
        (data / folder / "00003.png").rename(data / folder / "10003.png")
    run = build_run(resumable(data, tmp_path), start)
    with pytest.raises(
        UserError, match=rf"camvid/train with 8 images \(list {digest}\), now there are 8 .*--other_data"
    ):
        restore(run, start)
    restore(build_run(resumable(data, tmp_path, "--other_data"), start), start)
    assert "last.pth was trained on camvid/train with 8 images" in caplog.text
    del content["data"]
    torch.save(content, tmp_path / "older.pth")
    restore(run, Start(tmp_path / "older.pth"))


MODERN = (
    *("--method", "base", "--optimizer", "adamw", "--lr", "0.001"),
    *("--clip_grad_norm", "0.5", "--ema_decay", "0.5", "--ohem_thresh", "0.9", "--ohem_min_kept", "500"),
    *("--lr_schedule", "scl-poly", "--rlx_off_iter", "1", "--rescale", "0.7", "--save_interval", "1"),
    *("--backbone_lr", "0.5", "--layer_decay", "0.9", "--warmup_iters", "3", "--no_norm_decay"),
)


def test_averaged_weights_are_scored_and_everything_resumes(small_camvid: Path, tmp_path: Path) -> None:
    train.main(train_arguments(small_camvid, tmp_path / "a", *MODERN, "--val_interval", "1"))
    whole = run_folder(tmp_path / "a")
    expected = read_weights(whole / "last.pth")
    weight = next(iter(expected["network"]))
    assert not torch.equal(expected["network"][weight], expected["average"][weight])

    def dies(run: Run, meter: Any, batches: Any) -> None:
        if run.progress.step == 2:
            raise Killed
        original(run, meter, batches)

    original = train.train_step
    arguments = train_arguments(small_camvid, tmp_path / "b", *MODERN, "--val_interval", "1")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(train, "train_step", dies)
        train.main(arguments)
    train.main([*arguments, "--resume", "auto"])
    found = read_weights(run_folder(tmp_path / "b") / "last.pth")
    for key in ("network", "average", "optimizer", "scheduler", "progress", "best"):
        assert_same(expected[key], found[key], key)

    file = str(whole / "last.pth")
    network, _, about = valid.load_network(config.parse(["--snapshot", file], program="valid"), expected)
    assert_same(dict(expected["average"]), dict(network.state_dict()))
    assert about["ema"] == 0.5 and "ema 0.5" in (whole / "log.txt").read_text()
    out = ("--out", str(tmp_path / "out"), "--num_workers", "0", "--device", "cpu")
    valid.main(["--snapshot", file, "--val_dataset", "camvid", *out, "--opts", f"DATASET.CAMVID_DIR={small_camvid}"])
    first, second = (json.loads((place / "scores.json").read_text()) for place in (whole / "scores", tmp_path / "out"))
    assert first["domains"] == second["domains"]
    with pytest.raises(UserError, match="was trained with --optimizer adamw"):
        train.main([*arguments, "--resume", "auto", "--optimizer", "sgd"])


@pytest.mark.parametrize("scaled", [False, True])
def test_gradients_are_scaled_down_to_the_limit(
    scaled: bool, small_camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's float16 scales the loss; the limit is on the gradient itself all the same."""
    if scaled:
        monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: REAL_SCALER(device, init_scale=1024.0))
    small = ("--method", "base", "--max_iter", "1", "--weight_decay", "0")
    train.main(train_arguments(small_camvid, tmp_path, *small, "--clip_grad_norm", "0.01", "--val_dataset"))
    (line,) = [line for line in read_history(run_folder(tmp_path) / "history.jsonl") if "optim/grad_norm" in line]
    states = read_weights(run_folder(tmp_path) / "last.pth")["optimizer"]["state"].values()
    norm = torch.stack([state["momentum_buffer"].norm() for state in states]).norm()  # the first step's is its gradient
    assert norm.item() == pytest.approx(0.01, rel=1e-3) and line["optim/grad_norm"] > 1


def test_broken_weights_are_not_saved(straight: Path, small_camvid: Path, tmp_path: Path) -> None:
    arguments = resumable(small_camvid, tmp_path, "--snapshot", str(straight / "last.pth"))
    run = build_run(arguments)
    with torch.no_grad():
        next(run.network.parameters()).fill_(float("inf"))
    writer = MetricWriter(tmp_path / "tb", tmp_path / "history.jsonl", first_step=0)
    with pytest.raises(UserError, match="weights are not finite"):
        train.save(run, Records(tmp_path, {}, writer, LossMeter()), "last")
    assert not (tmp_path / "last.pth").exists()


def test_what_is_wrong_with_evaluated_data_stands_beside_its_scores(small_camvid: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(small_camvid, data)
    train_image, val_image = (sorted((data / split).iterdir())[0] for split in ("train", "val"))
    shutil.copy(train_image, val_image)
    few = ("--method", "base", "--max_iter", "1")
    train.main(train_arguments(data, tmp_path / "out", *few))
    (row,) = json.loads((run_folder(tmp_path / "out") / "scores" / "scores.json").read_text())["domains"]
    (sentence,) = row["findings"]
    assert sentence.startswith("camvid/train and val: duplicate") and train_image.name in sentence


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_truncated_image_costs_no_step(split: str, small_camvid: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(small_camvid, data)
    flags = ["--method", "base", "--max_iter", "6", "--val_interval", "1"]
    flags += ["--no_quick_check"]
    train.main(train_arguments(data, tmp_path / "straight", *flags))
    arguments = train_arguments(data, tmp_path / "out", *flags)
    run = build_run(arguments)
    picks, pairs = list(run.loader.batches), run.splits.open("camvid", split).pairs
    image = Path(pairs[picks[2][0].item if split == "train" else 3].image)
    whole = image.read_bytes()
    image.write_bytes(whole[:100])
    with pytest.raises(UserError, match=image.name) as caught:
        train.main(arguments)
    folder = run_folder(tmp_path / "out")
    step = 2 if split == "train" else 4
    assert read_weights(folder / "last.pth")["progress"] == {"epoch": 0, "step_in_epoch": step, "step": step}
    saved, sentence = (folder / "log.txt").read_text().splitlines()[-2:]
    assert f"saved step {step}" in saved and sentence.endswith(f" E {caught.value}")
    before = (folder / "last.pth").stat().st_mtime_ns
    if split == "train":  # the same image at once: nothing new to save
        with pytest.raises(UserError, match=image.name):
            train.main([*arguments, "--resume", "auto"])
        assert (folder / "last.pth").stat().st_mtime_ns == before
    image.write_bytes(whole)
    train.main([*arguments, "--resume", "auto"])
    expected = read_weights(run_folder(tmp_path / "straight") / "last.pth")
    found = read_weights(run_folder(tmp_path / "out") / "last.pth")
    for key in ("network", "criterion", "optimizer", "scheduler", "progress", "best"):
        assert_same(expected[key], found[key], key)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (RuntimeError("above\nbelow"), "RuntimeError: below"),
        (torch.OutOfMemoryError("CUDA out of memory"), "the memory of the GPU is used up: lower --bs_mult"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_a_step_that_was_cut_short_is_not_saved_but_told(
    error: BaseException, sentence: str, small_camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = train.add_gradient
    steps = iter([None, error])

    def dies(*arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)
        if failure := next(steps):
            raise failure
        return result

    monkeypatch.setattr(train, "add_gradient", dies)
    with pytest.raises((type(error), UserError)):
        train.main(train_arguments(small_camvid, tmp_path, "--method", "base"))
    last = (run_folder(tmp_path) / "log.txt").read_text().splitlines()[-1]
    assert f" E {sentence}" in last
    assert not (run_folder(tmp_path) / "last.pth").exists()


def test_a_loss_that_nobody_checked_yet_is_known() -> None:
    meter = LossMeter()
    assert meter.is_finite()
    for value, expected in ((1.0, True), (math.nan, False)):
        meter.add(0, {}, torch.tensor(value), [])
        assert meter.is_finite() == expected


def test_a_snapshot_alone_starts_anew_from_its_weights(straight: Path, small_camvid: Path, tmp_path: Path) -> None:
    arguments = resumable(
        small_camvid, tmp_path, "--snapshot", str(straight / "last.pth"), "--lr", "1e-12", "--max_iter", "1"
    )
    train.main(arguments)
    found, expected = read_weights(run_folder(tmp_path) / "last.pth"), read_weights(straight / "last.pth")
    assert found["progress"]["step"] == 1
    weights = {
        key: value for key, value in expected["network"].items() if value.is_floating_point() and "running" not in key
    }
    for key, value in weights.items():
        torch.testing.assert_close(found["network"][key], value, rtol=1e-4, atol=1e-7)


def test_a_loss_of_nan_stops_the_run_with_its_files(
    small_camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = LossMeter.add

    def poisoned(self: Any, step: int, terms: dict[str, Tensor], total: Tensor, names: list[str]) -> None:
        original(self, step, terms, total * float("nan") if step == 1 else total, names)

    monkeypatch.setattr(LossMeter, "add", poisoned)
    with pytest.raises(UserError, match=r"step 1: the loss is nan \(.*fused .*\) on the files .*\.png"):
        train.main(train_arguments(small_camvid, tmp_path, "--method", "base", "--save_interval", "1"))
    saved = read_weights(run_folder(tmp_path) / "last.pth")
    assert saved["progress"]["step"] == 1
    assert all(value.isfinite().all() for value in saved["network"].values())


@pytest.mark.parametrize(("enough", "advised"), [(0.0, 1), (1.0, 0)])
def test_a_batch_of_one_trains_and_waiting_for_data_is_told(
    small_camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enough: float, advised: int
) -> None:
    monkeypatch.setattr(train, "SLOW_DATA", enough)
    few = ("--bs_mult", "1", "--max_iter", "2", "--method", "base", "--val_limit", "1")
    train.main(train_arguments(small_camvid, tmp_path, *few, "--dump_augmentation_images"))
    assert (run_folder(tmp_path) / "pictures" / "first_batch.png").exists()
    log = (run_folder(tmp_path) / "log.txt").read_text()
    shares = [int(share) for share in re.findall(r"; (\d+)% of the time waiting for data", log)]
    assert len(shares) == 2 and all(0 <= share < 100 for share in shares)
    advice = re.findall(r"waits for data \d+% of the time: raise --num_workers above 0 or .* --frame_cache DIR", log)
    assert len(advice) == log.count("waits for data") == advised


@pytest.mark.parametrize("method", ["sw", "diia-no-edge"])
def test_other_rows_train_and_are_known_again(method: str, small_camvid: Path, tmp_path: Path) -> None:
    flags = ("--method", method, "--backbone", "resnet18", "--max_iter", "2", "--val_limit", "1")
    train.main(train_arguments(small_camvid, tmp_path, *flags))
    assert "recipe" in (run_folder(tmp_path) / "log.txt").read_text()
    file = str(run_folder(tmp_path) / "last.pth")
    network, _, about = valid.load_network(
        config.parse(["--snapshot", file], program="valid"), read_weights(Path(file))
    )
    assert f"method {method} (" in about["network"]
    state = network.state_dict()
    if method == "sw":
        assert state["backbone.sites.stem1.running_cov"].any()
    assert not any(name.startswith("edge.") for name in state)


def test_a_kill_in_an_evaluation_loses_no_step(
    small_camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    def killed(*_: Any, **__: Any) -> None:
        steps.append(read_weights(run_folder(tmp_path) / "last.pth")["progress"]["step"])
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "evaluation_loaders", killed)
    flags = ("--method", "base", "--val_interval", "1", "--max_iter", "6")
    with pytest.raises(KeyboardInterrupt):
        train.main(train_arguments(small_camvid, tmp_path, *flags))
    assert steps == [4], "those of the first epoch"


def test_a_run_that_fails_at_once_does_not_say_that_it_was_saved(
    small_camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "train_epoch", Mock(side_effect=RuntimeError("at once")))
    with pytest.raises(RuntimeError, match="at once"):
        train.main(train_arguments(small_camvid, tmp_path, "--method", "base"))
    assert "saved step" not in (run_folder(tmp_path) / "log.txt").read_text()


def test_mixed_precision_trains(small_camvid: Path, tmp_path: Path) -> None:
    losses = {}
    for amp in ("off", "bf16"):
        train.main(
            train_arguments(small_camvid, tmp_path / amp, "--amp", amp, "--max_iter", "2", "--log_interval", "1")
        )
        lines = read_history(run_folder(tmp_path / amp) / "history.jsonl")
        losses[amp] = [line["loss/train_loss"] for line in lines if "loss/train_loss" in line]
    assert len(losses["bf16"]) == 2 and losses["bf16"] != losses["off"]
    assert losses["bf16"] == pytest.approx(losses["off"], rel=0.1)


def test_test_mode_does_a_little_of_everything(small_camvid: Path, tmp_path: Path) -> None:
    long = ("--max_iter", "40000", "--lr_schedule", "scl-poly", "--rlx_off_iter", "20000")
    train.main(train_arguments(small_camvid, tmp_path, "--test_mode", *long, "--val_interval", "1"))
    content = read_weights(run_folder(tmp_path) / "last.pth")
    assert content["progress"]["step"] <= 8
    assert any(
        name.startswith("whitening/") for name in (run_folder(tmp_path) / "history.jsonl").read_text().split('"')
    )


def test_the_last_steps_are_logged_where_epochs_end_the_run(small_camvid: Path, tmp_path: Path) -> None:
    long = ("--max_iter", "1000", "--log_interval", "3", "--method", "base")
    train.main(train_arguments(small_camvid, tmp_path, *long, "--max_epoch", "1", "--val_limit", "1"))
    assert read_weights(run_folder(tmp_path) / "last.pth")["progress"] == {"epoch": 1, "step_in_epoch": 0, "step": 4}
    assert re.findall(r"step (\d/\d), lr", (run_folder(tmp_path) / "log.txt").read_text()) == ["3/4", "4/4"]


def test_the_last_step_may_be_the_best_of_some_images(small_camvid: Path, tmp_path: Path) -> None:
    """It ends no epoch, and its scores on all images are no others' equals."""
    flags = ("--method", "linear", "--max_iter", "3", "--val_limit", "1", "--val_interval", "1", "--val_dataset")
    train.main(train_arguments(small_camvid, tmp_path, *flags))
    folder = run_folder(tmp_path)
    assert read_weights(folder / "best_source.pth")["progress"]["step"] == 3
    assert json.loads((folder / "scores" / "scores.json").read_text())["domains"][0]["protocol"]["images"] == 5
    assert [line["step"] for line in read_history(folder / "history.jsonl") if "camvid/mean_iu" in line] == [3]
    train.main(train_arguments(small_camvid, tmp_path, *flags, "--max_iter", "2", "--resume", "auto"))
    assert (folder / "scores" / "report.html").exists(), "at the end of a run that has done more than it is asked for"


def test_bad_input_is_one_line_and_exit_code_2(small_camvid: Path, tmp_path: Path) -> None:
    arguments = train_arguments(small_camvid, tmp_path)
    arguments[arguments.index("camvid")] = "camvit"
    done = launch("train.py", arguments, check=False)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1
    assert "camvit" in lines[0]
    assert "did you mean 'camvid'" in lines[0]
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(("flags", "refused"), [("32 1 32", True), ("32 2 32", False), ("33 1 32", False)])
def test_a_crop_that_leaves_one_pixel_is_refused_at_the_start(
    flags: str, refused: bool, small_camvid: Path, tmp_path: Path
) -> None:
    crop, batch, stride = flags.split()
    sizes = ("--crop_size", crop, "--bs_mult", batch, "--output_stride", stride)
    arguments = train_arguments(small_camvid, tmp_path, "--method", "base", *sizes)
    if refused:
        with pytest.raises(UserError, match="--crop_size 32 is too small for the output stride 32 with --bs_mult 1"):
            train.main(arguments)
        assert not list(tmp_path.iterdir()), "no run folder"
    else:
        build_run(arguments).network.train()(torch.zeros(int(batch), 3, int(crop), int(crop)))


@pytest.mark.parametrize("flags", [(), ("--no_quick_check",)], ids=["before the start", "from a worker"])
def test_an_undecodable_file_is_one_line(small_camvid: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    data = tmp_path / "data"
    shutil.copytree(small_camvid, data)
    for path in (data / "train").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    done = launch("train.py", train_arguments(data, tmp_path / "out", "--num_workers", "1", *flags), check=False)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert str(data / "train") in last
    assert "Traceback" not in done.stderr


def test_taps_that_no_crop_reaches_start_at_zero_and_stay(small_camvid: Path, tmp_path: Path) -> None:
    weights = {}
    for name in ("random", "zero"):
        flags = ["--zero_unreached_taps"] if name == "zero" else []
        arguments = ("--method", "diia-v2", "--max_iter", "2", "--crop_size", "192", *flags)  # maps of 12 x 12
        train.main(train_arguments(small_camvid, tmp_path / name, *arguments))
        weights[name] = read_weights(run_folder(tmp_path / name) / "last.pth")["network"]
    for name, weight in weights["random"].items():
        found = weights["zero"][name]
        if re.search(r"aspp\.branches\.[23]\.conv\.weight", name):  # dilations 12 and 18
            outer = torch.ones(3, 3, dtype=torch.bool)
            outer[1, 1] = False
            assert weight[..., outer].abs().min() > 0 and not found[..., outer].any()
            weight, found = weight[..., 1, 1], found[..., 1, 1]
        assert torch.equal(found, weight), f"{name} is trained to other bits"
    log = (run_folder(tmp_path / "random") / "log.txt").read_text(encoding="utf-8")
    assert "--crop_size 192: the outer taps of the dilations 12, 18 see only padding" in log
    assert "give --crop_size 289 or more" in log
    assert "see only padding" not in (run_folder(tmp_path / "zero") / "log.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("flags", [("--crop_size", "289"), ("--method", "linear")], ids=str)
def test_taps_that_are_all_reached_are_not_zeroed(flags: tuple[str, ...], small_camvid: Path, tmp_path: Path) -> None:
    arguments = train_arguments(small_camvid, tmp_path, "--method", "base", "--zero_unreached_taps", *flags)
    with pytest.raises(UserError, match="--zero_unreached_taps: crops of .* reach every tap of this head"):
        train.main(arguments)
    with pytest.raises(UserError, match="reach every tap"):  # resumed too, before a folder is opened
        build_run(arguments, Start(tmp_path / "last.pth"))
    assert not (tmp_path / "d").exists()
