#!/usr/bin/env bash
# Decodes training frames of data sets into a folder that `train.py --frame_cache DIR` reads; called again, it resumes.
# Usage: ./scripts/build_cache.sh gtav --frame_cache /fast/frames [--split train] [--verify] [--opts DATASET.GTAV_DIR=...]
set -euo pipefail
export PET_NPROC_PER_NODE=1 PET_NNODES='' # one process, which starts its own workers
exec "$(dirname "${BASH_SOURCE[0]}")/launch.sh" -m scripts.cache_frames "$@"
