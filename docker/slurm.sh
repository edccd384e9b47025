#!/usr/bin/env bash
# One run on several machines of a Slurm cluster: sbatch docker/slurm.sh lgl --name try2
#
# A template: set the lines below and RUNS (a disk that all machines share) and DATA to what the
# cluster has. The job puts itself back into the queue when its time is over or it is pre-empted, and
# continues. A rank that hangs or fails makes torchrun start all ranks again, three times in a job;
# after that the job ends (on one machine a rank that hung puts it back into the queue, too).
#
#SBATCH --job-name=sv-papers
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1          # one torchrun a machine starts a process for each GPU
#SBATCH --gpus-per-node=4
#SBATCH --exclusive                  # docker sees all GPUs of a machine, not those of the job alone
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue                    # after a machine failed or another job took its place
#SBATCH --signal=B:USR1@120          # this script is told 120 s before the end, and tells the run
#SBATCH --open-mode=append           # one log over all of its starts
#SBATCH --output=%x-%j.log
set -euo pipefail
[ $# -ge 1 ] || { echo 'sbatch docker/slurm.sh paper [--key value ...]' >&2; exit 2; }
cd "${SLURM_SUBMIT_DIR:-.}"          # sbatch is called in the repository
[ -f docker/run.sh ] || { echo 'call sbatch in the repository' >&2; exit 2; }

NODES=$SLURM_NNODES
machines=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
RDZV=${machines%%$'\n'*}:$((20000 + SLURM_JOB_ID % 10000))
export NODES RDZV

# Every machine starts the same: with docker. Where the cluster brings another container program,
# put its line here (pyxis: srun --container-image=..., Apptainer: srun apptainer exec --nv ...),
# followed by the torchrun line at the end of docker/run.sh.
srun --kill-on-bad-exit=1 docker/run.sh "$@" &
run=$!

told=''
trap 'told=yes; kill -s USR1 "$run" 2> /dev/null || true' USR1 TERM  # srun hands it to all machines
status=0
wait "$run" || status=$?
while kill -0 "$run" 2> /dev/null; do  # a signal ended the wait, not the run
  status=0
  wait "$run" || status=$?
done

# torchrun ends a run that was told to stop in its own way, whatever the status of the ranks
if [ "$status" -eq 75 ] || { [ -n "$told" ] && [ "$status" -ne 0 ]; }; then
  echo "stopped (status $status): back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
