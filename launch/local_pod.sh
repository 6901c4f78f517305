#!/usr/bin/env bash
# A pod on one machine: N processes of one run, on CPU, meeting through one port.
#   bash launch/local_pod.sh N [--devices D] -- python -m launch.train ...
# Every process has D devices (1). Lines are prefixed by their process. SIGTERM and
# Ctrl-C go on to all processes, which save and stop; a second Ctrl-C kills them. When
# one fails the others are ended; the exit code is that of the first one to fail.
set -u

usage() {
  echo "error: $1; usage: bash launch/local_pod.sh N [--devices D] -- COMMAND" >&2
  exit 2
}

processes="${1:-}" devices=1
[[ "$processes" =~ ^[1-9][0-9]*$ ]] || usage "N: '$processes' is not a number from 1 on"
shift
while [ "${1:-}" != "--" ]; do
  case "${1:-}" in
    --devices) devices="${2:-}" && shift ;;
    --devices=*) devices="${1#*=}" ;;
    *) usage "expected --devices or --, not '${1:-}'" ;;
  esac
  shift
done
shift
[[ "$devices" =~ ^[1-9][0-9]*$ ]] || usage "--devices: '$devices' is not a number"
[ $# -gt 0 ] || usage "the command is missing"

port=$((20000 + RANDOM % 10000))
while (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do # somebody answers: taken
  port=$((port + 1))
done

prefixed() { # every line of stdin, with the name of its process
  trap '' INT TERM
  while IFS= read -r line || [ -n "$line" ]; do
    printf '[%s] %s\n' "$1" "$line"
  done
}

pids=() asked=0
# shellcheck disable=SC2329  # the traps invoke it
forward() { # $1 was asked of this script
  asked=$((asked + 1))
  if [ "$asked" -gt 1 ] && [ "$1" = INT ]; then
    kill -KILL "${pids[@]}" 2>/dev/null
  else
    kill -TERM "${pids[@]}" 2>/dev/null
  fi
}
trap 'forward INT' INT
trap 'forward TERM' TERM

export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="$devices"
export TAVR_COORDINATOR="127.0.0.1:$port" TAVR_PROCESSES="$processes"
for ((i = 0; i < processes; i++)); do
  TAVR_PROCESS=$i "$@" > >(prefixed "$i") 2>&1 </dev/null &
  pids+=($!)
  echo "[pod] process $i of $processes: pid $!"
done

grace=5 first=0 until=0 left=("${pids[@]}")
while [ ${#left[@]} -gt 0 ]; do
  sleep 0.1
  alive=()
  for pid in "${left[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then
      alive+=("$pid")
      continue
    fi
    wait "$pid" 2>/dev/null # bash would tell of a crash in a line of its own
    code=$?
    if [ "$code" -ne 0 ] && [ "$first" -eq 0 ]; then
      first=$code until=$((SECONDS + grace))
    fi
  done
  left=(${alive[@]+"${alive[@]}"})
  # A process inside a collective waits for the lost one, and SIGTERM is only a wish.
  if [ "$first" -ne 0 ] && [ "$SECONDS" -ge "$until" ] && [ ${#left[@]} -gt 0 ]; then
    echo "[pod] a process ended with code $first: ending the others"
    kill -KILL "${left[@]}" 2>/dev/null
    until=$((SECONDS + grace))
  fi
done
exit "$first"
