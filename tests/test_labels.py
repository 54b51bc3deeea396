from __future__ import annotations

import numpy as np

from datasets import labels


def test_tables_reach_every_class_of_their_data_set() -> None:
    everything = set(range(labels.NUM_CLASSES)) | {labels.IGNORE}
    assert set(labels.CITYSCAPES_IDS.values()) == everything
    assert set(labels.MAPILLARY_IDS.values()) == everything and len(labels.MAPILLARY_IDS) == 66
    assert set(labels.SYNTHIA_IDS.values()) == everything and len(labels.SYNTHIA_IDS) == 23
    assert set(labels.CAMVID_IDS.values()) == {0, 1, 2, 4, 5, 7, 8, 10, 11, 12, 13, 255}


def test_cityscapes_ids_are_the_published_ones() -> None:
    scored = [raw for raw, train in labels.CITYSCAPES_IDS.items() if train != labels.IGNORE]
    assert scored == [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert [labels.CITYSCAPES_IDS[raw] for raw in scored] == list(range(19))


def test_synthia_ids_are_the_published_ones() -> None:
    published = {1: 10, 2: 2, 3: 0, 4: 1, 5: 4, 6: 8, 7: 5, 8: 13, 9: 7, 10: 11, 11: 18, 12: 17, 15: 6, 16: 9}
    published |= {17: 12, 18: 14, 19: 15, 20: 16, 21: 3, 0: 255, 13: 255, 14: 255, 22: 255}
    assert published == labels.SYNTHIA_IDS


def test_palette_and_names_have_one_entry_per_class() -> None:
    assert labels.PALETTE.shape == (19, 3) and labels.PALETTE.dtype == np.uint8
    assert len(set(labels.CLASS_NAMES)) == len({tuple(row) for row in labels.PALETTE.tolist()}) == 19
    assert labels.PALETTE[labels.CLASS_NAMES.index("bicycle")].tolist() == [119, 11, 32]
