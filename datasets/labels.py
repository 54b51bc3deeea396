"""The 19 classes: names, colours, and the tables from raw ids to train ids."""

from __future__ import annotations

import numpy as np

NUM_CLASSES = 19
IGNORE = 255

CLASS_NAMES: tuple[str, ...] = tuple(
    "road,sidewalk,building,wall,fence,pole,traffic light,traffic sign,vegetation,terrain,sky,person,rider,car,truck,"
    "bus,train,motorcycle,bicycle".split(",")
)

# The 35 Cityscapes labels in the order of their ids 0..34: colour and train id (255 = not scored).
CITYSCAPES_LABELS: tuple[tuple[tuple[int, int, int], int], ...] = (
    ((0, 0, 0), IGNORE),  # unlabeled
    ((0, 0, 0), IGNORE),  # ego vehicle
    ((0, 0, 0), IGNORE),  # rectification border
    ((0, 0, 0), IGNORE),  # out of roi
    ((0, 0, 0), IGNORE),  # static
    ((111, 74, 0), IGNORE),  # dynamic
    ((81, 0, 81), IGNORE),  # ground
    ((128, 64, 128), 0),  # road
    ((244, 35, 232), 1),  # sidewalk
    ((250, 170, 160), IGNORE),  # parking
    ((230, 150, 140), IGNORE),  # rail track
    ((70, 70, 70), 2),  # building
    ((102, 102, 156), 3),  # wall
    ((190, 153, 153), 4),  # fence
    ((180, 165, 180), IGNORE),  # guard rail
    ((150, 100, 100), IGNORE),  # bridge
    ((150, 120, 90), IGNORE),  # tunnel
    ((153, 153, 153), 5),  # pole
    ((153, 153, 153), IGNORE),  # pole group: by colour it is a pole
    ((250, 170, 30), 6),  # traffic light
    ((220, 220, 0), 7),  # traffic sign
    ((107, 142, 35), 8),  # vegetation
    ((152, 251, 152), 9),  # terrain
    ((70, 130, 180), 10),  # sky
    ((220, 20, 60), 11),  # person
    ((255, 0, 0), 12),  # rider
    ((0, 0, 142), 13),  # car
    ((0, 0, 70), 14),  # truck
    ((0, 60, 100), 15),  # bus
    ((0, 0, 90), IGNORE),  # caravan
    ((0, 0, 110), IGNORE),  # trailer
    ((0, 80, 100), 16),  # train
    ((0, 0, 230), 17),  # motorcycle
    ((119, 11, 32), 18),  # bicycle
    ((0, 0, 142), IGNORE),  # licence plate: by colour it is a car
)

PALETTE: np.ndarray = np.array(
    [colour for colour, train in sorted(CITYSCAPES_LABELS, key=lambda row: row[1]) if train != IGNORE], dtype=np.uint8
)  # (19, 3) RGB by train id

CITYSCAPES_PALETTE = bytes(channel for colour, _ in CITYSCAPES_LABELS for channel in colour)  # of 35 ids
MAPILLARY_PALETTE = bytes.fromhex(  # of the 66 ids of Mapillary Vistas v1.2, filled up to 256
    "a52a2a00c000c4c4c4be9999b4a5b45a789666669c8040ff8c8cc8aaaaaafaaaa0606060e6968c8040806e6e6ef423e8966464464646"
    "96785adc143cff0000ff0064ff00c8c88080ffffff40aa40e6a0324682b4beffff98fb986b8e2300aa1effff80fa001e648cb4dcdcdc"
    "dc8080de282864aa1e2828282121216480a08e0000466496d2aa64999999808080000050faaa1ec0c0c0dcdc008c8c14770b209600ff"
    "003c6400008e00005a0000e600506480404000006e0000460000c0202020780a0a000000"
).ljust(768, b"\0")


def _table(raws: str, *, known: int) -> dict[int, int]:
    """Return raw id -> train id for raw ids 0..known-1 from the raw ids of train id 0, 1 ...; the rest is ignored."""
    table = dict.fromkeys(range(known), IGNORE)
    for train, group in enumerate(raws.split()):
        table.update(dict.fromkeys(map(int, group.split("+")), train))
    return table


TRAIN_IDS: dict[int, int] = {train: train for train in range(NUM_CLASSES)}
CITYSCAPES_IDS: dict[int, int] = {raw: train for raw, (_, train) in enumerate(CITYSCAPES_LABELS)}
SYNTHIA_IDS: dict[int, int] = _table("3 4 2 21 5 7 15 9 6 16 1 10 17 8 18 19 20 12 11", known=23)
MAPILLARY_IDS: dict[int, int] = _table(
    "13+24+41 2+15 17 6 3 45+47 48 50 30 29 27 19 20+21+22 55 61 54 58 57 52", known=66
)
# SegNet's CamVid: sky building pole road pavement tree sign fence car pedestrian bicyclist unlabelled.
CAMVID_IDS: dict[int, int] = dict(enumerate((10, 2, 5, 0, 1, 8, 7, 4, 13, 11, 12, IGNORE)))
