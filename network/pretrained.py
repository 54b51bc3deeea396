"""From a file or a download into a backbone: ImageNet weights of torchvision, timm, MIT CSAIL and others."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from network.backbones import Backbone, BackboneBase, BackboneSpec, ResNetSpec
from network.deeplab import Segmentor
from network.timm_backbone import TimmBackbone, TimmSpec
from network.weights import backbone_entries, own_weights, unwrap_state
from utils import checkpoint, distributed
from utils.errors import UserError, first_few
from utils.files import local_path, quick_to_give_up

log = logging.getLogger(__name__)
_HEADS = re.compile(r"(head|fc|classifier)\w*\.")  # of timm's networks, of whatever number of classes


def load_pretrained(network: Segmentor, source: str) -> None:
    """Fill the backbone with pretrained weights; its style sites and adapters stay as they are.

    Args:
        network: its backbone is changed in place.
        source: `none`; `torchvision` or `timm` (downloaded once); `auto`, which is timm for its own networks and
            torchvision for the others; or whatever utils.checkpoint reads (.pth, .pt, .safetensors, folder, hf://). Of
            the published backbones it has the names of torchvision, of timm's ResNets and MobileNetV2, of MIT CSAIL's
            ResNets with three stem convolutions or of tonylins' MobileNetV2; of timm's networks whatever timm reads. It
            may hold them below `backbone.`, as a checkpoint of train.py does.

    Raises:
        UserError: no download, an unreadable file, or names and shapes that do not fit.
    """
    if source == "none":
        log.info("backbone: random weights (--pretrained none)")
        return
    backbone, state = network.backbone, None
    if source == "auto":
        source = "timm" if isinstance(backbone, TimmBackbone) else "torchvision"
    origin = f"--pretrained {source}"
    if source not in ("torchvision", "timm"):
        if not local_path(source).exists():
            raise _no_weights(origin, backbone.spec, "there is no such file")
        content = checkpoint.read(source)
        _check_adapters(content, backbone.tune, origin=origin)
        state = backbone_entries(
            own_weights(content, network) if checkpoint.is_ours(content) else unwrap_state(content)
        )
        checkpoint.check_kinds(state, path=origin)  # which timm copies
    if isinstance(backbone, TimmBackbone):
        state = _of_timm(state, backbone, source=source)
    else:
        assert isinstance(backbone, Backbone)
        if source == "torchvision":
            state = _main_first(partial(_download, _weights_url(backbone.spec)))
        elif state is None:
            state = _of_twin(backbone.spec)
        state = _of_backbone(torchvision_names(state), backbone, origin=origin)
    checkpoint.load_strictly(backbone, _wrapped(state, backbone), path=origin)
    log.info("backbone: pretrained weights from %s", source)


def _check_adapters(content: dict[str, Any], tune: str, *, origin: str) -> None:
    """Raise `UserError` at a checkpoint with adapters that a network fine-tuned otherwise has no place for."""
    settings = content["config"].get("NETWORK") if checkpoint.is_ours(content) else None
    adapters = settings.get("TUNE") if isinstance(settings, dict) else None
    ways = {"lora": "merge them by python -m scripts.export FILE --format safetensors", "rein": "they cannot be merged"}
    if adapters in ways and adapters != tune:
        raise UserError(
            f"{origin}: its backbone has the adapters of --tune {adapters}, this run has --tune {tune}; "
            f"{ways[adapters]}, give what they were trained on, or --tune {adapters}"
        )


def _wrapped(state: Mapping[str, Tensor], backbone: BackboneBase) -> dict[str, Tensor]:
    """Return entries under the names that they have where adapters wrap layers; what no file has keeps its value."""
    own, names = backbone.state_dict(), _plain_names(backbone)
    kept = {name: own[name] for name in own if not set(backbone.added).isdisjoint(name.split("."))}
    return kept | {names.get(name, name): value for name, value in state.items()}


def _plain_names(backbone: BackboneBase) -> dict[str, str]:
    """Return the names that entries had before LoRA or Rein wrapped their layers -> those that they have."""
    return {name.replace(".base_layer.", ".").replace(".block.", "."): name for name in backbone.state_dict()}


def _of_timm(state: Mapping[str, Any] | None, backbone: TimmBackbone, *, source: str) -> dict[str, Any]:
    """Return the entries for timm's network, of timm's own weights where there is no `state`."""
    name, origin = backbone.spec.timm_name, f"--pretrained {source}"
    if source == "torchvision":
        raise _no_weights(origin, backbone.spec, "torchvision has no such network")
    if state is not None:  # of a checkpoint of ours?
        known = _plain_names(backbone).keys() | backbone.state_dict().keys()
        of_method = {key for key in state.keys() - known if key.startswith(("sites.", "pyramid."))}  # of another one
        if state.keys() - of_method <= known:
            return {key: value for key, value in state.items() if key not in of_method}
    create = partial(backbone.spec.create, output_stride=backbone.output_stride)
    load = partial(timm_weights, create, name=name, origin=origin)
    weights = _main_first(load) if state is None else load(state_dict=state)
    return {f"model.{name}": value for name, value in weights.items()}


def _of_twin(spec: BackboneSpec) -> dict[str, Tensor]:
    """Return timm's weights of the same network, or raise `UserError` where timm does not have it."""
    import timm  # slow to import

    name = {"mobilenet_v2": "mobilenetv2_100"}.get(spec.model, spec.model) if spec.model else "resnet101s"
    if not timm.is_model(name):
        raise _no_weights("--pretrained timm", spec, "timm has no such network")
    return _main_first(partial(timm_weights, partial(timm.create_model, name), name=name, origin="--pretrained timm"))


def torchvision_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """Turn timm's names of a deep stem or of MobileNetV2, and tonylins' of the latter, into ours; others stay."""
    if "conv1.6.weight" in state:  # three convolutions, as in timm's resnet101s
        modules = {"conv1.0": "conv1", "conv1.1": "bn1", "conv1.3": "conv2", "conv1.4": "bn2", "conv1.6": "conv3"}
        modules["bn1"] = "bn3"
    elif state.keys() & {"conv_stem.weight", "features.2.conv.7.weight"}:
        modules = _mobilenet_modules()
    else:
        return dict(state)
    renamed = {}
    for name, value in state.items():
        module, _, leaf = name.rpartition(".")
        renamed[f"{modules[module]}.{leaf}" if module in modules else name] = value
    return renamed


# Layers of a block of MobileNetV2: timm's, tonylins' and torchvision's names. The first block does not expand.
_FIRST_BLOCK = ("conv_dw 0 0.0", "bn1 1 0.1", "conv_pw 3 1", "bn2 4 2")
_BLOCK = ("conv_pw 0 0.0", "bn1 1 0.1", "conv_dw 3 1.0", "bn2 4 1.1", "conv_pwl 6 2", "bn3 7 3")


def _mobilenet_modules() -> dict[str, str]:
    """Return timm's and tonylins' names of MobileNetV2's layers -> torchvision's."""
    modules = {"conv_stem": "features.0.0", "bn1": "features.0.1", "conv_head": "features.18.0", "bn2": "features.18.1"}
    modules |= {"conv.0": "features.18.0", "conv.1": "features.18.1"}
    blocks = [(stage, index) for stage, count in enumerate((1, 2, 3, 4, 3, 3, 1)) for index in range(count)]
    for number, (stage, index) in enumerate(blocks, 1):
        for layer in _BLOCK if number > 1 else _FIRST_BLOCK:
            timm, tonylins, torchvision = layer.split()
            modules[f"blocks.{stage}.{index}.{timm}"] = f"features.{number}.conv.{torchvision}"
            modules[f"features.{number}.conv.{tonylins}"] = f"features.{number}.conv.{torchvision}"
    return modules


def _of_backbone(state: Mapping[str, Any], backbone: Backbone, *, origin: str) -> dict[str, Tensor]:
    """Leave the classifier and the batch norms out whose place a site has taken; what no file has stays as it is."""
    spec, first = backbone.spec, state.get("conv1.weight")
    if isinstance(spec, ResNetSpec) and isinstance(first, Tensor) and first.shape[-1] != spec.stem[0][0]:
        raise _no_weights(origin, spec)
    wanted = backbone.state_dict()
    loaded: dict[str, Tensor] = {}
    for name, value in state.items():
        module, _, leaf = name.rpartition(".")
        if module in backbone.replaced:
            site = f"{backbone.replaced[module]}.{leaf}"
            # Parity: an affine site in a ResNet's stem takes the weight and bias of the batch norm that it replaced.
            if isinstance(spec, ResNetSpec) and leaf in ("weight", "bias") and site in wanted:
                loaded[site] = value
        elif not name.startswith(("fc.", "classifier.")):
            loaded[name] = value
    return loaded


def _weights_url(spec: BackboneSpec) -> str:
    from torchvision.models import get_model_weights  # slow to import

    if spec.model is None:
        raise _no_weights("--pretrained torchvision", spec)
    return get_model_weights(spec.model)["IMAGENET1K_V1"].url


def _no_weights(origin: str, spec: BackboneSpec | TimmSpec, why: str = "") -> UserError:
    """Return the error that says how to get weights, without `why` that these are for the other stem."""
    if isinstance(spec, TimmSpec):
        return UserError(f"{origin}: {why}; give timm's weights of {spec.timm_name}, or use --pretrained timm or none")
    convs, deep = ("one 7x7 convolution", "three 3x3 convolutions"), spec.model is None
    why = why or f"these weights have a stem of {convs[not deep]}, but {spec.title} has {convs[deep]}"
    file, other = "torchvision's weights", ""
    if deep:
        file = "MIT CSAIL's resnet101-imagenet.pth"
        other = ", use --pretrained timm (or take --backbone resnet101 in place of --arch, which has torchvision's)"
    return UserError(
        f"{origin}: {why}; give {file} for {spec.title} by --pretrained FILE{other}, or use --pretrained none"
    )


def _download(url: str) -> dict[str, Any]:
    """Return torchvision's weights from torch's cache, filled first where they are not there or not whole.

    The first digits of their SHA-256 sum are in the name of the file, and are compared before every use.
    """
    file = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    digits = file.stem.rpartition("-")[2]
    try:
        if file.exists() and not hashlib.sha256(file.read_bytes()).hexdigest().startswith(digits):
            log.warning("%s: its checksum is not that of its name; it is downloaded again", file)
            file.unlink(missing_ok=True)
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), digits, progress=distributed.is_main())
    except (OSError, RuntimeError, HTTPException) as error:
        raise UserError(
            f"--pretrained torchvision: {url} could not be downloaded ({error}); "
            "give a local copy by --pretrained FILE, or use --pretrained none"
        ) from error
    return checkpoint.read(file)


def _main_first(load: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Let the first process fill the cache of downloads, which the others then read."""
    if main := distributed.is_main():
        result = load()
    distributed.barrier()
    return result if main else load()


def timm_weights(create: Callable[..., nn.Module], *, name: str, origin: str, **overlay: Any) -> dict[str, Tensor]:
    """Return the entries of the network that `create` builds, after timm, leniently, has filled it.

    Args:
        create: calls `timm.create_model` with the options that it is given.
        name: timm's name of the network.
        origin: the flag and its value, for messages.
        overlay: where the weights come from, if not from timm's own place: `state_dict`.

    Raises:
        UserError: no download, or something that the network keeps is missing, of another shape or unknown to it.
    """
    import timm  # slow to import

    way_out = f"give the weights of {name} by --pretrained FILE, or use --pretrained none"
    try:
        with contextlib.nullcontext() if overlay else quick_to_give_up(), _noted_loads() as loads:
            model = create(pretrained=True, pretrained_cfg_overlay=overlay)
    except UserError:
        raise
    except Exception as error:  # of the hub, of a damaged file, of a renaming that looks for another name
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300].rstrip(".")
        if reason.startswith("Error(s) in loading state_dict"):
            reason = checkpoint.misfits(error, path=origin)
        if "deserializing" in reason:  # safetensors' word for a file that is damaged, which it does not name
            cache = os.environ.get("HF_HOME", "~/.cache/huggingface")
            way_out = f"remove the damaged copy of {name} below {cache} and try again, or {way_out}"
        raise UserError(f"{origin}: timm cannot load weights of {name} ({reason}); {way_out}") from error
    kept = {id(value) for value in model.state_dict(keep_vars=True).values()}
    missing, unexpected = list[str](), list[str]()
    for module, keys in loads:
        state = module.state_dict(keep_vars=True)
        missing += [key for key in keys.missing_keys if id(state.get(key)) in kept]
        unexpected += [key for key in keys.unexpected_keys if not _HEADS.match(key)]
    if unexpected:  # a feature extractor has not all layers of the network that the weights were trained in
        with torch.device("meta"):
            whole = timm.create_model(name).state_dict()
        unexpected = [key for key in unexpected if key not in whole]
    if missing or unexpected:
        listed = {"missing": missing, "unexpected": unexpected}
        log.debug("%s: %s", origin, listed)
        found = "; ".join(f"{kind}: {first_few(keys)}" for kind, keys in listed.items() if keys)
        raise UserError(f"{origin}: does not fit {name} ({found}); {way_out}")
    return model.state_dict()


@contextlib.contextmanager
def _noted_loads() -> Iterator[list[tuple[nn.Module, Any]]]:
    """Collect the modules that load a state, with what was missing and unexpected: timm only logs it."""
    loads: list[tuple[nn.Module, Any]] = []
    load, chatty = nn.Module.load_state_dict, logging.getLogger("timm.models")
    level = chatty.level

    def load_and_note(module: nn.Module, *args: Any, **options: Any) -> Any:
        keys = load(module, *args, **options)
        loads.append((module, keys))
        return keys

    nn.Module.load_state_dict = load_and_note  # type: ignore[assignment, method-assign]
    chatty.setLevel(logging.ERROR)
    try:
        yield loads
    finally:
        nn.Module.load_state_dict = load  # type: ignore[assignment, method-assign]
        chatty.setLevel(level)
