#!/usr/bin/env bash
# The whole job on data that it draws itself: sets up .venv, draws a five-domain street-scene set, trains DIIA on its
# "gtav", scores the other four, and shows the table and where the pictures are. Everything lands in ./demo.
# Usage: ./scripts/demo.sh [flags for train.py that win over those below]
# A second call keeps the data, continues a run that was interrupted, and scores again; `rm -r demo` starts afresh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh

data=demo/data
domains=(
  "DATASET.GTAV_DIR=$data/GTAV" "DATASET.CITYSCAPES_DIR=$data/cityscapes" "DATASET.BDD_DIR=$data/bdd-100k"
  "DATASET.SYNTHIA_DIR=$data/synthia" "DATASET.MAPILLARY_DIR=$data/mapillary"
)

echo "== 1. five domains of drawn street scenes" >&2
"$python" -m datasets.demo --out "$data" --train 48 --val 8 --sheet demo/domains.png >&2

echo "== 2. DIIA, trained on gtav from scratch" >&2
"$python" train.py \
  --dataset gtav --covstat_val_dataset gtav --val_dataset cityscapes \
  --arch network.deepv3.DeepR50V3PlusD --method diia --wt_layer 0 0 2 2 2 0 0 --pretrained none \
  --max_iter 200 --bs_mult 4 --lr 0.01 --crop_size 160 --scale_min 0.5 --scale_max 1.5 --gblur --color_aug 0.5 \
  --class_uniform_pct 0.5 --class_uniform_tile 128 --cache_dir demo/cache \
  --wt_reg_weight 0.6 --clusters 3 --cov_stat_epoch 3 --trials 2 --stat_images 12 \
  --val_interval 0 --log_interval 20 --date demo --exp diia --ckpt demo/runs --tb_path demo/tb --resume auto \
  --opts "${domains[@]}" \
  "$@"

echo "== 3. its scores on the four domains that it never saw" >&2
weights=$(ls -t demo/runs/demo/diia/*/last.pth | head -n 1)
"$python" valid.py --snapshot "$weights" --val_dataset cityscapes bdd100k synthia mapillary \
  --out demo/results --pictures 4 --opts "${domains[@]}"

cat >&2 <<END

The scenes are drawn and the training was short: these numbers say nothing about the real data sets.
  demo/domains.png         the five domains
  demo/results/*.png       image, truth, prediction and errors, per domain
  demo/results/scores.md   the tables above, also as .json and .csv
  ${weights%/*}   weights, log, configuration of the run
END
