"""The 19 classes: names, colours, and the tables from raw ids to train ids."""

from __future__ import annotations

import numpy as np

from utils import IGNORE as IGNORE

NUM_CLASSES = 19

CLASS_NAMES: tuple[str, ...] = tuple(
    "road,sidewalk,building,wall,fence,pole,traffic light,traffic sign,vegetation,terrain,sky,person,rider,car,truck,"
    "bus,train,motorcycle,bicycle".split(",")
)

CITYSCAPES_PALETTE = bytes.fromhex(  # of the 35 ids of Cityscapes
    "000000 000000 000000 000000 000000 6f4a00 510051"  # unlabelled, ego vehicle, 3 more, dynamic, ground
    "804080 f423e8 faaaa0 e6968c"  # road, sidewalk, parking, rail track
    "464646 66669c be9999 b4a5b4 966464 96785a"  # building, wall, fence, guard rail, bridge, tunnel
    "999999 999999 faaa1e dcdc00"  # pole, pole group (by colour it is a pole), traffic light, traffic sign
    "6b8e23 98fb98 4682b4 dc143c ff0000"  # vegetation, terrain, sky, person, rider
    "00008e 000046 003c64 00005a 00006e"  # car, truck, bus, caravan, trailer
    "005064 0000e6 770b20 00008e"  # train, motorcycle, bicycle, licence plate (by colour it is a car)
)
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


TRAIN_IDS = {train: train for train in range(NUM_CLASSES)}
CITYSCAPES_IDS = _table("7 8 11 12 13 17 19 20 21 22 23 24 25 26 27 28 31 32 33", known=35)
SYNTHIA_IDS = _table("3 4 2 21 5 7 15 9 6 16 1 10 17 8 18 19 20 12 11", known=23)
MAPILLARY_IDS = _table("13+24+41 2+15 17 6 3 45+47 48 50 30 29 27 19 20+21+22 55 61 54 58 57 52", known=66)
# SegNet's CamVid: sky building pole road pavement tree sign fence car pedestrian bicyclist unlabelled.
CAMVID_IDS = dict(enumerate((10, 2, 5, 0, 1, 8, 7, 4, 13, 11, 12, IGNORE)))

_COLOURS = np.frombuffer(CITYSCAPES_PALETTE, dtype=np.uint8).reshape(-1, 3)
# Colour and train id of Cityscapes' 35 labels in the order of their ids.
CITYSCAPES_LABELS = tuple(zip(map(tuple, _COLOURS.tolist()), CITYSCAPES_IDS.values(), strict=True))
PALETTE: np.ndarray = _COLOURS[[raw for raw, train in CITYSCAPES_IDS.items() if train != IGNORE]]  # (19, 3) RGB
