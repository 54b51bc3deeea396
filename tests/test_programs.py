"""Every program of scripts/ has one style of --help and tells its version."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils import program_parser, version

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py") if "run_entry_point(main)" in path.read_text())


def said(capsys: pytest.CaptureFixture[str], name: str, flag: str) -> str:
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(f"scripts.{name}").main([flag])
    output = capsys.readouterr()
    assert stop.value.code == 0 and not output.err
    return output.out


def test_the_programs_are_found() -> None:
    assert {"browse_data", "cache_frames", "check_data", "compare_runs", "convert_weights", "inspect_data"} < {
        *PROGRAMS
    }


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_and_version(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, name, "--version") == f"DIIA {version()}\n"
    text = said(capsys, name, "--help")
    usage, description = (" ".join(part.split()) for part in text.split("\n\n")[:2])
    assert usage.startswith(f"usage: python -m scripts.{name} [-h] [--version] ")
    assert description.endswith(".") and description.count(". ") == 0, "one sentence"


def test_help_shows_the_defaults_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    parser = program_parser("name", "Do it.", details="Slowly.")
    parser.add_argument("words", nargs="*", default=["a"], help="words")
    parser.add_argument("--size", nargs=2, default=[1, 2], help="two numbers")
    parser.add_argument("--file", default="", help="a file")
    parser.add_argument("--quick", action="store_true", help="less")
    lines = [line.strip() for line in parser.format_help().splitlines()]
    assert "--size SIZE SIZE  two numbers [1 2]" in lines and "--file FILE       a file" in lines
    assert "--quick           less" in lines and "words             words" in lines and lines[-1] == "Slowly."


START = """
import runpy, sys
name, *sys.argv[1:] = sys.argv[1:]
try:
    runpy.run_path(f"{name}.py", run_name="__main__") if "." not in name else runpy.run_module(name, None, "__main__")
finally:
    loaded = {"cv2", "matplotlib", "onnx", "timm", "torch", "torchvision"} & set(sys.modules)
    assert not loaded, f"slow imports before the flags are read: {loaded}"
"""


@pytest.mark.parametrize("flag", ["--help", "--no_such_flag"])
@pytest.mark.parametrize(
    "name", ["train", "valid", "predict", "demo_world.__main__", *(f"scripts.{n}" for n in PROGRAMS)]
)
def test_help_and_wrong_flags_do_not_wait_for_torch(name: str, flag: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", START, name, flag], cwd=ROOT, check=False, timeout=60, capture_output=True, text=True
    )
    assert "slow imports" not in done.stderr
    code, said, silent = (0, done.stdout, done.stderr) if flag == "--help" else (2, done.stderr, done.stdout)
    assert done.returncode == code and not silent, done.stderr
    assert ("usage: python " if flag == "--help" else "error: ") in said


@pytest.mark.parametrize("flags", [["--quick"], ["--quick", "--json"]])
def test_a_quick_check_does_not_wait_for_torch(tmp_path: Path, flags: list[str]) -> None:
    code = "import sys; from scripts import check_data\ntry: check_data.main(sys.argv[1:])\nfinally: "
    code += "assert 'torch' not in sys.modules"
    opts = ["--opts", f"DATASET.CAMVID_DIR={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", code, "camvid", *flags, *opts], cwd=ROOT, env=os.environ, check=False, timeout=60,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and not done.stderr and "no-images" in done.stdout
