"""`python -m tests.campaigns.inputs`: bad inputs through every program end in one sentence and leave nothing behind.

A case changes one argument of a command that works: a file, number, name, data set or output of a bad kind. The
program must end with the documented exit code and a sentence of at most 700 letters that names the argument or file, no
traceback, and no file may be there that was not before. All run in this process. Exit code 1: one did not.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import config
from network import build_network
from network.weights import published_state
from tests.conftest import make_camvid
from tests.runs import REPOSITORY, save_random, train_arguments
from tests.street_data import write_domain
from tests.test_prepare import provide
from utils.errors import run_entry_point

LONGEST = 700  # letters of a sentence
SECONDS = 120  # of a case
DATA_PROGRAMS = ("scripts.check_data", "scripts.inspect_data", "scripts.browse_data", "scripts.cache_frames")
USE_DATA = ("train", "valid", *DATA_PROGRAMS)
OTHERS = ("export", "convert_weights", "network_summary", "compare_runs", "plot_runs", "prepare_data")
ALL = (*USE_DATA, "predict", *(f"scripts.{name}" for name in OTHERS))
Words = dict[str, list[str]]  # arguments by flag; places of arguments without one are numbers


class Case(NamedTuple):
    """A bad input: what the sentence must hold, one of them.

    `began`: a run may have written its records; `process`: in one of its own, where flags are read before slow imports.
    """

    program: str
    kind: str
    words: Words
    names: tuple[str, ...]
    code: int = 2
    began: bool = False
    process: bool = False

    @property
    def argv(self) -> list[str]:
        return [word for flag, values in self.words.items() for word in ([flag] * (flag[:2] == "--") + values)]


class ExecutesCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


class Bench:
    """Good and bad files in a folder, and a command of every program that works with the good ones."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        (folder / "bad").mkdir(parents=True)
        self.out.mkdir()
        self.camvid = make_camvid(folder / "camvid", train=3, val=2)
        self.weights, self.published = folder / "weights.pth", folder / "published.pth"
        save_random(self.weights, "--backbone", "timm/test_resnet", "--method", "base")
        cfg = config.parse(["--backbone", "mobilenet_v2", "--method", "base"], program="train")
        torch.save({"state_dict": published_state(build_network(cfg))}, self.published)
        provide(folder, "cityscapes")
        self.run = folder / "good"
        self.run.mkdir()
        protocol = {"split": "val", "list_hash": "0" * 8, "transform": "native size", "scales": [1.0], "classes": "19"}
        row = {"domain": "camvid", "subset": "", "is_source": False, "scores": {"mean_iou": 0.5}, "protocol": protocol}
        scores = {"weights": {"checkpoint": "last", "seed": 1, "method": "base"}, "domains": [row]}
        (self.run / "scores.json").write_text(json.dumps(scores))
        (self.run / "history.jsonl").write_text(json.dumps({"step": 1, "loss/train_loss": 0.5}) + "\n")
        write_domain(folder / "synthia", "synthia")
        self.image = sorted(self.camvid.glob("val/*.png"))[0]

    def command(self, program: str) -> Words:
        """Return the arguments of a program that works."""
        opts, out = {"--opts": [f"DATASET.CAMVID_DIR={self.camvid}"]}, str(self.out / "made")
        if program == "train":
            words = train_arguments(self.camvid, self.out, "--method", "base")
            return by_flag([*words, "--max_iter", "1"])
        return {
            "valid": {
                "--snapshot": [str(self.weights)], "--val_dataset": ["camvid"], "--out": [out], "--device": ["cpu"],
                "--num_workers": ["0"], **opts,
            },
            "predict": {"0": [str(self.weights)], "1": [str(self.image)], "--out": [out], "--device": ["cpu"]},
            "scripts.export": {
                "0": [str(self.weights)], "--format": ["pt2"], "--out": [f"{out}.pt2"], "--size": ["64", "64"],
                "--frames": [str(self.image)],
            },
            "scripts.convert_weights": {
                "0": [str(self.published)], "--out": [f"{out}.pth"], "--backbone": ["mobilenet_v2"],
                "--method": ["base"],
            },
            "scripts.check_data": {"0": ["camvid"], "--workers": ["1"], **opts},
            "scripts.inspect_data": {"0": ["camvid"], "--out": [out], "--samples": ["2"], **opts},
            "scripts.browse_data": {"0": ["camvid"], "--out": [f"{out}.png"], "--count": ["1"], **opts},
            "scripts.cache_frames": {"0": ["camvid"], "--frame_cache": [out], "--num_workers": ["0"], **opts},
            "scripts.network_summary": {"--backbone": ["timm/test_resnet"], "--size": ["64", "64"]},
            "scripts.compare_runs": {"0": [str(self.run)], "--out": [f"{out}.md"]},
            "scripts.plot_runs": {"0": [str(self.run)], "--out": [f"{out}.png"]},
            "scripts.prepare_data": {
                "0": ["cityscapes"], "1": [str(self.folder / name) for name in ("first", "second")], "--out": [out],
            },
        }[program]  # fmt: skip

    def changed(self, program: str, flag: str, values: Sequence[str]) -> Words:
        return {**self.command(program), flag: [*map(str, values)]}

    def bad_files(self, good: Path) -> Iterator[tuple[str, Path]]:
        """Yield kinds of bad files, made beside the good one under names with its suffix."""
        contents: dict[str, bytes] = {
            "empty": b"", "text": b"hello", "truncated": good.read_bytes()[: good.stat().st_size // 2],
            "page": b"<!DOCTYPE html><html><body>404</body></html>",
            "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
            "garbage": np.random.default_rng(0).bytes(5000),
        }  # fmt: skip
        stem = str(self.folder / "bad" / f"{good.stem}_{{}}{good.suffix}")
        for kind, content in contents.items():
            (path := Path(stem.format(kind))).write_bytes(content)
            yield kind, path
        with zipfile.ZipFile(path := Path(stem.format("archive")), "w") as archive:
            archive.writestr("notes.txt", "hello")
        yield "archive", path
        (path := Path(stem.format("folder"))).mkdir(exist_ok=True)
        yield "folder", path
        for kind, target in (("dangling", "nowhere"), ("loop", Path(stem.format("loop")).name)):
            if not (path := Path(stem.format(kind))).is_symlink():
                path.symlink_to(target)
            yield kind, path
        yield "missing", Path(stem.format("missing"))


def by_flag(words: Sequence[str]) -> Words:
    """Return arguments by flag; of one that is there twice the later one counts."""
    found, flag = Words(), ""
    for word in words:
        if word.startswith("--"):
            found[flag := word] = []
        else:
            found[flag].append(word)
    return found


def numbers(bench: Bench) -> Iterator[Case]:
    """Every number of train.py and valid.py that is none, and those of the other programs."""
    bad = ("many", "nan", "inf", "1e400", "", "0x10", "-", "1,5.2,x")
    for index, row in enumerate(row for row in config.KEYS.values() if row.flag and row.base in (int, float)):
        program = "train" if "train" in row.programs else "valid"
        for value in (bad[index % len(bad)], bad[(index + 1 + index // len(bad)) % len(bad)]):
            if value or (row.default is not None and row.lengths[0]):  # where nothing is a value
                words = bench.changed(program, row.flag, [value] * max(row.is_list and row.lengths[0], 1))
                yield Case(program, f"number {value!r}", words, (row.flag,), process=index % 8 == 0)
    others = {
        "predict": ("--opacity", "--bs_mult_val", "--window", "--scales"), "scripts.export": ("--size",),
        "scripts.network_summary": ("--size", "--output_stride", "--wt_layer"), "scripts.check_data": ("--workers",),
        "scripts.inspect_data": ("--samples", "--class_uniform_pct"), "scripts.browse_data": ("--count",),
        "scripts.cache_frames": ("--num_workers",),
    }  # fmt: skip
    for program, flags in others.items():
        for flag in flags:
            count = {"--size": 2, "--window": 2, "--wt_layer": 7}.get(flag, 1)
            for value in ("-7", "nan", "word", *["9" * 20] * (flag not in ("--workers", "--count"))):  # all there are
                words = bench.changed(program, flag, [value] * count)
                yield Case(program, f"number {value!r}", words, (flag,), process=value == "word")


def names(bench: Bench) -> Iterator[Case]:
    """Names and flags that there are not, values too few, arguments that are missing."""
    for row in (row for row in config.KEYS.values() if row.flag and row.choices):
        program = "train" if "train" in row.programs else "valid"
        yield Case(program, "name", bench.changed(program, row.flag, ["nosuch"]), (row.flag,))
    for program in ALL:
        good = bench.command(program)
        yield Case(program, "unknown flag", {**good, "--nosuch": []}, ("--nosuch",))
        yield Case(program, "unknown flag", {**good, "--nosuch": []}, ("--nosuch",), process=True)
        for opt in ("DATASET.NOSUCH=1", "nosuch", "OPTIM.LR=word") if "--opts" in good else ():
            yield Case(program, "setting", {**good, "--opts": [opt]}, (opt.partition("=")[0],))
        if "0" in good and program not in DATA_PROGRAMS:  # which take all data sets then
            words = {key: good[key] for key in good if key not in "01"}
            yield Case(program, "without its argument", words, ("required", "name"))
    wrong = {"camvit": [*((program, "0") for program in DATA_PROGRAMS), ("train", "--dataset")]}
    wrong["camvit"] += [("train", "--val_dataset"), ("valid", "--val_dataset")]
    wrong["nosuch"] = [(program, "--split") for program in ("valid", *DATA_PROGRAMS[1:])]
    for program in ("train", "scripts.network_summary", "scripts.convert_weights"):
        wrong.setdefault("resnet51", []).append((program, "--backbone"))
        wrong.setdefault("isv", []).append((program, "--method"))
        yield Case(program, "list", bench.changed(program, "--wt_layer", ["0", "0"]), ("--wt_layer",))
    for name, places in wrong.items():
        for program, flag in places:
            yield Case(program, f"name of {flag}", bench.changed(program, flag, [name]), (name,))


def weights(bench: Bench) -> Iterator[Case]:
    """Files that are no weights, or those of something else, for whatever reads weights."""
    places = [("train", flag) for flag in ("--snapshot", "--pretrained", "--resume")] + [("valid", "--snapshot")]
    places += [(program, "0") for program in ("predict", "scripts.export", "scripts.convert_weights")]
    own: dict[str, Any] = {"code": ExecutesCode(), "number": 3, "list": [torch.ones(2)], "nothing": {}}
    own["no weights"] = {"state_dict": {}}
    own["names"] = {"state_dict": {f"layer{number}.odd": torch.ones(2) for number in range(500)}}
    own |= {
        "tensor": torch.ones(2),
        "nested": {"a": {"b": {"c": torch.ones(2)}}},
        "numbers for names": {0: torch.ones(2)},
    }
    own["optimizer"] = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    saved = torch.load(bench.weights, weights_only=True)
    own["progress"] = {**saved, "progress": {"epoch": "x"}}
    own["texts"] = {**saved, "network": dict.fromkeys(saved["network"], "x")}
    changes: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "int8": lambda value: (100 * value).to(torch.int8), "bool": lambda value: value > 0,
        "complex64": lambda value: value.to(torch.complex64), "float8": lambda value: value.to(torch.float8_e4m3fn),
        "sparse": torch.Tensor.to_sparse, "shapes": lambda value: value.reshape(-1)[0].clone(),
    }  # fmt: skip
    for kind, change in changes.items():
        own[kind] = {**saved, "network": {key: change(value) for key, value in saved["network"].items()}}
    own["not finite"] = broken = torch.load(bench.weights, weights_only=True)
    broken["network"] = {name: value * float("nan") for name, value in broken["network"].items()}
    files = [*bench.bad_files(bench.weights)]
    for kind, content in own.items():
        torch.save(content, path := bench.folder / "bad" / f"weights_{kind.replace(' ', '_')}.pth")
        files.append((kind, path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(torch.nn.Conv2d(3, 3, 1), torch.ones(1, 3, 4, 4)).save(
            file := bench.folder / "bad" / "graph.pth"
        )
    files.append(("TorchScript", file))
    save_random(path := bench.folder / "bad" / "weights_other.pth", "--backbone", "timm/test_vit", "--method", "base")
    for program, flag in places:
        for kind, file in files:
            yield Case(program, f"weights: {kind}", bench.changed(program, flag, [str(file)]), (file.name,))
        if program == "train":
            yield Case(program, "weights: other", bench.changed(program, flag, [str(path)]), (path.name, "--resume"))
    for suffix in ("onnx", "pt2", "safetensors"):
        (good := bench.folder / f"graph.{suffix}").write_bytes(b"\x08\x07" + bytes(range(256)) * 40)
        for program, flag in ("valid", "--snapshot"), ("predict", "0"), ("train", "--pretrained"):
            wrong = [*bench.bad_files(good)]
            for kind, header in ("length", (1 << 60).to_bytes(8, "little")), ("header", (5).to_bytes(8, "little")):
                (place := bench.folder / "bad" / f"{kind}.{suffix}").write_bytes(header + b"{abc}")
                wrong.append((kind, place))
            for kind, file in wrong if suffix == "safetensors" or program != "train" else ():
                yield Case(program, f"{suffix}: {kind}", bench.changed(program, flag, [str(file)]), (file.name,))


def settings_files(bench: Bench) -> Iterator[Case]:
    """Files for --config and --domains."""
    (good := bench.folder / "settings.yaml").write_text("RUN:\n  SEED: [1, 2\n")
    files = [pair for pair in bench.bad_files(good) if pair[0] != "empty"]
    for kind, text in {"list": "[1, 2]", "unknown": "NOSUCH: {A: 1}", "tab": "RUN:\n\tSEED: 1"}.items():
        (path := bench.folder / "bad" / f"settings_{kind}.yaml").write_text(text)
        files.append((kind, path))
    for program, flag in (*(("train", "--config"), ("valid", "--config")), *((name, "--domains") for name in USE_DATA)):
        for kind, file in files:
            yield Case(program, f"{flag}: {kind}", bench.changed(program, flag, [str(file)]), (file.name,))


def data(bench: Bench) -> Iterator[Case]:
    """Folders of data that are missing, of another layout, incomplete or damaged."""
    (bench.folder / "void").mkdir()
    roots = {"missing": bench.folder / "nowhere", "a file": bench.image, "empty": bench.folder / "void"}
    roots["other layout"] = bench.folder / "synthia"
    for kind in ("unlabelled", "gap", "sizes", "ids", "image", "label"):
        roots[kind] = Path(shutil.copytree(bench.camvid, bench.folder / f"data_{kind}"))
        for split in ("train", "val"):
            photos, labels = (sorted((roots[kind] / name).glob("*.png")) for name in (split, f"{split}annot"))
            match kind:
                case "unlabelled":
                    shutil.rmtree(labels[0].parent)
                case "gap":
                    labels[0].unlink()
                case "sizes" | "ids":
                    shape, value = {"sizes": ((8, 8), 0), "ids": ((96, 128), 77)}[kind]
                    for path in labels:
                        Image.fromarray(np.full(shape, value, np.uint8)).save(path)
                case _:
                    for path in photos if kind == "image" else labels:
                        path.write_bytes(path.read_bytes()[:200])
    for program in USE_DATA:
        for kind, root in roots.items():
            words = bench.changed(program, "--opts", [f"DATASET.CAMVID_DIR={root}"])
            code = 1 if program == "scripts.check_data" else 2
            began = program == "scripts.cache_frames" or kind in ("image", "label")  # what is whole stays
            if program != "scripts.inspect_data" or kind not in ("image", "sizes"):  # it reads labels alone
                yield Case(program, f"data: {kind}", words, (root.name, "camvid"), code, began)


def images(bench: Bench) -> Iterator[Case]:
    """Images of predict.py and of export's comparison."""
    header = bytearray(bench.image.read_bytes())
    header[16:24] = (60000).to_bytes(4, "big") * 2
    (path := bench.folder / "bad" / "bomb.png").write_bytes(header)
    os.mkfifo(pipe := bench.folder / "bad" / "pipe.png")
    for kind, file in (*bench.bad_files(bench.image), ("bomb", path), ("pipe", pipe)):
        code = 2 if kind in ("folder", "missing", "loop", "dangling", "pipe") else 1
        yield Case("predict", f"image: {kind}", bench.changed("predict", "1", [str(file)]), (file.name,), code)
        words = bench.changed("scripts.export", "--frames", [str(file)])
        if kind != "pipe":  # what writes to it is waited for
            yield Case("scripts.export", f"image: {kind}", words, (file.name,))


def outputs(bench: Bench) -> Iterator[Case]:
    """Places that nothing can be written to, or that hold something already."""
    suffixes = {"scripts.export": ".pt2", "scripts.convert_weights": ".pth", "scripts.browse_data": ".png"}
    suffixes |= {"scripts.compare_runs": ".md", "scripts.plot_runs": ".png"}
    loop = bench.folder / "bad" / "loop"
    loop.symlink_to("loop")
    for program in ALL:
        for flag in ("--ckpt", "--tb_path", "--out", "--frame_cache"):
            if flag in bench.command(program) or (program, flag) == ("train", "--frame_cache"):
                for folder in (str(bench.image), "/proc/nowhere", str(loop), str(bench.out / ("long" * 75))):
                    words = bench.changed(program, flag, [f"{folder}/x{suffixes.get(program, '')}"])
                    yield Case(program, f"output {flag} in {folder}", words, (folder, flag))
        if program in ("scripts.export", "scripts.convert_weights"):
            yield Case(
                program, "output exists", bench.changed(program, "--out", [str(bench.weights)]), ("weights.pth",)
            )


def records(bench: Bench) -> Iterator[Case]:
    """Run folders of compare_runs and plot_runs, sources of prepare_data."""
    texts = {"text": "hello", "list": "[1]", "empty": "", "cut": '{"weights": {"check', "keys": "{}", "nothing": None}
    run = bench.folder / "run"
    for kind, content in texts.items():
        (run / kind).mkdir(parents=True)
        for name in ("scores.json", "history.jsonl") if content is not None else ():
            (run / kind / name).write_text(content or "")
    for program in ("scripts.compare_runs", "scripts.plot_runs"):
        for folder in (*sorted(run.iterdir()), run / "missing", bench.image):
            yield Case(program, f"record: {folder.name}", bench.changed(program, "0", [str(folder)]), (folder.name,))
    (good := bench.folder / "part.zip").write_bytes(b"")
    for kind, file in bench.bad_files(good):
        for name in ("bdd100k", "gtav"):
            words = {**bench.command("scripts.prepare_data"), "0": [name], "1": [str(file)]}
            yield Case("scripts.prepare_data", f"source: {kind}", words, (file.name, "no image"))


KINDS = (numbers, names, weights, settings_files, data, images, outputs, records)


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of change of all files, and all folders."""
    found = dict[str, tuple[int, int]]()
    for root, _, files in os.walk(folder):
        found[root] = 0, 0
        for name in files:
            state = os.lstat(os.path.join(root, name))
            found[os.path.join(root, name)] = state.st_size, state.st_mtime_ns
    return found


def call(case: Case) -> tuple[int, str]:
    """Run a program in this process and return its exit code and what it said; a traceback has the code -1."""
    if case.process:
        named = ["-m", case.program] if "." in case.program else [str(REPOSITORY / f"{case.program}.py")]
        done = subprocess.run(
            [sys.executable, *named, *case.argv], capture_output=True, text=True, timeout=SECONDS, check=False,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    def late(*_: object) -> None:
        raise TimeoutError(f"not done after {SECONDS} s")

    said, words = io.StringIO(), sys.argv
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    code: Any = 0
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            sys.argv = [case.program, *case.argv]
            run_entry_point(importlib.import_module(case.program).main)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        code = -1
        said.write(traceback.format_exc())
    finally:
        sys.argv = words
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        logging.getLogger().handlers.clear()
    return code, said.getvalue()


def fault(case: Case, folder: Path, before: Mapping[str, tuple[int, int]]) -> str:
    """Return what is wrong with how a program ends, nothing where all is right; empty the folder `out`."""
    code, said = call(case)
    after, out = tree(folder), folder / "out"
    left = sorted(path for path in after.keys() | before.keys() if after.get(path) != before.get(path))
    left = [path for path in left if not (case.began and path.startswith(str(out)))]
    shutil.rmtree(out)
    out.mkdir()
    sentence = ([line for line in said.splitlines() if "error: " in line] or [said])[-1].partition("error: ")[2] or said
    wrong = {
        "a traceback": "Traceback" in said,
        f"exit code {code}, not {case.code}": code != case.code,
        f"names none of {case.names}": not any(name in sentence for name in case.names),
        f"{len(sentence)} letters": len(sentence) > LONGEST and code == 2,
        f"left behind {left[:3]}": bool(left),
    }
    found = ", ".join(text for text, there in wrong.items() if there)
    return found and f"{case.program} {case.kind} {' '.join(case.argv)}: {found}: {said[-400:].strip()}"


def campaign(folder: Path, *, every: int = 1, first: int = 0) -> tuple[Counter[str], list[str]]:
    """Try every so manieth case; return how many of each program there were, and what was wrong, one text each."""
    bench, here = Bench(folder), Path.cwd()
    (folder / "here").mkdir()
    cases = [case for kind in KINDS for case in kind(bench)][first::every]
    counts, faults, before = Counter[str](), list[str](), tree(folder)
    try:
        os.chdir(folder / "here")
        for case in tqdm(cases, desc="inputs", unit="case", mininterval=10):
            counts[case.program] += 1
            if text := fault(case, folder, before):
                faults.append(text)
                before = tree(folder)
    finally:
        os.chdir(here)
    return counts, faults


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="try every so manieth case")
    parser.add_argument("--first", type=int, default=0, help="from this one on")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        counts, faults = campaign(Path(folder), **vars(args))
    print(
        f"{sum(counts.values())} cases, {len(faults)} faults: {', '.join(f'{n} {name}' for name, n in counts.items())}"
    )
    print("\n".join(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
