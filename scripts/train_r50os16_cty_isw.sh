#!/usr/bin/env bash
# Trains DIIA (ResNet-50, output stride 16) on Cityscapes with the published settings: 4 GPUs x 8 images.
# Usage: CUDA_VISIBLE_DEVICES=0,1,2,3 ./scripts/train_r50os16_cty_isw.sh [flags that win over those below]
# It validates on BDD100K as published; valid.py --val_dataset bdd100k gtav synthia mapillary on all unseen domains.
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/diia_recipe.sh" \
  --wt_layer 0 0 2 2 2 0 0 --dataset cityscapes --covstat_val_dataset cityscapes --val_dataset bdd100k \
  --class_uniform_tile 512 --clusters 2 --exp r50os16_city_isw "$@"
