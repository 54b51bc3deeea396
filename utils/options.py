"""Options: declared as fields of sections, their typed checks, and the layers that their values come from."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple, NoReturn, TypeVar, cast, get_args, get_origin, get_type_hints

from easydict import EasyDict

from utils import Help, version
from utils.errors import UserError, did_you_mean
from utils.files import read_yaml

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
    shorthands: Mapping[str, str] = field(default_factory=dict)  # flags for a choice: --sgd for --optimizer sgd
    booleans: tuple[str, ...] = ()  # choices that false and true stand for: YAML reads off as false
    needs: tuple[str, ...] = ()  # one of these must be on ("--flag") or set ("--flag value") to change the default
    programs: tuple[str, ...] = ("train",)  # whose --help shows it

    def refuse(self, value: Any, source: str) -> NoReturn:
        rule, hint = KIND_NAMES[self.base], did_you_mean(str(value), self.choices)
        if self.choices:
            rule = "one of " + ", ".join(self.choices)
        elif self.above > -math.inf:
            rule += f" above {self.above:g}" + (f" and at most {self.high:.10g}" if self.high < math.inf else "")
        elif self.high < math.inf:
            rule += f" from {self.low:.10g} to {self.high:.10g}"
        elif self.low > -math.inf:
            rule += f" of at least {self.low:g}"
        if self.is_list:
            least, most = self.lengths
            count = f"{least} values" if least == most else "at least one value" if least else "values"
            rule = f"a list of {count}, each {rule}"
        elif self.base is str and not isinstance(value, str):
            hint = "; put it in quotes"
        rule += " (or none)" if self.default is None else ""
        raise UserError(f"{source} must be {rule}, got {value!r}{hint}")

    def check(self, value: Any, source: str) -> Any:
        """Return a typed value as the option stores it (an int is a float's equal, a bool is not a number)."""
        if value is None and self.default is None:
            return None
        items = value if self.is_list else [value]
        if not isinstance(items, (list, tuple)) or not self.lengths[0] <= len(items) <= self.lengths[1]:
            self.refuse(value, source)
        items = [self._convert(item) for item in items]
        if not all(map(self._allows, items)):
            self.refuse(value, source)
        return items if self.is_list else items[0]

    def _convert(self, item: Any) -> Any:
        if self.base is float and type(item) is int and abs(item) < 2**63:
            return float(item)
        if self.base is float and isinstance(item, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", item):
            return float(item)  # YAML 1.1 reads 5e-4 (no point, or no sign) as text
        if self.booleans and type(item) is bool:
            return self.booleans[item]
        if self.base is str and isinstance(item, str) and item.startswith("~"):
            return os.path.expanduser(item)  # the shell does not do it inside KEY=VALUE
        return item

    def _allows(self, item: Any) -> bool:
        fits = type(item) is self.base and (not self.choices or item in self.choices)
        if isinstance(item, str):
            return fits
        end = 2**63 if self.base is int else math.inf  # more than a tensor holds
        return fits and self.low <= item <= self.high and self.above < item and -end < item < end

    def read(self, text: str | Sequence[str], source: str) -> Any:
        """Return the checked value of a text (or of several, for a list) from the command line or the environment."""
        words = [text] if isinstance(text, str) else text
        if self.is_list:
            words = [word for part in words for word in re.split(r"[\s,]+", part.strip(" []")) if word]
        if self.default is None and [word.lower() for word in words] in (["none"], ["null"], [""]):
            return None
        try:
            is_boolean = self.base is bool or (self.booleans and {*map(str.lower, words)} <= {"true", "false"})
            items = [BOOLEANS[word.lower()] if is_boolean else self.base(word) for word in words]
        except (KeyError, ValueError):
            self.refuse(text, source)
        return self.check(items if self.is_list else items[0], source)


def option(default: T, flag: str, sentence: str, **rest: Any) -> T:
    """Declare a field of a section; for mypy it has the field's type, at run time it is a row without key and type."""
    return cast(T, Option(default, flag, sentence, **rest))


def shared(default: T, flag: str, sentence: str, **rest: Any) -> T:
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
    on = {row.flag for key, row in options.items() if values[key]}
    on |= {f"{row.flag} {values[key]}" for key, row in options.items()}
    for key, row in options.items():
        if row.needs and values[key] != row.default and on.isdisjoint(row.needs):
            one = "it" if len(row.needs) == 1 else "one of them"
            raise UserError(f"{row.flag} belongs to {' or '.join(row.needs)}; add {one} or leave {row.flag} out")


class Setting(NamedTuple):
    """One value that some layer gives to one key; `source` is how a message names the place."""

    key: str
    value: Any
    source: str


def find_option(options: Mapping[str, Option], key: str, source: str) -> Option:
    """Return the row of a key or of a former key; an unknown one is refused with the closest match."""
    for row in options.values():
        if key in (row.key, *row.aliases):
            return row
    name = key.upper().replace("-", "_")
    same_name = [known for known in options if known.partition(".")[2] == name.rpartition(".")[2]]
    hint = f"; did you mean {same_name[0]!r}?" if same_name else did_you_mean(name, options)
    hint = hint or "; config_options.py lists all"
    raise UserError(f"{source}: there is no option {key!r}{hint}")


def read_file(path: str, options: Mapping[str, Option]) -> list[Setting]:
    """Return the checked settings of a YAML file, nested or with dotted keys, partial or whole."""
    tree = read_yaml(Path(path), flag="--config")
    if not isinstance(tree, dict | None):
        raise UserError(f"--config {path}: must hold SECTION: {{NAME: value}} pairs, not {type(tree).__name__}")
    return check_tree(tree or {}, options, source=path)


def check_tree(tree: Mapping[Any, Any], options: Mapping[str, Option], *, source: str) -> list[Setting]:
    settings, sections = [], {key.partition(".")[0] for key in options}
    for key, value in flatten(tree):
        if key in sections and not value and not isinstance(value, (bool, int)):
            continue  # a section without a line below it
        row = find_option(options, key, source)
        settings.append(Setting(row.key, row.check(value, f"{source}: {key}"), source))
    return settings


def read_environment(environ: Mapping[str, str], options: Mapping[str, Option]) -> list[Setting]:
    """Return the checked settings of the variables DIIA__SECTION__NAME."""
    settings = []
    for variable in sorted(filter(re.compile("DIIA__").match, environ)):
        source = f"environment variable {variable}"
        row = find_option(options, variable.removeprefix("DIIA__").replace("__", "."), source)
        settings.append(Setting(row.key, row.read(environ[variable], source), source))
    return settings


class _Parser(argparse.ArgumentParser):
    """Raises `UserError` instead of printing the usage and leaving."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; see --help")


class _Record(argparse.Action):
    """Appends what `read` makes of a flag's words to `namespace.settings`, in the order of the command line."""

    def __init__(self, *, read: Callable[[Any, str], list[Setting]], **kwargs: Any) -> None:
        super().__init__(**{**kwargs, "dest": "settings"})
        self.read = read

    def __call__(self, parser: Any, namespace: Any, values: Any, flag: str | None = None) -> None:
        namespace.settings += self.read(values, str(flag))


def build_parser(
    options: Mapping[str, Option], *, program: str, description: str, groups: Mapping[str, str]
) -> argparse.ArgumentParser:
    """Return the parser of all rows with a flag, in groups; --help shows those of the program."""
    name, usage = f"python {program}.py", f"%(prog)s {'[WEIGHTS] ' if program == 'valid' else ''}[flags]"
    parser = _Parser(name, usage, description, allow_abbrev=False, formatter_class=Help)
    parser.add_argument("--version", action="version", version=f"DIIA {version()}")

    def read_opts(pairs: Sequence[str], flag: str) -> list[Setting]:
        settings = []
        for pair in pairs:
            key, equals, text = pair.partition("=")
            row = find_option(options, key, flag)
            if not equals:
                raise UserError(f"{flag} {pair}: must be KEY=VALUE, for instance {flag} {key}={row.default}")
            settings.append(Setting(row.key, row.read(text, f"{flag} {key}"), flag))
        return settings

    order = "config.py < --config < environment DIIA__SECTION__NAME < flags, --opts"
    group = parser.add_argument_group("settings", order)
    text = "Read options from a YAML file (repeatable, last wins)."
    group.add_argument("--config", metavar="FILE.yaml", action="append", help=text)
    text = "Set any option by its key, for instance DATASET.GTAV_DIR=/data/gtav."
    group.add_argument("--opts", nargs="+", metavar="KEY=VALUE", action=_Record, read=read_opts, help=text)
    titles = {name: parser.add_argument_group(title) for name, title in groups.items()}
    for row in options.values():
        if row.flag:
            _add_flags(titles[row.key.partition(".")[0]], row, hidden=program not in row.programs)
    return parser


def _add_flags(group: Any, row: Option, *, hidden: bool) -> None:
    def add(names: Sequence[str], sentence: str, read: Callable[[Any, str], Any], **rest: Any) -> None:
        def record(words: Any, flag: str) -> list[Setting]:
            return [Setting(row.key, read(words, flag), flag)]

        text = argparse.SUPPRESS if hidden else sentence.replace("%", "%%")
        group.add_argument(*names, action=_Record, read=record, help=text, **rest)

    names = [row.flag, *(alias for alias in row.aliases if alias.startswith("-"))]
    if row.base is bool:
        add(names, f"{row.help} [{'on' if row.default else 'off'}]", lambda *_: True, nargs=0)
        if row.default:
            add([row.flag.replace("--", "--no_", 1)], f"Switch {row.flag} off.", lambda *_: False, nargs=0)
        return
    kinds = {int: "N", float: "X", str: "NAME" if row.is_list else row.key.partition(".")[2]}
    metavar = "{" + ",".join(row.choices) + "}" if row.choices else kinds[row.base]
    nargs = ("+" if row.lengths[0] else "*") if row.is_list else None
    default = " ".join(map(str, row.default or ())) if row.is_list else row.default
    default = "none" if default in (None, "") else default
    add(names, f"{row.help} [{default}]", row.read, nargs=nargs, metavar=metavar)
    for name, value in row.shorthands.items():
        add([name], f"The same as {row.flag} {value}.", lambda *_, value=value: value, nargs=0)


def read_command_line(
    parser: argparse.ArgumentParser, argv: Sequence[str], *, refused: Mapping[str, str], operand: str = ""
) -> tuple[list[str], list[Setting]]:
    """Return the files of --config and the checked settings of flags and --opts, in their order.

    `operand` is the key of the one word that may stand without a flag, "" where none may.

    Raises `UserError` at an unknown flag (with the closest one), a refused one (with its replacement), a bad value.
    """
    for word in argv:
        name = word.partition("=")[0]
        if name in refused:
            raise UserError(f"{name} {refused[name]}")
    namespace, unknown = parser.parse_known_args(argv, argparse.Namespace(config=[], settings=[]))
    if operand and len(unknown) == 1 and not unknown[0].startswith("-"):
        namespace.settings.append(Setting(operand, unknown.pop(), "WEIGHTS"))
    if unknown:
        word = unknown[0].partition("=")[0]
        if not word.startswith("-"):
            raise UserError(f"{word!r} belongs to no flag; see --help")
        known = [name for action in parser._actions for name in action.option_strings]
        raise UserError(f"there is no flag {word}{did_you_mean(word, known)}; --help lists all")
    return namespace.config, namespace.settings
