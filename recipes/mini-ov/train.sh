#!/bin/sh
# A small model on the second base from nothing in four hours of one core. Run from the root of the repository.
set -eu
cd "$(dirname "$0")/../.."
SEED=${SEED:-1}

tpo() { cargo run --release --features cli --bin tpo -- "$@"; }

# What each visual token shows, and what happens from frame to frame. SAM 2 is the mini model's, as the paper's is
# another's.
tpo pretrain --sizes assets/mini-ov --sam2 assets/mini --out runs/mini-ov-parts --seed "$SEED" --muon \
  --parts perception --perception-steps 3000 --perception-rate 4e-3 --clips 8 --irregular 0.1
# Captions and questions.
tpo train recipes/mini-ov/01-dialogue.toml seed="$SEED"
# Task assignment, heads, co-training.
tpo train recipes/mini-ov/02-stages.toml seed="$SEED" --export runs/mini-ov-model --half
# How good it is on what training never showed.
tpo evaluate --model runs/mini-ov-model --synthetic 200 --out runs/mini-ov-held-out
