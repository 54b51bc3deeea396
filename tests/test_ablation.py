"""The scripts that train DIIA's part table and the studies of generalisation."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import config
from datasets.domains import load_domains
from evaluation.description import method_name
from loss import build_criterion
from network.methods import METHODS
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
STUB = """#!/usr/bin/env bash
# Plays Python: notes its arguments, and lets a training leave the log of a finished run.
[[ $1 == -c ]] && echo 1 && exit
echo "$*" >>"$CALLS"
if [[ $1 == train.py ]]; then
  while [[ $1 != --exp ]]; do shift; done
  mkdir -p "$ABLATION_DIR/ablation/$2/time"
  echo "finished at step 7" >"$ABLATION_DIR/ablation/$2/time/log.txt"
fi
"""


def call(folder: Path, *flags: str, script: str = "ablation.sh", **variables: str) -> list[list[str]]:
    """Run a script and return the commands that it starts."""
    stub, calls = folder / "python", folder / "calls"
    stub.write_text(STUB)
    stub.chmod(0o755)
    calls.unlink(missing_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PET_", "DIIA_"))}
    env = {**kept, "DIIA_PYTHON": str(stub), "CALLS": str(calls), "ABLATION_DIR": str(folder / "runs"), **variables}
    subprocess.run([str(ROOT / "scripts" / script), *flags], env=env, check=True, timeout=60)
    return [line.split() for line in calls.read_text().splitlines()]


def test_it_trains_what_is_not_finished_and_compares_all_in_order(tmp_path: Path) -> None:
    chosen = {"METHODS": "base diia-no-edge", "SEEDS": "5 6"}
    *trainings, compared = call(tmp_path, "--max_iter", "7", METHODS="base", SEEDS="5")
    assert [words[0] for words in trainings] == ["train.py"] and compared[:2] == ["-m", "scripts.compare_runs"]
    *trainings, compared = call(tmp_path, "--max_iter", "7", **chosen)
    parsed = [config.parse(words[1:], program="train") for words in trainings]
    runs = [(cfg.NETWORK.METHOD, cfg.RUN.SEED) for cfg in parsed]
    assert runs == [("base", 6), ("diia-no-edge", 5), ("diia-no-edge", 6)], "the one that was finished is skipped"
    assert {(cfg.OPTIM.MAX_ITER, cfg.RUN.RESUME, cfg.AUGMENT.JITTER) for cfg in parsed} == {(7, "auto", "diia")}
    assert "--against" not in compared, "differences are from the first, whatever its name in the table"
    names = [f"{method}_{seed}" for method in chosen["METHODS"].split() for seed in chosen["SEEDS"].split()]
    assert [Path(word).name for word in compared[-4:]] == names


def test_style_augmentation_is_an_axis(tmp_path: Path) -> None:
    names = "mixstyle advstyle fda randaugment randconv randconv_repeats label_smoothing ema_decay".split()
    methods = f"base isw+fda=0.1+mixstyle=0.3 base+{'+'.join(names)}"
    *trainings, compared = call(tmp_path, METHODS=methods)
    plain, some, every = (config.parse(words[1:], program="train") for words in trainings)
    assert [(cfg.NETWORK.METHOD, cfg.AUGMENT.FDA, cfg.AUGMENT.MIXSTYLE) for cfg in (plain, some)] == [
        ("base", 0, 0),
        ("isw", 0.1, 0.3),
    ]
    sections = {"label_smoothing": every.LOSS, "ema_decay": every.OPTIM}
    strengths = {name: sections.get(name, every.AUGMENT)[name.upper()] for name in names}
    page = (ROOT / "docs" / "training.md").read_text()
    for name, strength in strengths.items():
        assert re.search(rf"--{name} [A-Z]+` \((0.5, )?{strength:g}\)", page), "the strength that the page names"
    assert [Path(word).name for word in compared[-3:]] == [f"{method}_304" for method in methods.split()]
    network: Any = SimpleNamespace(method=SimpleNamespace(label="isw"))
    assert method_name(network, plain) == "isw" and method_name(network, some) == "isw+mixstyle=0.3+fda=0.1"
    assert method_name(network, every).split("+")[1:] == [f"{name}={value:g}" for name, value in strengths.items()]


def test_every_method_keeps_the_margin_of_its_own(tmp_path: Path) -> None:
    *trainings, _ = call(tmp_path, METHODS="iw irw isw diia")
    parsed = [config.parse(words[1:], program="train") for words in trainings]
    rows = [METHODS[cfg.NETWORK.METHOD] for cfg in parsed]
    losses = [build_criterion(cfg, method=row, style_channels=[64]) for row, cfg in zip(rows, parsed, strict=True)]
    margins = [loss.whitening.margins[0] for loss in losses if loss.whitening is not None]
    assert margins == [0, 64 * 63 // 2 // 64, 0, 0], "IRW without a margin is IW"


def test_an_unknown_axis_is_a_flag_that_is_not_there(tmp_path: Path) -> None:
    *trainings, _ = call(tmp_path, METHODS="base+fad")
    with pytest.raises(UserError, match="there is no flag --fad; did you mean '--fda'"):
        config.parse(trainings[0][1:], program="train")


def test_it_trains_every_part_by_default(tmp_path: Path) -> None:
    *trainings, _ = call(tmp_path)
    methods = [words[words.index("--method") + 1] for words in trainings]
    assert {"base", "ibn", "isw", *(name for name in METHODS if name.startswith("diia"))} == set(methods)


STUDIES = {
    "real": ("camvid", ["camvid_dusk", "labelmefacade"]),
    "drawn-real": ("gtav", ["camvid", "camvid_dusk", "labelmefacade"]),
    "drawn": ("gtav", ["cityscapes", "bdd100k", "synthia", "mapillary"]),
}


@pytest.mark.parametrize("study", STUDIES)
def test_a_study_trains_from_real_weights_on_one_recipe(study: str, tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").touch()
    data = {name: str(tmp_path / name.lower()) for name in ("CAMVID", "LABELMEFACADE", "DEMO_WORLD")}
    for folder in data.values():
        Path(folder).mkdir()
    variables = {"STUDY_DIR": str(tmp_path / "study"), "WEIGHTS": str(tmp_path / "weights.safetensors"), **data}
    *trainings, compared = call(
        tmp_path, study, "--fp16", script="study.sh", METHODS="base isw", SEEDS="1 2", **variables
    )
    parsed = [config.parse(words[1:], program="train") for words in trainings]
    assert [(cfg.NETWORK.METHOD, cfg.RUN.SEED) for cfg in parsed] == [("base", 1), ("base", 2), ("isw", 1), ("isw", 2)]
    for cfg in parsed:
        assert (cfg.DATASET.TRAIN, cfg.DATASET.VAL) == ([STUDIES[study][0]], STUDIES[study][1])
        assert (cfg.NETWORK.PRETRAINED, cfg.OPTIM.BACKBONE_LR) == (variables["WEIGHTS"], 0.1)
        assert cfg.EVAL.PER_IMAGE and cfg.OPTIM.AMP == "auto" and cfg.RUN.RESUME == "auto"
        assert cfg.AUGMENT.CROP_SIZE == 192 and cfg.NETWORK.ZERO_UNREACHED_TAPS
        domains = load_domains(cfg)
        roots = {name: domains[name].root for name in (*cfg.DATASET.TRAIN, *cfg.DATASET.VAL)}
        assert all(root.startswith(str(tmp_path)) and root != str(tmp_path) for root in roots.values()), roots
    assert compared[:2] == ["-m", "scripts.compare_runs"]
    larger, *_ = call(tmp_path, study, "--crop_size", "320", script="study.sh", METHODS="base", SEEDS="3", **variables)
    cfg = config.parse(larger[1:], program="train")
    assert cfg.AUGMENT.CROP_SIZE == 320 and not cfg.NETWORK.ZERO_UNREACHED_TAPS


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "name a study: real, drawn-real or drawn"),
        (["real"], "WEIGHTS='' is no file; ./scripts/real_weights.sh writes mobilenet_v2.safetensors"),
        (["drawn", "WEIGHTS=/dev/null"], "WEIGHTS='/dev/null' is no file"),
        (["real", "WEIGHTS=README.md"], "CAMVID='' is no folder; the study real reads its data there"),
        (["drawn", "WEIGHTS=README.md"], "DEMO_WORLD='' is no folder"),
    ],
)
def test_what_a_study_needs_is_a_sentence(words: list[str], sentence: str) -> None:
    variables = dict(word.split("=") for word in words[1:])
    done = subprocess.run(
        [str(ROOT / "scripts" / "study.sh"), *words[:1]],
        env={"PATH": os.environ["PATH"], **variables},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2 and done.stderr.startswith(f"error: {sentence}") and done.stderr.count("\n") == 1
