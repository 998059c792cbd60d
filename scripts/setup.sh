#!/bin/sh
# Prepares .venv, with the package as an editable install that `make build` then compiles.
#
# Needs a C++20 compiler and Python 3.11 or newer with its headers and `venv`. Where they are
# missing, root gets them from apt; everybody else is told the one line to type. PYTHON names an
# interpreter to use; KVSTORE_EXTRAS names the extras to install.
set -eu
cd "$(dirname "$0")/.."
venv=.venv
extras=${KVSTORE_EXTRAS:-test,bench,dev}

# Prints the first interpreter on the PATH that is new enough and passes the check in $1.
find_python() {
  for candidate in ${PYTHON:-} python3 python3.11 python3.12 python3.13 python3.14; do
    path=$(command -v "$candidate" 2>/dev/null) || continue
    if "$path" -c "$1" >/dev/null 2>&1; then
      echo "$path"
      return 0
    fi
  done
  return 1
}

is_new='import sys; sys.exit(sys.version_info < (3, 11))'
is_complete='import ensurepip, os, sys, sysconfig, venv
header = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(sys.version_info < (3, 11) or not os.path.exists(header))'

missing=
command -v "${CXX:-g++}" >/dev/null 2>&1 || missing="g++"
python=$(find_python "$is_complete") || missing="${missing:+$missing }python3-venv python3-dev"
if [ -n "$missing" ]; then
  install="apt-get install -y --no-install-recommends $missing"
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing:$(printf ' %s' $missing)"
    DEBIAN_FRONTEND=noninteractive $install >/dev/null 2>&1 ||
      { apt-get update -q >/dev/null && DEBIAN_FRONTEND=noninteractive $install >/dev/null; } ||
      { echo "could not install the missing packages; try: $install" >&2; exit 1; }
  else
    echo "missing packages; type: sudo $install" >&2
    exit 1
  fi
  python=$(find_python "$is_complete") || {
    found=$(find_python "$is_new") && echo "$found lacks venv or Python.h" >&2 ||
      echo "no Python 3.11 or newer on the PATH" >&2
    exit 1
  }
fi

# An environment whose interpreter has gone, or is too old, is made anew.
if ! "$venv/bin/python" -c "$is_new" >/dev/null 2>&1; then
  "$python" -m venv --clear "$venv"
fi
pip="$venv/bin/python -m pip --disable-pip-version-check"
$pip install -q --upgrade "pip>=24"
"$venv/bin/python" -c 'import tomllib
requires = tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"]
print(*requires, sep="\n")' >"$venv/build-requires.txt"
$pip install -q -r "$venv/build-requires.txt"
PATH="$PWD/$venv/bin:$PATH" $pip install -q --no-build-isolation \
  --config-settings=build.targets=kvstore_prepare -e ".[$extras]"
