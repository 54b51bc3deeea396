"""How far apart networks see domains: the distances against a slow count, the program from weights to a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from inference import load
from network import Segmentor
from scripts import plot_domains
from tests.runs import save_random
from tests.street_data import write_domain
from utils.errors import UserError

NETWORK = ("--backbone", "resnet18", "--output_stride", "32", "--pretrained", "none", "--method")


def some_statistics(count: int, *, shift: float) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Statistics of two stages of 2 and 1 channels of `count` images; the last channel of the first never moves."""
    rng = np.random.default_rng(count)
    means = np.stack((rng.normal(shift, 1, count), np.full(count, 7.0)), axis=1)
    return [[(mean, np.full(2, 4.0)), (mean[:1] + 3 * shift, np.ones(1))] for mean in means]


def test_distances_count_in_the_first_domains_deviations() -> None:
    near, far = some_statistics(50, shift=0), some_statistics(40, shift=2)
    (style, other), (content, other_content) = plot_domains.views([near, far])
    first, second = (np.array([stages[0][0][0] for stages in images]) for images in (near, far))
    moved = (second.mean() - first.mean()) / first.std()
    assert plot_domains.distance(style, other) == pytest.approx(abs(moved) / np.sqrt(4)), "one of four numbers moves"
    assert plot_domains.distance(content, other_content) == pytest.approx(
        (second.mean() + 6 - first.mean()) / first.std()
    )
    assert plot_domains.distance(style, style) == 0 and style.shape == (50, 4)


@torch.no_grad()
def test_statistics_are_those_of_the_backbone(tmp_path: Path) -> None:
    save_random(tmp_path / "isw.pth", *NETWORK, "isw")
    model, image = load(tmp_path / "isw.pth", device="cpu"), np.random.default_rng(0).integers(0, 256, (64, 96, 3))
    assert isinstance(model.network, Segmentor)
    (mean, deviation), (top, _) = plot_domains.image_statistics(model, model.network, image.astype(np.uint8))
    assert mean.shape == deviation.shape == (64,) and top.shape == (512,)
    features = model.network.backbone(model.normalise(torch.from_numpy(image.astype(np.uint8)).permute(2, 0, 1)[None]))
    np.testing.assert_allclose(mean, features.low_level[0].flatten(1).mean(1), rtol=1e-5)
    np.testing.assert_allclose(top, features.top[0].flatten(1).mean(1), rtol=1e-5)


def test_from_weights_to_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for domain in ("camvid", "kitti"):
        write_domain(tmp_path / domain, domain, val=4)
    opts = ["--opts", *(f"DATASET.{name.upper()}_DIR={tmp_path / name}" for name in ("camvid", "kitti"))]
    for method in ("base", "isw"):
        save_random(tmp_path / "runs" / f"{method}_1" / "day" / "last.pth", *NETWORK, method)
    weights = [str(path) for path in sorted(tmp_path.glob("runs/*/*/last.pth"))]
    out = tmp_path / "seen.png"
    arguments = ["camvid", "kitti", "--split", "val", "--limit", "4", "--out", str(out)]
    plot_domains.main([*arguments, "--weights", *weights, *opts])
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines[2:6]]
    assert [row[:3] for row in rows] == [
        [m, f"({m}_1)", view] for m in ("base", "isw") for view in ("style", "content")
    ]
    assert np.asarray(Image.open(out)).std() > 0
    again = Path(weights[0]).with_name("best_source.pth")  # of the same run
    again.write_bytes(Path(weights[0]).read_bytes())
    plot_domains.main([*arguments, "--weights", *weights, str(again), *opts])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:8]]
    assert [row[1] for row in rows[::2]] == ["(base_1)", "(isw_1)", f"({again})"]
    for label in (tmp_path / "kitti").rglob("*semantic/*.png"):
        label.unlink()  # images are all that it looks at
    plot_domains.main([*arguments, "--weights", weights[0], *opts])
    assert capsys.readouterr().out.splitlines()[2:4] == lines[2:4]
    for wrong, sentence in {
        ("camvid",): "at least two domains",
        ("camvid", "kitti"): "--weights: give one or several",
        ("camvid", "kitti", "--limit", "2", "--weights", "x.pth"): "2 images of camvid: at least 3",
        ("camvid", "kitti", "--limit", "-5", "--weights", "x.pth"): "--limit -5: give a number of images",
        ("camvid", "kitti", "--weights", "x.pth", "--out", "x.pdf"): "--out x.pdf: the picture is a PNG file",
        ("camvid", "kitti", "--weights", str(out)): "seen.png",
    }.items():
        with pytest.raises(UserError, match=sentence):
            plot_domains.main([*wrong, *opts])
