"""Generates the gRPC stubs under kvstore/cluster/proto from proto/.

The stubs are committed, so that no user needs a generator. They come from one pinned generator,
because newer ones refuse the protobuf versions that serving engines pin.

    python scripts/generate_proto.py          # writes them
    python scripts/generate_proto.py --check  # exit code 1 if they are stale
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "proto"
TARGET = ROOT / "kvstore" / "cluster" / "proto"
# The path under which generated modules import each other.
PACKAGE = Path("kvstore/cluster/proto")
GENERATOR = "1.74."


def generate(root: Path) -> dict[str, str]:
    """Runs the generator into `root` and returns the text of each file by its name."""
    from grpc_tools import protoc

    version = importlib.metadata.version("grpcio-tools")
    if not version.startswith(GENERATOR):
        sys.exit(f"generate_proto: grpcio-tools {version} found, {GENERATOR}* needed")
    names = sorted(path.name for path in SOURCES.glob("*.proto"))
    arguments = [
        "protoc",
        f"-I{PACKAGE}={SOURCES}",
        f"--python_out={root}",
        f"--pyi_out={root}",
        f"--grpc_python_out={root}",
        *(str(PACKAGE / name) for name in names),
    ]
    if protoc.main(arguments) != 0:
        sys.exit("generate_proto: protoc failed")
    return {path.name: path.read_text() for path in sorted((root / PACKAGE).iterdir())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, only compare")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as scratch:
        generated = generate(Path(scratch))
    present = {path.name for path in TARGET.glob("*_pb2*")}
    stale = sorted(present - generated.keys())
    for name, text in generated.items():
        path = TARGET / name
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if not check:
                path.write_text(text)
    if check and stale:
        print(f"generate_proto: stale: {', '.join(stale)}; run python scripts/generate_proto.py")
        return 1
    for name in present - generated.keys():
        if not check:
            (TARGET / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
