"""Where a request goes: two-choice cache-affinity routing over serving engines.

After DualMap (ICLR'26, arXiv 2602.06502). `Router` decides and keeps account, and does no I/O;
`kvstore.llm.router.proxy` is the HTTP endpoint around it (`kvstore router`, extra `router`).
"""

from __future__ import annotations

from kvstore.llm.router.hot_prefixes import HotPrefixes
from kvstore.llm.router.rings import Rings
from kvstore.llm.router.routing import InstanceView, Reason, Router, Rules, Ticket

__all__ = ["HotPrefixes", "InstanceView", "Reason", "Rings", "Router", "Rules", "Ticket"]
