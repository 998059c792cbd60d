"""What `kvstore doctor` looks at: one module a subject, one function a check.

Each function returns a `Check`; none raises for what it finds, and none changes anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: In rising order: fine, worth knowing, slower or riskier than need be, and what stops the store.
OK: Final = "ok"
NOTE: Final = "note"
WARNING: Final = "warning"
PROBLEM: Final = "problem"


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found."""

    name: str
    status: str
    detail: str
    #: The command that mends it; empty where there is nothing to mend.
    remedy: str = ""
