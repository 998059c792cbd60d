#!/usr/bin/env bash
# Every stage, with its wall time: `make ci`.
#
# A stage that fails stops the run. A stage that took more than twice its budget fails it, after all
# stages have run. KVSTORE_TRACES, where set, is the folder of real traces.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset MAKEFLAGS MFLAGS MAKELEVEL
export WERROR=ON
names=() seconds=() budgets=()

# stage NAME MINUTES COMMAND...
stage() {
  local name=$1 minutes=$2 begin=$SECONDS
  shift 2
  echo "==== $name: $*"
  if ! "$@"; then
    echo "==== $name failed after $((SECONDS - begin)) s" >&2
    exit 1
  fi
  names+=("$name") seconds+=($((SECONDS - begin))) budgets+=($((minutes * 60)))
  echo "==== $name passed in ${seconds[-1]} s (budget ${budgets[-1]} s)"
}

# Copies what a clone would have into a fresh folder, and prints the folder.
fresh_copy() {
  local folder="$PWD/build/ci/$1"
  rm -rf "$folder"
  mkdir -p "$folder"
  git ls-files -co --exclude-standard -z | while IFS= read -r -d '' file; do
    [[ -e $file ]] && printf '%s\0' "$file"
  done | tar --null -cf - -T - | tar -xf - -C "$folder"
  echo "$folder"
}

smoke='import kvstore
with kvstore.connect(capacity_bytes=64 << 20) as store:
    store.put(b"key", b"value")
    assert store.get(b"key") == b"value"
    assert store.get(b"absent") is None
print("kvstore", kvstore.__version__, "from", kvstore.__path__[0], "works")'

# With what tests compare themselves to or are built against: there each of them runs.
set_up() {
  make setup build verbs
  .venv/bin/python scripts/debs.py redis-server
}

# The setup of a machine that has nothing on its PATH but the system.
system_setup() {
  local folder
  folder=$(fresh_copy system)
  # What reaches the package index is kept: proxies, certificates, pip's own settings.
  local kept
  mapfile -t kept < <(env | grep -E '^(APT_CONFIG|HOME|PIP_|SSL_|REQUESTS_|(HTTPS?|NO)_PROXY)' ||
    true; env | grep -E '^(https?|no)_proxy' || true)
  env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 KVSTORE_EXTRAS=test "${kept[@]}" \
    make -C "$folder" setup
  (cd / && "$folder/.venv/bin/python" -c "$smoke")
  (cd / && "$folder/.venv/bin/kvstore" --version)
  rm -rf "$folder"
}

# `pip install .` alone, from a folder that has never been built, into an empty environment.
pip_install() {
  local folder
  folder=$(fresh_copy wheel)
  .venv/bin/python -m venv "$folder/venv"
  "$folder/venv/bin/python" -m pip -q install "$folder"
  (cd / && "$folder/venv/bin/python" -c "$smoke")
  (cd / && "$folder/venv/bin/kvstore-node" --version && "$folder/venv/bin/kvstore-bench" --version)
  rm -rf "$folder"
}

stage "setup build" 6 set_up
stage check 4 make check
stage test 7 env KVSTORE_NO_SKIPS=1 make test
stage sim 7 make sim
stage rxe 7 make rxe
stage sanitize 12 make sanitize
stage "network tests" 3 .venv/bin/python -m pytest -m network
stage "system setup" 6 system_setup
stage "pip install" 3 pip_install
stage "engine tests" 20 make test-engines

echo "==== stages"
over=0
for i in "${!names[@]}"; do
  note=
  if ((seconds[i] > 2 * budgets[i])); then
    note="  MORE THAN TWICE ITS BUDGET"
    over=1
  fi
  printf '%-14s %5d s of %4d s%s\n' "${names[i]}" "${seconds[i]}" "${budgets[i]}" "$note"
done
printf '%-14s %5d s\n' total "$SECONDS"
exit $over
