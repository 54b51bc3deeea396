#!/usr/bin/env bash
# Evaluates a weight file on the four domains that a training on GTAV has not seen.
# Usage: CUDA_VISIBLE_DEVICES=0,1 ./scripts/score_weights.sh WEIGHTS [flags that win over those below]
# The valid_*.sh scripts set `flags` for published weights and source this; a checkpoint of train.py needs none.
set -euo pipefail
if [[ $# == 0 || $1 == -* ]]; then
  echo "usage: $0 WEIGHTS [flags]: the first argument is the weight file to evaluate, of train.py or published" >&2
  exit 2
fi
weights=$1
shift
if [[ $weights != /* && -e $weights ]]; then
  weights=$PWD/$weights # seen from where it was called; launch.sh goes to the repository's root
fi
exec "$(dirname "${BASH_SOURCE[0]}")/launch.sh" valid.py \
  --val_dataset cityscapes synthia bdd100k mapillary ${flags+"${flags[@]}"} --snapshot "$weights" "$@"
