"""One process that loads blocks from LMCache. Runs in LMCache's environment, imports none of ours.

    lmcache_worker.py shm HOST:PORT BLOCK_BYTES BLOCKS   from LMCache's server, as its engines do
    lmcache_worker.py tcp HOST:PORT BLOCK_BYTES BLOCKS   from its remote store `lm://`

Speaks JSON lines: prints {"event": "ready"} once the blocks are stored, then answers each
{"operation": "load"} with the seconds that one load of all of them took.
"""

import asyncio
import json
import socket
import sys
import threading
import time
from typing import Any

import numpy
import torch

BLOCK_TOKENS = 16
TIMEOUT_S = 60.0
START_S = 150.0


def say(message: dict[str, Any]) -> None:
    """Prints one JSON line."""
    sys.stdout.write("\n" + json.dumps(message) + "\n")
    sys.stdout.flush()


class Shared:
    """LMCache's server holds the blocks; they are copied out of the memory that it shares.

    A load is what an engine without a GPU does for it: a look-up, the wait for what it fetches, the
    places of the blocks, their copies, and giving the places back.
    """

    def __init__(self, address: str, source: numpy.ndarray) -> None:
        from lmcache.v1.distributed.api import MemoryLayoutDesc
        from lmcache.v1.multiprocess.custom_types import RegisterEngineDrivenContextPayload
        from lmcache.v1.multiprocess.transfer_context.base import EngineDrivenContextMetadata
        from lmcache.v1.multiprocess.transfer_context.shm import EngineDrivenContextShm
        from lmcache.v1.multiprocess.transport.factory import RequestClientFactory

        blocks, block_bytes = source.shape
        width = block_bytes // 4 // BLOCK_TOKENS
        self._tokens = tuple(range(blocks * BLOCK_TOKENS))
        self._loads = 0
        self._client = RequestClientFactory.create(f"tcp://{address}")
        registered = self._client.register_kv_cache_engine_driven_context(
            RegisterEngineDrivenContextPayload(
                instance_id=1,
                model_name="bench",
                world_size=1,
                block_size=BLOCK_TOKENS,
                num_layers=1,
                hidden_dim_size=width,
                dtype_str="float32",
                use_mla=True,
                num_physical_slots=BLOCK_TOKENS,
            )
        ).result(timeout=TIMEOUT_S)
        shape = torch.Size([1, BLOCK_TOKENS, width])
        self._context = EngineDrivenContextShm(
            EngineDrivenContextMetadata(
                MemoryLayoutDesc(shapes=[shape], dtypes=[torch.float32]), BLOCK_TOKENS, True
            ),
            self._client,
            TIMEOUT_S,
            registered.shm_name,
            registered.pool_size,
        )
        key = self._key()
        places, indices = self._context.prepare_store(key, 1)
        for place, index in zip(places, indices, strict=True):
            place.view(torch.uint8).view(-1).copy_(torch.from_numpy(source[index]))
        if len(indices) != blocks or not self._context.commit_store(key, 1, []):
            raise SystemExit("LMCache did not store the blocks")

    def _key(self) -> Any:
        from lmcache.v1.multiprocess.custom_types import IPCCacheServerKey

        self._loads += 1
        return IPCCacheServerKey(
            model_name="bench",
            world_size=1,
            worker_id=0,
            token_ids=self._tokens,
            start=0,
            end=len(self._tokens),
            request_id=f"load {self._loads}",
            num_kv_readers=1,
        )

    def load(self, target: numpy.ndarray) -> None:
        """One load of all blocks."""
        key = self._key()
        looked_up = key.__class__(**{**vars(key), "worker_id": None})
        self._client.lookup(looked_up, 1).result(timeout=TIMEOUT_S)
        deadline = time.monotonic() + TIMEOUT_S
        while (found := self._found(key)) is None:
            if time.monotonic() > deadline:
                raise SystemExit("LMCache's look-up does not end")
        places = self._context.prepare_retrieve(key, 1)
        if found != len(target) or places is None or len(places) != len(target):
            raise SystemExit(f"LMCache found {found} blocks")
        for place, row in zip(places, target, strict=True):
            row[:] = place.view(torch.uint8).view(-1).numpy()
        self._context.commit_retrieve(key, 1)
        self._client.end_session(key.request_id)

    def _found(self, key: Any) -> int | None:
        found: int | None
        found = self._client.query_prefetch_status(key.request_id).result(timeout=TIMEOUT_S)
        return found


class Remote:
    """LMCache's own remote store over TCP. It loads into LMCache's memory, then that is copied."""

    def __init__(self, address: str, source: numpy.ndarray) -> None:
        from lmcache.utils import CacheEngineKey
        from lmcache.v1.config import LMCacheEngineConfig
        from lmcache.v1.memory_management import MemoryFormat
        from lmcache.v1.metadata import LMCacheMetadata
        from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend
        from lmcache.v1.storage_backend.remote_backend import RemoteBackend

        blocks, block_bytes = source.shape
        width = block_bytes // 4 // BLOCK_TOKENS
        config = LMCacheEngineConfig.from_defaults(
            chunk_size=BLOCK_TOKENS,
            local_cpu=False,
            max_local_cpu_size=0.5,
            remote_serde="naive",
            remote_url=f"lm://{address}",
        )
        metadata = LMCacheMetadata(
            model_name="bench",
            world_size=1,
            local_world_size=1,
            worker_id=0,
            local_worker_id=0,
            kv_dtype=torch.float32,
            kv_shape=(1, 1, BLOCK_TOKENS, 1, width),
            chunk_size=BLOCK_TOKENS,
            use_mla=True,
        )
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        memory = LocalCPUBackend(config, metadata, "cpu")
        self._remote = RemoteBackend(config, metadata, loop, memory, "cpu")
        self._keys = [
            CacheEngineKey(
                model_name="bench", world_size=1, worker_id=0, chunk_hash=i, dtype=torch.float32
            )
            for i in range(1, blocks + 1)
        ]
        objects = []
        for row in source:
            item = memory.allocate(metadata.get_shapes(), [torch.float32], MemoryFormat.KV_MLA_FMT)
            if item is None or item.get_size() != block_bytes:
                raise SystemExit("LMCache has no memory for a block")
            memoryview(item.byte_array).cast("B")[:] = row
            objects.append(item)
        for future in self._remote.batched_submit_put_task(self._keys, objects) or []:
            future.result(TIMEOUT_S)
        for item in objects:
            item.ref_count_down()
        deadline = time.monotonic() + TIMEOUT_S
        while not all(self._remote.contains(key) for key in self._keys):
            if time.monotonic() > deadline:
                raise SystemExit("LMCache did not store the blocks")

    def load(self, target: numpy.ndarray) -> None:
        """One load of all blocks."""
        for row, item in zip(target, self._remote.batched_get_blocking(self._keys), strict=True):
            if item is None:
                raise SystemExit("LMCache lost a block")
            row[:] = memoryview(item.byte_array).cast("B")
            item.ref_count_down()


def wait_for(address: str) -> None:
    """Returns once somebody listens there."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, int(port)), 1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"nobody listens at {address}")


def main() -> None:
    """Entry point of the process."""
    role, address, block_bytes, blocks = sys.argv[1:5]
    wait_for(address)
    source = numpy.random.default_rng(1).integers(
        0, 256, (int(blocks), int(block_bytes)), numpy.uint8
    )
    target = numpy.zeros_like(source)
    loader = Shared(address, source) if role == "shm" else Remote(address, source)
    say({"event": "ready"})
    for _ in sys.stdin:
        begin = time.perf_counter()
        loader.load(target)
        seconds = time.perf_counter() - begin
        if not numpy.array_equal(source, target):
            raise SystemExit("LMCache loaded other bytes than were stored")
        target[:] = 0
        say({"event": "loaded", "seconds": seconds})


main()
