"""Third-party headers are unmodified: each has the checksum that its README states."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "native" / "third_party"
ROW = re.compile(r"^\| `([^`]+)` .*`([0-9a-f]{64})` \|$", re.MULTILINE)


def test_checksums() -> None:
    stated = dict(ROW.findall((FOLDER / "README.md").read_text()))
    present = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in FOLDER.iterdir()
        if path.suffix in {".h", ".hpp"}
    }
    assert present
    assert stated == present
