#!/usr/bin/env bash
# The whole job on data that it renders: sets up .venv, renders five domains of street scenes, checks them, trains
# the plain network and DIIA on "gtav", evaluates both on all five, and shows the table and where the pictures are.
# Usage: ./scripts/demo.sh [--full] [flags for train.py that win over those below]
#   --full trains base, ibn, isw and diia with three seeds each for 300 steps.
#   METHODS="base mine" ./scripts/demo.sh --full trains others; differences are taken from base.
# All lands in ./demo. A second call skips finished runs, resumes interrupted ones; for other flags, rm -r demo first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh

half= steps=140 # ten minutes on two cores, also where 16 bits are slow
if nvidia-smi -L 2>/dev/null | grep -q GPU || grep -qsE 'avx512_bf16|amx_bf16' /proc/cpuinfo; then
  half=--fp16 steps=300
fi
methods=(base diia) seeds=(304)
if [[ ${1:-} == --full ]]; then
  methods=(base ibn isw diia) seeds=(304 305 306) steps=300
  shift
fi
read -ra methods <<<"${METHODS:-${methods[*]}}"
data=demo/data
domains=(
  "DATASET.GTAV_DIR=$data/GTAV" "DATASET.CITYSCAPES_DIR=$data/cityscapes" "DATASET.BDD_DIR=$data/bdd-100k"
  "DATASET.SYNTHIA_DIR=$data/synthia" "DATASET.MAPILLARY_DIR=$data/mapillary"
)

echo "== 1. five domains of rendered street scenes" >&2
"$python" -m demo_world --out "$data" --size small --sheet demo/domains.png >&2
"$python" -m scripts.check_data gtav cityscapes bdd100k synthia mapillary --opts "${domains[@]}" >demo/check.txt ||
  { cat demo/check.txt >&2 && exit 1; }

for seed in "${seeds[@]}"; do
  for method in "${methods[@]}"; do
    run=demo/runs_$steps/${method}_$seed
    if ! grep -qs "finished at step" "$run"/*/log.txt; then
      echo "== 2. $method, seed $seed: trained on gtav from scratch, evaluated on all five" >&2
      "$python" train.py \
        --dataset gtav --covstat_val_dataset gtav --val_dataset cityscapes bdd100k synthia mapillary \
        --backbone resnet18 --pretrained none --max_iter $steps --bs_mult 4 --lr 0.02 $half \
        --crop_size 224 --scale_min 0.75 --scale_max 1.5 --gblur --color_aug 0.5 --jitter robustnet \
        --class_uniform_pct 0.5 --class_uniform_tile 128 --centroid_cache demo/cache \
        --clusters 3 --cov_stat_epoch 3 --trials 2 --stat_images 12 --val_interval 0 --log_interval 20 \
        --ckpt demo --tb_path demo/tb --date "runs_$steps" --resume auto --opts "${domains[@]}" \
        "$@" --method "$method" --seed "$seed" --exp "${method}_$seed"
    fi
    mkdir -p "demo/pictures/${method}_$seed"
    find "$run" -path '*/pictures/*.png' -exec cp {} "demo/pictures/${method}_$seed" \;
  done
done

echo "== 3. the table" >&2
"$python" -m scripts.compare_runs --against base --out demo/results.md "demo/runs_$steps"

cat >&2 <<END

The scenes are rendered and the training was short: these numbers say nothing about the real data sets.
  demo/domains.png         the five domains; demo/check.txt says what they hold
  demo/pictures/*/*.png    image, truth, prediction and errors, per method and domain
  demo/results.md          the table above; demo/runs_*/*/*/scores has the classes
  demo/runs_*/*/*          weights, log, configuration of every run
END
