#!/bin/sh
# Regenerates every figure of the README and of docs/benchmarks.md.
#
# Writes one JSON document and one table an experiment to build/bench; see bench/README.md.
# SCALE shrinks the number of keys of the large experiments (1: as documented).
set -eu
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
results=build/bench
scale=${SCALE:-1}
mkdir -p "$results"

# Runs an experiment: its name, then the command, which gets --json.
experiment() {
  name=$1
  shift
  echo "== $name: $*"
  "$@" --json >"$results/$name.json.part"
  mv "$results/$name.json.part" "$results/$name.json"
  python bench/show.py "$results/$name.json" | tee "$results/$name.txt"
}

experiment peers kvstore-bench peers --rounds "${ROUNDS:-7}" --plot "$results/peers.png"
for figure in put-cost memory idle busy-thread; do
  experiment "$figure" kvstore-bench kv --figure "$figure" --scale "$scale"
done
for fabric in shm tcp local; do
  experiment "kv-get-$fabric" kvstore-bench kv --fabric "$fabric" --native
  experiment "kv-put-$fabric" kvstore-bench kv --fabric "$fabric" --operation put --native
done
experiment cache kvstore-bench cache
for figure in grid writers read-ratio exec-time zipf-alpha inter-cn intra-cn mn-num lock-num \
  locality; do
  experiment "lock-$figure" kvstore-bench lock --figure "$figure" --measure-ms 10 \
    --plot "$results/lock-$figure.png"
done
for figure in cdf fetch qcap reset failure; do
  experiment "lock-$figure" kvstore-bench lock --figure "$figure" --plot "$results/lock-$figure.png"
done
experiment lock-fairness kvstore-bench lock --figure fairness --measure-ms 200
for fabric in shm tcp; do
  for workload in pairs counter bank recovery; do
    experiment "lock-$workload-$fabric" kvstore-bench lock --fabric "$fabric" --workload "$workload"
  done
done
experiment demo kvstore demo
if [ -n "${KVSTORE_TRACES:-}" ]; then
  experiment demo-conversation kvstore demo --block-bytes 4096 --fabric tcp \
    --trace "$KVSTORE_TRACES/conversation_trace.jsonl.gz"
else
  echo "== demo-conversation: left out, KVSTORE_TRACES is not set"
fi
echo "results are in $results"
