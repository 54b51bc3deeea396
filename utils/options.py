"""Options: declared as fields of sections, their typed checks, and the tree of their values."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import NoneType
from typing import Any, Literal, NoReturn, TypeVar, cast, get_args, get_origin, get_type_hints

from easydict import EasyDict

from utils.errors import UserError, did_you_mean

BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
KIND_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """One row: what an option is called, holds and allows."""

    default: Any  # value without any other layer; None means "not set" and makes the option optional
    flag: str  # with its dashes; empty: reached by --opts, files and environment only
    help: str  # one sentence
    key: str = ""  # SECTION.NAME
    base: type = str  # bool, int, float or str: type of the value, or of each item of a list
    is_list: bool = False
    choices: tuple[str, ...] = ()
    low: float = -math.inf  # bounds of a number, or of each item of a list; `above` itself is excluded
    high: float = math.inf
    above: float = -math.inf
    lengths: tuple[int, int] = (0, 100)  # smallest and largest number of items of a list
    aliases: tuple[str, ...] = ()  # other flags and former keys that mean the same
    shorthands: tuple[str, ...] = ()  # choices that are flags too: --sgd for --optimizer sgd
    needs: tuple[str, ...] = ()  # one of these must be on ("--flag") or set ("--flag value") to change the default
    programs: tuple[str, ...] = ("train",)  # whose --help shows it

    @property
    def group(self) -> str:
        return self.key.partition(".")[0]

    def expectation(self) -> str:
        """Return what the option wants, to be read after "must be"."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        text = KIND_NAMES[self.base]
        if self.high < math.inf:
            text += f" from {self.low:.10g} to {self.high:.10g}"
        elif self.low > -math.inf:
            text += f" of at least {self.low:g}"
        elif self.above > -math.inf:
            text += f" above {self.above:g}"
        if self.is_list:
            least, most = self.lengths
            count = f"{least} values" if least == most else "at least one value" if least else "values"
            text = f"a list of {count}, each {text}"
        return text + (" (or none)" if self.default is None else "")

    def refuse(self, value: Any, source: str) -> NoReturn:
        """Raise the sentence about a value that does not fit."""
        hint = did_you_mean(str(value), self.choices)
        if self.base is str and not self.is_list and not isinstance(value, str):
            hint = "; put it in quotes"
        raise UserError(f"{source} must be {self.expectation()}, got {value!r}{hint}")

    def check(self, value: Any, source: str) -> Any:
        """Return a typed value as the option stores it (an int is a float's equal, a bool is not a number)."""
        if value is None and self.default is None:
            return None
        items = value if self.is_list else [value]
        if not isinstance(items, (list, tuple)) or not self.lengths[0] <= len(items) <= self.lengths[1]:
            self.refuse(value, source)
        items = [self._convert(item) for item in items]
        if not all(self._allows(item) for item in items):
            self.refuse(value, source)
        return items if self.is_list else items[0]

    def _convert(self, item: Any) -> Any:
        if self.base is float and type(item) is int and abs(item) < 2**63:
            return float(item)
        if self.base is float and isinstance(item, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", item):
            return float(item)  # YAML 1.1 reads 5e-4 (no point, or no sign) as text
        if self.base is str and isinstance(item, str) and item.startswith("~/"):
            return os.path.expanduser(item)  # the shell does not do it inside KEY=VALUE
        return item

    def _allows(self, item: Any) -> bool:
        fits = type(item) is self.base and (not self.choices or item in self.choices)
        end = 2**63 if self.base is int else math.inf  # more than a tensor holds
        return fits and (
            isinstance(item, str) or (self.low <= item <= self.high and self.above < item and -end < item < end)
        )

    def read(self, text: str | Sequence[str], source: str) -> Any:
        """Return the checked value of a text (or of several, for a list) from the command line or the environment."""
        words = [text] if isinstance(text, str) else text
        if self.is_list:
            words = [word for part in words for word in re.split(r"[\s,]+", part.strip(" []")) if word]
        if self.default is None and [word.lower() for word in words] in (["none"], ["null"], [""]):
            return None
        try:
            items = [BOOLEANS[word.lower()] if self.base is bool else self.base(word) for word in words]
        except (KeyError, ValueError):
            self.refuse(text, source)
        return self.check(items if self.is_list else items[0], source)


def option(default: T, flag: str, sentence: str, **rest: Any) -> T:
    """Declare a field of a section; for mypy it has the field's type, at run time it is a row without key and type."""
    return cast(T, Option(default, flag, sentence, **rest))


def shared(default: T, flag: str, sentence: str, **rest: Any) -> T:
    """Declare a field as `option` does, of training and evaluation."""
    return option(default, flag, sentence, programs=("train", "valid"), **rest)


class Section(dict[str, Any]):
    """What mypy knows of a section or of the whole tree; at run time both are EasyDicts with the same keys."""


def declared(tree: type[Section]) -> dict[str, Option]:
    """Return the rows of the sections that a tree annotates, by dotted key, completed by the types of the fields."""
    rows = {}
    for section, fields in get_type_hints(tree).items():
        for name, hint in get_type_hints(fields).items():
            kind = get_args(hint)[0] if NoneType in get_args(hint) else hint
            choices = get_args(kind) if get_origin(kind) is Literal else ()
            is_list = get_origin(kind) is list
            base = get_args(kind)[0] if is_list else str if choices else kind
            key = f"{section}.{name}"
            rows[key] = replace(vars(fields)[name], key=key, base=base, is_list=is_list, choices=choices)
    return rows


def flatten(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys and values of nested mappings."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def build_tree(values: Mapping[str, Any]) -> Any:
    """Return the tree of dotted keys, an EasyDict of EasyDicts."""
    tree: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = value
    return EasyDict(tree)


def check_needs(values: Mapping[str, Any], options: Mapping[str, Option]) -> None:
    """Refuse a changed option whose own `needs` are all off."""
    flags = {row.flag: values[key] for key, row in options.items()}

    def is_on(need: str) -> bool:
        flag, _, value = need.partition(" ")
        return flags[flag] == value if value else bool(flags[flag])

    for key, row in options.items():
        if row.needs and values[key] != row.default and not any(map(is_on, row.needs)):
            one = "it" if len(row.needs) == 1 else "one of them"
            raise UserError(f"{row.flag} belongs to {' or '.join(row.needs)}; add {one} or leave {row.flag} out")
