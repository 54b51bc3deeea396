"""Names of the published weight files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from network import build_network
from network.legacy import convert_state_dict, detect_head, unwrap_state
from tests import reference
from tests.street_data import make_cfg
from utils.errors import UserError

# Batch norms that a style site bypasses: the published file has them, nothing reads them.
DEAD = {"rn/shuffle_ibn": 48, "rn/shuffle_isw": 48, "rn/shuffle_isw_fixed": 48}


@pytest.mark.parametrize("key", [*reference.DIIA, *(f"rn/{key}" for key in reference.ROBUSTNET)])
def test_names_and_shapes_of_every_configuration(key: str, test_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    with torch.device("meta"):
        if key in reference.DIIA:
            arch, codes = reference.DIIA[key]
            network = build_network(make_cfg(WT_LAYER=codes, ARCH=arch))
        else:
            network = build_network(reference.robustnet(key.removeprefix("rn/")))
    wanted = reference.shapes(test_data, key)
    prefix = "module." if key.startswith("rn/") else ""
    state = network.state_dict()
    with caplog.at_level("INFO", logger="network.legacy"):
        converted = convert_state_dict({prefix + n: tuple(s) for n, s in wanted.items()}, wanted=state)
    assert converted == {name: tuple(value.shape) for name, value in state.items()}
    parameters = sum(value.numel() for value in network.parameters())
    assert parameters + DEAD.get(key, 0) == reference.shapes(test_data, f"{key}/params")
    assert ("5 entries are never used" in caplog.text and "layer0.layer.0.1.weight" in caplog.text) == (key in DEAD)
    assert detect_head(wanted) == network.method.head
    caplog.clear()
    with caplog.at_level("INFO"), torch.device("meta"):  # without the network's names: the network itself knows
        network.load_state_dict(convert_state_dict({n: torch.empty(s) for n, s in wanted.items()}), assign=True)
    assert ("left out" in caplog.text) == (key in DEAD)


def test_entries_that_the_file_shows_to_be_dead(caplog: pytest.LogCaptureFixture) -> None:
    state = dict.fromkeys(("layer0.layer.0.1.weight", "layer4.layer.1.bias", "layer4.layer.0.weight"), 0)
    assert list(convert_state_dict(state)) == [
        f"backbone.{n}" for n in ("stem.norm.weight", "stage4.norm.bias", "stage4.conv.weight")
    ]
    state |= dict.fromkeys(("module.layer0.instance_norm_layer.weight", "layer4.instance_norm_layer.weight"), 0)
    with caplog.at_level("INFO", logger="network.legacy"):
        kept = convert_state_dict(state)
    assert list(kept) == [f"backbone.{n}" for n in ("stage4.conv.weight", "stem.site.weight", "stage4.site.weight")]
    assert (
        "2 entries are never used by the original and left out: layer0.layer.0.1.weight, layer4.layer.1.bias"
        in caplog.text
    )
    mobile = dict.fromkeys(("layer4.0.0.weight", "layer4.0.instance_norm_layer.weight"), 0)
    assert list(convert_state_dict(mobile)) == ["backbone.stage4.blocks.0.0.weight"]


def test_conversion_without_reference_files() -> None:
    carried = reference.carried()
    for key, method in (("diia_isw", "diia"), ("plain_irw", "irw")):
        with torch.device("meta"):
            network = build_network(make_cfg(METHOD=method))
        converted = convert_state_dict({name: name for name in carried[key]["names"]})
        assert converted.keys() == network.state_dict().keys()


def test_head_is_told_from_the_names() -> None:
    assert detect_head({"module.gamma": 0, "layer0.0.weight": 0}) == "diia"
    assert detect_head({"final1_sg.0.weight": 0}) == "diia"
    assert detect_head({"bot_fine.0.weight": 0, "dsn.0.weight": 0, "layer1.0.bn1.weight": 0}) == "plain"


def test_same_part_in_both_heads() -> None:
    assert list(convert_state_dict({"final1.0.weight": 0})) == ["head.refine.0.conv.weight"]
    assert list(convert_state_dict({"final1.0.weight": 0, "gamma": 0})) == [
        "coarse.refine.0.conv.weight",
        "aggregate.gamma",
    ]


def test_unknown_names_are_all_listed() -> None:
    state = {"layer1.0.conv1.weight": 0, "layer9.0.conv1.weight": 0, "module.encoder.bias": 0, "final1.7.weight": 0}
    with pytest.raises(UserError) as caught:
        convert_state_dict(state)
    for name in ("layer9.0.conv1.weight", "module.encoder.bias", "final1.7.weight"):
        assert name in str(caught.value)
    assert "layer1.0.conv1" not in str(caught.value)
    with pytest.raises(UserError, match="gamma2"):
        convert_state_dict({"gamma2": 0})


def test_unwrapping() -> None:
    assert unwrap_state({"state_dict": {"module.a": 1}, "epoch": 3}) == {"a": 1}
    assert unwrap_state({"a": 1}) == {"a": 1}
