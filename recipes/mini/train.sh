#!/bin/sh
# The mini model from nothing: the recipes in the order of their numbers, what is pretrained before some of
# them, and the weights for assets/mini. assets/mini/README.md says how long each step took.
set -eu
cd "$(dirname "$0")/../.."
SEED=${SEED:-1}

tpo() { cargo run --release --features cli --bin tpo -- "$@"; }
masks() { tpo pretrain --parts masks "$@"; }

for recipe in recipes/mini/[0-9]*.toml; do
  # What is pretrained first, and what the run is told besides its recipe.
  seed=$SEED
  set --
  case $recipe in
  */01-*) # What each visual token shows, and SAM 2 on boxes.
    tpo pretrain --sizes assets/mini --out runs/mini-parts --seed "$SEED" ;;
  */04-*)
    seed=$((SEED + 42))
    set -- stages.everything.seed="$seed" ;;
  */05-*) # SAM 2 on longer clips, with smaller steps.
    masks --model runs/mini-more-model --image-steps 0 --mask-steps 1500 --mask-rate 3e-4 --frames 8 \
      --seed "$((SEED + 2))" --world 3 --out runs/mini-sam
    seed=$((SEED + 43))
    set -- --stop-after 1250 ;;
  */06-*) seed=$((SEED + 44)) ;;
  */07-*)
    seed=$((SEED + 47))
    set -- --export runs/mini-end-model --half ;;
  */08-*) seed=$((SEED + 60)) ;;
  */09-*) # Another SAM 2: frames, clips, clips again.
    masks --sizes assets/mini --out runs/mini-sam-2-frames --seed "$((SEED + 1))" --muon \
      --image-steps 2500 --mask-steps 2500 --mask-rate 2e-3
    masks --model runs/mini-sam-2-frames --out runs/mini-sam-2-clips --seed "$((SEED + 1))" --muon \
      --image-steps 0 --mask-steps 1800 --mask-rate 5e-4 --frames 8 --world 3
    masks --model runs/mini-sam-2-clips --out runs/mini-sam-2 --seed "$((SEED + 1))" --muon \
      --image-steps 0 --mask-steps 1300 --mask-rate 5e-4 --frames 8 --world 5
    seed=$((SEED + 1))
    set -- --export runs/mini-masks-model --half ;;
  */10-*) # Visual tokens that say what happens and when.
    tpo pretrain --model runs/mini-masks-model --out runs/mini-eyes --seed "$((SEED + 4))" --muon \
      --parts perception --perception-steps 2500 --perception-rate 1e-3 --irregular 0.3 --world 11
    seed=$((SEED + 110))
    set -- --stop-after 1500 ;;
  */11-*)
    seed=$((SEED + 120))
    set -- --stop-after 1250 ;;
  */12-*)
    seed=$((SEED + 130))
    set -- --export runs/mini-words-model --half ;;
  */13-*)
    seed=$((SEED + 160))
    set -- --stop-after 1750 ;;
  */14-*)
    seed=$((SEED + 180))
    set -- --export runs/mini-exclusion-model --half ;;
  esac
  tpo train "$recipe" seed="$seed" "$@"

  # Twice, and the second time otherwise.
  case $recipe in
  */03-*)
    tpo train "$recipe" name=mini-more-2 model.start=runs/mini-more seed="$((SEED + 1))" \
      stages.co-training.length.steps=10000 stages.co-training.groups.llm.learning_rate=8e-4 \
      stages.co-training.groups.heads.learning_rate=8e-4 --export runs/mini-more-model --half ;;
  */14-*)
    data=stages.co-training.data.sources
    tpo train "$recipe" name=mini-exclusion-2 seed="$((SEED + 190))" $data.others.weight=2.0 \
      $data.world.synthetic.seed=190 $data.events.synthetic.seed=191 $data.grey.synthetic.seed=192 \
      $data.dialogues.synthetic.seed=193 $data.looks.synthetic.seed=194 $data.others.synthetic.seed=195 \
      --export runs/mini-exclusion-2-model --half ;;
  esac
done

tpo average runs/mini-exclusion-model runs/mini-exclusion-2-model --out runs/mini-model
# How good it is on what training never showed.
tpo evaluate --model runs/mini-model --synthetic 200 --out runs/mini-model-held-out
