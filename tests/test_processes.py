"""Several processes do the same job as one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import valid
from tests.conftest import make_camvid
from tests.runs import REPOSITORY, launch, read_weights, run_folder, train_arguments
from tests.street_data import write_domain
from utils.errors import port_taken

PLAIN = (
    *("--method", "isw", "--scale_min", "1.0", "--max_iter", "1", "--cov_stat_epoch", "0"),
    *("--clip_grad_norm", "1", "--ema_decay", "0.5", "--backbone", "resnet18"),
)
FROZEN = f"""
import sys
from torch import nn
sys.path.insert(0, {str(REPOSITORY)!r})
import train
nn.modules.batchnorm._BatchNorm.train = lambda self, mode=True: nn.Module.train(self, False)
train.main()
"""  # train.py with every batch norm frozen: it would see another batch
TWO_BATCHES = ("--accumulate", "2")  # the first of which must not synchronise


@pytest.fixture(scope="module")
def trained(full_camvid: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Run folders of one plain step (frozen batch norm, every pixel labelled, an epoch) with 1 process and with 2."""
    folders = {}
    program = tmp_path_factory.mktemp("frozen") / "train_frozen.py"
    program.write_text(FROZEN)
    for processes, batch in ((1, "4"), (2, "2")):
        out = tmp_path_factory.mktemp(f"processes{processes}")
        flags = train_arguments(full_camvid, out, *PLAIN, *TWO_BATCHES, "--bs_mult", batch)
        launch(str(program), flags, processes=processes)
        folders[processes] = run_folder(out)
    return folders


def test_two_processes_make_the_gradients_of_one_with_the_doubled_batch(trained: dict[int, Path]) -> None:
    one, two = (read_weights(trained[processes] / "last.pth") for processes in (1, 2))
    assert one["progress"] == two["progress"]
    moved = 0
    for index, state in one["optimizer"]["state"].items():
        expected, found = state["momentum_buffer"], two["optimizer"]["state"][index]["momentum_buffer"]
        moved += bool(expected.abs().max() > 0)
        assert float((found - expected).norm()) <= 1e-4 * float(expected.norm()) + 1e-9, index
    assert moved > 90
    for part in ("network", "average"):
        for name, value in one[part].items():
            torch.testing.assert_close(two[part][name], value, rtol=1e-4, atol=1e-6)


def test_compressed_gradients_are_rounded_ones(trained: dict[int, Path], full_camvid: Path, tmp_path: Path) -> None:
    program = tmp_path / "train_frozen.py"
    program.write_text(FROZEN)
    flags = train_arguments(full_camvid, tmp_path, *PLAIN, *TWO_BATCHES, "--bs_mult", "2", "--grad_compress", "bf16")
    launch(str(program), flags, processes=2)
    plain, sent = (read_weights(folder / "last.pth")["optimizer"] for folder in (trained[2], run_folder(tmp_path)))
    for index, state in plain["state"].items():
        expected, found = state["momentum_buffer"], sent["state"][index]["momentum_buffer"]
        assert float((found - expected).norm()) <= 0.02 * float(expected.norm()) + 1e-9, index
    pairs = ((state["momentum_buffer"], sent["state"][i]["momentum_buffer"]) for i, state in plain["state"].items())
    assert not all(torch.equal(*pair) for pair in pairs)


def test_processes_share_the_statistics_and_agree_on_the_masks(trained: dict[int, Path]) -> None:
    one, two = (read_weights(trained[processes] / "last.pth")["criterion"] for processes in (1, 2))
    masks = [name for name, value in one.items() if value.ndim == 2]
    assert len(masks) == 3
    for name in masks:
        assert one[name].sum() > 0
        differs = (one[name] != two[name]).float().mean()
        assert differs < 1e-3, name  # the weights agree within float noise, so single entries may trade places


def test_one_two_and_three_processes_count_the_same(
    trained: dict[int, Path], full_camvid: Path, tmp_path: Path
) -> None:
    weights = str(trained[1] / "last.pth")
    found = {}
    for processes in (0, 2, 3):
        out = tmp_path / str(processes)
        arguments = ["--snapshot", weights, "--val_dataset", "camvid", "--out", str(out), "--device", "cpu"]
        arguments += ["--num_workers", "0", "--opts", f"DATASET.CAMVID_DIR={full_camvid}"]
        launch("valid.py", [*arguments, "--flip", "--more_metrics", "--per_image", "--report"], processes=processes)
        content = json.loads((out / "scores.json").read_text())
        with np.load(out / "per_image.npz") as images:
            names, counts = images["camvid/names"].tolist(), images["camvid/confusion"]
        assert names == [f"val/{index:05d}.png" for index in range(5)] and (counts.sum((1, 2)) == 96 * 128).all()
        assert counts.sum(0).tolist() == content["domains"][0]["confusion"]
        found[processes] = content["domains"][0]["confusion"], content["domains"][0]["more"], counts.tolist()
    assert found[0] == found[2] == found[3]
    assert sum(map(sum, found[0][0])) == 5 * 96 * 128 and len(found[0][1]) == 7


@pytest.mark.parametrize("launcher", [True, False])
def test_a_taken_port_is_one_sentence(launcher: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PET_")}
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        if launcher:
            environment |= {"PET_MASTER_PORT": str(port)}
            command = ["-m", "scripts.launch", "--nproc_per_node=1"]
        else:
            environment |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
            command = []
        done = subprocess.run(
            [sys.executable, *command, "valid.py", "--snapshot", "none.pth", "--device", "cpu"],
            capture_output=True, text=True, cwd=REPOSITORY, env=environment, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: port {port} of this machine is taken") and "PET_MASTER_PORT" in last


def test_other_reasons_are_not_a_taken_port() -> None:
    assert not port_taken(RuntimeError("connection refused"))
    older = RuntimeError("The server socket has failed to bind to [::]:29500 (errno: 98 - Address already in use)")
    assert port_taken(older).startswith("port 29500 of")


def test_fewer_images_than_processes_and_classes_that_no_source_has(tmp_path: Path) -> None:
    """Three images to train on, one for the statistics and one to evaluate; CamVid holds 11 of the 19 classes."""
    camvid, cityscapes = make_camvid(tmp_path / "camvid", train=3, val=1), tmp_path / "cityscapes"
    write_domain(cityscapes, "cityscapes", train=0, val=1)
    roots = [f"DATASET.CAMVID_DIR={camvid}", f"DATASET.CITYSCAPES_DIR={cityscapes}"]
    flags = train_arguments(camvid, tmp_path / "out", "--method", "isw", "--cov_stat_epoch", "0", "--stat_images", "1")
    flags += ["--bs_mult", "1", "--max_iter", "2", "--class_uniform_pct", "1", "--val_dataset", "camvid", "cityscapes"]
    launch("train.py", [*flags, "--val_interval", "1", "--opts", *roots], processes=2)
    folder = run_folder(tmp_path / "out")
    log = (folder / "log.txt").read_text()
    assert "no label holds wall, " in log and "1 steps of 2 per epoch" in log
    assert "1 of 3 samples of the first epoch aimed at a class" in log  # 3 x 11 / 19
    masks = [value for value in read_weights(folder / "last.pth")["criterion"].values() if value.ndim == 2]
    assert len(masks) == 3 and all(mask.sum() > 0 for mask in masks)
    found = json.loads((folder / "scores/scores.json").read_text())["domains"]
    words = ["--snapshot", str(folder / "last.pth"), "--val_dataset", "camvid", "cityscapes", "--device", "cpu"]
    valid.main([*words, "--out", str(tmp_path / "alone"), "--num_workers", "0", "--opts", *roots])
    for row, alone in zip(found, json.loads((tmp_path / "alone/scores.json").read_text())["domains"], strict=True):
        assert row["confusion"] == alone["confusion"] and row["scores"] == alone["scores"]
    whole = next(row for row in found if row["domain"] == "cityscapes" and not row["subset"])
    counts = np.array(whole["confusion"])  # truth by prediction
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    seen = union > 0
    assert whole["scores"]["classes_in_mean"] == seen.sum() > 11
    assert whole["scores"]["mean_iou"] == pytest.approx((counts.diagonal()[seen] / union[seen]).mean(), rel=1e-12)
    assert [value is None for value in whole["scores"]["iou"].values()] == (~seen).tolist()
