"""Where and how a backbone normalises style: the one reader of the old `--wt_layer` codes, and the layer at a site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from network.switch_whitening import SyncSwitchWhiten2d
from utils.errors import UserError

NUM_POSITIONS = 7  # three stem convolutions and four stages
SITE_KINDS = {1: "whiten", 2: "whiten", 3: "instance", 4: "instance_affine", 5: "switchable"}
SWITCH_GROUP = 16  # channels that switchable whitening whitens together
POSITION_NAMES = ("stem1", "stem2", "stem3", "stage1", "stage2", "stage3", "stage4")


class StyleSite(nn.InstanceNorm2d):
    """Instance normalisation at one place of a backbone; `captured` outputs also go to the whitening loss."""

    def __init__(self, channels: int, *, kind: str) -> None:
        super().__init__(channels, eps=1e-5, affine=kind == "instance_affine")
        self.captured = kind == "whiten"


def build_site(channels: int, *, kind: str) -> StyleSite | SyncSwitchWhiten2d:
    """Build the layer of a style site.

    Raises:
        UserError: switchable whitening where the channels do not fall into whole groups.
    """
    if kind not in SITE_KINDS.values():
        raise ValueError(f"style site kind {kind!r}: one of {', '.join(sorted(set(SITE_KINDS.values())))}")
    if kind != "switchable":
        return StyleSite(channels, kind=kind)
    if channels % SWITCH_GROUP:
        raise UserError(
            f"--wt_layer: code 5 (switchable whitening) needs a multiple of {SWITCH_GROUP} channels, not {channels}; "
            "put another code there"
        )
    return SyncSwitchWhiten2d(channels, group=SWITCH_GROUP)


def read_codes(codes: Sequence[int], *, positions: Mapping[int, str]) -> dict[str, str]:
    """Turn seven codes into a table of style sites.

    0 none, 1 and 2 whitened, 3 instance norm, 4 affine instance norm, 5 switchable whitening.

    Args:
        codes: the numbers of `--wt_layer`.
        positions: position of a code -> site name, for the positions that the backbone has.

    Raises:
        UserError: wrong number of codes, an unknown code, or a code at a position that the backbone lacks.
    """
    check_codes(codes)
    sites: dict[str, str] = {}
    for position, code in enumerate(codes):
        if code == 0:
            continue
        if position not in positions:
            usable = ", ".join(str(p) for p in sorted(positions))
            raise UserError(
                f"--wt_layer {' '.join(map(str, codes))}: position {position} ({POSITION_NAMES[position]}) does not "
                f"exist in this backbone, which has positions {usable}; put 0 there"
            )
        sites[positions[position]] = SITE_KINDS[code]
    return sites


def check_codes(codes: Sequence[int]) -> None:
    """Raise `UserError` unless these are seven known codes of which 1 and 2 are not mixed."""
    text = f"--wt_layer {' '.join(map(str, codes))}"
    if len(codes) != NUM_POSITIONS:
        raise UserError(f"{text}: {len(codes)} codes given, {NUM_POSITIONS} needed (3 stem convolutions, 4 stages)")
    unknown = [str(code) for code in codes if code not in (0, *SITE_KINDS)]
    if unknown:
        raise UserError(f"{text}: unknown code {', '.join(unknown)}; use 0 none, 1 IW/IRW, 2 ISW, 3 IN, 4 IBN, 5 SW")
    if 1 in codes and 2 in codes:
        raise UserError(f"{text}: codes 1 (IW/IRW) and 2 (ISW) cannot be mixed; use one of them at every whitened site")
