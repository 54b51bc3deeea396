"""What the benchmark of the data path compares with does the same work with the same random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import default_collate

import config
from benchmarks import Here, straightforward, take_turns
from datasets.domains import BUILTIN
from datasets.sampling import Pick, sample_rng
from datasets.segmentation import TrainingSet
from datasets.splits import Pair, Split
from tests.street_data import blocks, save, save_label
from transforms import build_appearance, build_appearance_sampler, build_geometry
from transforms.appearance import STD, edge_target


def test_the_straightforward_sample_is_ours(tmp_path: Path) -> None:
    size = (450, 800)
    field = np.random.default_rng(0).integers(60, 190, (9, 16, 3)).astype(np.uint8)
    image = save(tmp_path / "image.png", cv2.resize(field, size[::-1], interpolation=cv2.INTER_CUBIC))
    label = save_label(tmp_path / "label.png", "gtav", blocks(1, size, classes=list(range(19)), block=50))
    pair = Pair(str(image), str(label), "image.png")
    flags = ["--crop_size", str(straightforward.CROP), "--gblur", "--color_aug", "0.5"]
    cfg = config.parse(flags, program="train")
    sampler, appearance = build_appearance_sampler(cfg, jitter="diia"), build_appearance(cfg)
    data = TrainingSet(
        [Split(BUILTIN["gtav"], "train", (pair,))], geometry=build_geometry(cfg), sampler=sampler, seed=0
    )
    jittered = 0
    for number in range(6):
        sample, rng = data[Pick(0, number)], sample_rng(0, number)
        cropped, labels = straightforward.crop(pair, rng)
        params = sampler(rng)
        assert all(map(torch.equal, sample.params, params))
        tensor, edges = straightforward.appearance(cropped, params)
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
