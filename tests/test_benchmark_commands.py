"""`python -m benchmarks`: every row runs, figures are those of the works, tables and JSON come out."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import Alone, Here, Row, Settings, Work, __main__, data, measure, repeated, scaling, works
from benchmarks.roofline import rates
from utils.device import peak_memory
from utils.errors import UserError

CPU = Settings(torch.device("cpu"), 1, processor_time=False)
COMPUTED = ("step:", "eval:", "statistics:")


@pytest.mark.parametrize("group", [*COMPUTED, "layout:", "appearance:"])
def test_a_computing_row_runs_at_a_tiny_size(group: str) -> None:
    rows = works.make_rows(torch.device("cpu"), flags=("--backbone", "resnet18"), tiny=True)
    chosen = [row for name, row in rows.items() if name.startswith(group)]
    assert len(chosen) == 1 + (group == "layout:")
    for row in chosen:
        figures = measure(row._replace(alone=False), CPU, against=group == "layout:", runs=1)
        assert figures.keys() == ({"ours", "plain"} if group == "layout:" else {"ours"})
        assert all(found["median_ms"] > 0 and found["peak_mib"] is None for found in figures.values())


def test_the_rows_of_reading_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "WIDTH", 800)
    monkeypatch.setattr(data, "HEIGHT", 780)
    monkeypatch.setattr(data, "FRAMES", 1)
    rows = data.make_rows(tmp_path, tiny=True)
    assert {name.partition(":")[0] for name in rows} == {"worker", "data", "startup"}
    for name, row in rows.items():
        if "first batch" not in name and "1024x2048" not in name:  # test_loaders.py runs a whole start
            next(row.ours())
        if row.plain is not None and "1024x2048" not in name:
            next(row.plain())


def hold(mebibytes: int) -> Work:
    """Hold memory and give it back in each run."""
    return repeated(torch.ones, mebibytes * 2**18)


def test_a_work_alone_tells_its_peak() -> None:
    assert peak_memory(CPU.device) > 50
    work = Alone(partial(hold, -1), CPU)
    with pytest.raises(UserError, match="exit code 1"):
        work.run()
    alone = Row(partial(hold, 300), partial(hold, 20), alone=True)
    figures = measure(alone, CPU, against=True, runs=2)
    more = [figures[kind]["peak_mib"] - figures[kind]["idle_mib"] for kind in ("ours", "plain")]
    assert 290 < more[0] < 360 and 15 < more[1] < 80


def test_figures_are_those_of_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([9, 9, 4, 1, 2, 3, 10])
    monkeypatch.setattr(Here, "run", lambda work: next(times))
    found = measure(Row(lambda: iter(())), CPU, against=True, runs=5)["ours"]
    assert found["runs_ms"] == [4000, 1000, 2000, 3000, 10000]
    assert (found["median_ms"], found["mean_ms"], found["slowest_ms"]) == (3000, 4000, 10000)
    assert found["quartiles_ms"] == [2000, 4000]


def test_the_command_prints_a_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["layout", "--tiny", "--runs", "1", "--against", "plain", "--threads", "1"]
    __main__.main([*command, "--json", str(tmp_path / "figures.json")])
    text = capsys.readouterr().out
    assert "| layout: 2 x 64x64" in text and "peak of plain" in text
    row = json.loads((tmp_path / "figures.json").read_text())["rows"]["layout: 2 x 64x64"]
    assert row["threads"] == 1 and row["plain"]["peak_mib"] > 50 and len(row["ours"]["runs_ms"]) == 1
    __main__.main([*command[:4], "--json", "-"])
    assert json.loads(capsys.readouterr().out)["machine"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["parts"], "NAME parts: one of step, eval"),
        (["layout: 9 x"], "no row begins so; there are: step: diia"),
        (["layout", "--runs", "0"], "--runs 0: at least 1"),
    ],
)
def test_a_wrong_command_says_what_is_there(command: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        __main__.main(command)


def test_roofline_tells_the_rates_and_all_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert min(rates(CPU, runs=1, tiny=True).values()) > 1e8
    __main__.main(["roofline", "--tiny", "--runs", "1", "--threads", "1", "--json", "-"])
    tables = json.loads(capsys.readouterr().out)["roofline"]["tables"]
    _, step, evaluation = tables.values()
    operations = {row[0]: float(row[1]) for row in step[1:]}
    parts = ["backbone", "ASPP", "decoders", "auxiliary head", "attention", "upsampling", "coarse layout", "losses"]
    assert list(operations) == [*parts, "optimizer", "sum of the parts", "the whole"]
    # 3x3 1024 -> 512 and 1x1 512 -> 19 on 2 x 4 x 4 cells, forward and twice backward, 2 operations per product
    assert operations["auxiliary head"] == pytest.approx(6 * 32 * (9 * 1024 * 512 + 512 * 19) / 1e9, abs=0.06)
    assert [row[0] for row in evaluation[1:]] == [*parts[:3], *parts[4:7], "sum of the parts", "the whole"]


def test_the_computed_table_is_the_formula_s() -> None:
    found = scaling.computed(0.5, gradients=200 * 2**20, norms=100, gpus=8)
    bandwidth = 100e9 / 8
    assert found["transfer"] == pytest.approx(2 * 7 / 8 * 200 * 2**20 / bandwidth)
    assert found["waiting"] == pytest.approx(found["transfer"] / 8)  # one bucket of eight
    assert found["statistics"] == pytest.approx(2 * 100 * 3 * 20e-6)
    slow = scaling.computed(0.01, gradients=200 * 2**20, norms=0, gpus=8)
    assert slow["waiting"] == pytest.approx(slow["transfer"] - 0.01 * 2 / 3)


def test_processes_exchange_every_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "PROCESSES", (1, 2))
    fork = partial(torch.multiprocessing.start_processes, start_method="forkserver")  # has imported torch already
    monkeypatch.setattr(torch.multiprocessing, "spawn", fork)
    found = scaling.measure_processes(torch.device("cpu"), runs=1, tiny=True)
    network, _ = works.make_network(torch.device("meta"), ())
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert {number: row["bytes"] for number, row in found["measured"].items()} == {1: 4 * parameters, 2: 4 * parameters}
    measured, computed = found["tables"].values()
    assert len(measured) == 3 and [row[0] for row in computed[1:]] == ["8", "16", "32", "64", "128", "256"]
