"""How whole images are brought to the form that is scored."""

from __future__ import annotations

from dataclasses import dataclass

from transforms.view import View


@dataclass(frozen=True)
class NativeSize:
    """Every pixel of every image at its own size."""

    text: str = "native size, every pixel"

    def __call__(self, view: View) -> View:
        """Return the view as it is."""
        return view.pixels()


@dataclass(frozen=True)
class CentreSquare:
    """The centre square of the image at a fixed height; what sticks out of a narrow image is ignored.

    Source: the original's validation of Mapillary (there the padding counts as road).
    """

    side: int = 1536

    @property
    def text(self) -> str:
        """Words for a table of results."""
        return f"height {self.side}, centre square, padding ignored"

    def __call__(self, view: View) -> View:
        """Return a square view of the side."""
        width = max(int(view.size[0] / view.size[1] * self.side), 1)
        left = round((width - self.side) / 2)
        return view.scaled((width, self.side), None).region((left, 0, left + self.side, self.side))


Protocol = NativeSize | CentreSquare
