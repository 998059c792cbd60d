"""Unpacks Debian packages under build/debs: `python scripts/debs.py PACKAGE...`.

The work is in kvstore/bench/debs.py; this runs it without importing the package, which need not be
built yet.
"""

import runpy
from pathlib import Path

runpy.run_path(
    str(Path(__file__).resolve().parent.parent / "kvstore" / "bench" / "debs.py"),
    run_name="__main__",
)
