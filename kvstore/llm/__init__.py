"""Prefix caching for LLM serving: KV blocks in a store, shared by engines.

`PrefixCache` knows no engine. The adapters are modules of their own, each of which imports its
engine: `kvstore.llm.transformers`, `kvstore.llm.vllm`, `kvstore.llm.lmcache`, `kvstore.llm.sglang`.
Importing this package loads none of them, nor numpy, nor the native core.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from kvstore.llm.aio import AsyncPrefixCache
    from kvstore.llm.chains import Prompt
    from kvstore.llm.chunks import ChunkCache
    from kvstore.llm.core import Limits
    from kvstore.llm.explain import Explanation, Verdict
    from kvstore.llm.hand_off import HandOff, Publication, Received
    from kvstore.llm.keys import block_hashes, chunk_hash
    from kvstore.llm.namespace import Namespace, Ranks
    from kvstore.llm.prefix_cache import PrefixCache
    from kvstore.llm.results import CacheStats, LoadResult, StoreResult
    from kvstore.llm.single_flight import Flight

__all__ = [
    "AsyncPrefixCache",
    "CacheStats",
    "ChunkCache",
    "Explanation",
    "Flight",
    "HandOff",
    "Limits",
    "LoadResult",
    "Namespace",
    "PrefixCache",
    "Prompt",
    "Publication",
    "Ranks",
    "Received",
    "StoreResult",
    "Verdict",
    "block_hashes",
    "chunk_hash",
]

_LAZY: Final = {
    "AsyncPrefixCache": "aio",
    "CacheStats": "results",
    "ChunkCache": "chunks",
    "Explanation": "explain",
    "Flight": "single_flight",
    "HandOff": "hand_off",
    "Limits": "core",
    "LoadResult": "results",
    "Namespace": "namespace",
    "PrefixCache": "prefix_cache",
    "Prompt": "chains",
    "Publication": "hand_off",
    "Ranks": "namespace",
    "Received": "hand_off",
    "StoreResult": "results",
    "Verdict": "explain",
    "block_hashes": "keys",
    "chunk_hash": "keys",
}


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'kvstore.llm' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"kvstore.llm.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
