#!/usr/bin/env bash
# Does it generalise? Trains methods from ImageNet weights of MobileNetV2, 600 steps each, which two CPU cores do, and
# tabulates their scores on domains that they never saw. STUDY is one of
#   real        CamVid by day -> CamVid at dusk, LabelMeFacade
#   drawn-real  the demo world's gtav -> CamVid by day and at dusk, LabelMeFacade
#   drawn       the demo world's gtav -> its cityscapes, bdd100k, synthia and mapillary
# Usage: STUDY_DIR=/runs/study CAMVID=/data/camvid LABELMEFACADE=/data/labelmefacade DEMO_WORLD=/data/demo_world \
#   WEIGHTS=pretrained/mobilenet_v2.safetensors ./scripts/study.sh STUDY [flags of train.py, for all runs]
# CAMVID has SegNet's layout with splits by sequence: train 0016E5 and 0006R0, val Seq05VD, test 0001TP, which is dusk
# (SegNet's own split has half of it in train). LABELMEFACADE has images/NAME.jpg and labels/NAME.png with train ids.
# WEIGHTS is what scripts/real_weights.sh writes, DEMO_WORLD what `python -m demo_world --size medium` writes, METHODS
# and SEEDS are as for scripts/ablation.sh (base ibn isw diia diia-v2; 304 to 308). A second call skips finished runs
# and resumes interrupted ones. Without a --crop_size of your own crops have 192 pixels, too few for two dilations of the
# head, of which the untrained taps are zero.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
study=${1:-} folder=$(realpath -m "${STUDY_DIR:-./logs/study}")
fail() { echo "error: $1" >&2 && exit 2; }
[[ $study == @(real|drawn-real|drawn) ]] || fail "name a study: real, drawn-real or drawn"
[[ -f ${WEIGHTS:-} ]] || fail "WEIGHTS='${WEIGHTS:-}' is no file; ./scripts/real_weights.sh writes mobilenet_v2.safetensors"
weights=$(realpath "$WEIGHTS") needed=() domains=()
[[ $study == drawn* ]] && needed+=(DEMO_WORLD)
[[ $study == *real ]] && needed+=(CAMVID LABELMEFACADE) domains=(--domains "$folder/domains.yaml")
for name in "${needed[@]}"; do
  [[ -d ${!name:-} ]] || fail "$name='${!name:-}' is no folder; the study $study reads its data there"
  printf -v "$name" '%s' "$(realpath "${!name}")"
done

case $study in
  real) source=camvid targets=(camvid_dusk labelmefacade) ;;
  drawn-real) source=gtav targets=(camvid camvid_dusk labelmefacade) ;;
  drawn) source=gtav targets=(cityscapes bdd100k synthia mapillary) ;;
esac
crop=(--crop_size 192 --zero_unreached_taps)
[[ " ${*:2} " != *" --crop_size"* ]] || crop=()
roots=(DATASET.CAMVID_DIR="${CAMVID:-}")
for name in GTAV/GTAV CITYSCAPES/cityscapes BDD/bdd-100k SYNTHIA/synthia MAPILLARY/mapillary; do
  roots+=("DATASET.${name%/*}_DIR=${DEMO_WORLD:-}/${name#*/}")
done
mkdir -p "$folder"
[[ $study != *real ]] || cat >"$folder/domains.yaml" <<YAML
camvid_dusk:
  root: $CAMVID
  images: "{split}/*"
  label: {"{split}/": "{split}annot/", .jpg: .png}
  splits: {val: test}
  encoding: camvid
  merge: {wall: fence, traffic light: traffic sign, terrain: vegetation, truck: car, bus: car, train: car,
    motorcycle: rider, bicycle: rider}
  classes: [road, sidewalk, building, fence, pole, traffic sign, vegetation, sky, person, rider, car]
labelmefacade:
  root: $LABELMEFACADE
  images: images/*
  label: {images/: labels/, .jpg: .png}
  splits: [val, test]
  encoding: train_ids
  merge: {wall: building, terrain: vegetation}
  classes: [road, sidewalk, building, vegetation, sky, car]
YAML
METHODS=${METHODS:-base ibn isw diia diia-v2} SEEDS=${SEEDS:-304 305 306 307 308} ABLATION_DIR=$folder/$study \
  exec "$here/ablation.sh" --dataset "$source" --covstat_val_dataset "$source" --val_dataset "${targets[@]}" \
  "${domains[@]}" --backbone mobilenet_v2 --output_stride 16 --pretrained "$weights" \
  --lr 0.01 --backbone_lr 0.1 --max_iter 600 --bs_mult 4 "${crop[@]}" --class_uniform_tile 192 \
  --scale_min 0.6 --scale_max 1.2 --cov_stat_epoch 0 --trials 2 --stat_images 24 --per_image --pictures 2 \
  --save_interval 50 --centroid_cache "$folder/centroids" "${@:2}" --opts "${roots[@]}"
