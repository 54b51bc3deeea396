"""Imports point downwards, third-party packages are declared, options have readers, classes never see a config."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import config

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("datasets", "demo_world", "evaluation", "loss", "network", "scripts", "transforms", "utils")
PROGRAMS = ("train", "valid", "predict", "scripts")  # nothing imports what has a main
OWN = {*PACKAGES, *PROGRAMS, "batch_search", "config", "config_options", "inference", "nonfinite", "optimizer", "run"}
TYPE = "config.Config"  # builders name the type of what they unpack
ALLOWED = {  # part of the project -> what of the project it may import besides itself
    "utils": {"utils", TYPE},
    "transforms": {"utils", TYPE, "transforms"},
    "datasets": {"utils", TYPE, "transforms", "datasets"},
    "network": {"utils", TYPE, "network"},
    "loss": {"utils", TYPE, "network.outputs", "loss"},
    "optimizer": {"utils", TYPE},
    "config": {"config_options", "utils"},
    "config_options": {"utils"},
    "evaluation": {"utils", TYPE, "transforms", "datasets", "network", "loss", "evaluation"},
    "inference": {"config", "utils", "transforms", "datasets", "network", "evaluation"},
    "run": {"config", "optimizer", "utils", "transforms", "datasets", "network", "loss", "evaluation"},
    "batch_search": {"config", "run", "utils", "datasets", "nonfinite"},
    "nonfinite": {"config", "run", "utils", "datasets", "network"},
    "demo_world": {"utils", "datasets.labels", "datasets.codec", "datasets.domains", "demo_world"},
}
LAZY = {
    "cv2",
    "gradio",
    "huggingface_hub",
    "imagecorruptions",
    "imageio",
    "jinja2",
    "kmeans1d",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "peft",
    "safetensors",
    "skimage",
    "tensorboardX",
    "thop",
    "timm",
}  # imported where they are used
DISTRIBUTION = {
    "imageio_ffmpeg": "imageio-ffmpeg",
    "cv2": "opencv-python-headless",
    "imagecorruptions": "imagecorruptions-imaug",
    "PIL": "Pillow",
    "skimage": "scikit-image",
    "yaml": "PyYAML",
}
FILES = sorted(
    path
    for part in sorted(OWN)
    for path in ([ROOT / f"{part}.py"] if (ROOT / f"{part}.py").exists() else (ROOT / part).rglob("*.py"))
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    """Yield the dotted names that a file imports; `from a import b` counts as a.b."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def requirements(name: str) -> dict[str, str]:
    """Return distribution -> lower bound."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    found = [re.fullmatch(r"([\w.-]+)>=([\w.]+)", line) for line in lines if line]
    assert all(found), f"{name}: every line is NAME>=VERSION"
    return {match[1]: match[2] for match in found if match}


def test_the_walk_finds_the_project() -> None:
    assert {"config", "inference", "optimizer", "utils.errors", "train", "valid"} <= {
        module_name(path) for path in FILES
    }


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_downwards(path: Path) -> None:
    part = module_name(path).partition(".")[0]
    own = [name for name in imports(path) if name.partition(".")[0] in OWN]
    if part in PROGRAMS:  # programs may share helpers of scripts/, but never import train or valid
        wrong = [name for name in own if name.partition(".")[0] in {*PROGRAMS, "demo_world"} - {"scripts"}]
    else:
        allowed = ALLOWED[part]
        wrong = [n for n in own if not any(n == top or n.startswith(f"{top}.") for top in allowed)]
    assert not wrong, f"{module_name(path)} must not import {wrong}"
    assert part != "utils" or TYPE not in imports(path, top_level_only=True), "below config: for mypy alone"


def test_files_and_functions_stay_readable() -> None:
    long = []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        functions = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef))
        long += [f"{path.name}:{f.name}" for f in functions if (f.end_lineno or 0) - f.lineno >= 60]
        of_a_run = not {"demo_world", "scripts"} & set(path.parts)
        long += [path.name] if of_a_run and text.count("\n") > 320 else []
    assert not long, "files of a run of at most 320 lines, functions of at most 60"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_slow_or_optional_packages_are_imported_where_they_are_used(path: Path) -> None:
    wrong = {name.partition(".")[0] for name in imports(path, top_level_only=True)} & LAZY
    assert not wrong, f"{module_name(path)}: import {wrong} inside the functions that use them"


@pytest.mark.parametrize("path", [path for path in FILES if module_name(path) not in PROGRAMS], ids=module_name)
def test_classes_never_see_a_config(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            for method in (item for item in node.body if isinstance(item, ast.FunctionDef)):
                names = [arg.arg for arg in (*method.args.args, *method.args.kwonlyargs)]
                assert "cfg" not in names, f"{node.name}.{method.name}: let a builder unpack the config"


def test_every_option_has_a_reader_and_every_reader_an_option() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in FILES if module_name(path) != "config")
    sections = "|".join(config.GROUPS)
    read = {f"{section}.{name}" for section, name in re.findall(rf"\bcfg\.({sections})\.([A-Z0-9_]+)", text)}
    assert not read - set(config.KEYS), "read, but no option"
    names = {key: key.partition(".")[2] for key in set(config.KEYS) - read}
    unread = {key for key, name in names.items() if not re.search(rf"\.{name}\b|\"{name}\"", text)}
    assert not {key for key in unread if not key.endswith("_DIR")}, (
        "options that nothing reads"
    )  # rows name the folders


def test_third_party_packages_are_required_with_lower_bounds() -> None:
    optional = requirements("requirements-app.txt") | requirements("requirements-corruptions.txt")
    wanted = requirements("requirements.txt") | optional
    files = [*FILES, *(ROOT / "benchmarks").glob("*.py")]
    used = {name.partition(".")[0] for path in files for name in imports(path)} - set(sys.stdlib_module_names)
    used = {DISTRIBUTION.get(name, name) for name in used - OWN - {"benchmarks"}}
    assert used == set(wanted), "imported, but not in requirements*.txt, or the other way round"
    development = requirements("requirements-dev.txt")
    assert {"pytest", "ruff", "mypy", "hypothesis"} <= set(development) and not set(development) & set(wanted)


def test_pyproject_agrees_with_the_requirements() -> None:
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    project = toml.loads((ROOT / "pyproject.toml").read_text())
    assert "dependencies" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["dependencies"] == {"file": ["requirements.txt"]}
    lowest = re.fullmatch(r">=3\.(\d+)", project["project"]["requires-python"])
    assert lowest and project["tool"]["ruff"]["target-version"] == f"py3{lowest[1]}"
    assert project["tool"]["mypy"]["python_version"] == f"3.{lowest[1]}"
    assert f"(3, {lowest[1]})" in (ROOT / "scripts" / "setup.sh").read_text()
    wanted = requirements("requirements.txt")
    torch, torchvision = (tuple(map(int, wanted[name].split("."))) for name in ("torch", "torchvision"))
    assert torch >= (2, 6) and torchvision == (0, torch[1] + 15), "the torchvision that belongs to the torch"
