#!/usr/bin/env bash
# Trains ISW (ShuffleNetV2 at stride 16, plain head) on GTAV with RobustNet's settings: 2 GPUs x 8 images.
# Usage: CUDA_VISIBLE_DEVICES=0,1 ./scripts/train_shuffle_gtav_isw.sh [flags that win over those below]
# The published script of this name stops with an error in the first whitened block; this one trains.
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/robustnet_recipe.sh" gtav \
  --arch network.deepv3.DeepShuffleNetV3PlusD --method isw --wt_reg_weight 0.8 --clusters 2 --bs_mult 8 \
  --exp shuffle_gtav_isw "$@"
