#!/usr/bin/env bash
# Scores a weight file trained on GTAV on the four unseen domains.
# Usage: CUDA_VISIBLE_DEVICES=0,1 ./scripts/valid_r50os16_gtav_isw.sh WEIGHTS [flags that win over those below]
set -euo pipefail
if [[ $# == 0 || $1 == -* ]]; then
  echo "usage: $0 WEIGHTS [flags]: the first argument is the weight file to score, a .pth of train.py" >&2
  exit 2
fi
weights=$1
shift
if [[ $weights != /* && -e $weights ]]; then
  weights=$PWD/$weights # seen from where it was called; launch.sh goes to the repository's root
fi
exec "$(dirname "${BASH_SOURCE[0]}")/launch.sh" valid.py \
  --val_dataset cityscapes synthia bdd100k mapillary \
  --arch network.deepv3.DeepR50V3PlusD \
  --wt_layer 0 0 2 2 2 0 0 \
  --snapshot "$weights" \
  "$@"
