"""One checkpoint schema, written atomically and read without running code from the file; what a run saves in it."""

from __future__ import annotations

import json
import logging
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from utils import distributed
from utils.errors import UserError, first_few
from utils.files import CONFIG_FILE, WEIGHTS_FILE, likely_cause, local_path, sync_folder, write, write_text

log = logging.getLogger(__name__)

SCHEMA = 2  # 1: network.weights.upgrade_checkpoint turns it into 2
PARTS = ("network", "average", "criterion", "optimizer", "scheduler", "scaler")  # of a run, with a state each
KEYS = frozenset((*PARTS, "schema", "kind", "progress", "best", "config", "versions", "world_size", "data"))
LAST, PREVIOUS, START = "last.pth", "previous.pth", ".start"  # of a run
CONVERTED, EXPORTED = "converted", "exported"  # kinds of checkpoints that hold weights alone
_FACTS = ("kind", "progress", "config", "versions")  # JSON in the metadata of safetensors files
_COUNTS = (torch.int64, torch.int32, torch.uint8, torch.int8, torch.bool)  # of batches, indices
_NUMBERS = (torch.float32, torch.float16, torch.bfloat16, torch.float64, *_COUNTS)
_LATER: dict[str, Any] = {"average": {}, "data": {}}  # what older checkpoints lack

# Published files hold their mean IoU as a numpy number, under numpy 1's or numpy 2's name.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_SCALARS: list[Any] = [(_SCALAR, f"numpy.{package}.multiarray.scalar") for package in ("core", "_core")]
_NUMPY_SCALARS += [np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32))]


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint under its final name in one step: a killed or full-disk write leaves the old file as it was.

    It is read back before; the `last.pth` that was there becomes `previous.pth`.

    Args:
        content: every entry of `KEYS` but `schema`, `average` and `data` where there are any; tensors and plain
            containers only.
    """
    content = {"schema": SCHEMA, **_LATER, **content}
    assert content.keys() == KEYS, content.keys() ^ KEYS

    def save_synced(temporary: Path) -> None:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        check_sums(temporary)
        if path.name == LAST and path.exists():
            path.replace(path.with_name(PREVIOUS))

    write(path, save_synced, what="the checkpoint")
    sync_folder(path.parent)


def check_sums(path: Path) -> None:
    """Raise `OSError` where a checkpoint's bytes are not those of its checksums: torch writes them, and reads on."""
    try:
        with zipfile.ZipFile(path) as parts:
            damaged = parts.testzip()
    except zipfile.BadZipFile as error:
        raise OSError(f"it is damaged: {error}") from error
    if damaged:
        raise OSError(f"it is damaged: the checksum of {damaged} is another")


def save_weights(path: Path, content: Mapping[str, Any], *, metadata: Mapping[str, str]) -> None:
    """Write the network and the facts of a checkpoint as safetensors, which `read` takes back; `save` says how.

    Args:
        content: `kind`, `progress`, `config`, `versions` and `network`, as `save` gets them.
        metadata: further texts for other programs.
    """
    from safetensors.torch import save as to_bytes  # slow to import

    facts = {name: json.dumps(content[name]) for name in _FACTS}
    facts["schema"] = str(SCHEMA)
    tensors = {
        name: value.cpu().clone(memory_format=torch.contiguous_format) for name, value in content["network"].items()
    }
    data = to_bytes(tensors, {**metadata, **facts})  # its save_file makes a file that others may not read
    write(path, lambda temporary: temporary.write_bytes(data), what="the weights")


def save_folder(folder: Path, content: Mapping[str, Any], *, metadata: Mapping[str, str], card: str) -> None:
    """Write a folder as a hub has it: what `save_weights` writes, its facts as JSON, and the text of a model card."""
    save_weights(folder / WEIGHTS_FILE, content, metadata=metadata)
    facts = {**metadata, "schema": SCHEMA, **{name: content[name] for name in _FACTS}}
    write_text(folder / CONFIG_FILE, json.dumps(facts, indent=1) + "\n")
    write_text(folder / "README.md", card)


def _load_safetensors(path: Path, *, facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the tensors of a file, as a checkpoint with `facts` or those of its metadata, where there are any."""
    from safetensors import safe_open  # slow to import

    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 no mapping
    if facts is None:
        if not {"schema", *_FACTS} <= metadata.keys():  # of others
            return tensors
        facts = {name: json.loads(metadata[name]) for name in ("schema", *_FACTS)}
    empty: dict[str, Any] = {part: {} for part in (*PARTS, "best")}
    return {**empty, **{name: facts[name] for name in ("schema", *_FACTS)}, "network": tensors, "world_size": 1}


def _load_folder(folder: Path, *, name: str | Path) -> dict[str, Any]:
    """Return what `save_folder` wrote; raise `UserError` at any other folder, which the message calls `name`."""
    hint = "give a weight file, or a folder that python -m scripts.export --format hub wrote"
    if missing := [file for file in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / file).is_file()]:
        raise UserError(f"{name}: a folder without {' and '.join(missing)} is none of weights; {hint}")
    try:
        facts = json.loads((folder / CONFIG_FILE).read_bytes())
    except ValueError as error:
        raise UserError(f"{name}: its {CONFIG_FILE} is no JSON ({error}); {hint}") from error
    if absent := sorted({"schema", *_FACTS} - (facts.keys() if isinstance(facts, dict) else set())):
        raise UserError(f"{name}: its {CONFIG_FILE} is of another program, {', '.join(absent)} missing; {hint}")
    return _load_safetensors(folder / WEIGHTS_FILE, facts=facts)


def read(path: str | Path) -> dict[str, Any]:
    """Read weights of ours, which must be whole, or of others onto the CPU without running code from them.

    They are a file, a folder of `save_folder`, or such a one on a hub (`local_path`).

    Raises `UserError` where they are missing or hold anything but tensors and plain values.
    """
    found = local_path(path)
    if not (found.is_file() or found.is_dir()):
        raise UserError(f"{path}: there is no such weight file")
    try:
        if found.is_dir():
            content: Any = _load_folder(found, name=path)
        elif found.suffix == ".safetensors":
            content = _load_safetensors(found)
        else:
            if zipfile.is_zipfile(found):  # published files are older than torch's format of today
                check_sums(found)
            with torch.serialization.safe_globals(_NUMPY_SCALARS):
                content = torch.load(found, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # what torch raises over a damaged file depends on where it is damaged
        reason = re.sub(r"\x1b\[\d*m", "", str(error)).split("\n")[0].split(". ")[0] or type(error).__name__
        cause = likely_cause(found, "it is damaged or of another kind; download it again or name another file")
        if blocked := re.search(r"GLOBAL ([\w.]+)", str(error)):
            reason, cause = f"it needs {blocked[1]}, which may run code", "save the weights alone, or take another file"
        raise UserError(
            f"{path}: not a readable weight file of tensors and plain values ({reason}); {cause}"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        kind = type(content).__name__
        raise UserError(f"{path}: a weight file holds tensors by name, this one holds {kind}; name another file")
    if not is_ours(content):
        return content
    content = {**_LATER, **content}
    if content["schema"] not in (1, SCHEMA):
        raise UserError(f"{path}: checkpoint schema {content['schema']}, this program reads the schemas 1 and {SCHEMA}")
    if missing := sorted(KEYS - content.keys()):
        raise UserError(f"{path}: not a whole checkpoint, {', '.join(missing)} missing")
    for name in sorted(KEYS - {"schema", "kind", "world_size"}):
        if not isinstance(content[name], dict):
            raise UserError(f"{path}: not a checkpoint of a run, its {name} is a {type(content[name]).__name__}")
    content["progress"] = start = asdict(Progress()) | content["progress"]
    if start.keys() != asdict(Progress()).keys() or {*map(type, start.values())} != {int}:
        raise UserError(f"{path}: not a checkpoint of a run, its progress is no numbers of epochs and steps")
    return content


def is_ours(content: dict[str, Any]) -> bool:
    return "schema" in content


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint to continue its run, or raise `UserError` where a file holds weights alone."""
    content = read(path)
    if not is_ours(content) or content["kind"] in (CONVERTED, EXPORTED):
        raise UserError(f"{path}: holds weights but no run to continue; use --snapshot without --restore_optimizer")
    return content


def load_strictly(module: nn.Module, state: dict[str, Any], *, path: str | Path) -> None:
    """Load a state of finite values, or raise `UserError`: what others compute looks like a bad network."""
    check_kinds(state, path=path)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor) and not value.is_meta}
    broken = [name for name, value in tensors.items() if not value.isfinite().all()]
    if broken:
        raise UserError(f"{path}: holds values that are nan or infinite, in {first_few(broken)}; take another file")
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"{path}: does not fit what --arch or --backbone, --method, --wt_layer and --tune name "
            f"({misfits(error, path=path)}); give those that it was trained with"
        ) from error


def check_kinds(state: Mapping[str, Any], *, path: str | Path) -> None:
    """Raise `UserError` at quantised, sparse or complex weights: of some kinds torch copies what is no weight yet."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    odd = [name for name, value in tensors.items() if value.layout != torch.strided or value.dtype not in _NUMBERS]
    odd += [name for name, value in tensors.items() if value.dtype in _COUNTS and name.endswith("weight")]
    if odd:
        kinds = "integers, or sparse, complex or quantised values, for weights"
        raise UserError(f"{path}: holds {kinds}, in {first_few(odd)}; take the file with float32 or float16 weights")


def misfits(error: Exception, *, path: str | Path) -> str:
    """Return what `load_state_dict` complains of: the first names of each kind. The log gets all of them."""
    names, shapes = list[str](), list[str]()
    for line in (line.strip().rstrip(".").rstrip() for line in str(error).splitlines()[1:]):
        kind, _, listed = line.partition(" key(s) in state_dict: ")
        if listed:
            names.append(f"{kind} key(s) in state_dict: {first_few(listed.split(', '))}")
        else:
            shapes.append(line)
    log.debug("%s: %s", path, error)
    return "; ".join([*names, *([first_few(shapes, count=1)] if shapes else [])])


def latest(folder: Path) -> Path | None:
    """Return the newest whole `last.pth` or `previous.pth` of the run folders below `folder`, None where there is none.

    A damaged one is passed over with a warning. The newest run is the one that was started or resumed last: `start_of`
    counts, whatever the clock said; without counts the time of the files does. Of one run `last.pth` comes first.
    """
    times = dict[Path, int]()
    for path in (path for name in (LAST, PREVIOUS) for path in folder.glob(f"*/{name}")):
        times[path.parent] = max(path.stat().st_mtime_ns, times.get(path.parent, path.stat().st_mtime_ns))
    runs = sorted(times, key=lambda run: (start_of(run), times[run], run), reverse=True)
    for path in (path for run in runs for name in (LAST, PREVIOUS) if (path := run / name).exists()):
        try:
            read_checkpoint(path)
            return path
        except UserError as error:
            log.warning("%s; the checkpoint before it is taken", error)
    return None


def start_of(run: Path) -> int:
    """Return which start among those of the runs beside it a run's last one was, from 1; 0 where it is not known."""
    try:
        return int((run / START).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


@dataclass
class Progress:
    """Where a run is: `step` optimizer steps in all, `step_in_epoch` of them in epoch `epoch`."""

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0


@dataclass(kw_only=True)
class RunState:
    """The parts of a run that change from step to step, and its best scores by name of their checkpoint."""

    network: nn.Module
    criterion: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    scaler: torch.amp.GradScaler
    average: nn.Module | None = None  # the network with averaged weights
    progress: Progress = field(default_factory=Progress)
    best: dict[str, float] = field(default_factory=dict)

    def save(self, path: Path, *, config: dict[str, Any], versions: dict[str, str], data: dict[str, Any]) -> None:
        """Write a checkpoint named after its file; `UserError` at weights that are not finite: what was there stays."""
        values = self.network.state_dict().values()  # parameters, and batch-norm statistics
        if not torch.stack([value.isfinite().all() for value in values]).all():
            raise UserError(
                f"step {self.progress.step}: the weights are not finite; {path.name} stays as it was: lower --lr and "
                "resume with --resume auto"
            )
        parts = {name: getattr(self, name) for name in PARTS}
        states = {name: part.state_dict() for name, part in parts.items() if part is not None}
        about = {"config": config, "versions": versions, "world_size": distributed.world_size(), "data": data}
        save(path, {"kind": path.stem, "progress": asdict(self.progress), "best": dict(self.best), **states, **about})

    def load(self, content: Mapping[str, Any], *, path: Path) -> None:
        """Take over what `read_checkpoint` gave; the average, where it holds none, starts from the network.

        Raises `UserError` where network, criterion or the optimizer's parameter groups do not fit.
        """
        average = content["average"] or content["network"]
        modules = ((self.network, content["network"]), (self.average, average), (self.criterion, content["criterion"]))
        for module, state in modules:
            if module is not None:
                load_strictly(module, state, path=path)
        try:
            self.optimizer.load_state_dict(content["optimizer"])
        except (ValueError, KeyError, TypeError) as error:  # another number of groups or parameters, or no state at all
            raise UserError(
                f"{path}: its optimizer state is none or of other parameter groups: resume with --tune, "
                "--backbone_lr, --layer_decay and --no_norm_decay as before, or start a new run from the weights "
                "(--snapshot without --restore_optimizer)"
            ) from error
        self.scheduler.load_state_dict(content["scheduler"])
        if content["scaler"] and self.scaler.is_enabled():  # both runs in mixed precision on a GPU
            self.scaler.load_state_dict(content["scaler"])
        self.progress = Progress(**content["progress"])
        self.best = dict(content["best"])
