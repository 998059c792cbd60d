"""The L2 adapter for LMCache's server. Made for LMCache 0.5.

    lmcache server ... --l2-adapter '{"type": "plugin", "module_path": "kvstore.llm.lmcache",
        "class_name": "KvStoreL2Adapter", "adapter_params": {"target": "kv://host:7400"}}'

Other parameters: `revision` (names the weights), `layout` (names what else decides the bytes, such
as the engine and its version), `salt`, `threads`, and `match_timeout_s`, `load_timeout_s`,
`store_timeout_s`.

LMCache's keys name the model, the rank, the object group and the tenant's salt; to the namespace
the adapter adds the element types and the size of an object. What LMCache calls a lock, keeping an
object from eviction until it is loaded, the store does not have yet: a load may fail, is told, and
is computed.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from lmcache.lmcache_native import Bitmap
from lmcache.v1.distributed.internal_api import L2StoreResult
from lmcache.v1.distributed.l2_adapters.base import L2AdapterInterface
from lmcache.v1.platform import create_event_notifier

import kvstore
from kvstore.errors import ConfigurationError
from kvstore.llm.core import Limits
from kvstore.llm.namespace import Namespace
from kvstore.llm.prefix_cache import PrefixCache

_PARAMETERS: Final = {
    "target": str,
    "revision": str,
    "layout": str,
    "salt": str,
    "threads": int,
    "match_timeout_s": (int, float),
    "load_timeout_s": (int, float),
    "store_timeout_s": (int, float),
}
_log = logging.getLogger("kvstore.llm.lmcache")
#: Models, ranks, groups, tenants and shapes that are kept apart at once; more fail as misses.
_CACHES_MAX: Final = 4096
#: What makes a namespace: the fields of the key beside its hash, and the shape.
_Identity = tuple[str, int, int, str, str]


class KvStoreL2Adapter(L2AdapterInterface):
    """Stores, looks up and loads LMCache's objects. Called by two threads, works on its own."""

    def __init__(self, params: dict[str, Any], l1_memory_desc: Any = None) -> None:
        super().__init__()
        for name, value in params.items():
            if name not in _PARAMETERS:
                raise ConfigurationError(
                    f"adapter_params has no {name!r}: it takes {', '.join(_PARAMETERS)}"
                )
            if not isinstance(value, _PARAMETERS[name]):  # type: ignore[arg-type]
                raise ConfigurationError(f"{name} cannot be {value!r}")
        if not params.get("target"):
            raise ConfigurationError(
                'the adapter needs its memory nodes: "adapter_params": {"target": "kv://host:7400"}'
            )
        defaults = Limits()
        self._limits = Limits(
            match_s=params.get("match_timeout_s", defaults.match_s),
            load_s=params.get("load_timeout_s", defaults.load_s),
            store_s=params.get("store_timeout_s", defaults.store_s),
        )
        self._params = params
        self._store = kvstore.connect(params["target"])
        self._lock = threading.Lock()
        self._caches: dict[_Identity, PrefixCache] = {}
        #: Object group -> the shape of its objects, as seen last.
        self._shapes: dict[tuple[str, int], str] = {}
        self._task_ids = itertools.count(1)
        self._done: dict[str, dict[int, Any]] = {"store": {}, "lookup": {}, "load": {}}
        self._events = {kind: create_event_notifier() for kind in self._done}
        self._threads = ThreadPoolExecutor(params.get("threads", 2), "kvstore-l2")

    # ---- the three events ----

    def get_store_event_fd(self) -> int:
        """See L2AdapterInterface."""
        return int(self._events["store"].fileno())

    def get_lookup_and_lock_event_fd(self) -> int:
        """See L2AdapterInterface."""
        return int(self._events["lookup"].fileno())

    def get_load_event_fd(self) -> int:
        """See L2AdapterInterface."""
        return int(self._events["load"].fileno())

    # ---- store ----

    def submit_store_task(self, keys: list[Any], objects: list[Any]) -> int:
        """See L2AdapterInterface."""
        return self._submit(
            "store", lambda: self._store_all(keys, objects), L2StoreResult(False, 0)
        )

    def _store_all(self, keys: list[Any], objects: list[Any]) -> L2StoreResult:
        stored_keys: list[Any] = []
        sizes: list[int] = []
        failed = 0
        shapes = [_shape_of_object(item) for item in objects]
        for cache, places in self._by_cache(keys, shapes):
            blocks = [objects[i].byte_array for i in places]
            result = cache.put([keys[i].chunk_hash for i in places], blocks)
            failed += len(result.failed)
            good = [p for n, p in enumerate(places) if n not in result.failed]
            stored_keys += [keys[i] for i in good]
            sizes += [len(objects[i].byte_array) for i in good]
        complete = len(stored_keys) == len(keys) and not failed
        self._notify_keys_stored(stored_keys, sizes)
        return L2StoreResult(complete, sum(sizes))

    def pop_completed_store_tasks(self) -> dict[int, L2StoreResult]:
        """See L2AdapterInterface."""
        with self._lock:
            done, self._done["store"] = self._done["store"], {}
            return done

    # ---- look up ----

    def submit_lookup_and_lock_task(
        self, keys: list[Any], group_layout_descs: dict[int, Any]
    ) -> int:
        """See L2AdapterInterface. Nothing is locked; see the module."""
        descriptions = dict(group_layout_descs)
        return self._submit("lookup", lambda: self._look_up(keys, descriptions), Bitmap(len(keys)))

    def _look_up(self, keys: list[Any], descriptions: dict[int, Any]) -> Bitmap:
        found = Bitmap(len(keys))
        shapes: list[str | None] = []
        for key in keys:
            description = descriptions.get(key.object_group_id)
            if description is not None:
                shapes.append(_shape(description.shapes, description.dtypes))
            else:
                shapes.append(self._shapes.get((key.model_name, key.object_group_id)))
        for cache, places in self._by_cache(keys, shapes):
            here = cache.contains([keys[i].chunk_hash for i in places])
            for place, is_there in zip(places, here, strict=True):
                if is_there:
                    found.set(place)
        return found

    def query_lookup_and_lock_result(self, task_id: int) -> Bitmap | None:
        """See L2AdapterInterface."""
        with self._lock:
            return self._done["lookup"].pop(task_id, None)

    def submit_unlock(self, keys: list[Any]) -> None:
        """Nothing was locked."""

    # ---- load ----

    def submit_load_task(self, keys: list[Any], objects: list[Any]) -> int:
        """See L2AdapterInterface."""
        return self._submit("load", lambda: self._load_all(keys, objects), Bitmap(len(keys)))

    def _load_all(self, keys: list[Any], objects: list[Any]) -> Bitmap:
        loaded = Bitmap(len(keys))
        shapes = [_shape_of_object(item) for item in objects]
        accessed = []
        for cache, places in self._by_cache(keys, shapes):
            buffers = [objects[i].byte_array for i in places]
            result = cache.get([keys[i].chunk_hash for i in places], buffers)
            for place, good in zip(places, result.ok, strict=True):
                if good:
                    loaded.set(place)
                    accessed.append(keys[place])
        self._notify_keys_accessed(accessed)
        return loaded

    def query_load_result(self, task_id: int) -> Bitmap | None:
        """See L2AdapterInterface."""
        with self._lock:
            return self._done["load"].pop(task_id, None)

    # ---- the rest ----

    def report_status(self) -> dict[str, Any]:
        """See L2AdapterInterface."""
        members = self._store.members()
        return {
            "is_healthy": all(member.state == "up" for member in members),
            "members": {member.address: member.state for member in members},
            "namespaces": len(self._caches),
        }

    def close(self) -> None:
        """End what is under way, each task by its own deadline, and leave the store."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._store.close()
        for event in self._events.values():
            event.close()

    def _submit(self, kind: str, work: Callable[[], Any], failed: Any) -> int:
        """Has the work done; its result, or `failed`, is there when the event is signalled."""
        task_id = next(self._task_ids)

        def run() -> None:
            result = failed
            try:
                result = work()
            except Exception:
                # The caller's threads must hear of an end whatever happens.
                _log.exception("a task of the kind %s failed", kind)
            finally:
                with self._lock:
                    self._done[kind][task_id] = result
                self._events[kind].notify()

        self._threads.submit(run)
        return task_id

    def _by_cache(
        self, keys: Sequence[Any], shapes: Sequence[str | None]
    ) -> Iterable[tuple[PrefixCache, list[int]]]:
        """Yields each prefix cache with the places of its keys; unknown shapes have none."""
        places: dict[_Identity, list[int]] = {}
        for place, (key, shape) in enumerate(zip(keys, shapes, strict=True)):
            if shape is not None:
                self._shapes[(key.model_name, key.object_group_id)] = shape
                identity = (
                    key.model_name,
                    key.kv_rank,
                    key.object_group_id,
                    key.cache_salt,
                    shape,
                )
                places.setdefault(identity, []).append(place)
        for identity, its_places in places.items():
            cache = self._cache(identity)
            if cache is not None:
                yield cache, its_places

    def _cache(self, identity: _Identity) -> PrefixCache | None:
        with self._lock:
            cache = self._caches.get(identity)
            if cache is None and len(self._caches) < _CACHES_MAX:
                model, rank, group, salt, shape = identity
                ours = self._params.get("salt", "")
                namespace = Namespace(
                    model=model,
                    revision=self._params.get("revision", ""),
                    dtype=shape,
                    layout=f"lmcache rank {rank:#x} {self._params.get('layout', '')}",
                    block_tokens=0,
                    group=group,
                    # The length keeps "a" and "bc" apart from "ab" and "c".
                    salt=f"{len(ours)}:{ours}{salt}" if ours or salt else "",
                )
                cache = PrefixCache(self._store, namespace, limits=self._limits, prefetch_bytes=0)
                self._caches[identity] = cache
            return cache


def _shape_of_object(item: Any) -> str:
    metadata = item.metadata
    # Objects of one shape have no list of shapes.
    return _shape(metadata.shapes or [metadata.shape], metadata.dtypes or [metadata.dtype])


def _shape(shapes: Iterable[Any], dtypes: Iterable[Any]) -> str:
    """Element types and sizes of an object, the same for objects and for descriptions of them."""
    return " ".join(f"{dtype}*{shape.numel()}" for shape, dtype in zip(shapes, dtypes, strict=True))
