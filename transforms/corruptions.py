"""The fifteen corruptions of Hendrycks and Dietterich (ICLR 2019), on whole images; imagecorruptions-imaug has them."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from utils.errors import UserError, did_you_mean
from utils.parallel import opencv

NAMES = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
SEVERITIES = (1, 2, 3, 4, 5)
PACKAGE = "imagecorruptions-imaug"
SMALLEST = 32  # side in pixels that the package takes
_TAKE_SEEDS = ("impulse_noise", "glass_blur")  # the others sample from numpy's global stream


@dataclass(frozen=True)
class Corruption:
    """One corruption at one severity, 1 to 5; the same image name always gives the same noise."""

    name: str
    severity: int

    def __str__(self) -> str:
        return f"{self.name}:{self.severity}"

    @property
    def text(self) -> str:
        return f"corrupted by {self} ({PACKAGE} {version(PACKAGE)})"

    def __call__(self, image: np.ndarray, *, name: str) -> np.ndarray:
        """Return an image (H, W, 3) uint8 RGB corrupted, of the same shape; `name` is the image's, for the seed."""
        height, width = image.shape[:2]
        if min(height, width) < SMALLEST:
            rule = f"--corrupt takes images of at least {SMALLEST}x{SMALLEST} pixels"
            raise UserError(f"{name}: {width}x{height} pixels, but {rule}; leave such images out")
        opencv()  # before the package uses it
        from imagecorruptions import corrupt

        seed = zlib.crc32(os.fsencode(f"{self} {name}"))
        own = {"seed": seed} if self.name in _TAKE_SEEDS else {}
        before = np.random.get_state()  # noqa: NPY002
        np.random.seed(seed)  # noqa: NPY002
        try:
            return np.asarray(corrupt(image, severity=self.severity, corruption_name=self.name, **own))
        finally:
            np.random.set_state(before)  # noqa: NPY002


def parse_corruptions(words: Sequence[str]) -> tuple[Corruption, ...]:
    """Return what --corrupt names, each once: NAME:SEVERITY, or NAME for its five; `all` stands for every name.

    A name or severity that does not exist, and a package that is not installed, raise `UserError`.
    """
    corruptions = dict[Corruption, None]()
    for word in words:
        name, colon, severity = word.partition(":")
        if name not in ("all", *NAMES):
            known = f"there are {', '.join(NAMES)}, and all for each of them"
            raise UserError(f"--corrupt {word}: unknown corruption {name!r}; {known}{did_you_mean(name, NAMES)}")
        if colon and severity not in map(str, SEVERITIES):
            raise UserError(f"--corrupt {word}: a severity is 1 to 5, not {severity!r}; without one it is each of them")
        for known_name in NAMES if name == "all" else (name,):
            for level in (int(severity),) if colon else SEVERITIES:
                corruptions[Corruption(known_name, level)] = None
    if corruptions:
        _require_package()
    return tuple(corruptions)


def _require_package() -> None:
    try:
        opencv()
        import imagecorruptions  # noqa: F401

        version(PACKAGE)  # another package of the same module name is older and fails on current libraries
    except ImportError as error:
        how = "pip install numba && pip install --no-deps -r requirements-corruptions.txt"
        raise UserError(f"--corrupt needs the package {PACKAGE} ({error}); {how}") from error
