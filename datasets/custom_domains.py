"""Domains that a user declares in a YAML file."""

from __future__ import annotations

import os
import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from datasets.codec import ENCODINGS, Encoding
from datasets.domains import Domain, Layout
from datasets.labels import CLASS_NAMES, IGNORE, NUM_CLASSES
from utils.errors import UserError, did_you_mean

REQUIRED = ("root", "images", "label", "splits", "encoding")
OPTIONAL = ("merge", "classes", "subsets", "tile", "skip_unequal")
SPLITS = ("train", "val", "test")


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
    domains = {}
    for name, fields in content.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or name == "source":
            raise UserError(
                f"{path}: {name!r} cannot name a domain: use letters, digits, '-', '_' and '.' (but not 'source')"
            )
        if name in taken:
            raise UserError(f"{path}: {name!r} is the name of a built-in domain; choose another")
        domains[name] = _Fields(fields, path, name).domain()
    return domains


class _Fields:
    """The fields of one domain, with what an error message needs."""

    def __init__(self, fields: Any, path: Path, name: str) -> None:
        self.where, self.name, self.folder = f"{path}: {name}", name, path.resolve().parent
        if not isinstance(fields, dict):
            raise UserError(f"{self.where}: must be a mapping with {', '.join(REQUIRED)}")
        for key in fields:
            if key not in REQUIRED + OPTIONAL:
                raise UserError(
                    f"{self.where}: unknown field {key!r}; there are {', '.join(REQUIRED + OPTIONAL)}"
                    + did_you_mean(str(key), REQUIRED + OPTIONAL)
                )
        for key in REQUIRED:
            if key not in fields:
                raise UserError(f"{self.where}: the field {key!r} is missing")
        self.fields: Mapping[str, Any] = fields

    def _get(self, key: str, kind: type, default: Any = None) -> Any:
        value = self.fields.get(key, default)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            names = {str: "text", dict: "a mapping", list: "a list", int: "a whole number", bool: "true or false"}
            raise UserError(f"{self.where}: {key} must be {names[kind]}, not {value!r}")
        return value

    def domain(self) -> Domain:
        """Build the row."""
        root = os.path.expanduser(os.path.expandvars(self._get("root", str)))
        images, label = self._get("images", str), self._get("label", dict)
        if not all(isinstance(text, str) for item in label.items() for text in item) or "" in label:
            raise UserError(f"{self.where}: label must map parts of an image's path to parts of its label's path")
        tile = self._get("tile", int, 0)
        if tile < 0:
            raise UserError(f"{self.where}: tile must be a number of pixels, or 0 for the run's; it is {tile}")
        return Domain(
            name=self.name,
            root=root if os.path.isabs(root) else str(self.folder / root),
            root_key=f"'root', 'images' or 'label' of {self.where}",
            layouts=(Layout(images, tuple(label.items())),),
            encoding=self._encoding(),
            splits=self._splits("{split}" in images),
            tile=tile,
            merge=self._merge(),
            classes=self._classes("classes", self.fields.get("classes", list(range(NUM_CLASSES)))),
            subsets=tuple(
                (str(name), self._classes(f"subsets {name}", classes))
                for name, classes in self._get("subsets", dict, {}).items()
            ),
            skip_unequal=self._get("skip_unequal", bool, False),
        )

    def _splits(self, in_path: bool) -> tuple[tuple[str, tuple[str, ...]], ...]:
        splits = self.fields["splits"]
        if isinstance(splits, list):
            splits = {str(split): str(split) for split in splits}
        if not isinstance(splits, dict) or not splits:
            raise UserError(f"{self.where}: splits must be a list of train, val, test or map them to folder names")
        rows = []
        for split, folder in splits.items():
            if split not in SPLITS:
                raise UserError(f"{self.where}: unknown split {split!r}; there are {', '.join(SPLITS)}")
            if not isinstance(folder, str):
                raise UserError(f"{self.where}: splits {split} must be the name of a folder, not {folder!r}")
            if folder != split and not in_path:
                raise UserError(f"{self.where}: splits names the folder {folder!r}, but images holds no {{split}}")
            rows.append((str(split), (folder,)))
        return tuple(rows)

    def _class(self, key: str, value: Any, *, ignore: bool = False) -> int:
        """Return the train id of a number or a class name."""
        if isinstance(value, str):
            if value not in CLASS_NAMES:
                raise UserError(f"{self.where}: {key} names no class {value!r}{did_you_mean(value, CLASS_NAMES)}")
            return CLASS_NAMES.index(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(f"{self.where}: {key} must hold train ids or class names, not {value!r}")
        if not (0 <= value < NUM_CLASSES or (ignore and value == IGNORE)):
            rule = f"0..{NUM_CLASSES - 1}" + (f" or {IGNORE}" if ignore else "")
            raise UserError(f"{self.where}: {key} holds {value}, which is no train id ({rule})")
        return value

    def _classes(self, key: str, values: Any) -> tuple[int, ...]:
        if not isinstance(values, list) or not values:
            raise UserError(f"{self.where}: {key} must be a list of train ids or class names, not {values!r}")
        classes = tuple(self._class(key, value) for value in values)
        if len(set(classes)) < len(classes):
            raise UserError(f"{self.where}: {key} names a class twice")
        return classes

    def _merge(self) -> tuple[tuple[int, int], ...]:
        merge = self._get("merge", dict, {})
        return tuple((self._class("merge", old), self._class("merge", new)) for old, new in merge.items())

    def _encoding(self) -> Encoding:
        value = self.fields["encoding"]
        if isinstance(value, str):
            if value not in ENCODINGS:
                raise UserError(
                    f"{self.where}: unknown label encoding {value!r}; there are {', '.join(ENCODINGS)}"
                    + did_you_mean(value, ENCODINGS)
                )
            return ENCODINGS[value]
        if not isinstance(value, dict):
            raise UserError(f"{self.where}: encoding must be a name or map raw ids to train ids, not {value!r}")
        table, other = {IGNORE: IGNORE}, None
        for raw, train in value.items():
            if raw == "other":
                other = self._class("encoding", train, ignore=True)
            elif isinstance(raw, bool) or not isinstance(raw, int) or not 0 <= raw < 1 << 16:
                raise UserError(f"{self.where}: encoding maps {raw!r}, which is no raw id (0..65535) and not 'other'")
            else:
                table[raw] = self._class("encoding", train, ignore=True)
        return Encoding(f"of {self.name}", "ids", tuple(sorted(table.items())), other)
