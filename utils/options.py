"""Options declared as rows with typed checks, and the tree of their values, which can be frozen."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from easydict import EasyDict

from utils.errors import UserError, did_you_mean

BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
KIND_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


@dataclass(frozen=True)
class Option:
    """One row: what an option is called, holds and allows.

    Args:
        key: dotted name in the tree, SECTION.NAME.
        default: value without any other layer; None means "not set" and makes the option optional.
        flag: command line name with its dashes; empty = reached by `--opts`, files and environment only.
        help: one sentence.
        kind: bool, int, float or str; None = that of the default (of its items for a list).
        many: whether it holds a list; also true when the default is one.
        const: value that the flag stands for, when the flag takes none (bool flags stand for True).
        low, high, above: bounds of a number (of every item of a list); `above` is excluded itself.
        lengths: smallest and largest number of items of a list.
    """

    key: str
    default: Any
    flag: str
    help: str
    kind: type | None = None
    many: bool = False
    const: str | None = None
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    above: float | None = None
    lengths: tuple[int, int] = (0, 100)

    @property
    def is_list(self) -> bool:
        """Tell whether the option holds a list."""
        return self.many or isinstance(self.default, list)

    @property
    def base(self) -> type:
        """Return the type of the value, or of each item."""
        if self.kind is not None:
            return self.kind
        return type(self.default[0] if isinstance(self.default, list) else self.default)

    @property
    def group(self) -> str:
        """Return the section of the key."""
        return self.key.partition(".")[0]

    def expectation(self) -> str:
        """Return what the option wants, to be read after "must be"."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        text = KIND_NAMES[self.base]
        if self.low is not None and self.high is not None:
            text += f" from {self.low:.10g} to {self.high:.10g}"
        elif self.low is not None:
            text += f" of at least {self.low:g}"
        elif self.above is not None:
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
        if not self.is_list:
            return self._check_item(value, value, source)
        least, most = self.lengths
        if not isinstance(value, (list, tuple)) or not least <= len(value) <= most:
            self.refuse(value, source)
        return [self._check_item(item, value, source) for item in value]

    def _check_item(self, item: Any, whole: Any, source: str) -> Any:
        if isinstance(item, int) and abs(item) >= 2**63:  # more than a tensor's or a float's whole numbers hold
            self.refuse(whole, source)
        if self.base is float and isinstance(item, int) and not isinstance(item, bool):
            item = float(item)
        if self.base is float and isinstance(item, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", item):
            item = float(item)  # YAML 1.1 reads 5e-4 (no point, or no sign) as text
        bad = type(item) is not self.base or (self.choices and item not in self.choices)
        if not bad and self.base in (int, float):
            bad = (
                not math.isfinite(item)
                or (self.low is not None and item < self.low)
                or (self.high is not None and item > self.high)
                or (self.above is not None and item <= self.above)
            )
        if bad:
            self.refuse(whole, source)
        if self.base is str and item.startswith("~/"):
            return os.path.expanduser(item)  # the shell does not do it inside KEY=VALUE
        return item

    def read(self, text: str | Sequence[str], source: str) -> Any:
        """Return the checked value of a text (or of several, for a list) from the command line or the environment."""
        if self.is_list:
            words = [text] if isinstance(text, str) else list(text)
            items = [item for word in words for item in re.split(r"[\s,]+", word.strip(" []")) if item]
            if self.default is None and [item.lower() for item in items] in (["none"], ["null"]):
                return None
            return self.check([self._read_item(item, text, source) for item in items], source)
        assert isinstance(text, str), "only a list option takes several texts"
        if self.default is None and text.lower() in ("none", "null", ""):
            return None
        return self.check(self._read_item(text, text, source), source)

    def _read_item(self, item: str, whole: Any, source: str) -> Any:
        if self.base is bool:
            return BOOLEANS[item.lower()] if item.lower() in BOOLEANS else self.refuse(whole, source)
        try:
            return self.base(item)
        except ValueError:
            self.refuse(whole, source)


class Settings(EasyDict):
    """An EasyDict that can be frozen: from then on every change is refused with a sentence."""

    def __init__(self, values: Mapping[str, Any] | None = None, *, frozen: bool = False) -> None:
        for key, value in (values or {}).items():
            self[key] = Settings(value, frozen=frozen) if isinstance(value, dict) else value
        if frozen:
            freeze(self)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__check(name)
        dict.__setitem__(self, name, value)
        object.__setattr__(self, name, value)

    __setitem__ = __setattr__

    def __delattr__(self, name: str) -> None:
        self.__check(name)
        dict.__delitem__(self, name)
        object.__delattr__(self, name)

    __delitem__ = __delattr__

    def __ior__(self, other: Any) -> Settings:  # type: ignore[override,misc]
        self.update(other)
        return self

    @property
    def frozen(self) -> bool:
        """Tell whether changes are refused."""
        return bool(self.__dict__.get("__frozen__"))

    def __check(self, name: str) -> None:
        if self.frozen:
            raise AttributeError(f"the configuration is frozen after the start: {name} can no longer be changed")

    def update(self, *args: Any, **values: Any) -> None:
        """Set several values."""
        for key, value in dict(*args, **values).items():
            self[key] = value

    def pop(self, key: str, *default: Any) -> Any:
        """Remove a value and return it."""
        self.__check(key)
        if key in self:
            self.__dict__.pop(key)
        return dict.pop(self, key, *default)

    def popitem(self) -> tuple[str, Any]:
        """Remove the last value and return it with its name."""
        key = next(reversed(self))
        return key, self.pop(key)

    def clear(self) -> None:
        """Remove everything."""
        for key in list(self):
            self.pop(key)

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Return a value, after setting it where it is missing."""
        if key not in self:
            self[key] = default
        return self[key]

    def __reduce__(self) -> tuple[Any, ...]:  # pickled and copied by value, frozen or not
        return _rebuild, (dict(self), self.frozen)


def _rebuild(values: dict[str, Any], frozen: bool) -> Settings:
    return Settings(values, frozen=frozen)


def freeze(tree: Settings, *, frozen: bool = True) -> None:
    """Freeze (or thaw) a tree with everything below it."""
    object.__setattr__(tree, "__frozen__", frozen)
    for value in tree.values():
        if isinstance(value, Settings):
            freeze(value, frozen=frozen)


def build_tree(values: Mapping[str, Any], *, frozen: bool) -> Settings:
    """Return the tree of dotted keys; a frozen one holds its lists as tuples, so that they are frozen too."""
    tree: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = tuple(value) if frozen and isinstance(value, list) else value
    return Settings(tree, frozen=frozen)


def flatten(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys and values of nested mappings."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{key}.")
        else:
            yield key, value
