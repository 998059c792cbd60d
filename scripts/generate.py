"""Writes the generated files that are committed, or checks that they are fresh (`--check`).

kvstore/_native.pyi comes from native/api/kvstore.h, the gRPC stubs come from proto/.
"""

import subprocess
import sys
from pathlib import Path

import native_interface

ROOT = Path(__file__).resolve().parent.parent
HEADER = ROOT / "native" / "api" / "kvstore.h"
STUB = ROOT / "kvstore" / "_native.pyi"


def main() -> int:
    check = "--check" in sys.argv[1:]
    stub = native_interface.stub_text(HEADER)
    stale = not STUB.exists() or STUB.read_text() != stub
    if check and stale:
        print("generate: stale: kvstore/_native.pyi; run `make generate`", file=sys.stderr)
    elif stale:
        STUB.write_text(stub)
    protocol = [sys.executable, str(ROOT / "scripts" / "generate_proto.py"), *sys.argv[1:]]
    protocol_failed = subprocess.run(protocol).returncode != 0
    return int((check and stale) or protocol_failed)


if __name__ == "__main__":
    sys.exit(main())
