"""The campaigns of tests/campaigns in short."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaigns import fuzz


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_fuzzed_inputs_end_in_a_result_or_a_sentence(kind: str, tmp_path: Path) -> None:
    fuzz.run_trial(fuzz.KINDS[kind](tmp_path), examples=15, number=0)


def test_a_traceback_is_a_fault() -> None:
    """What the trials let pass: no other exception, no other exit code, no endless sentence."""
    for error in (KeyError("x"), SystemExit(3)):
        with pytest.raises((KeyError, AssertionError)):
            fuzz.try_out(lambda error=error: (_ for _ in ()).throw(error))  # type: ignore[misc]
