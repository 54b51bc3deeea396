"""Every shell script parses and starts the right processes with flags that exist; so do the commands of the pages."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import config
from network import METHODS, resolve_method

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))
RUNS = [path.name for path in SCRIPTS if re.match(r"(train|valid)_", path.name)]
STUB = """#!/usr/bin/env bash
# Plays Python: answers how many GPUs there are, else shows its arguments and the folder it was started in.
if [[ $1 == -c ]]; then
  [[ ${STUB_GPUS:-} ]] || exit 1
  echo "$STUB_GPUS"
  exit
fi
printf '%s\\n' "$PWD" "$@"
"""


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    path = tmp_path / "python stub"
    path.write_text(STUB)
    path.chmod(0o755)
    return path


def call(
    stub: Path, *command: str, gpus: int | str = 0, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a script with the stub as its Python."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PET_", "DIIA_"))}
    env = {**kept, "DIIA_PYTHON": str(stub), "STUB_GPUS": str(gpus), **variables}
    return subprocess.run(
        command, cwd=cwd or stub.parent, env=env, capture_output=True, text=True, timeout=60, check=False
    )


def started(stub: Path, *command: str, **how: Any) -> tuple[list[str], str, list[str]]:
    """Return what stands before the program, the program, and its flags."""
    result = call(stub, *command, **how)
    assert result.returncode == 0, result.stderr
    folder, *words = result.stdout.splitlines()
    assert Path(folder) == ROOT, "programs start in the repository's root"
    number = next(i for i, word in enumerate(words) if word.endswith(".py"))
    return words[:number], words[number], words[number + 1 :]


def run_arguments(name: str, *flags: str) -> list[str]:
    return [str(ROOT / "scripts" / name), *(["weights.pth"] if name.startswith("valid_") else []), *flags]


@pytest.mark.parametrize("path", [*SCRIPTS, ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_scripts_are_sound(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert os.access(path, os.X_OK), f"chmod +x {path}"
    text = path.read_text()
    assert text.startswith("#!/usr/bin/env bash\n#"), "says what it is for"
    assert "set -euo pipefail" in text or path.name == "setup.sh"  # setup.sh is sourced: it sets nothing for others


@pytest.mark.parametrize("name", RUNS)
def test_the_flags_of_a_script_parse_and_further_ones_win(name: str, stub: Path) -> None:
    launcher, program, flags = started(stub, *run_arguments(name, "--seed", "7", "--val_dataset", "camvid"))
    assert launcher == [] and program == f"{name[:5]}.py"
    cfg = config.parse(flags, program=name[:5])
    assert cfg.RUN.SEED == 7 and cfg.DATASET.VAL == ["camvid"]


# The published training scripts: backbone_source_method -> what differs between them. DIIA's README has two scripts of
# RobustNet's names; those names are DIIA's here, and RobustNet's two end in _plain.
R50, R101_OS8 = "R50V3PlusD", "R101V3PlusD_OS8"
MOBILE, SHUFFLE = "MobileNetV3PlusD", "ShuffleNetV3PlusD"
OTHERS = {
    "gtav": ["bdd100k", "cityscapes", "synthia", "mapillary"],
    "cityscapes": ["bdd100k", "gtav", "synthia", "mapillary"],
}
# name: arch, method, codes, images per GPU, GPUs, (weight, relax_denom, clusters) where there is a whitening loss
PUBLISHED: dict[str, tuple[str, str, str, int, int, tuple[float, float, int] | None]] = {
    "r50os16_gtav_isw": (R50, "diia", "0022200", 8, 4, (0.6, 0, 3)),
    "r50os16_cty_isw": (R50, "diia", "0022200", 8, 4, (0.6, 0, 2)),
    "r50os16_gtav_base": (R50, "base", "0000000", 4, 4, None),
    "r50os16_gtav_ibn": (R50, "ibn", "0044400", 4, 4, None),
    "r50os16_gtav_iw": (R50, "iw", "0011100", 4, 4, (0.8, 0, 0)),
    "r50os16_gtav_irw": (R50, "irw", "0011100", 4, 4, (0.6, 64, 0)),
    "r50os16_gtav_isw_plain": (R50, "isw", "0022200", 4, 4, (0.6, 0, 3)),
    "r50os16_gtav_switchable": (R50, "sw", "0055500", 4, 4, None),
    "r50os16_cty_base": (R50, "base", "0000000", 4, 2, None),
    "r50os16_cty_ibn": (R50, "ibn", "0044400", 4, 2, None),
    "r50os16_cty_iw": (R50, "iw", "0011100", 4, 2, (0.6, 0, 0)),
    "r50os16_cty_irw": (R50, "irw", "0011100", 4, 2, (0.6, 32, 0)),
    "r50os16_cty_isw_plain": (R50, "isw", "0022200", 4, 2, (0.6, 0, 2)),
    "r50os16_cty_switchable": (R50, "sw", "0055500", 4, 2, None),
    "r101os8_gtav_base": (R101_OS8, "base", "0000000", 4, 4, None),
    "r101os8_gtav_ibn": (R101_OS8, "ibn", "4404400", 4, 4, None),
    "r101os8_gtav_isw": (R101_OS8, "isw", "2202200", 4, 4, (0.6, 0, 3)),
    "r101os8_cty_base": (R101_OS8, "base", "0000000", 4, 2, None),
    "r101os8_cty_isw": (R101_OS8, "isw", "0022200", 4, 2, (0.6, 0, 2)),
    "mobile_gtav_base": (MOBILE, "base", "0000000", 8, 2, None),
    "mobile_gtav_ibn": (MOBILE, "ibn", "0044400", 8, 2, None),
    "mobile_gtav_isw": (MOBILE, "isw", "0022200", 4, 4, (1.0, 0, 20)),
    "shuffle_gtav_base": (SHUFFLE, "base", "0000000", 8, 2, None),
    "shuffle_gtav_ibn": (SHUFFLE, "ibn", "0044400", 8, 2, None),
    "shuffle_gtav_isw": (SHUFFLE, "isw", "0022200", 8, 2, (0.8, 0, 2)),
}
PUBLISHED_VALID = {
    "mobile_gtav_base": (MOBILE, "0000000"),
    "mobile_gtav_ibn": (MOBILE, "0044400"),
    "mobile_gtav_isw": (MOBILE, "0022200"),
    "r50os16_gtav_isw": (R50, "0022200"),
}
# Scripts of a foundation model -> how much of it is trained.
FOUNDATION = {f"train_dinov2l_gtav_{tune}.sh": tune for tune in ("frozen", "rein", "full")}


def test_the_published_scripts_are_there() -> None:
    ours = {"train_r50os16_gtav_synthia_isw.sh"}
    published = {f"train_{name}.sh" for name in PUBLISHED} | {f"valid_{name}.sh" for name in PUBLISHED_VALID}
    assert set(RUNS) == published | ours | FOUNDATION.keys()


@pytest.mark.parametrize("script", FOUNDATION)
def test_foundation_scripts_hold_the_values_of_rein(script: str, stub: Path) -> None:
    cfg = config.parse(started(stub, *run_arguments(script))[2], program="train")
    data, optim, augment = cfg.DATASET, cfg.OPTIM, cfg.AUGMENT
    assert (data.TRAIN, data.VAL) == (["gtav"], ["cityscapes", "bdd100k", "mapillary"])
    assert (augment.CROP_SIZE, optim.BATCH_SIZE * optim.ACCUMULATE, optim.MAX_ITER) == (512, 4, 40000)
    assert (optim.NAME, optim.LR, optim.WEIGHT_DECAY, optim.NO_NORM_DECAY) == ("adamw", 1e-4, 0.05, True)
    assert cfg.NETWORK.BACKBONE == "timm/vit_large_patch14_dinov2.lvd142m" and cfg.NETWORK.METHOD == "base"
    assert cfg.NETWORK.TUNE == FOUNDATION[script] and f"train_{cfg.RUN.EXP}.sh" == script
    if cfg.NETWORK.TUNE == "full":
        assert optim.LR * optim.BACKBONE_LR == pytest.approx(1e-5)
    assert f"./scripts/{script}" in (ROOT / "docs" / "training.md").read_text()


@pytest.mark.parametrize("name", PUBLISHED)
def test_training_scripts_hold_the_published_values(name: str, stub: Path) -> None:
    arch, method, codes, images, gpus, whitening = PUBLISHED[name]
    source = "cityscapes" if "_cty_" in name else "gtav"
    script = f"train_{name}.sh"
    cfg = config.parse(started(stub, *run_arguments(script))[2], program="train")
    data, optim, white, augment = cfg.DATASET, cfg.OPTIM, cfg.WHITENING, cfg.AUGMENT

    row = resolve_method(cfg.NETWORK.METHOD, cfg.NETWORK.WT_LAYER)
    assert (row.name, "".join(map(str, row.codes))) == (method, codes)
    assert (cfg.NETWORK.ARCH, cfg.NETWORK.SYNCBN) == (f"network.deepv3.Deep{arch}", True)
    if whitening is not None:
        relax_denom = row.relax_denom if white.RELAX_DENOM is None else white.RELAX_DENOM
        assert (white.REG_WEIGHT, relax_denom) == whitening[:2]
    if whitening is not None and row.whitening == "isw":
        assert whitening[2] == white.CLUSTERS
        assert (white.COV_STAT_EPOCH, white.TRIALS, white.STAT_IMAGES, white.DYNAMIC) == (5, 10, 500, False)

    targets = OTHERS[source] if row.head == "plain" else ["cityscapes"] if source == "gtav" else ["bdd100k"]
    assert ([source], [source], targets, "train") == (data.TRAIN, data.COVSTAT, data.VAL, data.CITY_MODE)
    tile = 512 if (row.head, source) == ("diia", "cityscapes") else 1024
    assert (0.5, tile, 10000) == (data.CLASS_UNIFORM_PCT, data.CLASS_UNIFORM_TILE, data.MAX_CU_EPOCH)
    schedule = (optim.LR, optim.LR_SCHEDULE, optim.POLY_EXP, optim.MOMENTUM, optim.WEIGHT_DECAY, optim.MAX_ITER)
    assert schedule == (0.01, "poly", 0.9, 0.9, 5e-4, 40000)
    assert (augment.CROP_SIZE, augment.SCALE_MIN, augment.SCALE_MAX, augment.RROTATE) == (768, 0.5, 2.0, 0.0)
    assert (augment.GBLUR, augment.COLOR_AUG, augment.JITTER, row.jitter) == (
        *(True, 0.5, "method"),
        "diia" if row.head == "diia" else "robustnet",
    )

    # With as many GPUs as published, no warning about the batch; the script's first lines name both.
    assert (optim.BATCH_SIZE, optim.ACCUMULATE, row.recipe_batch(data.TRAIN)) == (images, 1, images * gpus)
    text = (ROOT / "scripts" / script).read_text()
    assert f"{gpus} GPUs x {images} images" in text and f"CUDA_VISIBLE_DEVICES={'0,1,2,3'[: 2 * gpus - 1]} " in text

    date = "0201" if name in ("mobile_gtav_base", "mobile_gtav_ibn") else "0101"
    assert (date, "./logs/", "./logs/") == (cfg.RUN.DATE, cfg.RUN.CKPT, cfg.RUN.TB_PATH)
    assert name.replace("cty", "city") == cfg.RUN.EXP
    # The stem of three convolutions has other ImageNet weights, and no default may leave it at random.
    assert cfg.NETWORK.PRETRAINED == ("pretrained/resnet101-imagenet.pth" if arch == R101_OS8 else "auto")


def test_the_recipe_names_the_domains_it_knows(stub: Path) -> None:
    for arguments in ([], ["synthia"]):
        result = call(stub, str(ROOT / "scripts" / "robustnet_recipe.sh"), *arguments)
        assert result.returncode == 2 and "gtav or cityscapes" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", [*PUBLISHED_VALID, None])
def test_validation_scripts_score_the_four_unseen_domains(name: str | None, stub: Path) -> None:
    script = str(ROOT / "scripts" / (f"valid_{name}.sh" if name else "score_weights.sh"))
    weights = stub.parent / "my weights.pth"
    weights.touch()
    flags = started(stub, script, weights.name, "--bs_mult_val", "2")[2]  # named as seen from the caller's folder
    cfg = config.parse(flags, program="valid")
    assert str(weights) == cfg.RUN.SNAPSHOT and cfg.EVAL.BATCH_SIZE == 2
    assert cfg.DATASET.VAL == ["cityscapes", "synthia", "bdd100k", "mapillary"]
    if name:
        arch, codes = PUBLISHED_VALID[name]
        assert f"network.deepv3.Deep{arch}" == cfg.NETWORK.ARCH
        assert codes == "".join(map(str, cfg.NETWORK.WT_LAYER or ()))
    for arguments in ([], ["--bs_mult_val", "2"]):
        result = call(stub, script, *arguments)
        assert result.returncode == 2 and "WEIGHTS" in result.stderr and result.stderr.count("\n") == 1


TORCHRUN = ["-m", "scripts.launch"]


@pytest.mark.parametrize(
    ("gpus", "variables", "launcher"),
    [
        (0, {}, []),
        (0, {"CUDA_VISIBLE_DEVICES": ""}, []),
        (1, {}, []),
        (4, {}, [*TORCHRUN, "--nproc_per_node=4", "--standalone"]),
        (0, {"PET_NPROC_PER_NODE": "2"}, [*TORCHRUN, "--nproc_per_node=2", "--standalone"]),
        (4, {"PET_NPROC_PER_NODE": "1"}, []),
        (4, {"PET_NNODES": "2", "PET_MASTER_ADDR": "node0"}, [*TORCHRUN, "--nproc_per_node=4"]),
        (1, {"PET_NNODES": "2", "PET_NODE_RANK": "1"}, [*TORCHRUN, "--nproc_per_node=1"]),
        (0, {"PET_RDZV_ENDPOINT": "node0:29400"}, [*TORCHRUN, "--nproc_per_node=1"]),
        (2, {"PET_MASTER_ADDR": "node0"}, [*TORCHRUN, "--nproc_per_node=2"]),
    ],
)
def test_as_many_processes_as_gpus(gpus: int, variables: dict[str, str], launcher: list[str], stub: Path) -> None:
    script = str(ROOT / "scripts" / "launch.sh")
    assert started(stub, script, "train.py", "--exp", "two words", gpus=gpus, **variables) == (
        launcher,
        "train.py",
        ["--exp", "two words"],
    )


def test_a_python_without_torch_is_named(stub: Path) -> None:
    result = call(stub, str(ROOT / "scripts" / "launch.sh"), "train.py", gpus="")
    assert result.returncode == 2 and "cannot import torch" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("ending", "code", "sentence"),
    [
        ("sys.exit(2)", 2, ""),
        ("sys.exit(1)", 1, ""),
        ("os.kill(os.getpid(), 11)", 2, "was ended by SIGSEGV, what it has written before may say why"),
        ("os.kill(os.getpid(), 9)", 2, "was ended by SIGKILL, most likely for want of memory; a training goes on"),
    ],
)
def test_two_processes_start_for_real(ending: str, code: int, sentence: str, tmp_path: Path) -> None:
    """They see torchrun's variables, and end without its traceback: with their code, or a sentence on a kill."""
    program = tmp_path / "show.py"
    program.write_text(
        f"""
import os, pathlib, sys, time
folder = pathlib.Path(__file__).parent
(folder / f"seen_{{os.environ['RANK']}}_{{os.environ['WORLD_SIZE']}}").touch()
while len([*folder.glob("seen_*")]) < 2:  # torchrun ends the others with the first
    time.sleep(0.1)
{ending}
"""
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PET_")}
    env = {**kept, "DIIA_PYTHON": sys.executable, "PET_NPROC_PER_NODE": "2"}
    script = str(ROOT / "scripts" / "launch.sh")
    result = subprocess.run([script, str(program)], env=env, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == code and not re.search("Traceback|exitcode", result.stderr), result.stderr
    assert sentence in result.stderr
    assert sorted(path.name for path in tmp_path.glob("seen_*")) == ["seen_0_2", "seen_1_2"]


# ------------------------------------------------------------------------------------------------ README and docs/

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "split_data" / "README.md"])


def page_commands(page: Path) -> list[str]:
    """Return the command lines of a page's bash blocks, continued lines joined."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:bash|sh|shell|console)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [
        line.strip().removeprefix("$ ") for line in lines if line.strip() and not line.strip().startswith(("#", "pip "))
    ]


def split_line(line: str) -> list[tuple[dict[str, str], list[str]]]:
    """Return the commands of a line: the variables set before each, and its words without redirections."""
    commands: list[list[str]] = [[]]
    for word in shlex.split(line, comments=True):
        if word in ("|", "||", "&&", ";", "&"):
            commands.append([])
        elif not re.match(r"\d?>{1,2}", word):
            commands[-1].append(word)
    split = []
    for words in commands:
        first = next((i for i, word in enumerate(words) if not re.match(r"[A-Z_][A-Za-z0-9_]*=", word)), len(words))
        split.append((dict(word.split("=", 1) for word in words[:first]), words[first:]))
    return split


class ParsedError(Exception):
    """A program got as far as its parsed arguments."""


def parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one of the project's programs parse its command line: `train.py ...` or `-m package.module ...`."""
    if words[:2] == TORCHRUN:
        words = words[next(i for i, word in enumerate(words) if word.endswith(".py")) :]
    name = words[1] if words[0] == "-m" else words[0].removeprefix("./").removesuffix(".py")
    flags = words[2:] if words[0] == "-m" else words[1:]
    if name in config.PROGRAMS:
        config.parse(flags, program=name)
        return
    parse_args = argparse.ArgumentParser.parse_args

    def stop(*arguments: Any) -> None:
        parse_args(*arguments)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(ParsedError):
        importlib.import_module(f"{name}.__main__" if name == "demo_world" else name).main(flags)


@pytest.mark.parametrize(
    ("page", "variables", "words"),
    [(page.name, *command) for page in PAGES for line in page_commands(page) for command in split_line(line)],
    ids=lambda part: part[0] + "..." if isinstance(part, list) else part if isinstance(part, str) else "",
)
def test_every_command_of_the_pages_parses(
    page: str, variables: dict[str, str], words: list[str], stub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if words[0] == "python":
        parse(words[1:], monkeypatch)
        return
    script = ROOT / words[0]
    assert script.parent == ROOT / "scripts" and script.is_file()
    if script.name not in (
        "demo.sh",
        "setup.sh",
        "study.sh",
        "test.sh",
    ):  # seen in test_demo.py and others
        how: dict[str, Any] = {**variables}
        output = call(stub, str(script), *words[1:], **how).stdout
        programs = output.split(f"{ROOT}\n")[1:]  # of every program its folder, then its words
        assert programs
        for program in programs:
            parse(program.splitlines(), monkeypatch)


def test_the_readme_shows_the_commands_that_matter() -> None:
    text = "\n".join(page_commands(ROOT / "README.md"))
    programs = [f"scripts.{path.stem}" for path in (ROOT / "scripts").glob("*.py") if "\ndef main(" in path.read_text()]
    assert len(programs) >= 9
    for part in (
        "demo.sh",
        "test.sh",
        "train_r50os16_gtav_isw.sh",
        "valid.py",
        "predict.py",
        *set(programs) - {"scripts.launch", "scripts.real_weights"},
    ):
        assert part in text, part


def test_the_readme_lists_every_method_and_training_script() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text[text.index("| `--method` |") :].partition("\n\n")[0].splitlines()
    titles, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert {name for row in rows for name in re.findall(r"`(.+?)`", row[0])} == set(METHODS)
    listed = set()
    for row in rows:
        endings = re.findall(r"`(.+?)`", row[2])
        for backbone, sources in zip(titles[3:], row[3:], strict=True):
            ending = endings[-1 if backbone != "`r50os16`" else 0] if endings else ""
            listed |= {f"train_{backbone.strip('`')}_{source}_{ending}.sh" for source in sources.split(", ") if source}
    assert listed == {name for name in RUNS if name.startswith("train_")} - FOUNDATION.keys()
