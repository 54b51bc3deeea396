"""`python -m tests.campaigns.fuzz --minutes 60`: random flags and damaged files end in a result or in one sentence.

Hypothesis draws the inputs of every kind in turns until the time is over. What raises anything but a `UserError` is
printed with the smallest input that does, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

import config
from datasets.codec import ENCODINGS, decode_label, read_photo
from datasets.domains import load_domains
from datasets.splits import Splits
from inference import load
from scripts import compare_runs, plot_runs
from tests.runs import save_random
from tests.street_data import blocks, paint, write_domain
from utils.errors import UserError

LONGEST = 1200  # letters of a sentence
Trial = tuple[st.SearchStrategy[Any], Callable[[Any], None]]  # what is drawn, and what is done with it
RAW = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["camvid", "val"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def try_out(call: Callable[[], object]) -> None:
    """Call and let pass what a user may see: a result, one sentence, or the end of a program with code 0, 1 or 2."""
    try:
        call()
    except UserError as error:
        assert str(error).strip() and len(str(error)) < LONGEST and "Traceback" not in str(error), str(error)
    except SystemExit as end:
        assert end.code in (0, 1, 2), end.code


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """A file's content with bytes changed, removed, doubled or appended."""
    content = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        piece = draw(st.binary(max_size=8))
        match draw(st.sampled_from(["change", "cut", "insert", "double"])):
            case "change":
                content[start : start + len(piece)] = piece
            case "cut":
                del content[start : start + draw(st.sampled_from([1, 100, len(content)]))]
            case "insert":
                content[start:start] = piece
            case "double":
                content[start:start] = content[start : start + 64]
    return bytes(content)


def altered(tree: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Draw dictionaries with some of the entries, of which some have other values."""
    return st.fixed_dictionaries({}, optional={key: st.just(value) | RAW for key, value in tree.items()})


def flags(folder: Path) -> Trial:
    """Flags of train.py and valid.py with values of every kind."""
    rows = [row for row in config.KEYS.values() if row.flag]
    value = st.text(max_size=6) | st.integers().map(str) | st.floats().map(str)
    fitting = {row.flag: st.sampled_from([str(choice) for choice in row.choices] or ["1", "0.5", "-1"]) for row in rows}
    one = st.sampled_from(sorted(fitting)).flatmap(
        lambda flag: st.lists(fitting[flag] | value, max_size=3).map(lambda words: [flag, *words])
    )
    key = st.tuples(st.sampled_from(sorted(config.KEYS)), value).map(lambda pair: ["--opts", "=".join(pair)])

    def check(drawn: tuple[str, list[list[str]]]) -> None:
        try_out(lambda: config.parse([word for words in drawn[1] for word in words], program=drawn[0]))

    return st.tuples(st.sampled_from(["train", "valid"]), st.lists(one | key, max_size=4)), check


def settings_files(folder: Path) -> Trial:
    """Files for --config: any YAML, sections of ours with any values, and text that is no YAML."""
    section = st.sampled_from(sorted({key.partition(".")[0] for key in config.KEYS}))
    leaf = st.sampled_from(sorted({key.partition(".")[2] for key in config.KEYS}))
    tree = st.dictionaries(section, st.dictionaries(leaf, RAW, max_size=3) | RAW, max_size=3)
    path = folder / "settings.yaml"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        try_out(lambda: config.parse(["--config", str(path)], program="train"))

    return (tree | RAW).map(yaml.safe_dump).map(str.encode) | st.text().map(str.encode) | st.binary(), check


def domain_files(folder: Path) -> Trial:
    """Files for --domains, whose domains are then opened."""
    write_domain(folder / "data", "camvid")
    good = {
        "root": str(folder / "data"),
        "images": "{split}/*.png",
        "label": {"{split}/": "{split}annot/"},
        "splits": ["train", "val"],
        "encoding": "camvid",
        "merge": {"wall": "fence"},
        "classes": ["road", "car"],
    }
    path = folder / "domains.yaml"

    def check(fields: Any) -> None:
        path.write_text(yaml.safe_dump({"mine": fields}))

        def open_all() -> None:
            splits = Splits(load_domains(config.parse(["--domains", str(path)], program="train")))
            for split in ("train", "val"):
                splits.open("mine", split)

        try_out(open_all)

    return altered(good) | RAW, check


def images(folder: Path) -> Trial:
    """Damaged photographs and labels of every encoding."""
    label = blocks(0)
    sources = dict[str, bytes]()
    for suffix, array in ((".png", paint(label)), (".jpg", paint(label)), (".tif", paint(label)), (".png", label)):
        path = folder / f"{array.ndim}{suffix}"
        Image.fromarray(array).save(path)
        sources[path.name] = path.read_bytes()

    def check(drawn: tuple[str, bytes]) -> None:
        path = folder / f"damaged_{drawn[0]}"
        path.write_bytes(drawn[1])
        try_out(lambda: read_photo(str(path)))
        for encoding in ENCODINGS.values():
            try_out(lambda encoding=encoding: decode_label(str(path), encoding=encoding))  # type: ignore[misc]

    return st.sampled_from(sorted(sources)).flatmap(
        lambda name: st.tuples(st.just(name), damaged(sources[name]))
    ), check


def weights(folder: Path) -> Trial:
    """Damaged checkpoints, and files that hold something else."""
    good = folder / "good.pth"
    save_random(good, "--backbone", "timm/test_resnet", "--method", "base")
    content, path = torch.load(good, weights_only=True), folder / "weights.pth"

    def write(thing: Any) -> bytes:
        torch.save(thing, path)
        return path.read_bytes()

    def check(data: bytes) -> None:
        path.write_bytes(data)
        try_out(lambda: load(path, device="cpu").segment(np.zeros((32, 32, 3), np.uint8)))

    return damaged(good.read_bytes()) | (altered(content) | RAW).map(write), check


def records(folder: Path) -> Trial:
    """Damaged score files and histories of runs."""
    run = folder / "run"
    run.mkdir()
    row = {"domain": "camvid", "subset": "", "is_source": False, "scores": {"mean_iou": 0.5, "iou": {"road": 0.5}}}
    row |= {"protocol": {"split": "val", "list_hash": "0" * 8}, "confusion": [[1, 0], [0, 1]]}
    scores = {"weights": {"checkpoint": "last", "seed": 1, "method": "base"}, "domains": [row]}
    history = "".join(json.dumps({"step": step, "camvid/mean_iu": 0.1 * step}) + "\n" for step in range(3))
    contents = damaged(json.dumps(scores).encode()) | altered(scores).map(lambda tree: json.dumps(tree).encode())

    def check(drawn: tuple[bytes, bytes]) -> None:
        for name, data in zip(("scores.json", "history.jsonl"), drawn, strict=True):
            (run / name).write_bytes(data)
        try_out(lambda: compare_runs.main([str(run), "--out", str(folder / "table.md")]))
        try_out(lambda: plot_runs.main([str(run), "--out", str(folder / "curves.png")]))

    return st.tuples(contents, damaged(history.encode())), check


KINDS: dict[str, Callable[[Path], Trial]] = {
    kind.__name__: kind for kind in (flags, settings_files, domain_files, images, weights, records)
}


def run_trial(trial: Trial, *, examples: int, number: int) -> None:
    """Try so many inputs of a kind; `number` seeds them."""
    inputs, try_one = trial

    def check(drawn: Any) -> None:
        try_one(drawn)

    limits = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    seed(number)(limits(given(inputs)(check)))()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--examples", type=int, default=50, help="inputs per kind and turn")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    counts, failed, end, turn = Counter[str](), list[str](), time.monotonic() + 60 * args.minutes, 0
    with tempfile.TemporaryDirectory() as folder:
        trials = dict[str, Trial]()
        for name in args.kinds:
            (root := Path(folder, name)).mkdir()
            trials[name] = KINDS[name](root)
        while time.monotonic() < end and trials:
            for name, trial in list(trials.items()):
                try:
                    run_trial(trial, examples=args.examples, number=turn)
                    counts[name] += args.examples
                except Exception:  # the fault that the campaign is for
                    failed.append(f"{name}, turn {turn}:\n{traceback.format_exc()}")
                    del trials[name]  # it would be the same fault again
            turn += 1
    print(json.dumps({"inputs": counts, "faults": len(failed)}))
    print("\n".join(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
