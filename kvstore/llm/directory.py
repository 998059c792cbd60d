"""The namespaces that anybody has stored blocks in: one small object in the store.

It serves people who ask why nothing matches. No block depends on it: where it cannot be read or
written, blocks are stored and found all the same.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, cast

from kvstore.errors import ConditionFailed, KvError
from kvstore.llm.keys import PREFIX
from kvstore.llm.namespace import DIGEST_BYTES, Namespace

if TYPE_CHECKING:
    from kvstore.client.store import Store

KEY: Final = PREFIX + b"namespaces"
_NAMESPACES_MAX: Final = 256
_TRIES_MAX: Final = 16


def register(store: Store, namespace: Namespace, *, timeout_s: float) -> bool:
    """Add a namespace; return whether it is listed now. The oldest goes where there are many."""
    digest = namespace.digest()
    deadline = time.monotonic() + timeout_s
    for _ in range(_TRIES_MAX):
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return False
        try:
            # The version is read first: a list that is newer than it fails the condition.
            found = store.get_versioned(KEY, timeout_s=left_s)
            known = _entries(store.get_object(KEY, timeout_s=left_s)) if found else {}
            if digest in known:
                return True
            kept = list(known.items())[1 - _NAMESPACES_MAX :]
            entries = [[key, value] for key, value in [*kept, (digest, namespace.describe())]]
            if found is None:
                store.put_object(KEY, entries, if_absent=True, timeout_s=left_s)
            else:
                store.put_object(KEY, entries, if_version=found[1], timeout_s=left_s)
            return True
        except ConditionFailed:
            continue
        except KvError:
            return False
    return False


def listed(store: Store, *, timeout_s: float) -> dict[bytes, dict[str, Any]]:
    """Return digest -> fields of the namespaces, oldest first; empty if they cannot be read."""
    try:
        return _entries(store.get_object(KEY, timeout_s=timeout_s))
    except KvError:
        return {}


def _entries(stored: object) -> dict[bytes, dict[str, Any]]:
    """Return what is well-formed of a stored list; others can write it."""
    entries: dict[bytes, dict[str, Any]] = {}
    for item in stored if isinstance(stored, list) else ():
        if not isinstance(item, list) or len(item) != 2:
            continue
        digest, fields = item
        if isinstance(digest, bytes) and len(digest) == DIGEST_BYTES and isinstance(fields, dict):
            entries[digest] = cast("dict[str, Any]", fields)
    return entries
