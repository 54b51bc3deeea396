"""What the benchmark of the data path compares with does the same work on the same draws."""

from __future__ import annotations

import importlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import config
from datasets.domains import BUILTIN
from datasets.sampling import Pick, sample_rng
from datasets.segmentation import TrainingSet
from datasets.splits import Pair, Split
from tests.street_data import blocks, save, save_label
from transforms.appearance import STD
from transforms.build import build_appearance, build_draws, build_geometry
from transforms.edges import edge_target


def test_the_straightforward_sample_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    straightforward, size = importlib.import_module("straightforward"), (450, 800)
    field = np.random.default_rng(0).integers(60, 190, (9, 16, 3)).astype(np.uint8)
    image = save(tmp_path / "image.png", cv2.resize(field, size[::-1], interpolation=cv2.INTER_CUBIC))
    label = save_label(tmp_path / "label.png", "gtav", blocks(1, size, classes=list(range(19)), block=50))
    pair = Pair(str(image), str(label), "image.png")
    flags = ["--crop_size", str(straightforward.CROP), "--gblur", "--color_aug", "0.5"]
    cfg = config.parse(flags, program="train")
    draws, appearance = build_draws(cfg, jitter="diia"), build_appearance(cfg)
    source = Split(BUILTIN["gtav"], "train", (pair,))
    data = TrainingSet([source], geometry=build_geometry(cfg), draws=draws, seed=0)
    jittered = 0
    for number in range(6):
        tensor, label, edges = straightforward.plain_sample(pair, draws, sample_rng(0, number))
        found = data[Pick(0, number)]
        ours = appearance(found.image[None], found.draws[None])[0]
        levels = (tensor - ours).abs() * torch.tensor(STD).reshape(3, 1, 1) * 255
        assert levels.mean() < 3, f"sample {number}: off by {levels.mean():.1f} grey levels"  # it rounds in between
        assert (label != found.label).float().mean() < 0.001
        assert (torch.from_numpy(edges) - edge_target(found.image[None])[0]).abs().mean() < 0.5
        jittered += int(found.draws[0])
    assert 0 < jittered < 6
