"""Domains that a user declares in a YAML file."""

from __future__ import annotations

import os
import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, NoReturn

from datasets.codec import ENCODINGS, Encoding
from datasets.domains import Domain, Layout
from datasets.labels import CLASS_NAMES, IGNORE, NUM_CLASSES
from utils.errors import UserError, did_you_mean

REQUIRED = ("root", "images", "label", "splits", "encoding")
OPTIONAL = ("merge", "classes", "subsets", "tile", "skip_unequal")
SPLITS = ("train", "val", "test")
_KINDS = {str: "text", dict: "a mapping", list: "a list", int: "a whole number", bool: "true or false"}


def read_domains(path: Path, *, taken: Container[str] = ()) -> dict[str, Domain]:
    """Return the domains of a YAML file by name; docs/domains.example.yaml shows every field.

    Raises:
        UserError: the file is missing or not YAML, a name is taken, a field is unknown, missing or of a wrong type.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check --domains") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}: not valid YAML{where}; see docs/domains.example.yaml") from error
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: must map names of domains to their fields; see docs/domains.example.yaml")
    for name in content:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or name == "source":
            raise UserError(
                f"{path}: {name!r} cannot name a domain: use letters, digits, '-', '_' and '.' (but not 'source')"
            )
        if name in taken:
            raise UserError(f"{path}: {name!r} is the name of a built-in domain; choose another")
    return {name: _Fields(fields, path, name).domain() for name, fields in content.items()}


class _Fields:
    """The fields of one domain, with what an error message needs."""

    def __init__(self, fields: Any, path: Path, name: str) -> None:
        self.where, self.name, self.folder = f"{path}: {name}", name, path.resolve().parent
        if not isinstance(fields, dict):
            self._refuse(f"must be a mapping with {', '.join(REQUIRED)}")
        known = REQUIRED + OPTIONAL
        for key in fields:
            if key not in known:
                self._refuse(f"unknown field {key!r}; there are {', '.join(known)}{did_you_mean(str(key), known)}")
        for key in REQUIRED:
            if key not in fields:
                self._refuse(f"the field {key!r} is missing")
        self.fields: Mapping[str, Any] = fields

    def _refuse(self, reason: str) -> NoReturn:
        raise UserError(f"{self.where}: {reason}")

    def _get(self, key: str, kind: type, default: Any = None) -> Any:
        value = self.fields.get(key, default)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            self._refuse(f"{key} must be {_KINDS[kind]}, not {value!r}")
        return value

    def domain(self) -> Domain:
        """Build the row."""
        root = os.path.expanduser(os.path.expandvars(self._get("root", str)))
        images, label = self._get("images", str), self._get("label", dict)
        if not all(isinstance(text, str) for item in label.items() for text in item) or "" in label:
            self._refuse("label must map parts of an image's path to parts of its label's path")
        tile = self._get("tile", int, 0)
        if tile < 0:
            self._refuse(f"tile must be a number of pixels, or 0 for the run's; it is {tile}")
        merge, subsets = self._get("merge", dict, {}), self._get("subsets", dict, {})
        return Domain(
            name=self.name,
            root=root if os.path.isabs(root) else str(self.folder / root),
            root_key=f"'root', 'images' or 'label' of {self.where}",
            layouts=(Layout(images, tuple(label.items())),),
            encoding=self._encoding(),
            splits=self._splits("{split}" in images),
            tile=tile,
            merge=tuple((self._class("merge", old), self._class("merge", new)) for old, new in merge.items()),
            classes=self._classes("classes", self.fields.get("classes", list(range(NUM_CLASSES)))),
            subsets=tuple((str(name), self._classes(f"subsets {name}", ids)) for name, ids in subsets.items()),
            skip_unequal=self._get("skip_unequal", bool, False),
        )

    def _splits(self, in_path: bool) -> tuple[tuple[str, tuple[str, ...]], ...]:
        splits = self.fields["splits"]
        if isinstance(splits, list):
            splits = {str(split): str(split) for split in splits}
        if not isinstance(splits, dict) or not splits:
            self._refuse("splits must be a list of train, val, test or map them to folder names")
        for split, folder in splits.items():
            if split not in SPLITS:
                self._refuse(f"unknown split {split!r}; there are {', '.join(SPLITS)}")
            if not isinstance(folder, str):
                self._refuse(f"splits {split} must be the name of a folder, not {folder!r}")
            if folder != split and not in_path:
                self._refuse(f"splits names the folder {folder!r}, but images holds no {{split}}")
        return tuple((split, (folder,)) for split, folder in splits.items())

    def _class(self, key: str, value: Any, *, ignore: bool = False) -> int:
        """Return the train id of a number or a class name."""
        if isinstance(value, str):
            if value not in CLASS_NAMES:
                self._refuse(f"{key} names no class {value!r}{did_you_mean(value, CLASS_NAMES)}")
            return CLASS_NAMES.index(value)
        if isinstance(value, bool) or not isinstance(value, int):
            self._refuse(f"{key} must hold train ids or class names, not {value!r}")
        if not (0 <= value < NUM_CLASSES or (ignore and value == IGNORE)):
            rule = f"0..{NUM_CLASSES - 1}" + (f" or {IGNORE}" if ignore else "")
            self._refuse(f"{key} holds {value}, which is no train id ({rule})")
        return value

    def _classes(self, key: str, values: Any) -> tuple[int, ...]:
        if not isinstance(values, list) or not values:
            self._refuse(f"{key} must be a list of train ids or class names, not {values!r}")
        classes = tuple(self._class(key, value) for value in values)
        if len(set(classes)) < len(classes):
            self._refuse(f"{key} names a class twice")
        return classes

    def _encoding(self) -> Encoding:
        value = self.fields["encoding"]
        if isinstance(value, str):
            if value not in ENCODINGS:
                names = ", ".join(ENCODINGS)
                self._refuse(f"unknown label encoding {value!r}; there are {names}{did_you_mean(value, ENCODINGS)}")
            return ENCODINGS[value]
        if not isinstance(value, dict):
            self._refuse(f"encoding must be a name or map raw ids to train ids, not {value!r}")
        table: dict[Any, int] = {IGNORE: IGNORE}
        for raw, train in value.items():
            if raw != "other" and (isinstance(raw, bool) or not isinstance(raw, int) or not 0 <= raw < 1 << 16):
                self._refuse(f"encoding maps {raw!r}, which is no raw id (0..65535) and not 'other'")
            table[raw] = self._class("encoding", train, ignore=True)
        other = table.pop("other", None)
        return Encoding(f"of {self.name}", "ids", tuple(sorted(table.items())), other)
