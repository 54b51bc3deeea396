#!/usr/bin/env bash
# Starts a program with one process per visible GPU (CUDA_VISIBLE_DEVICES counts), or one on the CPU without any.
# Usage: scripts/launch.sh PROGRAM.py [flags]
# Several processes go through torchrun (scripts/launch.py), a single one starts directly, without a launcher between
# it and the terminal. torchrun's own variables are obeyed: PET_NPROC_PER_NODE sets the number of processes, and
# PET_NNODES with PET_NODE_RANK, PET_MASTER_ADDR, PET_MASTER_PORT (or PET_RDZV_ENDPOINT) join several nodes:
#   PET_NNODES=2 PET_NODE_RANK=0 PET_MASTER_ADDR=node0 PET_MASTER_PORT=29500 ./scripts/train_r50os16_gtav_isw.sh
# DIIA_PYTHON names another Python than .venv/bin/python (or python3 where there is no .venv).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${DIIA_PYTHON:-python3}
[[ -n ${DIIA_PYTHON:-} || ! -x .venv/bin/python ]] || python=.venv/bin/python
several_nodes=${PET_NNODES:-}${PET_RDZV_ENDPOINT:-}${PET_MASTER_ADDR:-}
processes=${PET_NPROC_PER_NODE:-}
if [[ -z $processes ]]; then
  if ! processes=$("$python" -c 'import torch; print(torch.cuda.device_count())' 2>/dev/null); then
    echo "error: $python cannot import torch; run ./scripts/setup.sh, or name your Python in DIIA_PYTHON" >&2
    exit 2
  fi
  if [[ $processes == 0 ]]; then
    if [[ ${CUDA_VISIBLE_DEVICES-0} != @(|-1) && $(nvidia-smi -L 2>/dev/null) == *GPU* ]]; then
      echo "warning: nvidia-smi lists a GPU that torch cannot use; install the torch build for its driver" >&2
    fi
    processes=1
  fi
fi

if [[ $processes == 1 && -z $several_nodes ]]; then
  exec "$python" "$@"
fi
launcher=(-m scripts.launch --nproc_per_node="$processes")
[[ -n $several_nodes ]] || launcher+=(--standalone) # a free port of this machine, so that several runs fit on it
exec "$python" "${launcher[@]}" "$@"
