"""The table of several methods and seeds."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.report import PER_IMAGE_FILE, ImageCounts, Report
from scripts import compare_runs as compare
from utils.errors import UserError


def write_scores(folder: Path, method: str, seed: int, *, checkpoint: str = "last", **scores: float | None) -> Path:
    """Write what a report holds of a run: mean IoU by domain; `own` is the source, and `own_test` its other split."""
    rows: list[dict[str, Any]] = []
    for name, value in scores.items():
        domain, _, split = name.partition("_")
        for subset in ("", "16 classes"):
            protocol = {"split": split or "val", "list_hash": f"of {name}", "transform": "native size", "scales": "1"}
            protocol["classes"] = "2"
            found = {"mean_iou": value if not subset else 0.99, "iou": {"road": value, "car": value}}
            rows.append(
                {"domain": domain, "subset": subset, "is_source": domain == "own", "scores": found}
                | {"protocol": protocol}
            )
    path = folder / f"{method}_{seed}_{checkpoint}" / "scores" / "scores.json"
    path.parent.mkdir(parents=True)
    about = {"method": method, "seed": seed, "checkpoint": checkpoint}
    path.write_text(json.dumps({"weights": about, "domains": rows}))
    return path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed, (base, diia) in enumerate([(0.10, 0.16), (0.20, 0.24), (0.30, 0.31)]):
        write_scores(tmp_path, "base", seed, own=0.5, far=base, night=base + 0.1)
        write_scores(tmp_path, "diia", seed, own=0.6, own_test=0.4, far=diia, night=diia + 0.12)
        write_scores(tmp_path, "diia", seed, checkpoint="best_source", own=0.9, far=0.9, night=0.9)
    return tmp_path


def test_corrupted_images_are_left_out(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare.main([str(runs)])
    expected = capsys.readouterr().out
    for path in runs.rglob("scores.json"):
        content = json.loads(path.read_text())
        rows = [{**row, "corruption": "fog:3", "scores": {"mean_iou": 0.01}} for row in content["domains"]]
        content["domains"] = [{**row, "corruption": ""} for row in content["domains"]] + rows
        path.write_text(json.dumps(content))
    compare.main([str(runs)])
    assert capsys.readouterr().out == expected


def test_means_spreads_and_paired_differences(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare.main([str(runs), "--out", str(runs / "new" / "table.md")])
    text = capsys.readouterr().out
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    heading = text.splitlines()[0]
    assert heading.split()[:2] == ["method", "seeds"] and "own test (source)" in heading and "night" in heading
    assert lines["base"].split("  ")[-1].strip() == "25.00 ± 10.00"  # (0.15 + 0.25 + 0.35) / 3
    found = [re.split(r"  +", line) for line in text.split("difference from base")[1].splitlines() if "diia" in line]
    # of three differences d, t = mean / (deviation / sqrt 3), and with two degrees of freedom p = 1 - t / sqrt(t^2 + 2)
    for line, d in zip(found, ([6, 4, 1], [8, 6, 3], [7, 5, 2]), strict=True):
        t = np.mean(d) / (np.std(d, ddof=1) / math.sqrt(3))
        mean = f"{np.mean(d):+.2f} ± {np.std(d, ddof=1):.2f}"
        assert line[2:] == ["3", mean, "3", f"{1 - t / math.sqrt(t * t + 2):.3f}"]
    assert [line[1] for line in found] == ["far", "night", "mean over targets"]
    written = (runs / "new" / "table.md").read_text()
    cells = [[cell.strip() for cell in line.split("|")] for line in written.splitlines()]
    assert ["", "diia", "3", "**60.00 ± 0.00**"] in [row[:4] for row in cells] and "t-test" in written
    assert "**" not in text


@pytest.mark.parametrize(
    ("suffix", "words", "best"),
    [
        (".tex", r"\toprule", r"\textbf{29.67 $\pm$ 7.51"),
        (".html", "<thead>", "<b>29.67 ± 7.51"),
        (".md", "|:---", "**29.67 ± 7.51"),
    ],
)
def test_tables_for_papers_and_pages(runs: Path, suffix: str, words: str, best: str) -> None:
    write_scores(runs, "<b>_x", 0, own=0.1, far=0.1, night=0.1)
    compare.main([str(runs), "--out", str(runs / f"table{suffix}")])
    text = (runs / f"table{suffix}").read_text()
    assert text.count(words) == 2 and best in text
    assert {".tex": r"\ensuremath{<}b\ensuremath{>}\_x", ".html": "&lt;b&gt;_x", ".md": "&lt;b>_x"}[suffix] in text
    if suffix == ".tex":  # what is no table is a comment
        tables = re.sub(r"\\begin\{tabular\}.*?\\end\{tabular\}", "", text, flags=re.S)
        assert all(line.startswith("%") for line in tables.splitlines() if line)
        assert "±" not in "".join(line for line in text.splitlines() if not line.startswith("%"))


def test_a_picture_of_targets_against_the_source(runs: Path) -> None:
    figure = compare.plot(compare.Comparison(compare.read_scores([runs], checkpoints=["last"]), "base"))
    panels = {panel.get_title(): panel for panel in figure.axes}
    assert list(panels) == ["far", "night", "own test (source)", "mean over targets"]
    base, diia = (container.lines for container in panels["mean over targets"].containers)
    assert base[0].get_xydata() == pytest.approx(np.array([[50, 25]]))
    assert diia[0].get_xydata() == pytest.approx(np.array([[60, 100 * (0.22 + 0.30 + 0.37) / 3]]))
    (_, low), (_, high) = base[2][1].get_segments()[0]  # of one deviation up and down
    assert (low, high) == pytest.approx((15, 35))
    compare.main([str(runs), "--out", str(runs / "picture.png")])
    assert (runs / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_a_method_has_one_colour_and_is_named_where_others_lack_a_column(tmp_path: Path) -> None:
    write_scores(tmp_path, "base", 0, own=0.5, far=0.2)
    write_scores(tmp_path, "ibn", 0, own=0.5, far=0.2, night=0.3)
    write_scores(tmp_path, "isw", 0, own=0.5, night=0.3)
    figure = compare.plot(compare.Comparison(compare.read_scores([tmp_path], checkpoints=["last"]), "base"))
    drawn = [(bars.get_label(), bars.lines[0].get_color()) for panel in figure.axes for bars in panel.containers]
    assert len(drawn) == 5 and len({*drawn}) == 3 == len({colour for _, colour in drawn})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["base (1)", "ibn (1)", "isw (1)"]


def test_a_table_for_programs(runs: Path) -> None:
    write_scores(runs, "=1+1", 0, own=0.1, far=0.1, night=0.1)
    compare.main([str(runs), "--against", "base", "--out", str(runs / "table.csv")])
    lines = {
        (line["method"], line["on"]): line for line in csv.DictReader((runs / "table.csv").read_text().splitlines())
    }
    found = lines["diia", "mean over targets"]
    assert float(found["mean"]) == pytest.approx((0.22 + 0.30 + 0.37) / 3) and found["target"] == "yes"
    assert float(found["difference_mean"]) == pytest.approx(0.14 / 3) and found["against"] == "base"
    t = np.mean([7, 5, 2]) / (np.std([7, 5, 2], ddof=1) / math.sqrt(3))
    assert float(found["p"]) == pytest.approx(1 - t / math.sqrt(t * t + 2))
    assert ("'=1+1", "far") in lines, "no formula"
    assert lines["base", "far"]["p"] == lines["base", "far"]["image_low"] == lines["diia", "own (source)"]["p"] == ""
    assert lines["base", "own test (source)"]["mean"] == "" and lines["base", "own test (source)"]["target"] == "no"


def test_significance_is_marked_at_five_percent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, (clear, vague) in enumerate([(0.051, 0.09), (0.050, 0.01), (0.052, 0.02)]):
        for method, gain in (("base", 0.0), ("clear", clear), ("vague", vague), ("equal", 0.01)):
            write_scores(tmp_path, method, seed, far=0.3 + 0.01 * seed + gain)
    compare.main([str(tmp_path), "--against", "base"])
    means, differences = capsys.readouterr().out.split("difference from base")
    marked = {line.split()[0] for line in means.splitlines() if "†" in line}
    assert marked == {"clear"}
    p = {line.split()[0]: line.split()[-1] for line in differences.splitlines() if " far " in line}
    assert float(p["clear"]) < 0.05 < float(p["vague"]) and p["equal"] == "-", "equal differences have no spread"


def test_another_kind_of_checkpoint(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare.main([str(runs), "--checkpoint", "best_source"])
    text = capsys.readouterr().out
    assert "90.00 ± 0.00" in text and "base" not in text and "difference" not in text


def test_several_kinds_of_checkpoints(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scores(runs, "theirs", 0, checkpoint="graph", own=0.5, far=0.77, night=0.7)
    for kinds, shown in ((["last"], False), (["last", "graph"], True), (["graph"], True)):
        compare.main([str(runs), *(word for kind in kinds for word in ("--checkpoint", kind))])
        text = capsys.readouterr().out
        assert ("77.00" in text) == shown and ("diia" in text) == ("last" in kinds)
    (path,) = runs.glob("theirs*/scores/scores.json")
    content = json.loads(path.read_text())
    del content["weights"]["seed"]  # as a graph's, which is paired with no run, that of seed 0 neither
    path.write_text(json.dumps(content))
    compare.main([str(runs), "--checkpoint", "last", "--checkpoint", "graph", "--against", "base"])
    text = capsys.readouterr().out
    assert "77.00" in text and not re.search(r"theirs .*far +[1-9]", text)


def test_one_seed_has_no_spread_and_a_missing_number_is_a_dash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scores(tmp_path, "base", 1, own=0.5, far=0.25, night=0.35)
    write_scores(tmp_path, "isw", 1, own=0.5, far=0.25)
    compare.main([str(tmp_path / "base_1_last"), str(tmp_path / "isw_1_last" / "scores" / "scores.json")])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["base", "1", "50.00", "25.00", "35.00", "30.00"] in rows
    assert ["isw", "1", "50.00", "25.00", "-", "-"] in rows
    assert ["isw", "far", "1", "+0.00", "0", "-"] in rows
    assert ["isw", "night", "0", "-", "0", "-"] in rows


def test_the_seeds_of_columns_that_differ_in_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        write_scores(tmp_path, "base", seed, far=0.25)
    for seed in (3, 4):
        write_scores(tmp_path, "base", seed, far=0.25, night=0.35)
    compare.main([str(tmp_path)])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("base"))
    assert re.split(r"  +", line)[1:] == ["2 to 5", "25.00 ± 0.00", "35.00 ± 0.00", "30.00 ± 0.00"]


def test_what_cannot_be_compared_is_said(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    again = write_scores(other, "base", 0, far=0.77)
    for arguments, words in (
        ([str(runs), str(again)], "both score base, seed 0, on far"),
        ([str(runs / "none")], "no scores.json there"),
        ([str(runs), "--checkpoint", "best_far"], "--checkpoint best_far: none of the 9 score files"),
        ([str(runs), "--against", "dia"], "did you mean 'diia'"),
        ([str(runs), "--out", "table.doc"], "--out table.doc: must end with .md, .html, .csv, .tex, .png"),
        ([str(again), "--against", "diia"], "there is one method only, base"),
        ([str(write_scores(other / "empty", "is", 0, far=None))], "far has no labelled pixel"),
    ):
        with pytest.raises(UserError, match=words):
            compare.main(arguments)
    about, row = '{"checkpoint": "last", "method": "base"}', '{"subset": "", "domain": "far"}'
    for content in ("{", '{"weights": null}', '{"weights": {}}', f'{{"weights": {about}, "domains": [{row}]}}'):
        again.write_text(content)
        with pytest.raises(UserError, match="not a score file"):
            compare.main([str(again)])
    changed = json.loads((runs / "base_0_last" / "scores" / "scores.json").read_text())
    changed["weights"]["method"] = "ibn"
    changed["domains"][0]["protocol"]["list_hash"] = "shorter"
    again.write_text(json.dumps(changed))
    with pytest.raises(UserError, match="own .source. was evaluated on list shorter"):
        compare.main([str(runs), str(again)])


@pytest.mark.parametrize(
    ("classes", "names", "words"),
    [
        ("2 merged", ("road", "car"), "was evaluated on .*, 2 merged classes, but in .*, 2 classes; "),
        ("1", ("road",), "was evaluated on .*, 1 classes, but in .*, 2 classes; "),
        ("2", ("road", "sky"), "is scored over road, sky, but in .* over road, car; "),
    ],
)
def test_numbers_over_other_classes_are_not_compared(runs: Path, classes: str, names: list[str], words: str) -> None:
    path = write_scores(runs, "ibn", 0, far=0.5)
    content = json.loads(path.read_text())
    for row in content["domains"]:
        row["protocol"]["classes"], row["scores"]["iou"] = classes, dict.fromkeys(names, 0.5)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"ibn_0.*: far {words}"):
        compare.main([str(runs)])


@pytest.mark.parametrize("other", [{"source": "synthia"}, {"network": "ResNet-18"}, {"step": 500}])
def test_runs_of_another_network_source_or_length_are_no_seeds_of_a_method(
    tmp_path: Path, other: dict[str, str | int]
) -> None:
    for seed in (1, 2):
        path = write_scores(tmp_path, "base", seed, far=0.2)
        content = json.loads(path.read_text())
        content["weights"] |= {"source": "gtav", "network": "ResNet-50", "step": 600} | (other if seed == 2 else {})
        path.write_text(json.dumps(content))
    with pytest.raises(
        UserError, match="base_2.*: base is .*, but in .*base_1.* ResNet-50 trained on gtav for 600 steps; "
    ):
        compare.main([str(tmp_path)])


def add_images(path: Path, counts: np.ndarray) -> None:
    """Write the counts (N, 19, 19) of single images of the domain `far` beside a score file."""
    report = Report({}, [], {"far": ImageCounts([f"{index}.png" for index in range(len(counts))], counts)})
    report._save_per_image(path.with_name(PER_IMAGE_FILE))


def binary_counts(hits: np.ndarray, pixels: int = 100) -> np.ndarray:
    """Return (N, 19, 19): in each image `hits` of 100 road pixels and as many of 100 car pixels are right."""
    counts = np.zeros((len(hits), 19, 19), np.int64)
    for true, other in ((0, 13), (13, 0)):
        counts[:, true, true], counts[:, true, other] = hits, pixels - hits
    return counts


def test_intervals_over_images_are_those_of_a_paired_bootstrap(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    base = [rng.integers(20, 90, 60) for _ in range(2)]
    better = [hits + rng.integers(0, 8, 60) for hits in base]  # the images differ far more than the methods do
    mean_iou = lambda hits: hits.sum() / (200 * len(hits) - hits.sum())  # noqa: E731
    for seed in range(2):
        for method, hits in (("base", base[seed]), ("diia", better[seed])):
            add_images(write_scores(tmp_path, method, seed, far=mean_iou(hits)), binary_counts(hits))
    write_scores(tmp_path, "ibn", 0, far=0.5)
    compare.main([str(tmp_path)])
    text = capsys.readouterr().out
    lines = {line.split()[0]: line for line in text.split("difference from base")[1].splitlines() if line}
    low, high = map(float, re.findall(r"([+-]\d+\.\d+) to ([+-]\d+\.\d+)$", lines["diia"])[0])
    draws = rng.integers(0, 60, (4000, 60))
    differences = [
        100 * np.mean([mean_iou(better[seed][draw]) - mean_iou(base[seed][draw]) for seed in range(2)])
        for draw in draws
    ]
    expected = np.percentile(differences, (2.5, 97.5))
    assert (low, high) == pytest.approx(expected, abs=0.05 * (expected[1] - expected[0]))
    assert 0 < low < high < 6 and "percentile bootstrap" in text
    (shown,) = re.findall(r"^base .*\[(\d+\.\d+), (\d+\.\d+)\]", text, re.M)
    means = [100 * np.mean([mean_iou(hits[draw]) for hits in base]) for draw in draws]
    expected = np.percentile(means, (2.5, 97.5))
    assert tuple(map(float, shown)) == pytest.approx(expected, abs=0.1 * (expected[1] - expected[0]))
    assert "to" not in lines["ibn"].split()


def test_counts_of_another_evaluation_are_refused(tmp_path: Path) -> None:
    """Of score files that were collected in one folder, where the counts are those of one of them."""
    hits, collected = np.arange(20, 40), tmp_path / "collected"
    collected.mkdir()
    for method, value in (("base", hits.sum() / (200 * len(hits) - hits.sum())), ("diia", 0.7)):
        path = write_scores(tmp_path, method, 0, far=value)
        path.replace(collected / f"{method}.json")
    add_images(collected / "base.json", binary_counts(hits))
    with pytest.raises(UserError, match=rf"{PER_IMAGE_FILE}: mean IoU 17\.\d+ on far, the scores .* 70\.00; keep"):
        compare.main(list(map(str, sorted(collected.glob("*.json")))))


@pytest.mark.parametrize("kept", [0, 10, 400])
def test_damaged_counts_of_single_images_are_one_sentence(tmp_path: Path, kept: int) -> None:
    path = write_scores(tmp_path, "base", 0, far=0.5)
    add_images(path, binary_counts(np.arange(20, 40)))
    counts = path.with_name(PER_IMAGE_FILE)
    counts.write_bytes(counts.read_bytes()[:kept])
    with pytest.raises(UserError, match=rf"{PER_IMAGE_FILE}: the counts of far cannot be read \(.+\); remove"):
        compare.main([str(tmp_path)])
