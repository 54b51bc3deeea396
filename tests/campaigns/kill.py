"""`python -m tests.campaigns.kill --times 30`: a run of two processes, killed at random moments and resumed.

The run validates, computes ISW's statistics, fills the frame cache and writes checkpoints. Each trial kills all its
processes (SIGKILL) at a random moment, resumes it by --resume auto, kills it again with probability one half, and
compares weights, masks, scores and history with those of the run that nobody killed. Exit code 1: they differ.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tests.conftest import make_camvid
from tests.runs import REPOSITORY, differences, free_port, read_weights, train_arguments

COMPARED = ("network", "average", "criterion", "optimizer", "scheduler", "progress", "best")


def start(camvid: Path, out: Path, *, processes: int, steps: int) -> subprocess.Popen[str]:
    """Start or resume the run in a process group of its own."""
    words = train_arguments(camvid, out, "--method", "isw", "--cov_stat_epoch", "0", "--ema_decay", "0.9")
    words += ["--wt_layer", "0", "0", "2", "2", "0", "0", "0"]
    words += ["--max_iter", str(steps), "--save_interval", "1", "--val_interval", "1", "--resume", "auto"]
    words += ["--frame_cache", str(out / "frames"), "--bs_mult", "1", "--dynamic"]
    engine = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={free_port()}"]
    command = [sys.executable, *(engine if processes > 1 else []), str(REPOSITORY / "train.py"), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    log = (out.parent / f"{out.name}.log").open("a")
    return subprocess.Popen(
        command, stdout=log, stderr=log, text=True, cwd=REPOSITORY, env=environment, start_new_session=True
    )


def finish(run: subprocess.Popen[str], *, within: float) -> bool:
    """Wait for the end of a run, at most so many seconds; kill what is left. Return whether it has ended by itself."""
    try:
        run.wait(within)
        return True
    except subprocess.TimeoutExpired:
        kill_tree(run.pid)
        run.wait()
        return False


def kill_tree(root: int) -> None:
    """Kill a process and all below it, those in groups of their own, as torchrun's workers are, too."""
    below = subprocess.run(["pgrep", "-P", str(root)], capture_output=True, text=True, check=False).stdout.split()
    with contextlib.suppress(ProcessLookupError):
        os.kill(root, signal.SIGKILL)
    for child in below:
        kill_tree(int(child))


def results(out: Path) -> dict[str, Any]:
    """Return what a finished run has to show, without what depends on the clock."""
    (folder,) = [path.parent for path in out.glob("d/e/*/scores")]  # runs that died before a checkpoint have none
    content = read_weights(folder / "last.pth")
    scores = json.loads((folder / "scores" / "scores.json").read_text())
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    history = [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]
    return {name: content[name] for name in COMPARED} | {"scores": scores["domains"], "history": history}


def campaign(folder: Path, *, times: int, processes: int, steps: int, seed: int) -> list[str]:
    """Return what was wrong, one line each; nothing is right."""
    moments = random.Random(seed)
    camvid = make_camvid(folder / "camvid", train=6, val=3)
    began = time.monotonic()
    (folder / "whole").mkdir()
    whole = start(camvid, folder / "whole", processes=processes, steps=steps)
    assert finish(whole, within=600) and whole.returncode == 0, (folder / "whole.log").read_text()[-3000:]
    seconds, expected, faults = time.monotonic() - began, results(folder / "whole"), list[str]()
    for trial in tqdm(range(times), desc="kill", unit="run"):
        out = folder / f"trial{trial}"
        out.mkdir()
        kills, within = list[float](), moments.uniform(0, seconds)
        while True:
            run = start(camvid, out, processes=processes, steps=steps)
            if finish(run, within=within):
                break
            kills.append(round(within, 2))
            within = moments.uniform(0, seconds) if len(kills) < 3 and moments.random() < 0.5 else 600.0
        wrong = differences(results(out), expected) if run.returncode == 0 else [f"exit code {run.returncode}"]
        if wrong:
            log = (folder / f"{out.name}.log").read_text()[-1500:]
            faults.append(f"killed after {kills} s: {', '.join(wrong[:5])}\n{log}")
        else:
            shutil.rmtree(out)
    return faults


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        faults = campaign(Path(folder), **vars(args))
    print(f"{args.times} runs killed, {len(faults)} differ")
    print("\n".join(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
