#!/usr/bin/env bash
# docker/run.sh paper [--key value ...]     for example: docker/run.sh lgl --usable_gpu 0,1
#
#   IMAGE=sv-papers   the tag given to docker/build.sh
#   DATA=/data        corpora; read-only inside, at the same path
#   RUNS=./runs       run folders
#   GPUS=all          as docker takes it ('device=0'); GPUS=none for the CPU
#   SHM=16g           shared memory, through which loader workers hand over their batches
#
# WANDB_API_KEY and NEPTUNE_API_TOKEN are passed by name: no value is on a command line or in a file.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
data=$(realpath -ms "${DATA:-/data}") runs=$(realpath -ms "${RUNS:-$(dirname "$0")/../runs}")
cd "$(dirname "$0")/.."
paper=$1
shift
[ -f "papers/$paper/main.py" ] || { echo "no paper '$paper'; there are: $(ls papers)" >&2; exit 2; }
gpus=${GPUS:-all}
[ -d "$data" ] || echo "note: $data does not exist; only --demo works (DATA=... names another)" >&2
mkdir -p "$runs"

options=(--rm --init --shm-size "${SHM:-16g}" --ulimit memlock=-1 --ulimit stack=67108864)
options+=(--user "$(id -u):$(id -g)" --env HOME=/tmp --env USER=runner)  # no entry in passwd
options+=(--env WANDB_API_KEY --env NEPTUNE_API_TOKEN)
options+=(--volume "$runs:/opt/sv-papers/runs")
[ ! -d "$data" ] || options+=(--volume "$data:$data:ro")
[ "$gpus" = none ] || options+=(--gpus "$gpus")
[ ! -t 0 ] || [ ! -t 1 ] || options+=(--interactive --tty)
# the demo corpus is kept next to the runs; the image itself is not writable for the caller
if [[ " $* " == *' --demo '* && " $* " != *' --path_demo'* ]]; then
  set -- "$@" --path_demo runs/demo_corpus
fi

exec "${CONTAINER:-docker}" run "${options[@]}" "${IMAGE:-sv-papers}" \
  python "papers/$paper/main.py" "$@"
