"""One row per method: where style is normalised, what is whitened, which head with which of its parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

from config import Config
from network.style import check_codes
from utils.errors import UserError, did_you_mean

Head = Literal["plain", "diia", "linear"]
Whitening = Literal["irw", "isw"]
Part = Literal["edge", "layout", "aggregation", "fused"]
Correction = Literal["edge", "confidence", "encoding", "attention", "content", "losses"]
DEFAULT_METHOD = "diia"
PARTS: tuple[Part, ...] = get_args(Part)  # of the DIIA head, beside its coarse and auxiliary classifiers
CORRECTIONS: tuple[Correction, ...] = get_args(Correction)  # of what hardly acts in the published head (docs/parity.md)


@dataclasses.dataclass(frozen=True)
class Method:
    """What distinguishes one method from the next."""

    name: str
    head: Head  # plain: DeepLabV3+; linear: batch norm and a 1x1 convolution
    codes: tuple[int, ...]  # style sites, seven codes (network.style)
    whitening: Whitening | None = None  # which covariance entries are whitened: all (irw) or the sensitive ones (isw)
    parts: tuple[Part, ...] = ()  # which parts of the DIIA head are there (network.diia says what is left without one)
    corrections: tuple[Correction, ...] = ()
    relax_denom: float = 0.0  # irw: the mean absolute covariance is pushed down to 1 / relax_denom; 0 = to zero
    jitter: Literal["diia", "robustnet"] = "robustnet"  # strengths of the colour jitter

    def recipe_batch(self, sources: Sequence[str]) -> int:
        """Return the images per step, on all GPUs together, of the published recipe for these source domains."""
        if self.head == "diia":
            return 32
        return 8 if list(sources) == ["cityscapes"] else 16

    @property
    def edge_magnitude(self) -> bool:
        """Whether the edge target is the gradient's magnitude instead of |Sobel x| (transforms.appearance)."""
        return "edge" in self.corrections

    @property
    def label(self) -> str:
        """The row's name, with the style codes where they are not the row's own."""
        return self.name if self.codes == METHODS[self.name].codes else f"{self.name} {''.join(map(str, self.codes))}"

    def __str__(self) -> str:
        head = {"plain": "plain DeepLabV3+ head", "diia": "DIIA head", "linear": "linear head"}[self.head]
        missing = [part for part in PARTS if part not in self.parts] if self.head == "diia" else []
        head += f" without {', '.join(missing)}" if missing else ""
        head += f", corrected {', '.join(self.corrections)}" if self.corrections else ""
        whitened = f", {self.whitening.upper()} whitening" if self.whitening else ""
        return f"{self.name} ({head}, wt_layer {' '.join(map(str, self.codes))}{whitened})"


_NONE = (0, 0, 0, 0, 0, 0, 0)
_DIIA = Method("diia", "diia", (0, 0, 2, 2, 2, 0, 0), "isw", parts=PARTS, jitter="diia")
_V2 = dataclasses.replace(_DIIA, name="diia-v2", codes=(0, 0, 6, 6, 6, 0, 0), corrections=CORRECTIONS)
METHODS: dict[str, Method] = {
    row.name: row
    for row in (
        Method("base", "plain", _NONE),
        Method("linear", "linear", _NONE),
        Method("ibn", "plain", (0, 0, 4, 4, 4, 0, 0)),
        Method("is", "plain", (0, 0, 3, 3, 3, 0, 0)),
        Method("iw", "plain", (0, 0, 1, 1, 1, 0, 0), "irw"),
        Method("irw", "plain", (0, 0, 1, 1, 1, 0, 0), "irw", relax_denom=64.0),
        Method("isw", "plain", (0, 0, 2, 2, 2, 0, 0), "isw"),
        Method("sw", "plain", (0, 0, 5, 5, 5, 0, 0)),
        _DIIA,
        dataclasses.replace(_DIIA, name="diia-no-edge", parts=("layout", "aggregation", "fused")),
        dataclasses.replace(_DIIA, name="diia-no-layout", parts=("edge", "aggregation", "fused")),
        dataclasses.replace(_DIIA, name="diia-no-aggregation", parts=("edge", "layout", "fused")),
        dataclasses.replace(_DIIA, name="diia-no-whitening", codes=_NONE, whitening=None),  # batch norm alone
        dataclasses.replace(_DIIA, name="diia-coarse", parts=()),
        _V2,
        *(
            dataclasses.replace(_V2, name=f"diia-v2-old-{name}", corrections=tuple(c for c in CORRECTIONS if c != name))
            for name in CORRECTIONS
        ),
        dataclasses.replace(_V2, name="diia-v2-old-sites", codes=_DIIA.codes),
    )
}


def resolve_method(name: str, wt_layer: Sequence[int] | None = None) -> Method:
    """Return the row `name`, with other style codes where `wt_layer` gives them; the whitening follows from the codes.

    The DIIA head goes with any codes, unless the row is without whitening; a plain row keeps its meaning, so its own
    code must be among them.

    Raises:
        UserError: an unknown method, impossible codes, or codes that belong to another method.
    """
    if name not in METHODS:
        raise UserError(f"--method {name}: unknown; one of {', '.join(METHODS)}{did_you_mean(name, METHODS)}")
    row = METHODS[name]
    if wt_layer is None:
        return row
    codes = tuple(int(code) for code in wt_layer)
    check_codes(codes)
    whitening: Whitening | None = "isw" if {2, 6} & set(codes) else "irw" if 1 in codes else None
    flags, code = f"--method {name} with --wt_layer {' '.join(map(str, codes))}", max(row.codes)
    if row.head == "diia" and row.whitening is None and {1, 2, 5, 6} & set(codes):
        raise UserError(f"{flags}: these whiten; use --method diia")
    own = whitening or (code in codes if code else not any(codes))
    if row.head != "diia" and (whitening != row.whitening or not own):
        raise UserError(
            f"{flags}: these codes are not {name}'s (its own are {' '.join(map(str, row.codes))}); "
            f"leave --wt_layer out or use --method {method_for(head='plain', codes=codes).name}"
        )
    return dataclasses.replace(row, codes=codes, whitening=whitening)


def resolve_jitter(cfg: Config) -> str:
    """Return the name of a run's jitter strengths: AUGMENT.JITTER's, where that says "method" those of its method."""
    if cfg.AUGMENT.JITTER != "method":
        return str(cfg.AUGMENT.JITTER)
    return resolve_method(cfg.NETWORK.METHOD, cfg.NETWORK.WT_LAYER).jitter


def method_for(*, head: Head, codes: Sequence[int]) -> Method:
    """Return the method of a weight file without a config, from its head and its style codes."""
    check_codes(codes)
    names = ((2, "isw"), (6, "isw"), (1, "irw"), (5, "sw"), (4, "ibn"), (3, "is"), (0, "base"))
    return resolve_method("diia" if head == "diia" else next(name for code, name in names if code in codes), codes)
