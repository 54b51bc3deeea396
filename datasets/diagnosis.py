"""What is wrong with a data set, by name: from listings and findings to faults with their likely cause."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from datasets.codec import ENCODINGS, Encoding
from datasets.domains import Domain, Layout
from datasets.labels import NUM_CLASSES
from datasets.scan import FEW_COLOURS, Finding, Stored, telling_classes
from datasets.splits import Listing

EXAMPLES = 3  # files that a fault names
MANY = 8  # labels that must all lack the telling classes before their absence says anything
MOST = 0.5  # share of the labels seen that are ignored altogether, or of pairs of unequal size, which is a fault


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong or worth knowing.

    Attributes:
        split: train, val or test, several joined by " and ", or "" for the whole domain.
        name: stable, for programs.
        severity: "fatal" stops or spoils a training, "fault" is wrong, "note" is only worth knowing.
        count: files or pairs that show it.
        examples: the first few of them, relative to the domain's root.
        advice: one sentence on the likely cause and the way out.
        root: the domain's folder.
    """

    domain: str
    split: str
    name: str
    severity: str
    count: int
    examples: tuple[str, ...]
    advice: str
    root: str = ""

    @property
    def where(self) -> str:
        """The domain, with the split where there is one."""
        return f"{self.domain}/{self.split}" if self.split else self.domain

    def sentence(self) -> str:
        """Return the fault in one line."""
        if not self.examples:
            return f"{self.where}: {self.name}: {self.advice}"
        first = self.examples[0] if self.examples[0] == self.root else os.path.join(self.root, self.examples[0])
        if self.count == 1 and first in self.advice:
            return f"{self.where}: {self.advice}"
        return f"{self.where}: {self.name} ({self.count}, the first: {first}): {self.advice}"


class Diagnosis:
    """Collects the faults of one split, whose files are named relative to the domain's root."""

    def __init__(self, domain: Domain, split: str) -> None:
        self.domain, self.split, self.faults = domain, split, list[Fault]()

    def add(self, name: str, severity: str, found: Sequence[str], advice: str) -> None:
        """Add a fault where something was found: paths, or paths with what was seen."""
        if found:
            root = f"{self.domain.root}/"
            first = tuple(text.removeprefix(root) for text in found[:EXAMPLES])
            self._append(name, severity, len(found), first, advice)

    def count(self, images: int, published: Sequence[int]) -> None:
        """Note a number of images that is none of the published ones."""
        if published and images not in published:
            known = " or ".join(f"{number:,}" for number in published)
            advice = f"the published split has {known} images; a part of it is fine where it is meant"
            self._append("count", "note", images, (), advice)

    def _append(self, name: str, severity: str, count: int, examples: tuple[str, ...], advice: str) -> None:
        domain = self.domain
        self.faults.append(Fault(domain.name, self.split, name, severity, count, examples, advice, root=domain.root))

    def partners(self, listing: Listing, strays: Sequence[str]) -> None:
        """Judge images without a label and labels without an image."""
        there = set(listing.labelled)
        missing = [f"{pair.name} without {pair.label}" for pair in listing.pairs if pair not in there]
        missing = [text.replace(f" {self.domain.root}/", " ") for text in missing]
        if missing and not there and self.split == "test":
            self.add("no-labels", "note", missing, "test images often come without labels; they cannot be scored")
        elif missing and not there:
            advice = "no label of this split is where it is expected; unpack the labels there"
            self.add("missing-label", "fatal", missing, advice)
        else:
            advice = "unpack the labels again, or remove the images that have none"
            self.add("missing-label", "fatal", missing, advice)
        advice = "their images are missing or named otherwise; unpack the images again, or remove the labels"
        self.add("label-without-image", "fault", strays, advice)

    def decoding(self, findings: Sequence[Finding]) -> None:
        """Judge files that no decoder reads."""
        advice = "damaged, cut off or not an image; unpack or download them again"
        images = [f"{found.pair.name}: {found.image_error}" for found in findings if found.image_error]
        self.add("undecodable-image", "fatal", images, advice)
        broken = [found for found in findings if found.label_error and found.stored is None]
        self.add("undecodable-label", "fatal", [f"{f.pair.label}: {f.label_error}" for f in broken], advice)

    def sizes(self, findings: Sequence[Finding]) -> None:
        """Judge pairs whose image and label differ in size, the transposed ones by themselves."""
        pairs = [(found.pair.name, found.image_size, found.label_size) for found in findings]
        sized = [(name, image, label) for name, image, label in pairs if image and label]
        unequal = [(name, image, label) for name, image, label in sized if image != label]
        severity, left_out = "fatal", "unpack both again, or remove them"
        if self.domain.skip_unequal and len(unequal) < MOST * len(sized):
            severity, left_out = "note", "the loaders leave these pairs out"
        causes = {
            True: f"height and width of the label are swapped (a transposed mask); transpose it; {left_out}",
            False: f"image and label are not of one frame, or only one of them was resized; {left_out}",
        }
        for swapped, advice in causes.items():
            found = [
                f"{name}: image {image[0]}x{image[1]}, label {label[0]}x{label[1]}"
                for name, image, label in unequal
                if (label == image[::-1]) is swapped
            ]
            self.add("unequal-size", severity, found, advice)

    def values(self, findings: Sequence[Finding]) -> None:
        """Judge labels that were refused, by likely cause, and those that were read but cannot be meant so."""
        encoding = self.domain.encoding
        refused = defaultdict(list)
        for found in findings:
            if found.label_error and found.stored is not None:
                refused[refusal_cause(encoding, found.stored)].append(f"{found.pair.label}: {found.label_error}")
        for advice, paths in refused.items():
            self.add("unexpected-values", "fatal", paths, advice)
        odd = [found for found in findings if found.odd_colours > FEW_COLOURS]
        self.add(
            "unexpected-values",
            "fault",
            [f"{found.pair.label}: {_at_most_256(found.odd_colours)} unknown colours" for found in odd],
            f"colours between those of {encoding.name}; {_LOSSY}",
        )
        read = [found for found in findings if found.pixels]
        self._ignored(read)
        self._mixed_up([found for found in read if any(found.pixels[:NUM_CLASSES])])

    def _ignored(self, read: Sequence[Finding]) -> None:
        """Judge labels whose every pixel is ignored: one is a note, most of them cannot be meant so."""
        empty = [found.pair.label for found in read if not any(found.pixels[:NUM_CLASSES])]
        name, severity = "unexpected-values", "fatal" if len(empty) == len(read) else "fault"
        advice = f"every pixel is ignored; check that these are labels in the encoding {self.domain.encoding.name}"
        if len(empty) < MOST * len(read) or self.split == "test":
            name, severity, advice = "ignored-label", "note", "every pixel is ignored; they teach and score nothing"
        elif self.domain.encoding.kind == "synthia":
            advice = (
                "every pixel is ignored: likely written anew by a program that reads SYNTHIA's 16-bit labels as zeros, "
                "as Pillow does; take the published GT/LABELS"
            )
        self.add(name, severity, empty, advice)

    def _mixed_up(self, read: Sequence[Finding]) -> None:
        """Judge labels without any class that tells their encoding from its likely mix-up."""
        encoding = self.domain.encoding
        telling = telling_classes(encoding) & set(self.domain.classes)
        if not read or not telling or any(found.pixels[index] for found in read for index in telling):
            return
        labels = [found.pair.label for found in read]
        if encoding.name == "train_ids":
            if len(labels) >= MANY:
                self.add("unexpected-values", "fault", labels, f"no label holds a train id below 7; {_LABEL_IDS}")
            return
        stored = [found.stored.values for found in read if found.stored is not None]
        low = len(stored) == len(read) and all(max(set(values) - {255}, default=99) < 19 for values in stored)
        void = any(255 in values for values in stored)
        if low and (void or (len(labels) >= MANY and len(telling) > 9)):
            severity = "fatal" if void and len(labels) >= MANY else "fault"
            advice = (
                f"no label holds an id above 18{' but 255' if void else ''}: likely train ids under the name of "
                f"{encoding.name}; take the original label files, or declare the domain with the encoding train_ids"
            )
            self.add("unexpected-values", severity, labels, advice)


_LABEL_IDS = (
    "likely label ids (0..33) instead of train ids; take the train id files, or declare the domain with the encoding "
    "cityscapes_ids"
)
_LOSSY = "saved with loss (JPEG) or resized with interpolation; take the original files, or resize to the nearest pixel"


def refusal_cause(encoding: Encoding, stored: Stored) -> str:
    """Return the likely cause and the way out for a label that the encoding refuses."""
    values, grey = set(stored.values) - {255}, len(stored.values) > 0
    if stored.format == "JPEG":
        return f"label files in JPEG; {_LOSSY}"
    if encoding.kind == "synthia" and not grey:
        return "8-bit colour pictures; take the class files of GT/LABELS, not those of GT/COLOR"
    if encoding.kind == "colours":
        if grey and stored.mode != "P":
            return "ids where colours are expected; take the colour label files"
        return f"not the colours of {encoding.name}; {_LOSSY}"
    if not grey:
        return "colour pictures where ids are expected; take the id files, not the colour ones"
    if encoding.foreign is not None:
        return encoding.foreign[2]
    if encoding.name == "train_ids" and max(values) <= 34:
        return _LABEL_IDS
    if encoding.name == "camvid":
        return "not the 11 classes of SegNet's CamVid; take its files, not those of the 32-class set"
    table = {raw for raw, _ in encoding.table}
    names = ", ".join(map(str, sorted(values - table)[:EXAMPLES]))
    if encoding.name not in ENCODINGS:
        return f"the table {encoding.name} lacks raw ids such as {names}; add them to it, or `other: 255`"
    return f"ids such as {names} are none of {encoding.name}'s; check where the label files come from"


def stray_labels(domain: Domain, listing: Listing) -> list[str]:
    """Return the label files of a split that belong to no image in any layout."""
    layouts = [layout for layout in domain.layouts if layout.images == listing.layout.images]
    known = {layout.label_path(pair.name, listing.folder) for layout in layouts for pair in listing.pairs}
    parts = [new.replace("{split}", listing.folder) for _, new in listing.layout.label]
    return [name for name in listing.labels if name not in known and all(part in name for part in parts)]


def label_pattern(layout: Layout, folder: str) -> str:
    """Return where a layout has its labels, as a pattern relative to the root."""
    return layout.patterns(folder)[1]


def _at_most_256(number: int) -> str:
    return "over 256" if number > 256 else str(number)
