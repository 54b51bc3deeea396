#!/usr/bin/env bash
# Trains DIIA (ResNet-50, output stride 16) on GTAV with the published settings: 4 GPUs x 8 images.
# Usage: CUDA_VISIBLE_DEVICES=0,1,2,3 ./scripts/train_r50os16_gtav_isw.sh [flags that win over those below]
# It validates on Cityscapes as published; valid_r50os16_gtav_isw.sh evaluates on all four unseen domains.
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/diia_recipe.sh" \
  --wt_layer 0 0 2 2 2 0 0 --dataset gtav --covstat_val_dataset gtav --val_dataset cityscapes --exp r50os16_gtav_isw \
  "$@"
