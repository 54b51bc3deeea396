"""Folders of weights with a model card, here and on a hub: written, read everywhere, refused in one sentence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import config
import predict
import train
import valid
from inference import load
from network.pretrained import load_pretrained
from scripts import export
from tests.runs import train_arguments
from tests.test_export import write_checkpoint
from tests.test_inference import STREET
from tests.test_layering import ROOT
from tests.test_other_user import give_away
from tests.test_timm_weights import Hub, network_of
from utils import checkpoint
from utils.errors import UserError

COMMIT = 40 * "0"
LOAD = """
import json, sys, time
from inference import load
from network.pretrained import load_pretrained
from tests.test_inference import STREET
from tests.test_timm_weights import network_of
from utils.errors import UserError
for name in sys.argv[1:]:
    start = time.monotonic()
    try:
        if name.startswith("hf://"):
            said = load(name, device="cpu").segment(STREET).tolist()
        else:
            said = load_pretrained(network_of(name), "timm")
    except UserError as error:
        said = str(error)
    print(json.dumps([said, time.monotonic() - start]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, full_camvid: Path) -> Path:
    """A checkpoint with scores, and what --format hub makes of it."""
    folder = tmp_path_factory.mktemp("hub")
    write_checkpoint(folder / "last.pth", "lora")
    data = ["--val_dataset", "camvid", "--device", "cpu", "--pictures", "0", "--num_workers", "0"]
    valid.main(["--snapshot", str(folder / "last.pth"), *data, "--opts", f"DATASET.CAMVID_DIR={full_camvid}"])
    own = folder / "scores_last_val" / "scores.json"
    content = json.loads(own.read_text())
    content["weights"]["epoch"] += 1  # as of an evaluation at the end of an epoch, before which the next one is saved
    own.write_text(json.dumps(content))
    for name, change in (("scores_other", {"step": 41}), ("scores_best", {"file": "best_source.pth"})):
        content = json.loads(own.read_text())
        content["weights"] |= change
        (folder / name).mkdir()
        (folder / name / "scores.json").write_text(json.dumps(content))
        (folder / name / "scores.md").write_text("of other weights")
    (folder / "scores_torn").mkdir()
    (folder / "scores_torn" / "scores.json").write_text('{"weights"')
    export.main([str(folder / "last.pth"), "--format", "hub", "--license", "mit", "--size", "64", "96"])
    return folder / "last_hub"


def test_the_folder_says_what_it_is(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    facts = json.loads((folder / "config.json").read_text())
    assert facts["kind"] == "exported" and facts["progress"]["step"] == 40 and facts["method"] == "base"
    assert config.from_dict(facts["config"], source="it").NETWORK.BACKBONE == "timm/test_vit"
    assert {value.dtype for value in load_file(folder / "model.safetensors").values()} <= {torch.float32, torch.int64}
    report = json.loads(folder.with_name("last_hub.json").read_text())
    assert report["file"] == "last_hub" and report["equal_labels"] == 1 and report["largest_logit_difference"] < 1e-4
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    told: dict[str, Any] = yaml.safe_load(head)
    assert (told["license"], told["library_name"], told["pipeline_tag"]) == ("mit", "diia", "image-segmentation")
    assert {"semantic-segmentation", "base", "timm/test_vit"} <= {*told["tags"]}
    rows = {cells[1].strip(): cells[2].strip() for line in text.splitlines() if len(cells := line.split("|")) == 4}
    assert (rows["method"], rows["source"], rows["step"], rows["weights"]) == ("base", "gtav", "40", "float32")
    assert "0.5 0.4 0.3" in rows["normalisation"].replace(",", "") and "full" not in rows["checkpoint"]
    (row,) = json.loads((folder.parent / "scores_last_val" / "scores.json").read_text())["domains"]
    assert f"{100 * row['scores']['mean_iou']:.2f}" in text and row["protocol"]["list_hash"] in text
    assert "of other weights" not in text
    assert str(folder.parent) not in text and "Weights: file last.pth, " in text
    assert "native size" in text and "None were found" not in text


def test_the_folder_is_taken_wherever_weights_are(folder: Path, full_camvid: Path, tmp_path: Path) -> None:
    expected = load(folder.parent / "last.pth", device="cpu").segment(STREET)
    np.testing.assert_array_equal(load(folder, device="cpu").segment(STREET), expected)
    Image.fromarray(STREET).save(tmp_path / "street.png")
    predict.main([str(folder), str(tmp_path / "street.png"), "--out", str(tmp_path / "seen"), "--device", "cpu"])
    seen = np.asarray(Image.open(tmp_path / "seen" / "train_ids" / "street.png"))
    np.testing.assert_array_equal(seen, expected)
    data = ["--val_dataset", "camvid", "--device", "cpu", "--pictures", "0", "--num_workers", "0"]
    valid.main(["--snapshot", str(folder), *data, "--opts", f"DATASET.CAMVID_DIR={full_camvid}"])
    found, wanted = (
        json.loads((folder.parent / f"scores_{name}_val" / "scores.json").read_text())["domains"]
        for name in ("last_hub", "last")
    )
    assert found == wanted
    network = ["--backbone", "timm/test_vit", "--method", "base", "--max_iter", "1"]
    for flag in ("--snapshot", "--pretrained"):
        train.main(train_arguments(full_camvid, tmp_path / flag, *network, flag, str(folder)))
    export.main([str(folder), "--format", "hub", "--out", str(tmp_path / "again"), "--size", "64", "96"])
    again, first = (load_file(path / "model.safetensors") for path in (tmp_path / "again", folder))
    assert again.keys() == first.keys() and all(torch.equal(again[name], first[name]) for name in first)
    dotted = shutil.copytree(folder, tmp_path / "net_v1.2")
    export.main([str(dotted), "--format", "safetensors", "--size", "64", "96"])
    assert (tmp_path / "net_v1.2.safetensors").exists(), "and not net_v1.safetensors, which is that of net_v1.3 too"
    card = (tmp_path / "again" / "README.md").read_text()
    assert "license: unknown" in card and "None were found beside the checkpoint." not in card, "its own scores"


def test_only_its_own_files_are_replaced(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "repository"
    out.mkdir()
    (out / "mine.txt").write_text("precious")
    arguments = [str(folder), "--format", "hub", "--out", str(out), "--size", "64", "96"]
    with pytest.raises(UserError, match="repository: exists already; name another one by --out or add --overwrite"):
        export.main(arguments)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    export.main([*arguments, "--overwrite"])
    assert (out / "mine.txt").read_text() == "precious" and checkpoint.read(out)["kind"] == "exported"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["repository", "repository.json"]


def test_the_working_folder_is_a_place_as_any_other(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place := tmp_path / "net").mkdir()
    monkeypatch.chdir(place)
    export.main([str(folder), "--format", "hub", "--out", ".", "--overwrite", "--size", "64", "96"])
    assert checkpoint.read(".")["kind"] == "exported" and not [*place.glob("*.hub*"), *place.glob(".json")]
    for name in ".", "../net", "../net/":
        export.main([name, "--format", "safetensors", "--overwrite", "--size", "64", "96"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "net", "net.json", "net.safetensors", "net.safetensors.json"
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "way"), [("lora", "merge them by python -m scripts.export"), ("rein", "they cannot")])
def test_adapters_are_no_pretrained_backbone(name: str, way: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "last.pth", name)
    network = network_of("test_vit")
    with pytest.raises(UserError, match=f"has the adapters of --tune {name}, this run has --tune full; {way}"):
        load_pretrained(network, str(tmp_path / "last.pth"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "a folder without config.json and model.safetensors is none of weights; give a weight file, or a folder"),
        ({"model.safetensors": None}, "a folder without config.json is none of weights"),
        ({"config.json": "{}"}, "a folder without model.safetensors is none"),
        ({"config.json": "{,", "model.safetensors": None}, "its config.json is no JSON"),
        ({"config.json": "[]", "model.safetensors": None}, "config.json is of another program, config, kind, progress"),
        ({"config.json": None, "model.safetensors": "text"}, "not a readable weight file of tensors and plain values"),
        ({"config.json": "resnet18", "model.safetensors": None}, "does not fit what --arch or .*Missing key"),
    ],
)
def test_other_folders_are_refused(files: dict[str, str | None], message: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.mkdir()
    for name, text in files.items():
        (path / name).write_bytes((folder / name).read_bytes() if text is None else text.encode())
    if files.get("config.json") == "resnet18":
        content = json.loads((folder / "config.json").read_text())
        content["config"]["NETWORK"]["BACKBONE"] = "resnet18"
        (path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"^{path}: .*{message}"):
        load(path, device="cpu")


class Models(Hub):
    """Answers as a hub that lists its files too."""

    def do_GET(self) -> None:  # noqa: N802
        self.path = self.path.replace(f"/resolve/{COMMIT}/", "/resolve/main/")
        words = self.path.partition("?")[0].strip("/").split("/")  # api models OWNER NAME [tree or revision, which]
        listed = words[0] == "api" and len(words) > 3
        files = sorted((self.folder / words[2] / words[3]).glob("*")) if listed else []
        if not files or words[-1] not in (words[3], "main", COMMIT):
            return super().do_GET()
        self.asked.append(f"{self.command} {self.path}")
        tree = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f.name.encode().hex()} for f in files]
        about = {"id": "/".join(words[2:4]), "sha": COMMIT, "siblings": [{"rfilename": file.name} for file in files]}
        data = json.dumps(tree if "tree" in words else about).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        return None

    do_HEAD = do_GET  # noqa: N815


@pytest.fixture
def hub(folder: Path, tmp_path: Path) -> Iterator[tuple[str, type[Hub]]]:
    """Address of a hub on this machine that has the folder as our/last_hub, and its handler."""
    root = tmp_path / "served"
    root.mkdir()
    (root / "our").symlink_to(folder.parent)
    handler = type("Handler", (Models,), {"folder": root, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()


def test_a_hub_is_asked_once_and_not_waited_for(hub: tuple[str, type[Hub]], folder: Path, tmp_path: Path) -> None:
    address, handler = hub
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE"))}
    env |= {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "no_proxy": "127.0.0.1"}
    run = partial(subprocess.run, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=True)
    expected = load(folder, device="cpu").segment(STREET).tolist()

    def said(endpoint: str, *names: str) -> list[tuple[Any, float]]:
        done = run([sys.executable, "-c", LOAD, *names], env=env | {"HF_ENDPOINT": endpoint})
        assert "Retrying" not in done.stderr
        return [tuple(json.loads(line)) for line in done.stdout.splitlines()]

    ours, absent = "hf://our/last_hub", "hf://our/none"
    (found, _), (other, _), (revision, _) = said(address, ours, absent, f"{ours}@v7")
    assert found == expected
    assert "GET /our/last_hub/resolve/main/model.safetensors" in handler.asked
    assert not [line for line in handler.asked if "README" in line and "resolve" in line], "not needed"
    assert other.startswith(f"{absent}: cannot be downloaded (") and "404" in other
    assert revision.startswith(f"{ours}@v7: cannot be downloaded (")
    away = "http://127.0.0.1:9"
    (found, _), (exact, _), *missing = said(away, ours, f"{ours}@{COMMIT}", absent, f"{absent}@{COMMIT}", "test_resnet")
    assert found == exact == expected, "from the cache"
    for text, seconds in missing:
        assert f"({away} does not answer, " in text and " does not hold it: " in text and "give" in text
        assert seconds < 5
    assert missing[0][0].startswith(f"{absent}: cannot be downloaded")


def test_a_cache_of_another_user_is_read_or_one_sentence(
    hub: tuple[str, type[Hub]], folder: Path, tmp_path: Path
) -> None:
    expected, names = load(folder, device="cpu").segment(STREET).tolist(), ["hf://our/last_hub", "test_resnet"]
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE"))}
    env |= {"HF_ENDPOINT": hub[0], "PYTHONPATH": str(ROOT), "no_proxy": "127.0.0.1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", LOAD, *names]
    run = partial(subprocess.run, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=True)
    run(command, env=env | {"HF_HOME": str(tmp_path / "filled")})
    if os.getuid() == 0:  # who else may do all with the files of others
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner", *command]
    for name in ("closed", "filled"):
        for path in (tmp_path / name, *(tmp_path / name).rglob("*")):
            give_away(*([] if path.is_file() else [path]))
        said = run(command, env=env | {"HF_HOME": str(tmp_path / name)}).stdout.splitlines()
        (weights, _), (timm, _) = map(json.loads, said)
        if name == "filled":
            assert weights == expected, weights
        else:
            assert weights.startswith("hf://our/last_hub: cannot be downloaded (") and "ermission" in weights, weights
            assert timm.startswith("--pretrained timm: timm cannot load") and "ermission" in timm, timm


def test_names_on_a_hub() -> None:
    for name in ("hf://only", "hf://a/b/c", "hf:///a"):
        with pytest.raises(UserError, match=f"^{name}: weights on the hub are named hf://OWNER/NAME or hf://"):
            checkpoint.read(name)
    for name in ("hf://our/net", "hf://our/net@v1"):
        cfg = config.parse(["--snapshot", name], program="valid")
        assert valid.result_folder(cfg) == Path(f"scores_{name.rpartition('/')[2]}_val")
    names = "run/last.pth run/last.onnx run/last.safetensors nets/isw_v1.2 nets/isw_v1.3 hf://our/net@v1.2".split()
    found = [str(valid.result_folder(config.parse([name], program="valid"))) for name in names]
    assert found[0] == "run/scores_last_val" and len({*found}) == len(names), "one replaces the scores of another"
