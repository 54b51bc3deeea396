#!/usr/bin/env bash
# Trains DIIA (ResNet-50 at stride 16) on GTAV and SYNTHIA together, half of every batch from each: 4 GPUs x 8 images.
# Usage: CUDA_VISIBLE_DEVICES=0,1,2,3 ./scripts/train_r50os16_gtav_synthia_isw.sh [flags that win over those below]
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/diia_recipe.sh" \
  --wt_layer 0 0 2 2 2 0 0 --dataset gtav synthia --covstat_val_dataset gtav synthia --val_dataset cityscapes \
  --exp r50os16_gtav_synthia_isw "$@"
