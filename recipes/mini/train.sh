#!/bin/sh
# The mini model from nothing: parts, dialogue, the three stages, and the weights for assets/mini.
# Run from the root of the repository. assets/mini/README.md says how long each step took.
set -eu
cd "$(dirname "$0")/../.."
SEED=${SEED:-1}

run() { cargo run --release --features cli -- "$@"; }

# What each visual token shows, and SAM 2 on boxes.
run pretrain --sizes assets/mini --out runs/mini-parts --seed "$SEED"
# Captions and questions.
run train recipes/mini/dialogue.toml seed="$SEED"
# Task assignment, heads, co-training.
run train recipes/mini/stages.toml seed="$SEED"
# Co-training goes on, and on again with other clips and smaller steps.
run train recipes/mini/more.toml seed="$SEED"
run train recipes/mini/more.toml name=mini-more-2 model.start=runs/mini-more seed="$((SEED + 1))" \
  stages.co-training.length.steps=10000 stages.co-training.groups.llm.learning_rate=8e-4 \
  stages.co-training.groups.heads.learning_rate=8e-4 --export runs/mini-more-model --half
# SAM 2 on longer clips, with smaller steps.
run pretrain --model runs/mini-more-model --parts masks --image-steps 0 --mask-steps 1500 \
  --mask-rate 3e-4 --frames 8 --seed "$((SEED + 2))" --world 3 --out runs/mini-sam
# Turns that do not see each other from here on. Shapes by their colour, by both, and everything again.
run train recipes/mini/binding.toml seed="$((SEED + 42))" stages.everything.seed="$((SEED + 42))"
run train --stop-after 1250 recipes/mini/further.toml seed="$((SEED + 43))"
run train recipes/mini/last.toml seed="$((SEED + 44))"
run train recipes/mini/end.toml seed="$((SEED + 47))" --export runs/mini-end-model --half
# Events apart from outlines.
run train recipes/mini/irregular.toml seed="$((SEED + 60))"
# Another SAM 2: frames, clips, clips again; and the adapters that prompt it.
run pretrain --sizes assets/mini --out runs/mini-sam-2-frames --seed "$((SEED + 1))" --muon \
  --parts masks --image-steps 2500 --mask-steps 2500 --mask-rate 2e-3
run pretrain --model runs/mini-sam-2-frames --out runs/mini-sam-2-clips --seed "$((SEED + 1))" --muon \
  --parts masks --image-steps 0 --mask-steps 1800 --mask-rate 5e-4 --frames 8 --world 3
run pretrain --model runs/mini-sam-2-clips --out runs/mini-sam-2 --seed "$((SEED + 1))" --muon \
  --parts masks --image-steps 0 --mask-steps 1300 --mask-rate 5e-4 --frames 8 --world 5
run train recipes/mini/masks.toml seed="$((SEED + 1))" --export runs/mini-masks-model --half
# Visual tokens that say what happens and when, and a language model that reads them.
run pretrain --model runs/mini-masks-model --out runs/mini-eyes --seed "$((SEED + 4))" --muon \
  --parts perception --perception-steps 2500 --perception-rate 1e-3 --irregular 0.3 --world 11
run train --stop-after 1500 recipes/mini/reading.toml seed="$((SEED + 110))"
run train --stop-after 1250 recipes/mini/connector.toml seed="$((SEED + 120))"
run train recipes/mini/words.toml seed="$((SEED + 130))" --export runs/mini-words-model --half
# Shapes by shorter names, and questions about what does not happen to them: twice, and the mean of both.
run train --stop-after 1750 recipes/mini/names.toml seed="$((SEED + 160))"
run train recipes/mini/exclusion.toml seed="$((SEED + 180))" --export runs/mini-exclusion-model --half
run train recipes/mini/exclusion.toml name=mini-exclusion-2 seed="$((SEED + 190))" \
  stages.co-training.data.sources.others.weight=2.0 \
  stages.co-training.data.sources.world.synthetic.seed=190 \
  stages.co-training.data.sources.events.synthetic.seed=191 \
  stages.co-training.data.sources.grey.synthetic.seed=192 \
  stages.co-training.data.sources.dialogues.synthetic.seed=193 \
  stages.co-training.data.sources.looks.synthetic.seed=194 \
  stages.co-training.data.sources.others.synthetic.seed=195 \
  --export runs/mini-exclusion-2-model --half
run average runs/mini-exclusion-model runs/mini-exclusion-2-model --out runs/mini-model
# How good it is on what training never showed.
run evaluate --model runs/mini-model --synthetic 200 --out runs/mini-model-held-out
