"""The set-up of the environment by scripts/setup.sh, and how continuous integration finds the test data."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FAKE_BASE = """#!/usr/bin/env bash
# Plays the base Python: makes an environment whose Python only records what it was asked to do.
case "$*" in
  *version_info*) exit 0 ;;
  "-m venv --clear .venv"*)
    mkdir -p $4/bin
    printf '%s\\n' '#!/usr/bin/env bash' '[[ $1 == -c ]] && exit 0' \\
      'echo "$*" >> pip.log' '[[ ! -e offline ]]' > $4/bin/python
    chmod +x $4/bin/python ;;
  *) exit 1 ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the set-up script and requirements, and a stand-in for the system's Python."""
    folder = tmp_path / "a checkout"
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "setup.sh", folder / "scripts")
    for name in ("requirements.txt", "requirements-dev.txt", "requirements-corruptions.txt"):
        shutil.copy(ROOT / name, folder)
    (tmp_path / "bin").mkdir()
    base = tmp_path / "bin" / "python3"
    base.write_text(FAKE_BASE)
    base.chmod(0o755)
    return folder


def set_up(checkout: Path, *, command: str = "scripts/setup.sh", **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DIIA_", "VIRTUAL_ENV"))}
    env = {**kept, "PATH": f"{checkout.parent / 'bin'}:/usr/bin:/bin", **variables}
    return subprocess.run(
        ["bash", "-c", command], cwd=checkout, env=env, capture_output=True, text=True, timeout=60, check=False
    )


def installs(checkout: Path) -> int:
    log = checkout / "pip.log"
    return log.read_text().count("-r requirements.txt") if log.exists() else 0


def test_setup_installs_once_and_again_when_the_requirements_change(checkout: Path) -> None:
    result = set_up(checkout, VIRTUAL_ENV="/another", PIP_TARGET="/elsewhere")
    assert result.returncode == 0, result.stderr
    assert installs(checkout) == 1 and result.stdout == ""
    calls = (checkout / "pip.log").read_text().splitlines()
    assert [call.partition(" -qq ")[2] for call in calls] == [
        "-r requirements.txt -r requirements-dev.txt",
        "--no-deps -r requirements-corruptions.txt",
    ]
    assert set_up(checkout).stderr == "" and installs(checkout) == 1
    with (checkout / "requirements-dev.txt").open("a") as file:
        file.write("one-more>=1\n")
    assert set_up(checkout).returncode == 0 and installs(checkout) == 2


def test_setup_tries_again_after_a_failure(checkout: Path) -> None:
    (checkout / "offline").touch()
    result = set_up(checkout)
    assert result.returncode == 2 and "pip could not install" in result.stderr
    (checkout / "offline").unlink()
    assert set_up(checkout).returncode == 0 and installs(checkout) == 2


def test_setup_can_be_sourced_and_names_the_python(checkout: Path) -> None:
    command = 'set -euo pipefail; source scripts/setup.sh; cd /; echo "$python"'
    result = set_up(checkout, command=command)
    assert result.stdout.strip() == str(checkout / ".venv" / "bin" / "python"), result.stderr
    (checkout / "offline").touch()
    (checkout / ".venv" / "requirements-installed.txt").unlink()
    result = set_up(checkout, command=f"{command}; echo still here")
    assert result.returncode == 2 and "still here" not in result.stdout
    result = set_up(checkout, command=command, DIIA_PYTHON="/my/python")
    assert result.stdout.strip() == "/my/python"


def test_setup_says_when_there_is_no_python(checkout: Path) -> None:
    for version in ("3", "3.13", "3.12", "3.11", "3.10"):
        base = checkout.parent / "bin" / f"python{version}"
        base.write_text("#!/usr/bin/env bash\nexit 1\n")
        base.chmod(0o755)
    result = set_up(checkout)
    assert result.returncode == 2 and "no Python of at least 3.10" in result.stderr


def test_the_oldest_environment_has_every_requirement_at_its_lower_bound(checkout: Path) -> None:
    shutil.copy(checkout.parent / "bin" / "python3", checkout.parent / "bin" / "python3.10")
    (checkout.parent / "bin" / "python3").write_text("#!/usr/bin/env bash\nexit 1\n")  # a newer one, say
    shutil.copy(ROOT / "scripts" / "test.sh", checkout / "scripts")
    result = set_up(checkout, command="scripts/test.sh --oldest tests/test_config.py", DIIA_PYTHON="/another/python")
    assert result.returncode == 0, result.stderr
    assert not (checkout / ".venv").exists() and installs(checkout) == 1
    log = (checkout / "pip.log").read_text()
    assert "-c .venv-oldest/lower-bounds.txt" in log and "ruff" not in log and "mypy" not in log
    assert log.splitlines()[-1].endswith("--durations=15 tests/test_config.py")
    bounds = (checkout / ".venv-oldest" / "lower-bounds.txt").read_text().splitlines()
    assert "torch==2.6" in bounds and "numpy==1.26" in bounds and "pytest==8.0" in bounds
    assert not [line for line in bounds if ">" in line]


def test_the_tests_check_the_code_first(checkout: Path) -> None:
    shutil.copy(ROOT / "scripts" / "test.sh", checkout / "scripts")
    assert set_up(checkout, command="scripts/test.sh -x").returncode == 0
    calls = [line for line in (checkout / "pip.log").read_text().splitlines() if "pip install" not in line]
    assert calls[:3] == ["-m ruff check .", "-m ruff format --check .", "-m mypy ."]
    assert calls[3].startswith("-m pytest -q ") and calls[3].endswith(" -x")


@pytest.mark.parametrize("shared", [True, False])
def test_continuous_integration_finds_the_test_data(tmp_path: Path, shared: bool) -> None:
    folder = tmp_path / "a clone"
    (folder / ".ci").mkdir(parents=True)
    (folder / "scripts").mkdir()
    shutil.copy(ROOT / ".ci" / "run", folder / ".ci")
    test = folder / "scripts" / "test.sh"
    test.write_text('#!/usr/bin/env bash\necho "${DIIA_TEST_DATA:-none}" "$@"\n')
    test.chmod(0o755)
    if shared:
        (tmp_path / "shared").mkdir()
    env = {name: value for name, value in os.environ.items() if name != "DIIA_TEST_DATA"}
    result = subprocess.run(
        [folder / ".ci" / "run", "-x"], cwd="/", env=env, capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.strip() == (f"{tmp_path / 'shared'} -x" if shared else "none -x")
