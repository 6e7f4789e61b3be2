#!/usr/bin/env bash
# A search on Slurm: a Ray cluster for one job, the driver on its first node.
#
#   sbatch cluster/slurm.sh spaces/cifar10.yaml [--name N] [--set key=value …]
#
# Submit it again to continue: finished trials are kept, unfinished ones go on from checkpoints. Fill
# in partition and time below. spiketune must be installed in $SPIKETUNE_VENV, a virtual environment
# that all nodes see (pip install --require-hashes -r requirements.lock, then the wheel with
# --no-deps); secrets are read from ~/.spiketune/env (see secrets.env), which must be yours alone. An
# MLflow server that it names takes the search where the YAML says `tracking: {uri:
# "env:MLFLOW_TRACKING_URI"}`; else MLflow's store lies in $SPIKETUNE_RUNS.
#SBATCH --job-name=spiketune
#SBATCH --partition=FILL_IN_PARTITION
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --output=spiketune-%j.log
set -euo pipefail
umask 077

SPIKETUNE_VENV=${SPIKETUNE_VENV:-$HOME/venv}
export PATH="$SPIKETUNE_VENV/bin:$PATH"
export SPIKETUNE_RUNS=${SPIKETUNE_RUNS:-$HOME/runs}
export RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true

# Other users share these nodes' network: a token of this job's own, in a file that only we read.
private=$(mktemp -d "$HOME/.spiketune-job-$SLURM_JOB_ID-XXXXXX")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$private/auth_token"
python3 -c 'import secrets; print(secrets.token_hex(32), end="")' >"$RAY_AUTH_TOKEN_PATH"
chmod 600 "$RAY_AUTH_TOKEN_PATH"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
head_ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 10000))

steps=()
finish() {
  for step in "${steps[@]}"; do kill "$step" 2>/dev/null || true; done
  rm -rf "$private"
}
trap finish EXIT

srun --nodes=1 --ntasks=1 --nodelist="$head" \
  ray start --head --block --node-ip-address="$head_ip" --port="$port" \
  --dashboard-host=127.0.0.1 --disable-usage-stats \
  --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" &
steps+=($!)
timeout 300 bash -c "until ray status --address '$head_ip:$port' >/dev/null 2>&1; do sleep 2; done"
for node in "${nodes[@]:1}"; do
  srun --nodes=1 --ntasks=1 --nodelist="$node" \
    ray start --block --address="$head_ip:$port" --disable-usage-stats \
    --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" &
  steps+=($!)
done

if [ -f ~/.spiketune/env ]; then
  chmod 600 ~/.spiketune/env
  set -a
  # shellcheck source=/dev/null
  . ~/.spiketune/env
  set +a
fi
# Five minutes before the time is up Slurm tells this shell, which tells the search: it ends in order.
spiketune search "$@" --resume --address "$head_ip:$port" &
search=$!
trap 'kill -TERM "$search" 2>/dev/null || true' TERM INT
code=0
wait "$search" || code=$?
if kill -0 "$search" 2>/dev/null; then wait "$search" || code=$?; fi
exit "$code"
