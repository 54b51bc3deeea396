"""Pictures on tiny arrays: colours, errors, layout, atomic files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils import pictures
from utils.pictures import colorize, comparison, contact_sheet, error_map, legend, overlay, save_png

PALETTE = np.array([[10, 20, 30], [200, 0, 0], [0, 200, 0]], np.uint8)
NAMES = ("road", "car", "tree")


def frame(height: int = 6, width: int = 8, *, truth: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    image = np.full((height, width, 3), 100, np.uint8)
    label = np.full((height, width), truth, np.uint8)
    return image, label, label.copy()


def colours_in(picture: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(int(value) for value in colour) for colour in np.unique(picture.reshape(-1, 3), axis=0)}


@pytest.mark.parametrize("kind", [np.uint8, np.int64])
def test_colorize_maps_classes_and_blackens_the_rest(kind: type) -> None:
    coloured = colorize(np.array([[0, 1], [2, 255]], kind), palette=PALETTE)
    assert coloured.dtype == np.uint8
    assert coloured.tolist() == [[[10, 20, 30], [200, 0, 0]], [[0, 200, 0], [0, 0, 0]]]


def test_an_overlay_mixes_colours_and_hatches_what_has_no_class() -> None:
    image, label = np.full((12, 12, 3), 100, np.uint8), np.ones((12, 12), np.uint8)
    label[6:], label[9:] = 3, 255
    mixed = overlay(image, label, palette=PALETTE, alpha=0.25)
    assert mixed.dtype == np.uint8 and mixed.shape == image.shape
    assert (mixed[:6] == (125, 75, 75)).all()
    assert colours_in(mixed[6:]) == {(40, 40, 40), (110, 110, 110)}
    assert 0.1 < (mixed[6:, :, 0] == 110).mean() < 0.3
    assert (image == 100).all()


def test_a_legend_keeps_to_its_width() -> None:
    entries = [(f"class {index}", (index, 2 * index, 50)) for index in range(1, 8)]
    wide, narrow = legend(entries, width=2000), legend(entries, width=200, size=20)
    assert (wide.width, narrow.width) == (2000, 200) and narrow.height > 3 * wide.height
    for picture in (wide, narrow):
        assert {colour for _, colour in entries} <= colours_in(np.asarray(picture))


def test_errors_are_red_right_pixels_grey_and_ignored_ones_black() -> None:
    image, truth, prediction = frame(1, 3)
    truth[0, 2], prediction[0] = 255, (0, 1, 1)
    right, wrong, ignored = error_map(image, truth, prediction)[0].tolist()
    assert len(set(right)) == 1 and 0 < right[0] < 100
    assert tuple(wrong) == pictures.WRONG and ignored == [0, 0, 0]


def test_a_comparison_shows_four_columns_and_only_the_classes_that_occur() -> None:
    image, truth, prediction = frame()
    prediction[:, :4] = 1
    truth[0] = 255
    picture = comparison([(image, truth, prediction)], palette=PALETTE, class_names=NAMES)
    assert picture.dtype == np.uint8
    shown = colours_in(picture)
    assert {(10, 20, 30), (200, 0, 0), pictures.WRONG, (0, 0, 0), (100, 100, 100)} <= shown
    assert (0, 200, 0) not in shown
    width = (picture.shape[1] - 5 * pictures.MARGIN) // 4
    assert width == pictures.MIN_COLUMN


def test_classes_predicted_only_where_nothing_is_scored_are_not_in_the_legend() -> None:
    image, truth, prediction = frame()
    truth[0], prediction[0] = 255, 2
    picture = comparison([(image, truth, prediction)], palette=PALETTE, class_names=NAMES)
    assert (0, 200, 0) not in colours_in(picture)


def test_rows_of_different_sizes_share_a_column_width() -> None:
    rows = [frame(40, 60), frame(90, 30, truth=2), frame(20, 300)]
    picture = comparison(rows, palette=PALETTE, class_names=NAMES)
    assert picture.shape[1] == 4 * 300 + 5 * pictures.MARGIN
    assert picture.shape[0] > 200 + 900 + 20
    wide = comparison([frame(10, 3000)], palette=PALETTE, class_names=NAMES)
    assert wide.shape[1] == 4 * pictures.MAX_COLUMN + 5 * pictures.MARGIN


def test_an_all_ignored_frame_and_classes_outside_the_names_are_drawn() -> None:
    image, truth, prediction = frame(truth=255)
    assert comparison([(image, truth, prediction)], palette=PALETTE, class_names=NAMES).size
    image, truth, prediction = frame(truth=2)
    assert comparison([(image, truth, prediction)], palette=PALETTE, class_names=NAMES[:1]).size
    assert comparison([frame()], palette=np.zeros((0, 3), np.uint8), class_names=()).size


def test_19_long_names_fit_into_the_legend() -> None:
    image, truth, prediction = frame(16, 16)
    truth[:] = prediction[:] = np.arange(256).reshape(16, 16) % 19
    palette = np.random.default_rng(0).integers(0, 256, (19, 3)).astype(np.uint8)
    names = [f"a rather long class name {index}" for index in range(19)]
    picture = comparison([(image, truth, prediction)], palette=palette, class_names=names)
    assert {tuple(map(int, colour)) for colour in palette} <= colours_in(picture[-200:])


def test_contact_sheets_take_any_number_and_size() -> None:
    images = [np.full((20 + 5 * index, 40, 3), 40 * index, np.uint8) for index in range(5)]
    sheet = contact_sheet(images, columns=3, width=64)
    assert sheet.shape[1] == 3 * (64 + pictures.MARGIN) + pictures.MARGIN
    assert {(40 * index,) * 3 for index in range(5)} <= colours_in(sheet)
    captioned = contact_sheet(images, columns=3, width=64, captions=[f"frame {index}" for index in range(5)])
    assert captioned.shape[0] > sheet.shape[0] and captioned.shape[1] == sheet.shape[1]
    assert contact_sheet(images[:1], columns=4).shape[1] == 320 + 2 * pictures.MARGIN


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    array = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    save_png(array, tmp_path / "new" / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "a.png")), array)
    save_png(array[..., 0], str(tmp_path / "new" / "a.png"))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "a.png")), array[..., 0])
    with pytest.raises((TypeError, ValueError)):
        save_png(np.zeros((2, 2, 7), np.uint8), tmp_path / "new" / "b.png")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]
