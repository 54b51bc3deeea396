"""The label tables reach every class and are the published ones; Cityscapes' is compared with torchvision's."""

from __future__ import annotations

from torchvision.datasets import Cityscapes

from datasets import labels
from datasets.labels import CITYSCAPES_IDS, CITYSCAPES_LABELS, CLASS_NAMES, IGNORE, NUM_CLASSES, PALETTE


def test_tables_reach_every_class_of_their_data_set() -> None:
    everything = {*range(NUM_CLASSES), IGNORE}
    assert set(CITYSCAPES_IDS.values()) == everything
    assert set(labels.MAPILLARY_IDS.values()) == everything and len(labels.MAPILLARY_IDS) == 66
    assert set(labels.SYNTHIA_IDS.values()) == everything and len(labels.SYNTHIA_IDS) == 23
    assert set(labels.CAMVID_IDS.values()) == {0, 1, 2, 4, 5, 7, 8, 10, 11, 12, 13, 255}


def test_ids_train_ids_names_and_colours_are_those_of_cityscapes() -> None:
    *numbered, plate = Cityscapes.classes
    assert [row.id for row in numbered] == list(range(len(CITYSCAPES_LABELS) - 1))
    assert [(row.color, row.train_id) for row in numbered] == list(CITYSCAPES_LABELS[:-1])
    assert {row.id: row.train_id for row in numbered} | {len(numbered): IGNORE} == CITYSCAPES_IDS
    # The licence plate has no id (-1) in Cityscapes; here its row is the last, as in GTAV's palette, and ignored.
    assert (plate.name, plate.id, (plate.color, IGNORE)) == ("license plate", -1, CITYSCAPES_LABELS[-1])

    classes = sorted((row for row in numbered if row.train_id != IGNORE), key=lambda row: row.train_id)
    assert [row.train_id for row in classes] == list(range(NUM_CLASSES))
    assert tuple(row.name for row in classes) == CLASS_NAMES
    assert [row.color for row in classes] == [tuple(colour) for colour in PALETTE.tolist()]
    assert all(row.ignore_in_eval == (row.train_id == IGNORE) for row in numbered)


def test_synthia_ids_are_the_published_ones() -> None:
    published = {1: 10, 2: 2, 3: 0, 4: 1, 5: 4, 6: 8, 7: 5, 8: 13, 9: 7, 10: 11, 11: 18, 12: 17, 15: 6, 16: 9}
    published |= {17: 12, 18: 14, 19: 15, 20: 16, 21: 3, 0: 255, 13: 255, 14: 255, 22: 255}
    assert published == labels.SYNTHIA_IDS


def test_colours_and_names_are_distinct() -> None:
    assert PALETTE.shape == (19, 3) and PALETTE.dtype == "uint8"
    assert len(set(CLASS_NAMES)) == len({tuple(row) for row in PALETTE.tolist()}) == 19
