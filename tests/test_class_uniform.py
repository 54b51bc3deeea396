from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets import sampling
from datasets.codec import ENCODINGS, decode_label
from datasets.domains import load_domains
from datasets.sampling import cache_key, class_centroids, source_centroids
from datasets.splits import find_pairs
from tests.street_data import ROOTS, blocks, make_cfg, save, write_domain
from utils.errors import UserError


def slow_centroids(label: np.ndarray, tile: int) -> list[list[int]]:
    """The same rule, one tile and class after the other."""
    height, width = (min(tile, side) for side in label.shape)
    rows = []
    for index in range(19):
        for top in range(0, label.shape[0] - height + 1, height):
            for left in range(0, label.shape[1] - width + 1, width):
                ys, xs = np.nonzero(label[top : top + height, left : left + width] == index)
                if len(ys):
                    rows.append([index, left + int(xs.mean()), top + int(ys.mean())])
    return rows


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 70), st.integers(0, 100))
def test_centroids_follow_the_rule(height: int, width: int, tile: int, seed: int) -> None:
    label = blocks(seed, (height, width), block=5)
    assert class_centroids(label, tile=tile, on_class=False).tolist() == slow_centroids(label, tile)


def slow_nearest(label: np.ndarray, tile: int) -> list[list[int]]:
    """The centres of `slow_centroids`, each at the first of the nearest pixels of its class in its tile."""
    height, width = (min(tile, side) for side in label.shape)
    rows = []
    for index, x, y in slow_centroids(label, tile):
        top, left = y // height * height, x // width * width
        ys, xs = np.nonzero(label[top : top + height, left : left + width] == index)
        best = np.argmin((ys + top - y) ** 2 + (xs + left - x) ** 2)
        rows.append([index, left + int(xs[best]), top + int(ys[best])])
    return rows


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 70), st.integers(0, 100), st.integers(1, 7))
def test_centroids_lie_on_their_class(height: int, width: int, tile: int, seed: int, block: int) -> None:
    label = blocks(seed, (height, width), block=block)
    found = class_centroids(label, tile=tile)
    assert found.tolist() == slow_nearest(label, tile)
    assert (label[found[:, 2], found[:, 1]] == found[:, 0]).all()


def test_a_ring_gets_its_nearest_pixel() -> None:
    label = np.full((21, 21), 255, np.uint8)
    label[2:19, 2:19] = 4
    label[3:18, 3:18] = 255
    label[10, 5] = 4
    assert class_centroids(label, tile=64).tolist() == [[4, 5, 10]]
    label[10, 15] = 4  # as near on the right: the first one counts
    assert class_centroids(label, tile=64).tolist() == [[4, 5, 10]]


def test_an_image_without_classes_has_no_centroid() -> None:
    assert class_centroids(np.full((8, 8), 255, np.uint8), tile=4).shape == (0, 3)


class Scan:
    """A small domain and its centroids, with a count of the labels read."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.labels = write_domain(root / "camvid", "camvid")
        self.cache, self.read = root / "cache", 0
        domain = load_domains(make_cfg(root, **{ROOTS["camvid"]: str(root / "camvid")}))["camvid"]
        self.pairs, self.encoding = find_pairs(domain, "train"), domain.encoding
        original = sampling.decode_label

        def counted(path: str, **options: object) -> np.ndarray:
            self.read += 1
            return original(path, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(sampling, "decode_label", counted)

    def __call__(self, *, workers: int = 0) -> np.ndarray:
        return source_centroids(
            self.pairs, encoding=self.encoding, tile=16, name="camvid", cache_dir=str(self.cache), workers=workers
        )


@pytest.fixture
def scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scan:
    return Scan(tmp_path, monkeypatch)


def test_rows_name_the_image(scan: Scan) -> None:
    rows = scan()
    expected = [
        [index, *row] for index, label in enumerate(scan.labels) for row in class_centroids(label, tile=16).tolist()
    ]
    assert rows.tolist() == expected and rows.dtype == np.int32


def test_workers_change_nothing(scan: Scan, tmp_path: Path) -> None:
    alone = scan()
    scan.cache = tmp_path / "other"
    np.testing.assert_array_equal(scan(workers=2), alone)


def test_labels_that_share_a_task_keep_their_numbers(scan: Scan) -> None:
    scan.pairs, few = scan.pairs * 10, len(scan.labels)
    rows = scan()
    assert scan.read == 10 * few
    for index in (few - 1, 10 * few - 1):
        expected = class_centroids(scan.labels[index % few], tile=16)
        np.testing.assert_array_equal(rows[rows[:, 0] == index][:, 1:], expected)


def test_a_failure_in_a_worker_is_one_sentence(scan: Scan) -> None:
    save(Path(scan.pairs[2].label), np.full((40, 64), 99, np.uint8))
    with pytest.raises(UserError) as caught:
        scan(workers=1)
    assert str(caught.value).startswith(f"{scan.pairs[2].label}: has the label ids 99") and "\n" not in str(
        caught.value
    )


def test_the_second_run_reads_the_cache(scan: Scan) -> None:
    first = scan()
    assert scan.read == 4
    np.testing.assert_array_equal(scan(), first)
    assert scan.read == 4 and len(list(scan.cache.iterdir())) == 1


def test_the_cache_is_keyed_by_what_made_it(scan: Scan) -> None:
    keys = {cache_key(scan.pairs, encoding=scan.encoding, tile=16)}
    keys.add(cache_key(scan.pairs, encoding=scan.encoding, tile=17))
    keys.add(cache_key(scan.pairs[1:], encoding=scan.encoding, tile=16))
    keys.add(cache_key(scan.pairs, encoding=ENCODINGS["train_ids"], tile=16))
    keys.add(cache_key(scan.pairs, encoding=replace(scan.encoding, other=255), tile=16))
    os.utime(scan.pairs[0].label, (1, 1))
    keys.add(cache_key(scan.pairs, encoding=scan.encoding, tile=16))
    save(Path(scan.pairs[0].label), np.zeros((70, 70), np.uint8))
    os.utime(scan.pairs[0].label, (1, 1))
    keys.add(cache_key(scan.pairs, encoding=scan.encoding, tile=16))
    assert len(keys) == 7


def test_a_changed_label_is_read_again(scan: Scan) -> None:
    scan()
    save(Path(scan.pairs[0].label), np.full((40, 64), 3, np.uint8))
    os.utime(scan.pairs[0].label, (1, 1))
    rows = scan()
    assert scan.read == 8 and set(rows[rows[:, 0] == 0][:, 1].tolist()) == {0}  # raw 3 is road


@pytest.mark.parametrize("content", [b"", b"not numpy", None])
def test_a_broken_cache_is_made_again(scan: Scan, content: bytes | None) -> None:
    rows = scan()
    (path,) = scan.cache.iterdir()
    if content is None:
        np.save(path, np.zeros(3))
    else:
        path.write_bytes(content)
    np.testing.assert_array_equal(scan(), rows)
    assert scan.read == 8
    np.testing.assert_array_equal(np.load(path), rows)


def test_a_failure_leaves_no_cache(scan: Scan) -> None:
    save(Path(scan.pairs[2].label), np.full((40, 64), 99, np.uint8))
    with pytest.raises(UserError, match=r"label ids 99, which the encoding camvid does not know"):
        scan()
    assert not scan.cache.exists()
    save(Path(scan.pairs[2].label), np.full((40, 64), 3, np.uint8))
    assert len(scan()) > 0


def test_where_no_cache_can_be_written_the_run_goes_on(scan: Scan, caplog: pytest.LogCaptureFixture) -> None:
    scan.cache.write_text("a file where the folder should be")
    assert len(scan()) > 0
    assert "cannot be written" in caplog.text


def test_a_data_set_without_classes_is_cached_as_such(scan: Scan) -> None:
    for pair in scan.pairs:
        save(Path(pair.label), np.full((40, 64), 11, np.uint8))
    assert scan().shape == scan().shape == (0, 4)
    assert scan.read == 4


# ---------------------------------------------------------------------------------- the original's values


@pytest.mark.parametrize("tile", [64, 100])
def test_centroids_of_the_original(golden: Path, tile: int) -> None:
    values = np.load(golden / "numpy_level.npz")
    found = class_centroids(values["label_img"], tile=tile, on_class=False)
    np.testing.assert_array_equal(found, values[f"centroids_tile{tile}"])


def test_centroids_of_whole_files_of_the_original(golden: Path) -> None:
    paths = sorted((golden / "gtav/labels/train/folder").iterdir())
    labels = [decode_label(str(path), encoding=ENCODINGS["cityscapes_colours"]) for path in paths]
    found = np.concatenate([class_centroids(label, tile=64, on_class=False) for label in labels])
    expected = np.load(golden / "pipeline.npz")["centroids"]
    assert sorted(found.tolist()) == sorted(expected.tolist())
