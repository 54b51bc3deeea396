"""The campaigns of tests/campaigns in short."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch

from tests.campaigns import fuzz
from tests.runs import differences


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_fuzzed_inputs_end_in_a_result_or_a_sentence(kind: str, tmp_path: Path) -> None:
    fuzz.run_trial(fuzz.KINDS[kind](tmp_path), examples=15, number=0)


def test_a_traceback_is_a_fault() -> None:
    """What the trials let pass: no other exception, no other exit code, no endless sentence."""
    for error in (KeyError("x"), SystemExit(3)):
        with pytest.raises((KeyError, AssertionError)):
            fuzz.try_out(lambda error=error: (_ for _ in ()).throw(error))  # type: ignore[misc]


def test_differences_are_named() -> None:
    """What the campaigns and the tests of a resume compare runs by."""
    tree = {"a": [torch.ones(2), 1, math.nan], "b": {"c": None}}
    assert not differences(copy.deepcopy(tree), tree)
    others = ({"a": [torch.zeros(2), 1, math.nan]}, {"a": [torch.ones(2), 1.0, 0.0]}, {"a": [1]}, {"d": None}, {"b": 1})
    named = [["/a/0"], ["/a/1", "/a/2"], ["/a"], ["/d"], ["/b"]]
    assert [differences({**tree, **other}, tree) for other in others] == named
    assert differences({"a": tree["a"]}, tree) == ["/b"]
