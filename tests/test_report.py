"""Score tables carry their protocol and survive classes without pixels."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from datasets.domains import BUILTIN, Domain, shared_subsets
from datasets.labels import CLASS_NAMES
from evaluation.more_metrics import TITLES
from evaluation.report import Evaluation, Report, domain_scores
from utils.errors import UserError
from utils.files import write_text

NAMES = ["road", "car", "train"]


def split(domain: Domain, list_hash: str = "abc123") -> Any:
    return SimpleNamespace(domain=domain, name="val", pairs=("a", "b", "c", "d"), list_hash=list_hash)


def report() -> Report:
    confusion = np.array([[8, 2, 0], [1, 9, 0], [0, 0, 0]], dtype=np.int64)
    evaluation = Evaluation(confusion, loss=0.5)
    town = replace(BUILTIN["camvid"], name="town", splits=(), merge=(), classes=(0, 1, 2), subsets=(("2", (0, 1)),))
    village = replace(town, name="village", merge=((1, 0),), classes=(0,), subsets=())
    home = replace(town, name="home", classes=(2,), subsets=())
    rows = []
    for domain in (town, village, home):
        settings: Any = {"is_source": domain is home, "transform": "native size", "class_names": NAMES}
        rows += domain_scores(evaluation, split(domain), **settings)
    return Report({"file": "last.pth", "checkpoint": "last", "seed": 304}, rows)


def test_text_names_every_number_with_its_protocol() -> None:
    text = report().to_text()
    for word in (
        "town (2 classes)",
        "abc123",
        "4 images of val",
        "native size",
        "seed 304",
        "checkpoint last",
        "mean over targets",
        "home (source)",
    ):
        assert word in text
    lines = {line.split()[0]: line for line in text.splitlines() if line}
    assert lines["road"].split()[1] == f"{100 * 8 / 11:.2f}"
    assert lines["train"].split() == ["train", "-", "-"]  # never seen, never predicted; the village does not count it


def test_mean_is_over_targets_not_over_subsets_or_sources() -> None:
    found = report()
    town = (8 / 11 + 9 / 12) / 2
    assert found.rows[2].scores.mean_iou == 1.0
    assert found.mean_over_targets == pytest.approx((town + 1.0) / 2)


def test_files_hold_the_same_numbers(tmp_path: Path) -> None:
    found = report()
    found.write(tmp_path / "scores")
    content = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert content["domains"][0]["confusion"] == [[8, 2, 0], [1, 9, 0], [0, 0, 0]]
    assert content["domains"][0]["scores"]["iou"]["train"] is None
    assert content["mean_over_targets"] == found.mean_over_targets
    lines = list(csv.DictReader(io.StringIO((tmp_path / "scores" / "scores.csv").read_text())))
    means = [line for line in lines if line["metric"] == "mean_iou" and line["domain"] == "town"]
    assert [float(line["value"]) for line in means] == [row.scores.mean_iou for row in found.rows[:2]]
    assert {line["seed"] for line in lines} == {"304"}
    assert {line["domain"] for line in lines if line["source"] == "yes"} == {"home"}
    table = (tmp_path / "scores" / "scores.md").read_text()
    assert "| road | 72.73 | 72.73 | 100.00 | |" in re.sub(" +", " ", table)


def test_classes_without_a_pixel_are_not_in_the_mean_and_the_table_says_how_many_are() -> None:
    lines = {line[0]: line for line in report().summary_table()}
    assert [lines[name][5] for name in ("town", "town (2 classes)", "village")] == ["2 of 3", "2", "1 merged"]
    assert [row["scores"]["classes_in_mean"] for row in json.loads(report().to_json())["domains"]] == [2, 2, 1, 0]


def rows_of(target: str, sources: list[Domain]) -> dict[str, tuple[str, ...]]:
    """The scored classes of each row of a target."""
    confusion = np.random.default_rng(0).integers(1, 9, (19, 19))
    scored = domain_scores(
        Evaluation(confusion, loss=0.5), split(BUILTIN[target]), is_source=False, transform="", sources=sources
    )
    for row in scored:  # mean of hits / (truth + predicted - hits) over the pixels whose true class is scored
        known = [CLASS_NAMES.index(name) for name in row.scores.iou]
        kept = np.array(row.confusion)[known]
        unions = [kept[i].sum() + kept[:, c].sum() - kept[i, c] for i, c in enumerate(known)]
        ious = [kept[i, c] / unions[i] for i, c in enumerate(known)]
        assert row.scores.mean_iou == pytest.approx(float(np.mean(ious)))
    return {row.subset: tuple(row.scores.iou) for row in scored}


def test_a_target_is_scored_over_the_classes_of_its_source_too() -> None:
    lacking = {"terrain", "truck", "train"}
    synthia, gtav = BUILTIN["synthia"], BUILTIN["gtav"]
    rows = rows_of("cityscapes", [synthia])
    assert list(rows) == ["", "16 classes", "13 classes"]
    assert {*rows[""]} - {*rows["16 classes"]} == lacking
    assert {*rows[""]} - {*rows["13 classes"]} == lacking | {"wall", "fence", "pole"}
    mine = replace(gtav, name="mine", classes=tuple(range(13)))  # others than SYNTHIA's 13
    assert list(rows_of("synthia", [mine])) == ["", "16 classes", "13 classes", "13 of mine's 13 classes"]
    own = replace(mine, classes=(0, 1, 2, 3, 19 - 1), subsets=(("3", (0, 1, 18)), ("4", (0, 1, 2, 18))))
    few = replace(gtav, name="few", classes=(0, 1, 2, 3))
    assert [name for name, _ in shared_subsets(few, [own])] == ["2", "3"]
    own = replace(own, classes=(0, 1, 2, 18), subsets=(("3", (0, 1, 3)),))
    assert shared_subsets(few, [own]) == [("3 of mine's 4", (0, 1, 2)), ("3 of mine's 3", (0, 1, 3))]
    assert list(rows_of("synthia", [synthia])) == list(rows_of("synthia", [])) == list(rows)
    for sources in ([], [gtav], [synthia, gtav]):  # nothing is lacking, or nothing is known
        assert list(rows_of("cityscapes", sources)) == [""]
    few = replace(gtav, name="own", classes=(0, 13))
    assert rows_of("cityscapes", [few])["2 classes"] == ("road", "car")


# The tree of scores.json: what reads it from outside may count on these names and types, in this order.
TREE = {
    "weights": {"file": "str", "checkpoint": "str", "seed": "int"},
    "mean_over_targets": "float",
    "robustness": {},
    "domains": [
        {
            "domain": "str",
            "subset": "str",
            "is_source": "bool",
            "scores": {
                "iou": {"road": "float", "car": "float", "train": "NoneType"},
                "mean_iou": "float",
                "accuracy": "float",
                "mean_class_accuracy": "float",
                "frequency_weighted_accuracy": "float",
                "classes_in_mean": "int",
            },
            "loss": "float",
            "protocol": {
                "split": "str",
                "list_hash": "str",
                "images": "int",
                "transform": "str",
                "scales": "str",
                "classes": "str",
            },
            "confusion": [["int"]],
            "corruption": "str",
            "more": {},
            "findings": ["str"],
        }
    ],
}


def tree(value: Any) -> Any:
    """Names and types of a JSON value; a list is shown by its first item."""
    if isinstance(value, dict):
        return {key: tree(item) for key, item in value.items()}
    return [tree(value[0])] if isinstance(value, list) else type(value).__name__


def test_the_tree_of_the_scores_file_is_kept() -> None:
    found = report()
    found = replace(found, rows=[replace(row, findings=["town/val: cut"]) for row in found.rows])
    content = json.loads(found.to_json())
    assert json.dumps(tree(content)) == json.dumps(TREE), "a change of scores.json: say so in the change log"
    assert all(row.keys() == TREE["domains"][0].keys() for row in content["domains"])  # type: ignore[index,union-attr]


def test_more_metrics_are_followed_and_stand_in_every_table() -> None:
    found = report()
    assert "ECE" not in found.to_text() and "town/ece" not in found.rows[0].scalars()
    more = dict.fromkeys(TITLES, 0.25) | {"ece": 0.125, "error_fpr95": float("nan")}
    found = replace(found, rows=[replace(row, more=more) for row in found.rows])
    assert found.rows[0].scalars()["town/ece"] == 0.125
    for text in (found.to_text(), found.to_markdown()):
        assert re.search(r"town\W.* 25\.00 .* 12\.50 .* 25\.00 .* -", text)
    assert json.loads(found.to_json())["domains"][0]["more"] == {**more, "error_fpr95": None}
    assert "town,,,no,ece,0.125,val,abc123" in found.to_csv()


def test_what_is_wrong_with_the_data_stands_beside_the_numbers() -> None:
    found = report()
    assert "data:" not in found.to_text()
    found = replace(
        found, rows=[replace(row, findings=["town/val: cut"] * (row.domain == "town")) for row in found.rows]
    )
    assert [row["findings"] for row in json.loads(found.to_json())["domains"]] == [["town/val: cut"]] * 2 + [[], []]
    assert found.to_text().count("data: town/val: cut") == found.to_markdown().count("- town/val: cut") == 1


def test_unwritable_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        write_text(tmp_path / "file" / "scores.md", "x")


def test_a_split_that_is_the_training_frames_says_so() -> None:
    evaluation = Evaluation(np.eye(3, dtype=np.int64), loss=0.5)
    for val, memorised, expected in (
        ("a", False, "val (the training frames)"),
        ("b", False, "val"),
        ("b", True, "val (the training frames)"),
    ):
        domain = replace(BUILTIN["camvid"], merge=(), classes=(0,), splits=(("train", ("a",)), ("val", (val,))))
        settings: Any = {"is_source": True, "transform": "native size", "class_names": NAMES, "memorised": memorised}
        (row,) = domain_scores(evaluation, split(domain), **settings)
        assert row.protocol.split == expected
