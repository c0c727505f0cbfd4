#!/bin/sh
# A model as small as the mini from nothing in four hours of one core, less than half of the time
# that the weights in assets/mini took. Run from the root of the repository.
#
# Measured with seed 2 and without the first stage of stages.toml, on 200 held-out clips, and in brackets on
# clips of known pairs: conversation 74.0 (82.5), Acc@0.5 81.6 (84.2), R1@0.5 85.9 (88.7), J&F 70.7 (71.2).
# The weights in assets/mini are at 85.7, 87.3, 87.9 and 75.9. What was behind is the colour of an outline
# (54 % against 95), which that stage teaches; how far everything comes after it is not measured yet, nor with a
# `pretrain` that teaches when.
set -eu
cd "$(dirname "$0")/../.."
SEED=${SEED:-1}

run() { cargo run --release --features cli -- "$@"; }

# What each visual token shows: 41 minutes on one core.
run pretrain --sizes assets/mini --out runs/mini-short-eyes --seed "$SEED" --muon \
  --parts perception --perception-steps 5000 --perception-rate 4e-3
# SAM 2, from boxes to masks on single frames (9 minutes), then through clips (36 minutes).
run pretrain --model runs/mini-short-eyes --out runs/mini-short-frames --seed "$SEED" --muon \
  --parts masks --image-steps 2500 --mask-steps 2500 --mask-rate 2e-3
run pretrain --model runs/mini-short-frames --out runs/mini-short-clips --seed "$SEED" --muon \
  --parts masks --image-steps 0 --mask-steps 1800 --mask-rate 5e-4 --frames 8 --world 3
# Again, with other clips (26 minutes): J&F of the same model is 75.1 with it and 70.7 without.
run pretrain --model runs/mini-short-clips --out runs/mini-short-parts --seed "$SEED" --muon \
  --parts masks --image-steps 0 --mask-steps 1300 --mask-rate 5e-4 --frames 8 --world 5
# Captions and questions: 34 minutes.
run train recipes/mini-short/dialogue.toml seed="$SEED"
# Task assignment, heads, co-training: some 90 minutes.
run train recipes/mini-short/stages.toml seed="$SEED" --export runs/mini-short-model --half
# How good it is on what training never showed.
run evaluate --model runs/mini-short-model --synthetic 200 --out runs/mini-short-held-out
