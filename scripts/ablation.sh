#!/usr/bin/env bash
# Trains DIIA, DIIA without each of its parts, DIIA v2 without each correction, and plain methods, with the published
# settings for GTAV, one after the other (17 methods, seed 304), and prints one table of their scores: mean and
# deviation over seeds, and differences from the first method.
# Usage: CUDA_VISIBLE_DEVICES=0,1,2,3 ./scripts/ablation.sh [flags of train.py that win over those below, for all runs]
#   METHODS="base diia" SEEDS="304 305 306" ABLATION_DIR=/runs/ablation ./scripts/ablation.sh --max_iter 10000
# Behind a method, +NAME adds style augmentation, label smoothing or averaged weights (docs/training.md) in its
# strength below, +NAME=STRENGTH in another:
#   METHODS="base base+mixstyle base+fda=0.1 diia+randconv+randconv_repeats" ./scripts/ablation.sh
# A second call with the same flags skips finished runs and resumes interrupted ones.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=${ABLATION_DIR:-./logs/ablation}
parts="diia-coarse diia-no-edge diia-no-layout diia-no-aggregation diia-no-whitening diia"
parts+=" diia-v2-old-edge diia-v2-old-confidence diia-v2-old-encoding diia-v2-old-attention diia-v2-old-content"
parts+=" diia-v2-old-losses diia-v2-old-sites diia-v2"
strengths=" mixstyle=0.5 advstyle=1 fda=0.05 randaugment=9 randconv=0.5 randconv_repeats=10 label_smoothing=0.1"
strengths+=" ema_decay=0.999"
read -ra methods <<<"${METHODS:-base ibn isw $parts}"
read -ra seeds <<<"${SEEDS:-304}"
cd "$here/.."

flags_of() { # base+fda -> --method base --fda 0.05
  local name names
  IFS=+ read -ra names <<<"$1"
  printf -- '--method %s' "${names[0]}"
  for name in "${names[@]:1}"; do
    [[ $name == *=* ]] || name=$(grep -oE " $name=[^ ]+" <<<"$strengths" || echo "$name")
    name=${name# }
    printf ' --%s' "${name/=/ }"
  done
}

runs=()
for method in "${methods[@]}"; do
  read -ra flags <<<"$(flags_of "$method")"
  for seed in "${seeds[@]}"; do
    runs+=("$folder/ablation/${method}_$seed")
    grep -qs "finished at step" "${runs[-1]}"/*/log.txt || "$here/diia_recipe.sh" \
      --dataset gtav --covstat_val_dataset gtav --val_dataset bdd100k cityscapes synthia mapillary \
      --jitter diia --val_limit 0 --val_interval 0 "$@" "${flags[@]}" --seed "$seed" \
      --ckpt "$folder" --tb_path "$folder" --date ablation --exp "${method}_$seed" --resume auto
  done
done

PET_NPROC_PER_NODE=1 PET_NNODES='' "$here/launch.sh" -m scripts.compare_runs --out "$folder/ablation.md" "${runs[@]}"
