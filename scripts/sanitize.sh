#!/usr/bin/env bash
# Runs the native tests under ASan with UBSan and under TSan, then the fuzzers: `make sanitize`.
#
# The compiler is clang-19: the system's, where it is complete, else Debian's, unpacked under
# build/debs. FUZZ_SECONDS is the time of all fuzzers together. Findings of a fuzzer are written to
# build/fuzz/crashes; its corpus grows in build/fuzz/corpus, from the seeds in tests/fuzz/corpus.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PWD/.venv/bin:$PATH"
jobs=${JOBS:-$(nproc)}
fuzz_seconds=${FUZZ_SECONDS:-60}

find_clang() {
  local candidate
  for candidate in clang++-19 build/debs/bin/clang++-19; do
    if echo 'extern "C" int LLVMFuzzerTestOneInput(const char*, long) { return 0; }' |
      "$candidate" -x c++ -fsanitize=fuzzer,address - -o build/clang-works 2>/dev/null; then
      command -v "$candidate"
      return 0
    fi
  done
  return 1
}

mkdir -p build
clang=$(find_clang) || {
  python scripts/debs.py clang-19 libclang-rt-19-dev llvm-19
  clang=$(find_clang) || { echo "sanitize: clang-19 does not work here" >&2; exit 1; }
}
clang=$(realpath --no-symlinks "$clang")
symbolizer="$(dirname "$clang")/llvm-symbolizer-19"

# build TREE CMAKE-OPTION... -- TARGET...
build() {
  local tree=build/$1 options=()
  shift
  while [[ $1 != -- ]]; do options+=("$1"); shift; done
  shift
  cmake -S . -B "$tree" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
    -DCMAKE_CXX_FLAGS_RELWITHDEBINFO="-O1" \
    -DCMAKE_CXX_COMPILER="$clang" -DCMAKE_C_COMPILER="${clang/clang++/clang}" \
    "${options[@]}" >"$tree.log" 2>&1 || { cat "$tree.log"; exit 1; }
  cmake --build "$tree" -j "$jobs" --target "$@"
}

# A simulated world runs on one thread, so TSan has nothing to see there.
options=(-DKVSTORE_WERROR=ON -DKVSTORE_BUILD_TESTS=ON)
build address "${options[@]}" -DKVSTORE_BUILD_FUZZERS=ON -DKVSTORE_SANITIZE=address \
  -- kvstore_native_tests kvstore_simulation_tests kvstore_fuzzers
build thread "${options[@]}" -DKVSTORE_SANITIZE=thread -- kvstore_native_tests

# The tests know from this that they run an order of magnitude slower.
export KVSTORE_SANITIZED=1
export ASAN_OPTIONS="external_symbolizer_path=$symbolizer:detect_stack_use_after_return=1"
export UBSAN_OPTIONS="print_stacktrace=1:external_symbolizer_path=$symbolizer"
export TSAN_OPTIONS="external_symbolizer_path=$symbolizer:halt_on_error=1:second_deadlock_stack=1"
for sanitizer in address thread; do
  echo "native tests, $sanitizer sanitizer:"
  timeout 400 "build/$sanitizer/kvstore_native_tests"
done
echo "simulation tests, address sanitizer:"
timeout 600 build/address/kvstore_simulation_tests

shopt -s nullglob
fuzzers=(build/address/fuzzers/*_fuzz)
mkdir -p build/fuzz/crashes
for fuzzer in "${fuzzers[@]}"; do
  name=$(basename "$fuzzer")
  seconds=$((fuzz_seconds / ${#fuzzers[@]}))
  mkdir -p "build/fuzz/corpus/$name"
  seeds=()
  [[ -d tests/fuzz/corpus/$name ]] && seeds=("tests/fuzz/corpus/$name")
  echo "fuzzer $name, $seconds s:"
  "$fuzzer" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
    -artifact_prefix=build/fuzz/crashes/ "build/fuzz/corpus/$name" "${seeds[@]}" \
    >"build/fuzz/$name.log" 2>&1 || { tail -60 "build/fuzz/$name.log"; exit 1; }
  grep -E "number_of_executed_units|average_exec_per_sec" "build/fuzz/$name.log"
done
if ((${#fuzzers[@]} == 0)); then
  echo "sanitize: there is no tests/fuzz/*_fuzz.cpp" >&2
  exit 1
fi
