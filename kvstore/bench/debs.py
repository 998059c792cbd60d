"""Debian packages, unpacked into a folder of our own and never installed.

Benchmarks and sanitizers use programs (redis-server, memcached, clang-19) that a user need not
have. They are fetched with `apt-get download` and unpacked with `dpkg -x`: no root, no maintainer
script, no daemon started. Packages that the system has installed are not fetched; the dynamic
linker finds the fetched libraries through small wrapper scripts.

    python -m kvstore.bench.debs redis-server memcached

unpacks the packages with what they depend on, and prints where their programs are. Running it again
does nothing. Only the standard library is used: builds run this file on its own.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# These make up the running C and C++ environment. A copy of another version in the library path
# would break every program that is started with it.
_NEVER_UNPACKED = frozenset({"gcc-12-base", "libc6", "libgcc-s1", "libstdc++6"})
_PROGRAM_FOLDERS = ("usr/bin", "usr/sbin", "bin", "sbin")
_COMMAND_TIMEOUT_S = 300


class DebError(Exception):
    """A package could not be had; the text says why in one line."""


def default_folder() -> Path:
    """Return build/debs of a checkout, or a folder in the user's cache."""
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "CMakeLists.txt").exists():
        return checkout / "build" / "debs"
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "kvstore" / "debs"


def find_program(name: str, folder: Path | None = None) -> Path | None:
    """Return the path of a program: the system's own, else an unpacked one, else `None`."""
    system = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if system is not None:
        return Path(system)
    wrapper = (folder or default_folder()) / "bin" / name
    return wrapper if wrapper.exists() else None


def provide_program(name: str, package: str, folder: Path | None = None) -> Path:
    """Return the path of a program, unpacking `package` first where the program is absent.

    Raises:
        DebError: the package cannot be had, or has no such program.
    """
    found = find_program(name, folder)
    if found is None:
        unpack([package], folder)
        found = find_program(name, folder)
    if found is None:
        raise DebError(f"package {package} has no program {name}")
    return found


def unpack(packages: list[str], folder: Path | None = None) -> None:
    """Unpack packages and what they depend on, unless that was done before.

    Raises:
        DebError: there is no apt, or a package cannot be resolved, fetched or unpacked.
    """
    folder = folder or default_folder()
    done = folder / "done"
    done.mkdir(parents=True, exist_ok=True)
    wanted = [name for name in packages if not (done / name).exists()]
    if not wanted:
        return
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise DebError(f"{tool} not found: install {' '.join(wanted)} yourself")
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            fetch_and_unpack(wanted, folder, [])
        except DebError:
            # The system's package lists may be absent or old; lists of our own need no root.
            fetch_and_unpack(wanted, folder, update_private_lists(folder))
        write_wrappers(folder)
    for name in wanted:
        (done / name).touch()


def fetch_and_unpack(packages: list[str], folder: Path, options: list[str]) -> None:
    """Fetch what `packages` need beyond the installed system, and unpack all of it."""
    missing = [
        f"{name}={version}"
        for name, version in resolve(packages, options)
        if name not in _NEVER_UNPACKED
    ]
    # A package that is installed already resolves to nothing, and is then left to the system.
    if not missing:
        return
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        run(["apt-get", *options, "-q", "download", *missing], cwd=Path(scratch))
        for archive in sorted(Path(scratch).glob("*.deb")):
            run(["dpkg", "-x", str(archive), str(folder / "root")], cwd=folder)


def resolve(packages: list[str], options: list[str]) -> list[tuple[str, str]]:
    """Return name and version of what an installation of `packages` would install."""
    command = ["apt-get", *options, "-qq", "-o", "Debug::NoLocking=1", "--simulate"]
    output = run([*command, "--no-install-recommends", "install", *packages], cwd=Path("/"))
    return re.findall(r"^Inst (\S+) (?:\[\S+\] )?\((\S+)", output, flags=re.MULTILINE)


def update_private_lists(folder: Path) -> list[str]:
    """Fetch package lists into `folder` and return the options that make apt use them."""
    apt = folder / "apt"
    for part in ("lists/partial", "cache/archives/partial"):
        (apt / part).mkdir(parents=True, exist_ok=True)
    options = [
        "-o", f"Dir::State::lists={apt / 'lists'}",
        "-o", f"Dir::Cache={apt / 'cache'}",
        "-o", "APT::Sandbox::User=",
        "-o", "Debug::NoLocking=1",
    ]  # fmt: skip
    run(["apt-get", *options, "-qq", "update"], cwd=folder)
    return options


def write_wrappers(folder: Path) -> None:
    """Write one script a program, which starts it with the unpacked libraries."""
    root = folder / "root"
    libraries = sorted({str(path.parent) for path in root.glob("usr/lib/**/*.so.*")})
    libraries += sorted({str(path.parent) for path in root.glob("lib/**/*.so.*")})
    path = ":".join(libraries) + "${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    export = f'export LD_LIBRARY_PATH="{path}"\n' if libraries else ""
    wrappers = folder / "bin"
    wrappers.mkdir(exist_ok=True)
    for program_folder in _PROGRAM_FOLDERS:
        for program in sorted((root / program_folder).glob("*")):
            if not os.access(program, os.X_OK):
                continue
            wrapper = wrappers / program.name
            wrapper.write_text(f'#!/bin/sh\n{export}exec {program} "$@"\n')
            wrapper.chmod(0o755)


def run(command: list[str], *, cwd: Path) -> str:
    """Run a command and return its output; failure is a `DebError` with its last line."""
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        completed = subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DebError(f"{command[0]} took more than {_COMMAND_TIMEOUT_S} s") from None
    if completed.returncode != 0:
        lines = [line for line in completed.stderr.splitlines() if line.startswith("E:")]
        reason = (lines or completed.stderr.splitlines() or ["no message"])[-1]
        raise DebError(f"{command[0]}: {reason.removeprefix('E: ')}")
    return completed.stdout


def main() -> int:
    """Unpack the packages named on the command line."""
    packages = sys.argv[1:]
    if not packages or packages[0].startswith("-"):
        print(__doc__)
        return 0 if packages in (["-h"], ["--help"]) else 2
    try:
        unpack(packages)
    except DebError as error:
        print(f"debs: {error}", file=sys.stderr)
        return 1
    print(f"debs: {' '.join(packages)} under {default_folder()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
