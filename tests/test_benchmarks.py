"""`python -m benchmarks`: every row runs, figures are those of the works, and the plain works compute what ours do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

import config
from benchmarks import (
    Alone,
    Here,
    Row,
    Settings,
    Work,
    __main__,
    data,
    measure,
    plain,
    repeated,
    scaling,
    take_turns,
    works,
)
from benchmarks.roofline import rates
from datasets.domains import BUILTIN
from datasets.sampling import Pick, sample_rng
from datasets.segmentation import TrainingSet
from datasets.splits import Pair, Split
from loss import MaskStatistics, build_criterion
from network import build_network
from network.layout import coarse_layout
from tests import reference
from tests.street_data import blocks, save, save_label
from transforms import build_appearance, build_appearance_sampler, build_geometry
from transforms.appearance import STD, edge_target
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


def test_rows_measured_before_an_interruption_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter([{"ours": {"median_ms": 12.34}, "plain": {"median_ms": 56.78}}])
    monkeypatch.setattr(__main__, "measure", lambda *args, **kwargs: next(answers))
    with pytest.raises(StopIteration):
        __main__.main(["layout", "--tiny"])
    assert "layout: 2 x 64x64: ours 12.3 ms, plain 56.8 ms" in capsys.readouterr().err


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


def test_the_plain_sample_is_ours(tmp_path: Path) -> None:
    size = (450, 800)
    field = np.random.default_rng(0).integers(60, 190, (9, 16, 3)).astype(np.uint8)
    image = save(tmp_path / "image.png", cv2.resize(field, size[::-1], interpolation=cv2.INTER_CUBIC))
    label = save_label(tmp_path / "label.png", "gtav", blocks(1, size, classes=list(range(19)), block=50))
    pair = Pair(str(image), str(label), "image.png")
    flags = ["--crop_size", str(plain.CROP), "--gblur", "--color_aug", "0.5"]
    cfg = config.parse(flags, program="train")
    sampler, appearance = build_appearance_sampler(cfg, jitter="diia"), build_appearance(cfg)
    data = TrainingSet(
        [Split(BUILTIN["gtav"], "train", (pair,))], geometry=build_geometry(cfg), sampler=sampler, seed=0
    )
    jittered = 0
    for number in range(6):
        sample, rng = data[Pick(0, number)], sample_rng(0, number)
        cropped, labels = plain.crop(pair, rng)
        params = sampler(rng)
        assert all(map(torch.equal, sample.params, params))
        tensor, edges = plain.appearance(cropped, params)
        ours = appearance(sample.image[None], default_collate([params]))[0]
        levels = (tensor - ours).abs() * torch.tensor(STD).reshape(3, 1, 1) * 255
        assert levels.mean() < 3, f"sample {number}: off by {levels.mean():.1f} grey levels"  # it rounds in between
        assert (np.asarray(labels) != sample.label.numpy()).mean() < 0.001
        assert (torch.from_numpy(edges) - edge_target(sample.image[None])[0]).abs().mean() < 0.5
        jittered += int(params.jitter)
    assert 0 < jittered < 6


def test_works_take_turns_and_two_runs_do_not_count() -> None:
    clock, order = [0.0], []

    def work(name: str, seconds: float) -> Iterator[None]:
        while True:
            order.append(name)
            clock[0] += seconds * len(order)
            yield

    works = [Here(partial(work, *each), lambda: clock[0]) for each in (("a", 1.0), ("b", 0.0))]
    first, second = take_turns(works, runs=3)
    assert order == ["a", "b"] * 5
    assert (first, second) == ([5, 7, 9], [0, 0, 0])


@pytest.fixture(scope="module")
def networks() -> tuple[Any, plain.Network, Any]:
    """Ours and the plain one with the same weights, without dropout, and our criterion with masks."""
    cfg = config.parse(["--method", "diia"], program="train")
    ours = build_network(cfg)
    reference.fill_network(ours, reference.carried()["diia_isw"]["names"])
    theirs = plain.Network()
    theirs.load_state_dict(ours.state_dict())
    criterion: Any = build_criterion(cfg, method=ours.method, style_channels=ours.style_channels)
    criterion.whitening.intersect_masks(reference.trial_masks(0, ours.style_channels))
    for network in (ours, theirs):
        for layer in network.modules():
            if isinstance(layer, nn.Dropout2d):
                layer.p = 0.0
    return ours, theirs, criterion


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    return reference.inputs("a", 2, 96, 128)


def test_evaluation_and_statistics_are_ours(networks: Any, batch: Any) -> None:
    ours, theirs, _ = networks
    images, labels, _ = batch
    for network in (ours, theirs):
        network.eval()
    with torch.no_grad():
        logits, output = ours.predict(images), theirs(images)
        statistics = MaskStatistics(ours.style_channels, clusters=3)
        statistics.update(ours.style_features(images))
    assert reference.gap(0.5 * output.coarse + output.fused, logits) < 3e-5
    for found, wanted in zip(plain.pair_variances(theirs, images), statistics.variances(), strict=True):
        assert reference.gap(found, wanted) < 1e-4
    wanted_counts = torch.zeros(19, 19, dtype=torch.int64)
    for truth, predicted in zip(labels.flatten().tolist(), logits.argmax(1).flatten().tolist(), strict=True):
        if truth < 19:
            wanted_counts[truth, predicted] += 1
    counts, loss = plain.evaluate(theirs, images, labels)
    assert (torch.from_numpy(counts) - wanted_counts).abs().sum() <= 4
    wanted_loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=255).item()
    assert loss == pytest.approx(wanted_loss, rel=1e-5)


def test_a_training_step_is_ours(networks: Any, batch: Any) -> None:
    ours, theirs, criterion = networks
    batch = (batch[0].double(), *batch[1:])
    for network in (ours, theirs):
        network.double().train()  # rounding would hide small differences
    terms = criterion(ours(batch[0]), *batch[1:], whiten=True)
    criterion.total(terms).backward()
    optimizers = [torch.optim.SGD(n.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4) for n in (ours, theirs)]
    optimizers[0].step()
    found = plain.train_step(theirs, optimizers[1], *batch, masks=criterion.whitening.masks)
    assert found.keys() == terms.keys()
    for name, term in terms.items():
        assert found[name].item() == pytest.approx(term.item(), rel=1e-3 if name == "layout" else 1e-5), name
    state = ours.state_dict()
    assert max(reference.gap(value, state[name]) for name, value in theirs.state_dict().items()) < 1e-8


def test_a_layout_is_ours() -> None:
    logits = torch.randn(3, 19, 24, 40, generator=torch.Generator().manual_seed(0))
    logits[:, 5] -= 50  # an absent class
    logits[0, 7, 0, :3] += 50
    logits[:, 7].sub_(100).add_(100 * (torch.arange(3 * 960).view(3, 24, 40) < 3))  # a class of three pixels
    for scaled in (logits, logits - 3, logits * 0.1):
        assert torch.equal(plain.coarse_layout(scaled).squeeze(1).long(), coarse_layout(scaled))
