#!/usr/bin/env bash
# Everything of tavr_jax/assets/mini from nothing: people are drawn, the networks and the
# three stages trained on them, each shipped with its card. Says first how long it takes.
#   bash launch/reproduce_mini.sh [--dry-run] [OUT]
# Ends with OUT/mini and changes nothing outside of OUT and .venv. Run again, it goes on
# where it stopped. --dry-run prints the commands and runs none.
# Processors round differently, so the files need not be equal to the byte.
set -euo pipefail
cd "$(dirname "$0")/.."

# Lip-sync and the stages: steps, about how many seconds on two CPU cores, other flags.
lipsync_steps=500 lipsync_seconds=700
short_steps=2400 short_seconds=1300
same_scene_steps=600 same_scene_seconds=400
cross_short_steps=2000 cross_short_seconds=1000
cross_scene_steps=600 cross_scene_seconds=400
policy_steps=80 policy_seconds=350
short_chunks=( # 9 frames, before those of 33: they teach faster
  --config.model.num_video_latents=3 --config.model.num_videoref_latents=3
  --config.model.reference_bucket=80 --config.data.batch_size=8
  --config.optimizer.ema_decay=0.99
)
short=("${short_chunks[@]}" --config.optimizer.learning_rate=2e-3
  --config.optimizer.warmup_steps=100)
cross_short=("${short_chunks[@]}" --config.optimizer.learning_rate=1.5e-3
  --config.optimizer.warmup_steps=50)
whole=( # chunks of 33 frames, the rate falling
  --config.optimizer.learning_rate=1e-3 --config.optimizer.warmup_steps=20
  --config.optimizer.schedule=cosine
)
policy=(--config.data.batch_size=2 --config.optimizer.learning_rate=3e-3)

asked=work
if [ "${1:-}" = "--dry-run" ]; then
  asked=show
  shift
fi
out="${1:-reproduce_out}"
if [ "$asked" = work ]; then
  mkdir -p "$out"
  out="$(cd "$out" && pwd)"
fi
mini="$out/mini"
encoders=("--config.networks.codec=$mini/codec.safetensors"
  "--config.networks.face=$mini/face.safetensors")
networks=("${encoders[@]}" "--config.networks.lipsync=$mini/lipsync.safetensors"
  "--config.evaluation.face=$mini/face_judge.safetensors")

. launch/install.sh

mode=count # everything is gone through twice: count, then show or work
begun=$SECONDS
total=0 at=0 estimate=0

step() { # what it does, about how many seconds it takes
  if [ "$mode" = count ]; then
    total=$((total + 1)) estimate=$((estimate + $2))
    return
  fi
  at=$((at + 1))
  printf '\n# [%d/%d] %s (about %s s; %d s so far)\n' \
    "$at" "$total" "$1" "$2" "$((SECONDS - begun))"
}

run() { # a command of ours
  case "$mode" in
    show) printf 'python -m%s\n' "$(printf ' %q' "$@")" ;;
    work) .venv/bin/python -m "$@" ;;
  esac
}

made() { # a file's name, and a command that makes data: kept there for the cards
  local kept="$out/$1"
  shift
  run "$@"
  if [ "$mode" = work ]; then
    grep -qxF "python -m $*" "$kept" 2>/dev/null || echo "python -m $*" >>"$kept"
  fi
}

share() { # two folders: the second one has the videos of the first, as links
  if [ "$mode" = work ]; then
    mkdir -p "$out/$2"
    cp -Rlf "$out/$1/." "$out/$2" || true # what is not linked is drawn again
  fi
}

train() { # workdir, data, and the rest of the command
  local workdir="$out/$1" data="$out/$2"
  shift 2
  run launch.train "$@" --workdir "$workdir" "--config.data.path=$data"
}

ship() { # name and workdir, the commands of its data
  if [ "$mode" = work ] && [ "$mini/$1.md" -nt "$out/$1/checkpoints" ]; then
    echo "$mini/$1.safetensors is there already"
    return
  fi
  run launch.ship --workdir "$out/$1" --name "$1" --output "$mini" \
    --data_commands "$out/$2"
}

codec() {
  step "draw people for the codec, and cut them into clips" 420
  made codec.txt launch.render_people --output "$out/codec_people" --people 100 \
    --scenes 2 --seconds 1.6 --first_person 300
  made codec.txt launch.prepare_data --source "$out/codec_people" \
    --output "$out/codec_dataset" --config configs/codec.py:mini \
    --config.prepare.encode=false

  step "the codec: 9-frame clips, more of them, whole chunks" 1000
  train codec_first codec_dataset --config configs/codec.py:mini
  train codec_second codec_dataset --config configs/codec.py:mini \
    "--config.init_from=$out/codec_first" --config.train.steps=1000
  train codec codec_dataset --config configs/codec.py:mini \
    "--config.init_from=$out/codec_second" --config.data.frames=33 \
    --config.data.batch_size=3 --config.train.steps=450 \
    --config.optimizer.learning_rate=0.001
  ship codec codec.txt
}

faces() {
  step "draw people for the face network" 420
  made face.txt launch.render_people --output "$out/face_people" --people 60 \
    --scenes 2 --first_person 100
  made face.txt launch.prepare_data --source "$out/face_people" \
    --output "$out/face_dataset" --codec random

  step "the face network" 250
  train face face_dataset --config configs/face.py:mini
  ship face face.txt

  step "other people, three scenes of each, for the face network that scores" 480
  made judge.txt launch.render_people --output "$out/judge_people" --people 80 \
    --scenes 3 --seconds 1.6 --first_person 2000 --seed 7
  made judge.txt launch.prepare_data --source "$out/judge_people" \
    --output "$out/judge_dataset" --config configs/face.py:mini \
    "--config.networks.codec=$mini/codec.safetensors"

  step "the face network that scores" 500
  train face_judge judge_dataset --config configs/face.py:mini --config.seed=7 \
    --config.train.steps=500
  ship face_judge judge.txt
}

stages() {
  step "draw people for lip-sync and the three stages, and encode them" 1200
  made stages.txt launch.render_people --output "$out/people" --people 240 --scenes 2 \
    --seconds 2.8 --first_person 20
  made stages.txt launch.prepare_data --source "$out/people" --output "$out/dataset" \
    --config configs/same_scene.py:mini --config.prepare.held_out=0.04 \
    "${encoders[@]}"

  step "the lip-sync network" "$lipsync_seconds"
  train lipsync dataset --config configs/lipsync.py:mini "${encoders[@]}" \
    "--config.train.steps=$lipsync_steps"
  ship lipsync stages.txt

  step "stage 1, same-scene: short chunks" "$short_seconds"
  train short dataset --config configs/same_scene.py:mini "${networks[@]}" \
    "${short[@]}" "--config.train.steps=$short_steps"

  step "stage 1, whole chunks" "$same_scene_seconds"
  train same_scene dataset --config configs/same_scene.py:mini "${networks[@]}" \
    "${whole[@]}" "--config.init_from=$out/short" \
    "--config.train.steps=$same_scene_steps"
  ship same_scene stages.txt

  step "draw more people for stages 2 and 3, and encode them all" 900
  share people more_people # their own: the data of stage 1 stay as they are
  made more.txt launch.render_people --output "$out/more_people" --people 360 \
    --scenes 2 --seconds 2.8 --first_person 20
  made more.txt launch.prepare_data --source "$out/more_people" --output "$out/more" \
    --config configs/same_scene.py:mini --config.prepare.held_out=0.04 \
    "${encoders[@]}"

  step "stage 2, cross-scene: short chunks" "$cross_short_seconds"
  train cross_short more --config configs/cross_scene.py:mini "${networks[@]}" \
    "${cross_short[@]}" "--config.init_from=$out/same_scene" \
    "--config.train.steps=$cross_short_steps"

  step "stage 2, whole chunks" "$cross_scene_seconds"
  train cross_scene more --config configs/cross_scene.py:mini "${networks[@]}" \
    "${whole[@]}" "--config.init_from=$out/cross_short" \
    "--config.train.steps=$cross_scene_steps"
  ship cross_scene more.txt

  step "stage 3, policy gradient" "$policy_seconds"
  train policy more --config configs/policy_nft.py:mini "${networks[@]}" \
    "${policy[@]}" "--config.init_from=$out/cross_scene" \
    "--config.train.steps=$policy_steps"
  ship policy more.txt
}

everything() {
  step "install" 120
  if [ "$mode" = work ]; then
    install
  fi
  codec
  faces
  stages
}

everything
printf '%d steps, about %d.%d hours on two CPU cores\n' \
  "$total" "$((estimate / 3600))" "$((estimate % 3600 / 360))"
mode=$asked
everything

if [ "$asked" = work ]; then
  printf '\n== done in %d s\n' "$((SECONDS - begun))"
  echo "files and cards: $mini"
  echo "to carry them in this checkout: cp $mini/* tavr_jax/assets/mini/"
fi
