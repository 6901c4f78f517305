#!/usr/bin/env bash
# From a fresh machine to a talking avatar, by the model that is shipped, and then the
# road to it in brief: three stages of training and a report, on a laptop's CPU.
#   bash launch/quickstart.sh [OUT]
# Run again, it goes on where it stopped and repeats nothing that is done.
set -euo pipefail
cd "$(dirname "$0")/.."
out="${1:-quickstart_out}"
mkdir -p "$out"
out="$(cd "$out" && pwd)"
begun=$SECONDS
total=10
at=0

. launch/install.sh

step() { # what it does, about how many seconds it takes
  at=$((at + 1))
  printf '\n== [%d/%d] %s (about %s s; %d s so far)\n' \
    "$at" "$total" "$1" "$2" "$((SECONDS - begun))"
}

run() { # a command of ours, written down for the report
  grep -qxF "python -m $*" "$out/commands.txt" 2>/dev/null ||
    echo "python -m $*" >>"$out/commands.txt"
  .venv/bin/python -m "$@"
}

talk() { # checkpoint, where its weights are, video: the stranger, in another scene
  if [ "$3" -nt "$2" ]; then
    echo "$3 is there already"
    return
  fi
  run launch.generate --reference "$out/stranger/person_1000/scene_0.mp4" \
    --target "$out/stranger/person_1000/scene_1.mp4" \
    --audio "$out/stranger/person_1000/scene_1.mp4" \
    --caption "$(cat "$out/stranger/person_1000/scene_1.txt")" --checkpoint "$1" --output "$3"
}

step "install" 120
install

step "draw a person nobody has seen, in two scenes" 5
run launch.render_people --output "$out/stranger" --people 1 --scenes 2 \
  --first_person 1000

step "generate: that person, told by one scene, talking in the other" 40
talk mini tavr_jax/assets/mini "$out/talking.mp4"
echo "video:   $out/talking.mp4"

step "draw procedural talking people, each in two scenes" 35
run launch.render_people --output "$out/people" --people 18 --scenes 2

step "prepare: footage to records and latents" 90
run launch.prepare_data --source "$out/people" --output "$out/dataset" \
  --config configs/same_scene.py:mini --config.prepare.held_out=0.2

step "stage 1, same-scene" 160
run launch.train --config configs/same_scene.py:mini --workdir "$out/same_scene" \
  --config.data.path="$out/dataset"

step "stage 2, cross-scene" 140
run launch.train --config configs/cross_scene.py:mini --workdir "$out/cross_scene" \
  --config.data.path="$out/dataset" --config.init_from="$out/same_scene" \
  --config.train.steps=300

step "stage 3, policy gradient on identity and motion rewards" 65
run launch.train --config configs/policy.py:mini --workdir "$out/policy" \
  --config.data.path="$out/dataset" --config.init_from="$out/cross_scene" \
  --config.train.steps=16 --config.train.log_every=1

step "generate the same again, by what was just trained so briefly" 25
talk "$out/policy" "$out/policy/checkpoints" "$out/brief.mp4"

step "evaluate the three stages on people held out of training" 60
run launch.evaluate --dataset "$out/dataset" \
  --checkpoint "$out/same_scene,$out/cross_scene,$out/policy" \
  --metrics_from "$out/same_scene,$out/cross_scene,$out/policy" \
  --truth "$out/people/truth" --commands "$out/commands.txt" \
  --output "$out/evaluation"

printf '\n== done in %d s\n' "$((SECONDS - begun))"
echo "report:  $out/evaluation/report.html"
echo "video:   $out/talking.mp4 (shipped model), $out/brief.mp4 (this run's)"
echo "videos:  $out/evaluation/videos"
