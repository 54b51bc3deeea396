"""What the dataset checker finds: faults, and what splits and domains hold."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong or worth knowing.

    Attributes:
        split: train, val or test, several joined by " and ", or "" for the whole domain.
        name: stable, for programs.
        severity: "fatal" stops or spoils a training, "fault" is wrong, "note" is only worth knowing.
        count: files or pairs that show it.
        examples: all of them, relative to the domain's root.
        advice: one sentence on the likely cause and how to fix it.
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
        return f"{self.domain}/{self.split}" if self.split else self.domain

    def sentence(self) -> str:
        if not self.examples:
            return f"{self.where}: {self.name}: {self.advice}"
        first = self.examples[0] if self.examples[0] == self.root else os.path.join(self.root, self.examples[0])
        if self.count == 1 and first in self.advice:
            return f"{self.where}: {self.advice}"
        return f"{self.where}: {self.name} ({self.count}, the first: {first}): {self.advice}"


@dataclass(frozen=True)
class SplitReport:
    """What a split holds; patterns are relative to the root, `shares` of all pixels by class and "ignored"."""

    split: str
    image_pattern: str
    label_pattern: str
    images: int
    labels: int
    published: tuple[int, ...]  # the known totals, any of which is right
    decoded: int
    shares: dict[str, float]


@dataclass(frozen=True)
class DomainReport:
    """What a domain holds, and what is wrong with it."""

    domain: str
    root: str
    quick: bool
    splits: tuple[SplitReport, ...]
    faults: tuple[Fault, ...]  # with the notes

    @property
    def healthy(self) -> bool:
        return all(fault.severity == "note" for fault in self.faults)
