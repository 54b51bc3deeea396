"""The script that trains DIIA's part table."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import config
from network.methods import METHODS

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


def call(folder: Path, *flags: str, **variables: str) -> list[list[str]]:
    """Run the script and return the commands that it starts."""
    stub, calls = folder / "python", folder / "calls"
    stub.write_text(STUB)
    stub.chmod(0o755)
    calls.unlink(missing_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PET_", "DIIA_"))}
    env = {**kept, "DIIA_PYTHON": str(stub), "CALLS": str(calls), "ABLATION_DIR": str(folder / "runs"), **variables}
    subprocess.run([str(ROOT / "scripts" / "ablation.sh"), *flags], env=env, check=True, timeout=60)
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
    assert compared[compared.index("--against") + 1] == "base"
    names = [f"{method}_{seed}" for method in chosen["METHODS"].split() for seed in chosen["SEEDS"].split()]
    assert [Path(word).name for word in compared[-4:]] == names


def test_it_trains_every_part_by_default(tmp_path: Path) -> None:
    *trainings, _ = call(tmp_path)
    methods = [words[words.index("--method") + 1] for words in trainings]
    assert {"base", "ibn", "isw", *(name for name in METHODS if name.startswith("diia"))} == set(methods)
