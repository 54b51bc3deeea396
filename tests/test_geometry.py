from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets.codec import ENCODINGS, decode_label, read_image
from tests.street_data import blocks, make_cfg, paint
from transforms import build_geometry
from transforms.geometry import (
    CentreSquare,
    Geometry,
    NativeSize,
    RandomCrop,
    RandomFlip,
    RandomRotation,
    RandomScale,
    Resize,
    Step,
    View,
    make_view,
)


class PythonRandom:
    """Python's `random` behind the names that geometry calls, to reproduce the original's numbers."""

    def __init__(self, seed: int) -> None:
        self.stream = random.Random(seed)

    def uniform(self, low: float, high: float, /) -> float:
        return self.stream.uniform(low, high)

    def integers(self, low: int, high: int, /, *, endpoint: bool) -> int:
        assert endpoint
        return self.stream.randint(low, high)

    def random(self) -> float:
        return self.stream.random()


class Scripted:
    """Returns the numbers of a test and remembers what was requested."""

    def __init__(self, *numbers: float) -> None:
        self.numbers = list(numbers)
        self.requests: list[tuple[Any, ...]] = []

    def uniform(self, low: float, high: float, /) -> float:
        self.requests.append(("uniform", low, high))
        return self.numbers.pop(0)

    def integers(self, low: int, high: int, /, *, endpoint: bool) -> int:
        self.requests.append(("integers", low, high))
        return int(self.numbers.pop(0))

    def random(self) -> float:
        self.requests.append(("random",))
        return self.numbers.pop(0)


def view_of(label: np.ndarray, *, focus: tuple[int, int] | None = None) -> View:
    return make_view(Image.fromarray(paint(label)), label, focus=focus)


def arrays(view: View) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(view.image), np.asarray(view.label)


def inside(label: np.ndarray, radius: int) -> np.ndarray:
    """Return where every pixel within a radius has the same label; beyond the border is no label."""
    values = torch.from_numpy(label.astype(np.float32))[None, None]
    values = torch.nn.functional.pad(values, (radius,) * 4, value=-1)
    high = torch.nn.functional.max_pool2d(values, 2 * radius + 1, 1)
    low = -torch.nn.functional.max_pool2d(-values, 2 * radius + 1, 1)
    return (high == low)[0, 0].numpy()


def assert_aligned(view: View, *, radius: int) -> None:
    """Away from borders of classes the image has the colour that its label tells (the border is black in red only)."""
    image, label = arrays(view)
    assert image.shape[:2] == label.shape
    difference = np.abs(image[..., 0].astype(int) - paint(label)[..., 0])
    assert difference[inside(label, radius)].max(initial=0) <= 1


# ---------------------------------------------------------------------------------- properties

scenes = st.tuples(st.sampled_from([48, 96, 144]), st.sampled_from([48, 96, 144]))  # whole blocks of 48
sizes = st.tuples(st.integers(20, 120), st.integers(20, 120))
steps = st.one_of(
    st.builds(RandomScale, st.just(0.5), st.just(2.0), st.sampled_from([0, 50])),
    st.builds(RandomCrop, st.integers(16, 100), st.booleans()),
    st.builds(Resize, st.integers(24, 80)),
    st.just(RandomFlip()),
    st.builds(RandomRotation, st.floats(0.5, 45)),
)


@settings(max_examples=60, deadline=None)
@given(steps, scenes, st.integers(0, 1000))
def test_image_and_label_stay_aligned(step: Step, size: tuple[int, int], seed: int) -> None:
    label = blocks(seed, size, block=48)
    assert_aligned(step(view_of(label), np.random.default_rng(seed)).pixels(), radius=9)


@settings(max_examples=40, deadline=None)
@given(scenes, st.integers(0, 1000), st.integers(40, 100), st.sampled_from([0.0, 5.0, 30.0]))
def test_chains_stay_aligned_and_hold_the_focus(size: tuple[int, int], seed: int, crop: int, degrees: float) -> None:
    rng = np.random.default_rng(seed)
    label = blocks(seed, size, block=48)
    focus = (int(rng.integers(size[1])), int(rng.integers(size[0])))
    chain = Geometry((RandomScale(0.5, 2.0), RandomCrop(crop), Resize(crop), RandomFlip(), RandomRotation(degrees)))
    view = chain(view_of(label, focus=focus), rng)
    assert view.size == (crop, crop)
    assert_aligned(view, radius=12)
    if degrees == 0:
        assert view.focus is not None and 0 <= view.focus[0] < crop and 0 <= view.focus[1] < crop


exact_steps = st.lists(st.one_of(st.builds(RandomCrop, st.integers(5, 150), st.booleans()), st.just(RandomFlip())))


@settings(max_examples=80, deadline=None)
@given(exact_steps, sizes, st.integers(0, 1000))
def test_the_focus_stays_on_its_pixel(chain: list[Step], size: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = np.arange(size[0] * size[1]).reshape(size) % 251
    x, y = int(rng.integers(size[1])), int(rng.integers(size[0]))
    marked = np.zeros((*size, 3), np.uint8)
    marked[y, x] = (200, 100, 50)
    view = make_view(Image.fromarray(marked), label.astype(np.uint8), focus=(x, y))
    for step in chain:
        view = step(view, rng)
    assert view.focus is not None
    image, moved = arrays(view.pixels())
    assert image[view.focus[1], view.focus[0]].tolist() == [200, 100, 50]
    assert moved[view.focus[1], view.focus[0]] == label[y, x]


@settings(max_examples=60, deadline=None)
@given(sizes, st.floats(0.5, 2.0), st.integers(0, 1000))
def test_scaling_keeps_the_focus_within_a_pixel(size: tuple[int, int], factor: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = int(rng.integers(size[1])), int(rng.integers(size[0]))
    view = RandomScale(0.5, 2.0)(view_of(blocks(seed, size), focus=(x, y)), Scripted(factor))
    assert view.focus is not None
    for place, now, length in ((x, view.focus[0], 0), (y, view.focus[1], 1)):
        assert 0 <= now < view.size[length]
        source = (now + 0.5) * (size[1], size[0])[length] / view.size[length]
        assert abs(source - (place + 0.5)) <= 0.5 + 1.5 / factor


@settings(max_examples=40, deadline=None)
@given(st.floats(-40, 40), st.integers(0, 1000))
def test_rotation_turns_the_focus_with_the_picture(angle: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = int(rng.integers(25, 35)), int(rng.integers(25, 35))
    label = np.zeros((60, 60), np.uint8)
    label[y - 1 : y + 2, x - 1 : x + 2] = 7
    view = RandomRotation(40)(view_of(label, focus=(x, y)), Scripted(angle))
    assert view.focus is not None
    assert np.asarray(view.label)[view.focus[1], view.focus[0]] == 7


def test_rotation_ignores_the_corners_and_loses_a_focus_outside() -> None:
    view = RandomRotation(45)(view_of(np.full((40, 40), 3, np.uint8), focus=(0, 0)), Scripted(45.0))
    image, label = arrays(view)
    assert label[0, 0] == 255 and not image[0, 0].any() and view.focus is None


@settings(max_examples=60, deadline=None)
@given(sizes, st.floats(0.4, 2.5), st.integers(0, 1000))
def test_a_region_equals_resize_then_crop(size: tuple[int, int], factor: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    label = rng.integers(0, 19, size, dtype=np.uint8)
    target = (int(size[1] * factor), int(size[0] * factor))
    left, top = (int(rng.integers(side - 1)) for side in target)
    box = (left, top, int(rng.integers(left + 1, target[0] + 1)), int(rng.integers(top + 1, target[1] + 1)))
    part, labels = arrays(make_view(image, label).scaled(target).region(box))
    columns_first = image.resize((target[0], size[0]), Image.Resampling.BICUBIC)
    whole = np.asarray(columns_first.resize(target, Image.Resampling.BICUBIC).crop(box)).astype(int)
    nearest = np.asarray(Image.fromarray(label).resize(target, Image.Resampling.NEAREST).crop(box))
    # Pillow's weights have 22 bits: a sum next to .5 may round the other way, once per pass
    difference = np.abs(part - whole)
    assert difference.max() <= 2
    assert np.count_nonzero(difference) <= 2e-3 * difference.size + 3
    np.testing.assert_array_equal(labels, nearest)


def test_mapped_frames_are_not_copied_and_give_the_same_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (50, 70, 3), dtype=np.uint8), rng.integers(0, 19, (50, 70), dtype=np.uint8)
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "label.npy", label)
    mapped = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("image", "label")]
    view = make_view(*mapped)
    assert np.shares_memory(view.image, mapped[0]) and np.shares_memory(view.label, mapped[1])
    box = (10, 5, 40, 30)
    for size in ((70, 50), (91, 66), (45, 32)):
        first, second = (shown.scaled(size).region(box) for shown in (view, make_view(Image.fromarray(image), label)))
        np.testing.assert_array_equal(first.image, second.image)
        np.testing.assert_array_equal(first.label, second.label)
    chain = Geometry((RandomScale(0.5, 2.0), RandomCrop(32), RandomFlip(), RandomRotation(10)))
    chain(view, np.random.default_rng(0))
    np.testing.assert_array_equal(mapped[0], image)


def test_a_region_reads_only_its_part_of_the_frame() -> None:
    image, label = np.full((60, 80, 3), 50, np.uint8), np.full((60, 80), 3, np.uint8)
    reached = []  # a pixel outside the filter's reach has no influence, one inside has
    for x in range(80):
        image[:, x], label[:, x] = 255, 9
        part = make_view(image, label).scaled((160, 120)).region((60, 40, 100, 80))
        reached.append((part.image != 50).any())
        image[:, x], label[:, x] = 50, 3
    assert np.flatnonzero(reached).tolist() == list(range(28, 52))  # pixels 30..49, and two on both sides


def test_the_comparison_sees_a_shift() -> None:
    label = np.repeat(np.repeat(np.array([[0, 5], [9, 255]], np.uint8), 48, axis=0), 48, axis=1)
    assert_aligned(view_of(label), radius=9)
    with pytest.raises(AssertionError):
        assert_aligned(make_view(Image.fromarray(np.roll(paint(label), 12, axis=1)), label), radius=9)


# ---------------------------------------------------------------------------------- random numbers and borders


def test_the_order_and_ranges_of_the_random_numbers() -> None:
    chain = Geometry((RandomScale(0.5, 2.0), RandomCrop(20), Resize(20), RandomFlip()))
    rng = Scripted(1.5, 7, 3, 0.6)
    chain(view_of(blocks(0, (30, 40))), rng)
    assert rng.requests == [("uniform", 0.5, 2.0), ("integers", 0, 40), ("integers", 0, 25), ("random",)]
    rng = Scripted(1.0, 3, 8, 0.6)
    chain(view_of(blocks(0, (30, 40)), focus=(12, 9)), rng)
    assert rng.requests[1:3] == [("integers", -8, 12), ("integers", -11, 9)]


def test_a_view_of_the_crop_size_takes_no_random_number() -> None:
    view = view_of(blocks(0, (20, 20)), focus=(3, 4))
    assert RandomCrop(20)(view, Scripted()).focus == (3, 4)


def test_the_border_lies_on_both_sides() -> None:
    label = np.full((11, 30), 4, np.uint8)
    rng = Scripted(2, 0)
    view = RandomCrop(20)(view_of(label), rng)
    image, moved = arrays(view)
    assert rng.requests == [("integers", 0, 10), ("integers", 0, 1)]  # (20 - 11) // 2 + 1 = 5 above and below: 21
    assert (moved[:5] == 255).all() and (moved[5:16] == 4).all() and (moved[16:] == 255).all()
    assert not image[:5].any() and (image[5:16] == paint(label)[0, 0]).all()


def test_the_focus_moves_with_the_border() -> None:
    label = np.zeros((11, 11), np.uint8)
    label[2, 9] = 7
    for seed in range(20):
        view = RandomCrop(20)(view_of(label, focus=(9, 2)), np.random.default_rng(seed))
        assert view.focus is not None and np.asarray(view.label)[view.focus[1], view.focus[0]] == 7


def test_without_border_the_square_shrinks() -> None:
    view = Geometry((RandomCrop(20, pad=False), Resize(20)))(view_of(blocks(0, (12, 40))), np.random.default_rng(0))
    assert view.size == (20, 20) and (np.asarray(view.label) != 255).any()
    assert RandomCrop(20, pad=False)(view_of(blocks(0, (12, 40))), np.random.default_rng(0)).size == (12, 12)


def test_pre_size_brings_the_shorter_side_first() -> None:
    assert RandomScale(0.5, 2.0, 60)(view_of(blocks(0, (30, 40))), Scripted(1.5)).size == (120, 90)


def test_tiny_images_survive_downscaling() -> None:
    chain = Geometry((RandomScale(0.1, 0.2), RandomCrop(16)))
    assert chain(view_of(np.zeros((3, 4), np.uint8), focus=(3, 2)), np.random.default_rng(0)).size == (16, 16)


def test_recipe_has_rotation_only_where_requested(tmp_path: Path) -> None:
    assert not any(isinstance(step, RandomRotation) for step in build_geometry(make_cfg(tmp_path)).steps)
    assert build_geometry(make_cfg(tmp_path, RROTATE=10.0)).steps[-1] == RandomRotation(10.0)


# ---------------------------------------------------------------------------------- protocols


def test_native_size_changes_nothing() -> None:
    view = view_of(blocks(0))
    assert NativeSize()(view) is view


def test_centre_square_ignores_what_sticks_out() -> None:
    image, label = arrays(CentreSquare(40)(view_of(np.full((80, 40), 6, np.uint8))))
    assert label.shape == (40, 40) and (label[:, :10] == 255).all() and (label[:, 30:] == 255).all()
    assert (label[:, 10:30] == 6).all() and not image[:, :10].any()


# ---------------------------------------------------------------------------------- the original's values


def without_the_shift(view: View, size: int) -> View:
    """Take the border off the focus: the original does not move the focus with it."""
    if view.focus is None:
        return view
    border = [(size - side) // 2 + 1 if size > side else 0 for side in view.size]
    return replace(view, focus=(view.focus[0] - border[0], view.focus[1] - border[1]))


def original_geometry(
    image: Image.Image | np.ndarray, label: np.ndarray, focus: tuple[int, int] | None, seed: int
) -> View:
    rng = PythonRandom(seed)
    view = RandomScale(0.5, 2.0)(make_view(image, label, focus=focus), rng)
    return Geometry((RandomCrop(96), Resize(96), RandomFlip()))(without_the_shift(view, 96), rng)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("tag", "focus"), [("n", None), ("c", (150, 20))])
def test_joint_transforms_of_the_original(golden: Path, seed: int, tag: str, focus: tuple[int, int] | None) -> None:
    values = np.load(golden / "numpy_level.npz")
    image, label = arrays(original_geometry(Image.fromarray(values["p_img"]), values["p_mask"], focus, seed))
    difference = np.abs(image.astype(int) - values[f"joint_s{seed}_{tag}_img"])
    assert difference.max() <= 1 and (difference > 0).mean() < 0.002
    np.testing.assert_array_equal(label, values[f"joint_s{seed}_{tag}_mask"])


@pytest.mark.parametrize(("index", "focus"), [(0, None), (1, None), (2, (200, 100)), (3, (10, 170))])
def test_labels_of_whole_training_samples(golden: Path, index: int, focus: tuple[int, int] | None) -> None:
    name = f"train/folder/{index + 1:05d}.png"
    image = read_image(str(golden / "gtav/images" / name))
    label = decode_label(str(golden / "gtav/labels" / name), encoding=ENCODINGS["cityscapes_colours"])
    view = original_geometry(image, label, focus, 100 + index)
    np.testing.assert_array_equal(np.asarray(view.label), np.load(golden / "pipeline.npz")[f"s{index}_mask"])


def test_mapillary_square_of_the_original(golden: Path) -> None:
    values = np.load(golden / "numpy_level.npz")
    view = make_view(Image.fromarray(values["mapval_land_in"]), values["mapval_land_inmask"])
    image, label = arrays(CentreSquare(96)(view))
    difference = np.abs(image.astype(int) - values["mapval_land_img"])
    assert difference.max() <= 1 and np.count_nonzero(difference) <= 1e-3 * difference.size  # the filter's last bit
    np.testing.assert_array_equal(label, values["mapval_land_mask"])
