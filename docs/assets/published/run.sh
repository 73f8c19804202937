#!/usr/bin/env bash
# Runs the published systems of the page "What the published figures measure", small, on COVID-QU-Ex. One thread.
#
#   docs/assets/published/run.sh DATA OUT
#
# DATA holds "Infection Segmentation Data" and manifest.csv (see the guide to data sets); OUT receives all results.
# Started again, it goes on where it was.
set -euo pipefail
DATA=$1 OUT=$2
export OMP_NUM_THREADS=1
mkdir -p "$OUT"

if [ ! -e "$OUT/copy" ]; then
    covidcxr datasets prepare covid_qu_ex --data.root "$DATA" --data.part infection --image-size 96 96 --out "$OUT/copy"
fi

run() { # recipe and its data set where it is another, name of the run, flags
    local recipe=$1 name=$2
    shift 2
    [ -s "$OUT/$name.json" ] && return
    # shellcheck disable=SC2086
    covidcxr recipes run $recipe --out "$OUT/$name" --json --data.root "$OUT/copy" --data.part infection \
        --trainer.max_epochs 1 --trainer.limit_val_batches 20 --trainer.enable_progress_bar false "$@" > "$OUT/$name.part"
    mv "$OUT/$name.part" "$OUT/$name.json"
}

LITE="--model.model.network timm:tf_efficientnet_lite0 --model.model.preprocess.image_size [96,96] --model.lr 0.001
    --model.model.preprocess.mean [0.5] --model.model.preprocess.std [0.5] --data.batch_size 16"

# shellcheck disable=SC2086
{
    run long2024-xception xception-official $LITE --trainer.max_epochs 3
    run long2024-infection infection-official --model.model.network_args '{width: 8, depth: 3}' --model.lr 0.005 \
        --model.model.preprocess.image_size [96,96] --data.batch_size 8
    run tahir2021-detect detect-official $LITE
    run loan2022-lungs lungs-official --model.model.network_args '{encoder: tu-tf_efficientnet_lite0}' \
        --model.model.preprocess.image_size [96,96] --data.batch_size 8
    run 'bolhassani2021 --data covid_qu_ex' losses-groups --only three+cross_entropy+resnet50 three+focal+resnet50 \
        --data.label_map '{Non-COVID: Pneumonia}' --model.init_from null --model.pretrained_backbone true \
        --model.model.classes '[COVID-19, Pneumonia, Normal]' $LITE
    run long2024-xception xception-groups $LITE --trainer.max_epochs 3 \
        --data.official_split false --data.drop_unknown_patients true
}
