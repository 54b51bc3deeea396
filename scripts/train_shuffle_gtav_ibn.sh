#!/usr/bin/env bash
# Trains IBN-Net (ShuffleNetV2 at stride 16, plain head) on GTAV with RobustNet's settings: 2 GPUs x 8 images.
# Usage: CUDA_VISIBLE_DEVICES=0,1 ./scripts/train_shuffle_gtav_ibn.sh [flags that win over those below]
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/robustnet_recipe.sh" gtav \
  --arch network.deepv3.DeepShuffleNetV3PlusD --method ibn --bs_mult 8 --exp shuffle_gtav_ibn "$@"
