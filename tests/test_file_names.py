"""File names that are no UTF-8, as archives packed on other systems leave them, in every program."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from datasets.codec import ENCODINGS
from datasets.sampling import cache_key
from datasets.segmentation import FrameCache
from datasets.splits import Pair, list_hash
from tests.conftest import make_camvid
from tests.runs import REPOSITORY, launch, run_folder, save_random, train_arguments
from tests.test_predict import write_video
from utils.files import write_text

KOREAN = os.fsdecode(b"\xb5\xc0\xc2\xb7")  # "road" in EUC-KR
ESCAPED = r"\udcb5\udcc0·"  # the last two bytes happen to be UTF-8


@pytest.fixture(scope="module")
def camvid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CamVid all of whose names start with bytes that are no UTF-8, below a folder of such a name."""
    root = make_camvid(tmp_path_factory.mktemp("data") / KOREAN)
    for path in list(root.rglob("*.png")):
        path.rename(path.with_name(f"{KOREAN}{path.name}"))
    return root


def call(*words: str, names: str = "") -> subprocess.CompletedProcess[str]:
    """Run python with these words and names on standard input; no traceback may come."""
    done = subprocess.run(
        [sys.executable, *words], input=names, capture_output=True, encoding="utf-8", errors="surrogateescape",
        cwd=REPOSITORY, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, check=False, timeout=120,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_hashes_take_the_bytes_of_a_name(tmp_path: Path) -> None:
    ordinary, other = Pair("/d/a.png", "", "dir/straße.png"), Pair("/d/b.png", "", f"{KOREAN}.png")
    wanted = hashlib.sha256("dir/straße.png".encode() + b"\n\xb5\xc0\xc2\xb7.png").hexdigest()[:12]
    assert list_hash([ordinary, other]) == wanted
    assert list_hash([ordinary]) == hashlib.sha256("dir/straße.png".encode()).hexdigest()[:12]
    (file := tmp_path / f"{KOREAN}.png").write_bytes(b"")
    keys = {cache_key([Pair("", str(file), name)], encoding=ENCODINGS["camvid"], tile=8) for name in ("a", KOREAN)}
    assert len(keys) == 2
    assert FrameCache(tmp_path).place(str(file)).suffix == ".npy"


def test_texts_hold_escapes(tmp_path: Path) -> None:
    write_text(tmp_path / "names.md", f"| {KOREAN} | straße |")
    assert (tmp_path / "names.md").read_bytes() == f"| {ESCAPED} | straße |".encode()


@pytest.mark.parametrize("flags", [["--quick"], ["--json"]])
def test_the_checker_names_them(camvid: Path, flags: list[str]) -> None:
    (broken := camvid / "train" / f"{KOREAN}broken.png").write_bytes(b"no image")
    (label := camvid / "trainannot" / f"{KOREAN}broken.png").write_bytes(b"no label")
    done = call("-m", "scripts.check_data", "camvid", *flags, "--opts", f"DATASET.CAMVID_DIR={camvid}")
    broken.unlink()
    label.unlink()
    assert done.returncode == 1
    if flags == ["--quick"]:
        assert f"{ESCAPED}broken.png" in done.stdout
    else:
        assert json.loads(done.stdout)["domains"][0]["root"] == str(camvid), "programs get the name back"


def test_train_and_valid_read_them(camvid: Path, tmp_path: Path) -> None:
    out = tmp_path / KOREAN
    flags = ["--quick_check", "--class_uniform_pct", "0.5", "--max_iter", "1", "--crop_size", "64"]
    launch("train.py", train_arguments(camvid, out, *flags, "--frame_cache", str(out / "frames")))
    run = run_folder(out)
    assert yaml.safe_load((run / "config.yaml").read_text())["DATASET"]["CAMVID_DIR"] == str(camvid)
    assert ESCAPED in (run / "command.txt").read_text()
    done = launch(
        "valid.py",
        [
            *("--snapshot", str(run / "last.pth"), "--val_dataset", "camvid", "--device", "cpu", "--num_workers", "1"),
            *("--per_image", "--opts", f"DATASET.CAMVID_DIR={camvid}"),
        ],
    )
    assert ESCAPED in done.stdout
    scores = json.loads((run / "scores_last_val" / "scores.json").read_text())
    assert f"val/{KOREAN}" in np.load(run / "scores_last_val" / "per_image.npz")["camvid/names"][0]
    names = b"\n".join(sorted(os.fsencode(f"val/{path.name}") for path in (camvid / "val").iterdir()))
    assert json.dumps(scores).count(hashlib.sha256(names).hexdigest()[:12]) >= 1


def test_programs_about_data_read_them(camvid: Path, tmp_path: Path) -> None:
    opts = ["--opts", f"DATASET.CAMVID_DIR={camvid}", f"DATASET.CENTROID_CACHE={tmp_path}"]
    for program, flags in {
        "browse_data": ["--count", "1", "--out", f"{tmp_path / KOREAN}.png"],
        "inspect_data": ["--samples", "2", "--out", str(tmp_path / KOREAN)],
        "cache_frames": ["--frame_cache", str(tmp_path / f"{KOREAN}frames")],
    }.items():
        assert ESCAPED in call("-m", f"scripts.{program}", "camvid", *flags, *opts).stdout


def test_predict_writes_the_same_names(tmp_path: Path) -> None:
    save_random(tmp_path / "base.pth", "--backbone", "timm/test_vit", "--method", "base")
    files = [tmp_path / f"{KOREAN}.png", tmp_path / "plain.png", tmp_path / f"{KOREAN}drive.mp4"]
    for path in files[:2]:
        Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(path)
    write_video(files[2], frames=2)
    (tmp_path / f"{KOREAN}broken.mp4").write_bytes(b"no video")
    files.append(tmp_path / f"{KOREAN}broken.mp4")
    arguments = [str(tmp_path / "base.pth"), "-", "--out", str(tmp_path / "out"), "--device", "cpu"]
    done = call("predict.py", *arguments, names="\n".join(map(str, files)))
    assert done.returncode == 1 and f"{ESCAPED}broken.mp4: this video cannot be read" in done.stderr
    assert {path.name for path in (tmp_path / "out" / "overlay").iterdir()} == {f"{KOREAN}drive.mp4"}
    assert {path.name for path in (tmp_path / "out" / "train_ids").iterdir()} == {f"{KOREAN}.png", "plain.png"}
