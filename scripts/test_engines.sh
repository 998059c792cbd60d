#!/usr/bin/env bash
# The tests of the engine adapters, each in its engine's own environment: `make test-engines`.
#
# ENGINES names those to test; default: all. Environments are made once, under build/venvs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
for engine in ${ENGINES:-transformers vllm lmcache sglang}; do
  python=$(python3 scripts/engine.py "$engine")
  echo "==== $engine"
  tests=(tests/engines/test_"$engine"*.py)
  # These need torch only.
  [[ $engine == transformers ]] \
    && tests+=(tests/client/test_values.py tests/engines/test_block_memory.py)
  # One thread: on few cores the threads of torch only wait for each other.
  KVSTORE_ENGINE=$engine OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 "$python" -m pytest \
    -p no:cacheprovider "${tests[@]}"
done
