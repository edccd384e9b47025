#!/usr/bin/env bash
# docker/run.sh paper [--key value ...]     for example: docker/run.sh lgl --usable_gpu 0,1
#
#   IMAGE=sv-papers    the tag given to docker/build.sh
#   DATA=/data         corpora; read-only inside, at the same path
#   RUNS=./runs        run folders; with NODES, on a disk that all machines share
#   GPUS=all           as docker takes it ('device=0'); GPUS=none for the CPU
#   SHM=16g            shared memory, through which loader workers hand over their batches
#   NODES=2            machines of one run: the same command on each of them, and on each ...
#   RDZV=first:29500   ... the name of one of them and a port that is free there
#   PROCESSES=gpu      with NODES: processes on this machine; 'gpu': one a GPU
#   CONTAINER=docker   the program that runs containers
#
# The keys of W&B and Neptune and the settings of NCCL are passed from the environment by name: no
# value is on a command line or in a file.
set -euo pipefail
case "${1:---help}" in -h | --help) sed -n '2,16s/^# \{0,1\}//p' "$0" >&2; exit 2 ;; esac
data=$(realpath -ms "${DATA:-/data}") runs=$(realpath -ms "${RUNS:-$(dirname "$0")/../runs}")
cd "$(dirname "$0")/.."
paper=$1
shift
[ -f "papers/$paper/main.py" ] || { echo "no paper '$paper'; there are: $(ls papers)" >&2; exit 2; }
gpus=${GPUS:-all} nodes=${NODES:-1}
[ -d "$data" ] || echo "note: $data does not exist; only --demo works (DATA=... names another)" >&2
mkdir -p "$runs"

options=(--rm --init --shm-size "${SHM:-16g}" --ulimit memlock=-1 --ulimit stack=67108864)
options+=(--stop-timeout 120)  # a stopped run ends its step and saves
options+=(--user "$(id -u):$(id -g)" --env HOME=/tmp --env USER=runner)  # no entry in passwd
options+=(--volume "$runs:/opt/sv-papers/runs")
[ ! -d "$data" ] || options+=(--volume "$data:$data:ro")
if [ "$gpus" != none ]; then options+=(--gpus "$gpus"); fi
if [ -t 0 ] && [ -t 1 ]; then options+=(--interactive --tty); fi
for name in WANDB_{API_KEY,BASE_URL,ENTITY,MODE} NEPTUNE_{API_TOKEN,MODE,PROJECT} OMP_NUM_THREADS \
  NCCL_{DEBUG,IB_HCA,SOCKET_IFNAME} GLOO_SOCKET_IFNAME; do
  options+=(--env "$name")
done
# the demo corpus is kept next to the runs; the image itself is not writable for the caller
if [[ " $* " == *' --demo '* && " $* " != *' --path_demo'* ]]; then
  set -- "$@" --path_demo runs/demo_corpus
fi

launch=(python)
if [ "$nodes" != 1 ]; then
  [ -n "${RDZV:-}" ] || { echo "NODES=$nodes needs RDZV=first-machine:port" >&2; exit 2; }
  processes=${PROCESSES:-gpu}
  [ "$gpus" != none ] || processes=${PROCESSES:-1}
  options+=(--network host)  # the machines' own addresses; no port is forwarded
  [ ! -e /dev/infiniband ] || options+=(--device /dev/infiniband --cap-add IPC_LOCK)
  options+=(--env TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1)  # a machine started anew finds the others
  # Slurm's warning reaches the ranks as well as a plain end: PET_... is what torchrun reads since
  # it has the option --signals-to-handle, the other what it read before
  for name in PET TORCHELASTIC; do
    options+=(--env "${name}_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")
  done
  launch=(python -m torch.distributed.run --nnodes "$nodes" --nproc_per_node "$processes")
  launch+=(--max_restarts 3 --rdzv_backend c10d --rdzv_endpoint "$RDZV" --rdzv_id "$paper")
fi

exec "${CONTAINER:-docker}" run "${options[@]}" "${IMAGE:-sv-papers}" \
  "${launch[@]}" "papers/$paper/main.py" "$@"
