"""The page of a report: what it holds, that nothing in it can run, and how a browser shows it."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import train
from datasets.domains import BUILTIN
from datasets.labels import CLASS_NAMES, IGNORE, PALETTE
from evaluation.examples import Example, rank_frames
from evaluation.metrics import score
from evaluation.page import About, Mask, history_curves, make_page
from evaluation.report import Evaluation, Report, domain_scores
from network.diia import DIIASegmentor
from tests.runs import run_folder, train_arguments
from utils.errors import UserError
from utils.pictures import Picture, colorize

EVIL = "<script>alert(1)</script>"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Reader(HTMLParser):
    """Collects tags with their attributes, and the text outside of styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def pictures(self) -> Iterator[Image.Image]:
        for tag, attributes in self.tags:
            if tag == "img":
                kind, _, content = (attributes["src"] or "").partition(";base64,")
                assert kind in ("data:image/png", "data:image/jpeg")
                yield Image.open(io.BytesIO(base64.b64decode(content)))


def counts(seed: int) -> np.ndarray:
    """Return a confusion matrix (19, 19) whose diagonal is the largest."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 50, (19, 19)) + 900 * np.eye(19, dtype=np.int64)


def example(rank: str, size: tuple[int, int] = (90, 160)) -> Example:
    rng = np.random.default_rng(3)
    truth, prediction = (np.kron(rng.integers(0, 19, (9, 16)), np.ones((10, 10), int)).astype(np.uint8) for _ in "ab")
    truth[:10] = IGNORE
    image = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
    edge = rng.random(size).astype(np.float32)
    return Example(rank, f"{EVIL}_{rank}.png", score(counts(1), CLASS_NAMES), (image, truth, prediction), edge, truth)


def page(folder: Path, *, evil: str = EVIL) -> str:
    """Return a page of three domains with everything that a page can have, bad names in every place."""
    rows = []
    for seed, name in enumerate((evil, "town", "home")):
        split: Any = SimpleNamespace(
            domain=replace(BUILTIN["cityscapes"], name=name), name="val", pairs=("a", "b"), list_hash="abc123"
        )
        options: Any = {"is_source": name == "home", "transform": f"native size {evil}", "findings": [f"bad: {evil}"]}
        rows += domain_scores(Evaluation(counts(seed), loss=float("nan")), split, **options)
    lines = [{"step": step, "loss/train_loss": 3 / step, f"{evil}/mean_iu": 0.1 * step} for step in (1, 2, 3)]
    folder.mkdir(exist_ok=True)
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "command.txt").write_text(f"train.py --exp {evil}\n")
    (folder / "versions.json").write_text(json.dumps({"torch": evil}))
    mask = np.triu(np.random.default_rng(0).random((300, 300)) < 0.02, 1)
    return make_page(
        Report({"file": evil, "method": "diia", "network": evil, "seed": 304}, rows),
        About(folder, {"AUGMENT.JITTER": evil}, f"valid.py {evil}", {"torch": "2.9"}),
        examples=[[example(rank) for rank in ("best", "median", "worst")] for _ in rows],
        masks=[Mask("stage1", mask)],
        plots=[Picture("town/reliability", "", np.zeros((560, 480, 3), np.uint8))],
    )


def test_names_come_out_escaped_and_nothing_is_loaded(tmp_path: Path) -> None:
    text = page(tmp_path)
    found = Reader(text)
    assert "script" not in {tag for tag, _ in found.tags} and EVIL not in text
    assert "".join(found.words).count(EVIL) >= 20, "in headings, tables, captions, the curve's legend, commands"
    allowed = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, not addresses
    linked = [value for _, attributes in found.tags for key, value in attributes.items() if key in ("src", "href")]
    assert all(value and value.startswith(("data:", "#")) for value in linked)
    assert set(re.findall(r"https?://[^\"'<> ]+", re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S))) <= allowed
    assert not re.search(r"\burl\((?!#)|@import|\son\w+=", text)


def test_tables_pictures_and_numbers(tmp_path: Path) -> None:
    text = page(tmp_path, evil="night")
    found = Reader(text)
    assert len(list(found.pictures())) == 3 * 3 * 6 + 1 + 1, "six panels a frame, a mask, a diagram"
    assert all(picture.width <= 512 for picture in found.pictures())
    shown = list(found.pictures())[1].convert("RGB")  # the truth of the first frame
    assert (np.asarray(shown) == colorize(example("best").frame[1], palette=PALETTE)).all()
    assert len(text) < 5e6 and text.count("<svg") == 2
    matrix, shares = counts(1), counts(1) / counts(1).sum(axis=1, keepdims=True)
    words = " ".join(" ".join(found.words).split())
    assert f"{100 * matrix[0].sum() / matrix.sum():.2f}" in words, "the share of the road's pixels"
    diagonal = re.findall(r'class="d[^"]*" style="--p:[\d.]+">(\d+)<', text)[19:38]
    assert [int(value) for value in diagonal] == [round(100 * share) for share in np.diag(shares)]
    bars = re.findall(r'<td class="bar" style="--w:([\d.]+)%">([\d.]+)</td>', text)
    assert bars[0][0] == str(round(float(bars[0][1]), 1))
    mask = np.triu(np.random.default_rng(0).random((300, 300)) < 0.02, 1)
    assert f"{mask.sum()} of 44,850, {100 * mask.sum() / 44850:.1f} %" in words
    for sentence in ("mean over targets", "train.py --exp night", "valid.py night", "AUGMENT.JITTER", "list abc123"):
        assert sentence in words


@pytest.mark.parametrize("content", ["", "[1]", "null", "\x00"])
def test_a_file_of_another_program_has_no_versions(content: str, tmp_path: Path) -> None:
    (tmp_path / "versions.json").write_text(content)
    assert About(tmp_path, {}, "valid.py", {"torch": "2.9"}).packages() == {"evaluation": {"torch": "2.9"}}


def test_commands_of_a_resumed_run_stand_in_their_order(tmp_path: Path) -> None:
    for name in ("command", "command.from-step-1000", "command.from-step-40"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\n")
    wanted = "command\ncommand.from-step-40\ncommand.from-step-1000"
    assert About(tmp_path, {}).commands() == {"training": wanted}


def test_frames_are_ranked_by_their_own_mean_iou() -> None:
    hits = [3, 9, 1, 7, 5]
    confusions = np.zeros((7, 19, 19), np.int64)
    for index, right in enumerate(hits):
        confusions[index, 0, 0], confusions[index, 0, 1] = right, 10 - right
    confusions[6, 18, 18] = 10  # of a class that is not scored: as good as the sixth, which has no labelled pixel
    assert rank_frames(confusions, classes=(0, 1)) == {"best": 1, "median": 4, "worst": 2}
    assert rank_frames(confusions[:1], classes=(0, 1)) == {"best": 0}
    assert rank_frames(confusions[:2], classes=(0, 1)) == {"best": 1, "worst": 0}
    assert rank_frames(confusions[5:], classes=(0, 1)) == {}


def test_curves_follow_the_colours_of_the_page() -> None:
    (losses,) = history_curves([{"step": 1, "loss/aux": 2.0}, {"step": 2, "loss/aux": 1.0, "optim/lr": 0.1}])
    assert losses.startswith("<svg") and "currentColor" in losses and "#000000" not in losses
    assert ">aux</text>" in losses and "optim" not in losses and history_curves([]) == []


def test_a_training_ends_with_its_page(small_camvid: Path, tmp_path: Path) -> None:
    train.main(train_arguments(small_camvid, tmp_path, "--method", "diia", "--max_iter", "1", "--pictures", "0"))
    folder = run_folder(tmp_path)
    found = Reader((folder / "scores" / "report.html").read_text())
    words = " ".join(" ".join(found.words).split())
    for word in ("diia trained on camvid", "best", "median", "worst", "coarse layout", "edge map", "OPTIM.MAX_ITER"):
        assert word in words
    assert not (folder / "scores" / "per_image.npz").exists()
    (row,) = json.loads((folder / "scores" / "scores.json").read_text())["domains"]
    assert words.count(f"{100 * row['scores']['mean_iou']:.2f}") >= 2, "in the summary and below the classes"


@pytest.mark.parametrize("flags", [("--eval_protocol", "half"), ("--scales", "0.5", "1")])
def test_the_branches_are_shown_of_images_as_they_are_alone(
    flags: tuple[str, ...], small_camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others would take more memory than the scores did."""
    monkeypatch.setattr(DIIASegmentor, "forward", tripped(DIIASegmentor.forward, UserError("too large")))
    train.main(train_arguments(small_camvid, tmp_path, "--method", "diia", "--max_iter", "1", *flags))
    assert "edge map" not in (run_folder(tmp_path) / "scores" / "report.html").read_text()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"),
        UserError("a frame is gone"),
    ],
)
def test_a_page_that_fails_costs_no_scores(
    error: Exception, small_camvid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DIIASegmentor, "forward", tripped(DIIASegmentor.forward, error))
    arguments = train_arguments(small_camvid, tmp_path, "--method", "diia", "--max_iter", "1")
    if isinstance(error, UserError):
        with pytest.raises(UserError, match="a frame is gone"):
            train.main(arguments)
    else:
        train.main(arguments)
        assert "median" in (run_folder(tmp_path) / "scores" / "report.html").read_text(), "without the branches"
    assert {"scores", "best_source.pth", "last.pth"} <= {path.name for path in run_folder(tmp_path).iterdir()}
    assert (run_folder(tmp_path) / "scores" / "scores.json").exists()


def tripped(forward: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    """Return a forward that raises in evaluation mode, which of a whole pass the page alone takes."""

    def run(network: DIIASegmentor, images: torch.Tensor) -> Any:
        if not network.training:
            raise error
        return forward(network, images)

    return run


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed to render the page")
@pytest.mark.parametrize(("width", "scheme"), [(400, 0), (1400, 1)])
def test_a_browser_shows_it_without_overflow(tmp_path: Path, width: int, scheme: int) -> None:
    """A frame of the width, since windows have a least one; the page is dark where the system is (scheme 0)."""
    (tmp_path / "report.html").write_text(page(tmp_path))
    probe = (
        f"<iframe id='f' style='border:0;width:{width}px;height:900px' src='report.html'></iframe><pre id='o'></pre>"
        "<script>onload=()=>{const d=document.getElementById('f').contentDocument,e=d.documentElement;"
        "document.getElementById('o').textContent=JSON.stringify({wide:e.scrollWidth,paper:getComputedStyle(d.body)"
        ".backgroundColor,broken:[...d.images].filter(i=>!i.naturalWidth).length,height:e.scrollHeight})}</script>"
    )
    (tmp_path / "probe.html").write_text(probe)
    assert BROWSER is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", f"--blink-settings=preferredColorScheme={scheme}"]
    command = [BROWSER, *flags, (tmp_path / "probe.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    match = re.search(r"<pre id=\"o\">(.*?)</pre>", done.stdout, re.S)
    assert match, done.stdout[-2000:]
    shown = json.loads(match[1])
    assert shown["wide"] <= width and shown["broken"] == 0 and shown["height"] > 1500
    assert shown["paper"] == ("rgb(20, 23, 27)" if scheme == 0 else "rgb(255, 255, 255)")
