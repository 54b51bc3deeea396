"""Files from elsewhere run no code, claim no more than a limit, and lead nowhere; pages show their names as text."""

from __future__ import annotations

import ast
import csv
import io
import json
import os
import pickle
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import inference
from datasets import files
from datasets.codec import read_image, read_photo
from datasets.domains import BUILTIN
from datasets.files import members, read_bytes
from evaluation.report import Evaluation, Report, domain_scores
from network.pretrained import load_pretrained
from scripts import browse_data, check_data, convert_weights, export
from tests import reference
from tests.runs import save_random
from tests.street_data import blocks, save, write_pair
from tests.test_layering import FILES, ROOT
from tests.test_report import split
from utils import checkpoint
from utils.errors import UserError

# ---------------------------------------------------------------------------------- what the code never does

PROGRAM = [*FILES, *(ROOT / "benchmarks").glob("*.py")]


def unsafe(tree: ast.AST) -> list[str]:
    """Calls and imports through which a file or a text could run code."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [*(alias.name for alias in node.names), getattr(node, "module", None) or ""]
            found += [name for name in names if name.split(".")[0] in ("pickle", "shelve", "marshal", "dill", "joblib")]
        if not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        wrong = name in (
            "eval",
            "exec",
            "compile",
            "__import__",
            "os.system",
            "os.popen",
            "yaml.load",
            "torch.hub.load",
        )
        wrong |= name == "torch.load" and given.get("weights_only") != "True"
        wrong |= name == "np.load" and given.get("allow_pickle") != "False"
        wrong |= given.get("shell") == "True" or given.get("allow_pickle") == "True"
        found += [name] * wrong
    return found


@pytest.mark.parametrize("path", PROGRAM, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_in_the_program_runs_what_it_reads(path: Path) -> None:
    assert not unsafe(ast.parse(path.read_text(encoding="utf-8")))


def test_the_search_would_find_it() -> None:
    lines = [
        "import pickle",
        "from pickle import load",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "eval(x)",
    ]
    lines += ["yaml.load(f)", "subprocess.run(x, shell=True)", "np.load(f)", "np.savez(f, allow_pickle=True)"]
    assert all(unsafe(ast.parse(line)) for line in lines)
    assert not unsafe(ast.parse("network.eval(); torch.load(f, weights_only=True); np.load(f, allow_pickle=False)"))


# ---------------------------------------------------------------------------------- weight files


class Payload:
    """Touches a file where it is unpickled, in one of three ways."""

    def __init__(self, target: Path, way: str) -> None:
        self.target, self.way = target, way

    def __reduce__(self) -> tuple[Any, ...]:
        code = f"open({str(self.target)!r}, 'w').close()"
        calls = {"eval": eval, "exec": exec, "system": os.system}
        return calls[self.way], (f"touch '{self.target}'" if self.way == "system" else code,)


@pytest.mark.parametrize("way", ["eval", "exec", "system"])
@pytest.mark.parametrize("place", ["whole", "entry", "config", "optimizer", "legacy", "bare pickle"])
def test_a_payload_is_never_executed(place: str, way: str, tmp_path: Path) -> None:
    touched, file = tmp_path / "touched", tmp_path / "evil.pth"
    evil: Any = Payload(touched, way)
    pickle.loads(pickle.dumps(evil))
    assert touched.exists(), "it does work"
    touched.unlink()
    parts: dict[str, Any] = {part: {} for part in checkpoint.KEYS - {"schema"}} | {"schema": 2, "kind": "last"}
    parts["network"] = {"a": torch.ones(2)}
    content = {
        "entry": {"state_dict": {"module": {"conv1.weight": torch.ones(1), "x": evil}}},
        "config": parts | {"config": {"RUN": {"SEED": evil}}},
        "optimizer": parts | {"optimizer": {"state": {0: [evil]}}},
    }.get(place, evil)
    if place == "bare pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=place != "legacy")
    calls = (
        lambda: checkpoint.read_checkpoint(file),
        lambda: inference.load(file),
        lambda: export.load(str(file)),
        lambda: convert_weights.main([str(file), "--out", str(tmp_path / "out.pth")]),
        lambda: load_pretrained(reference.small_network("base"), str(file)),
    )
    for call in calls:
        with pytest.raises(UserError, match=r"evil\.pth: not a readable weight file") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not touched.exists() and [path.name for path in tmp_path.iterdir()] == ["evil.pth"]


def test_a_graph_with_weights_elsewhere_is_no_weight_file(tmp_path: Path) -> None:
    import onnx

    secret = tmp_path / "secret"
    secret.write_bytes(bytes(64))
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[16], data_location="EXTERNAL")
    for key, value in (("location", "../secret"), ("offset", "0"), ("length", "64")):
        tensor.external_data.add(key=key, value=value)
    graph = onnx.helper.make_graph([], "g", [], [], [tensor])
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside/a.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with zipfile.ZipFile(tmp_path / "inside/a.pt2", "w") as archive:
        archive.writestr("../../escaped", "x")
        archive.writestr("archive/data.pkl", pickle.dumps(Payload(tmp_path / "touched", "exec")))
        archive.writestr("archive/version", "3")
    for name in ("a.onnx", "a.pt2"):
        with pytest.raises(UserError, match=f"{name}: not a readable weight file"):
            checkpoint.read(tmp_path / "inside" / name)
        with pytest.raises(UserError, match=f"{name}: is no model that can be opened"):
            inference.load(tmp_path / "inside" / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inside", "secret"]


def test_texts_of_a_safetensors_file_are_checked_as_settings(tmp_path: Path) -> None:
    save_random(tmp_path / "w.pth", "--backbone", "mobilenet_v2", "--method", "base")
    content = checkpoint.read(tmp_path / "w.pth")
    for config, words in (({"RUN": {"NOTHING": 1}}, "NOTHING"), ({"NETWORK": {"ARCH": "os.system"}}, "os.system")):
        facts = {
            "schema": "2",
            "kind": '"last"',
            "progress": json.dumps({"epoch": 0}),
            "versions": "{}",
            "config": json.dumps(config),
        }
        save_file(content["network"], file := tmp_path / "w.safetensors", facts)
        with pytest.raises(UserError, match=words):
            inference.load(file)


# ---------------------------------------------------------------------------------- archives and images


def test_limits_are_stated_and_can_be_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(archive := tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for number in range(3):
            file.writestr(f"{number}.png", bytes(5_000_000))
    assert archive.stat().st_size < 50_000
    monkeypatch.setenv("DIIA_MAX_MEMBER_BYTES", "4999999")
    with pytest.raises(
        UserError, match=r"a.zip/1.png: has 5,000,000 bytes .* limit of 4,999,999; .*DIIA_MAX_MEMBER_BYTES"
    ):
        read_bytes(f"{archive}/1.png")
    monkeypatch.setenv("DIIA_MAX_MEMBERS", "2")
    with pytest.raises(UserError, match=r"a.zip: holds 3 files, above the limit of 2; .*DIIA_MAX_MEMBERS"):
        members(str(archive))
    monkeypatch.setenv("DIIA_MAX_MEMBER_BYTES", "5000000")
    monkeypatch.setenv("DIIA_MAX_MEMBERS", "3")
    assert len(members(str(archive))) == 3 and len(read_bytes(f"{archive}/1.png")) == 5_000_000
    monkeypatch.setenv("DIIA_MAX_MEMBERS", "many")
    with pytest.raises(UserError, match="DIIA_MAX_MEMBERS: must be a whole number, not 'many'"):
        members(str(archive))


def test_an_image_of_many_pixels_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Image.MAX_IMAGE_PIXELS
    monkeypatch.setenv("DIIA_MAX_PIXELS", "6000")
    files._limit_pixels.cache_clear()
    try:
        save(tmp_path / "below.png", np.zeros((60, 100, 3), np.uint8))
        save(tmp_path / "above.png", np.zeros((61, 100, 3), np.uint8))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert read_image(str(tmp_path / "below.png")).shape == (60, 100, 3)
        for read in (read_image, read_photo):
            with pytest.raises(UserError, match=r"above.png: has more than 6,000 pixels, .*DIIA_MAX_PIXELS"):
                read(str(tmp_path / "above.png"))
    finally:
        Image.MAX_IMAGE_PIXELS = before
        files._limit_pixels.cache_clear()
    assert files.LIMITS["DIIA_MAX_PIXELS"] > 100_000_000


# ---------------------------------------------------------------------------------- names in pages

NAME = "<script>alert(1)<script>|x.png"


def test_names_of_files_are_text_wherever_they_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "camvid"
    for number in range(2):
        write_pair(root, "camvid", "train", number, blocks(number))
    for folder in ("train", "trainannot"):
        (root / folder / "00001.png").rename(root / folder / NAME)
    opts = ("--opts", f"DATASET.CAMVID_DIR={root}")
    browse_data.main(["camvid", "--count", "2", "--out", str(tmp_path / "sheet.png"), *opts])
    assert Image.open(tmp_path / "sheet.png").format == "PNG"
    (root / "trainannot" / NAME).unlink()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        check_data.main(["camvid", "--json", *opts])
    faults = json.loads(capsys.readouterr().out)["domains"][0]["faults"]
    (examples,) = (fault["examples"] for fault in faults if fault["name"] == "missing-label")
    assert examples == [f"train/{NAME} without trainannot/{NAME}"]

    evaluation = Evaluation(np.eye(19, dtype=np.int64), loss=0.5)
    row = domain_scores(evaluation, split(replace(BUILTIN["gtav"])), is_source=False, transform="", findings=[NAME])[0]
    report = Report({"file": NAME, "checkpoint": "=HYPERLINK(1)", "step": 1, "seed": 2}, [row])
    assert "<script" not in report.to_markdown() and "&lt;script&gt;" in report.to_markdown()
    cells = [cell for line in csv.reader(io.StringIO(report.to_csv())) for cell in line]
    assert "'=HYPERLINK(1)" in cells and not [cell for cell in cells if cell[:1] in ("=", "+", "@", "\t")]
    assert json.loads(report.to_json())["weights"]["checkpoint"] == "=HYPERLINK(1)"
