"""Curves of runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from scripts import plot_runs
from utils.errors import UserError
from utils.logs import MetricWriter, read_history


def test_runs_become_a_picture(tmp_path: Path) -> None:
    for name in ("one", "two"):
        folder = tmp_path / name / "time"
        folder.mkdir(parents=True)
        lines = [{"step": step, "loss/train_loss": 3.0 / step, "town/mean_iu": 0.1 * step} for step in (1, 2, 3)]
        (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "curves.png"
    plot_runs.main([str(tmp_path / "one" / "time"), str(tmp_path / "two" / "time"), "--out", str(out)])
    picture = np.asarray(Image.open(out).convert("RGB"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
    with pytest.raises(UserError, match="no history"):
        plot_runs.plot_curves([tmp_path], out)
    for bad in ("curves.png/below.png", "curves.what"):
        with pytest.raises(UserError, match=f"--out .*{bad}: the picture cannot be written"):
            plot_runs.plot_curves([tmp_path / "one" / "time"], tmp_path / bad)
    plot_runs.plot_curves([tmp_path / "one" / "time"], tmp_path / "new" / "curves.pdf")
    assert (tmp_path / "new" / "curves.pdf").read_bytes().startswith(b"%PDF")
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, str]]:
    """Colours of the lines by panel and label, once a picture is about to be written, which ends there."""
    panels = dict[str, dict[str, str]]()

    def keep(figure: Figure, *_: object, **__: object) -> None:
        for panel in figure.axes:
            panels[panel.get_title()] = {str(line.get_label()): str(line.get_color()) for line in panel.lines}
        raise OSError("enough")

    monkeypatch.setattr(Figure, "savefig", keep)
    return panels


def test_a_run_has_one_colour_and_panels_are_chosen(tmp_path: Path, drawn: dict[str, dict[str, str]]) -> None:
    folders = [tmp_path / "base" / "0101", tmp_path / "isw" / "0101"]
    for folder, tags in zip(folders, (("loss/fused",), ("loss/fused", "loss/whitening", "town/mean_iu")), strict=True):
        folder.mkdir(parents=True)
        (folder / "history.jsonl").write_text(json.dumps({"step": 1, **dict.fromkeys(tags, 1.0)}) + "\n")

    with pytest.raises(UserError, match="enough"):
        plot_runs.plot_curves(folders, tmp_path / "curves.png", panels=("loss/",))
    assert drawn == {"loss/fused": {"base": "C0", "isw": "C1"}, "loss/whitening": {"isw": "C1"}}
    with pytest.raises(UserError, match="--panels miou: in no name; the panels are loss/fused, loss/whitening, town"):
        plot_runs.main([*map(str, folders), "--panels", "miou"])


def test_runs_of_one_name_are_told_apart(tmp_path: Path, drawn: dict[str, dict[str, str]]) -> None:
    folders = [tmp_path / name for name in ("isw/0101", "isw/0202", "base/0101")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "history.jsonl").write_text('{"step": 1, "town/mean_iu": 0.1}\n')

    with pytest.raises(UserError, match="enough"):
        plot_runs.plot_curves(folders, tmp_path / "curves.png")
    assert [*drawn["town/mean_iu"]] == [*map(str, folders[:2]), "base"]


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_history(tmp_path / "history.jsonl") == [{"step": 1}, {"step": 2}]


def test_a_history_without_numbers_is_told(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    with pytest.raises(UserError, match="has no history.jsonl with numbers"):
        plot_runs.plot_curves([tmp_path], tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_lines_that_a_crash_damaged_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    history = tmp_path / "history.jsonl"
    lines = [b'{"step": 1, "a": 0.5}', bytes(40), b'{"step": 2}', b"\xff\xfe", b"7", b'{"a": 1}', b"", b'{"step": 9}']
    history.write_bytes(b"\n".join(lines) + b"\n" + bytes(40))
    assert read_history(history) == [{"step": 1, "a": 0.5}, {"step": 2}, {"step": 9}]
    assert [record.getMessage() for record in caplog.records] == [
        f"{history}: line 2, 4, 5 and 1 more damaged and left out"
    ]
    plot_runs.plot_curves([tmp_path], tmp_path / "curves.png")
    caplog.clear()
    board = MetricWriter(tmp_path / "tb", history, first_step=2)  # as a resumed run opens it
    board.close()
    assert len(caplog.records) == 1
    assert history.read_text() == '{"step": 1, "a": 0.5}\n{"step": 2}\n'
    assert len(read_history(history)) == 2 and len(caplog.records) == 1


def test_numbers_that_json_lacks_are_left_out_of_the_history(tmp_path: Path) -> None:
    board = MetricWriter(tmp_path / "tb", tmp_path / "history.jsonl", first_step=0)
    board.scalars({"camvid/val_loss": math.nan, "optim/grad_norm": math.inf, "camvid/acc": 0.5}, 3)
    board.close()
    assert (tmp_path / "history.jsonl").read_text() == '{"step": 3, "camvid/acc": 0.5}\n'


def test_an_evaluation_that_a_resume_repeats_has_one_line(tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    history.write_text(
        '{"step": 3, "camvid/acc": 0.5}\n{"step": 3, "loss/fused": 1.0}\n{"step": 4, "loss/fused": 2.0}\n'
    )
    board = MetricWriter(tmp_path / "tb", history, first_step=3)
    for values, step in (({"camvid/acc": 0.5}, 3), ({"camvid/val_loss": 0.1}, 3), ({"camvid/acc": 0.75}, 4)):
        board.scalars(values, step)
    board.close()
    assert [sorted(line)[0] for line in read_history(history)] == ["camvid/acc", "loss/fused", "camvid/val_loss"] + [
        "camvid/acc"
    ]
