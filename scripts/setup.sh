#!/usr/bin/env bash
# Makes .venv and installs requirements.txt, requirements-dev.txt and, without its dependencies, what --corrupt needs
# (requirements-corruptions.txt) into it, again only when one of them has changed.
# Usage: ./scripts/setup.sh, or `source` it from a script: then $python is the Python to use.
# DIIA_PYTHON names a Python that already has everything; nothing is installed then. DIIA_OLDEST=1 makes .venv-oldest
# instead: the oldest Python that is there, every requirement at its lower bound. pip's own variables (PIP_INDEX_URL,
# PIP_EXTRA_INDEX_URL) choose another source, for instance a torch build for an older GPU driver.

diia_setup() (
  venv=$1
  cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
  set -uo pipefail # every step is checked where it stands: `||` below would switch -e off
  # another environment's settings must not reach this one
  unset PYTHONHOME PYTHONPATH VIRTUAL_ENV PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV
  export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1
  stamp=$venv/requirements-installed.txt
  candidates=(python3 python3.13 python3.12 python3.11 python3.10)
  if [[ $venv == .venv-oldest ]]; then
    candidates=(python3.10 python3.11 python3.12 python3.13 python3)
  fi

  if ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then # none yet, half made, or its base Python is gone
    base=
    for candidate in "${candidates[@]}"; do
      if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        base=$candidate
        break
      fi
    done
    if [[ -z $base ]]; then
      echo "error: no Python of at least 3.10 found; install one and start again" >&2
      exit 2
    fi
    if ! "$base" -m venv --clear "$venv" >&2; then
      echo "error: $base cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2
      exit 2
    fi
  fi
  files=(requirements.txt requirements-dev.txt requirements-corruptions.txt)
  if ! cat "${files[@]}" | cmp -s - "$stamp"; then
    echo "setup: installing into $venv (a few minutes, only when the requirements change) ..." >&2
    options=()
    if [[ $venv == .venv-oldest ]]; then
      sed 's/>=/==/' "${files[@]}" >"$venv/lower-bounds.txt"
      options+=(-c "$venv/lower-bounds.txt")
    fi
    pip=("$venv/bin/python" -m pip install -qq "${options[@]}")
    if ! "${pip[@]}" -r requirements.txt -r requirements-dev.txt >&2 ||
      ! "${pip[@]}" --no-deps -r requirements-corruptions.txt >&2; then
      echo "error: pip could not install the requirements (its reason stands above); fix it and start again" >&2
      exit 2
    fi
    cat "${files[@]}" >"$stamp" || exit 2
  fi
)

if [[ -n ${DIIA_PYTHON:-} ]]; then
  python=$DIIA_PYTHON
else
  diia_venv=.venv${DIIA_OLDEST:+-oldest}
  diia_setup "$diia_venv" || { code=$?; return "$code" 2>/dev/null || exit "$code"; }
  python=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/$diia_venv/bin/python
fi
