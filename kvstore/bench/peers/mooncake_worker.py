"""One Mooncake Store process. Runs in Mooncake's own environment and imports nothing of ours.

    mooncake_worker.py storage MASTER HOST:PORT SEGMENT_BYTES
    mooncake_worker.py client MASTER HOST:PORT VALUE_BYTES KEYS
    mooncake_worker.py loader MASTER HOST:PORT SEGMENT_BYTES BLOCK_BYTES BLOCKS

Speaks JSON lines: prints {"event": "ready"}, then answers {"operation", "seconds"} with a sample, a
loader with the seconds that one load of all blocks took.
Mooncake itself prints to both streams; readers skip lines that are no JSON.
"""

import ctypes
import json
import sys
import time
from collections.abc import Callable
from typing import Any

Call = Callable[[int], None]
LOCAL_BUFFER_BYTES = 256 << 20


def say(message: dict[str, Any]) -> None:
    """Prints one JSON line."""
    sys.stdout.write("\n" + json.dumps(message) + "\n")
    sys.stdout.flush()


def open_store(master: str, host: str, segment_bytes: int) -> Any:
    """A store that lends `segment_bytes` to the others."""
    from mooncake.store import MooncakeDistributedStore

    store = MooncakeDistributedStore()
    status = store.setup(host, "P2PHANDSHAKE", segment_bytes, LOCAL_BUFFER_BYTES, "tcp", "", master)
    if status != 0:
        raise SystemExit(f"Mooncake setup failed with {status}")
    return store


def timed(prepare: Call, call: Call, seconds: float) -> tuple[list[int], int]:
    """Latencies in nanoseconds after a warm-up, and their sum; `prepare` is not in them."""
    warm_until = time.perf_counter() + seconds / 10
    position = 0
    while position == 0 or time.perf_counter() < warm_until:
        prepare(position)
        call(position)
        position += 1
    latencies = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        prepare(position)
        begun = time.perf_counter_ns()
        call(position)
        latencies.append(time.perf_counter_ns() - begun)
        position += 1
    return latencies, sum(latencies)


def client_calls(
    store: Any, value_bytes: int, keys: int
) -> tuple[dict[str, tuple[Call, Call]], Any]:
    """The calls to measure, on one registered and warm buffer."""
    memory = ctypes.create_string_buffer(value_bytes + 4096)
    address = (ctypes.addressof(memory) + 4095) // 4096 * 4096
    ctypes.memset(address, 7, value_bytes)
    if store.register_buffer(address, value_bytes) != 0:
        raise SystemExit("Mooncake could not register the buffer")
    names = [f"large:{number}" for number in range(keys)]
    for name in names:
        if store.put_from(name, address, value_bytes) != 0:
            raise SystemExit("Mooncake could not store a value")

    def nothing(position: int) -> None:
        pass

    def make_room(position: int) -> None:
        # Mooncake does not overwrite: a put of a known key does nothing. So each name is removed,
        # outside the timing, and its memory, already touched, serves the next put.
        store.remove(f"put:{position % keys}")

    def put_from(position: int) -> None:
        status = store.put_from(f"put:{position % keys}", address, value_bytes)
        if status != 0:
            raise SystemExit(f"Mooncake put_from failed with {status}")

    def get_into(position: int) -> None:
        count = store.get_into(names[position % keys], address, value_bytes)
        if count != value_bytes:
            raise SystemExit(f"Mooncake get_into returned {count}")

    calls: dict[str, tuple[Call, Call]]
    calls = {"put_from": (make_room, put_from), "get_into": (nothing, get_into)}
    return calls, memory


def answer_loads(store: Any, block_bytes: int, blocks: int) -> None:
    """Stores blocks, and loads all of them in one call for each line that comes."""
    import numpy

    source = numpy.random.default_rng(1).integers(0, 256, (blocks, block_bytes), numpy.uint8)
    target = numpy.zeros_like(source)
    names = [f"block:{number}" for number in range(blocks)]
    sizes = [block_bytes] * blocks
    for memory in (source, target):
        if store.register_buffer(memory.ctypes.data, memory.nbytes) != 0:
            raise SystemExit("Mooncake could not register the buffer")
    for name, row in zip(names, source, strict=True):
        if store.put_from(name, row.ctypes.data, block_bytes) != 0:
            raise SystemExit("Mooncake could not store a block")
    addresses = [row.ctypes.data for row in target]
    say({"event": "ready"})
    for _ in sys.stdin:
        begin = time.perf_counter()
        counts = store.batch_get_into(names, addresses, sizes)
        seconds = time.perf_counter() - begin
        if list(counts) != sizes or not numpy.array_equal(source, target):
            raise SystemExit("Mooncake loaded other bytes than were stored")
        target[:] = 0
        say({"event": "loaded", "seconds": seconds})


def main() -> None:
    """Entry point of the process."""
    role, master, host = sys.argv[1:4]
    if role == "storage":
        store = open_store(master, host, int(sys.argv[4]))
        say({"event": "ready"})
        sys.stdin.read()
    elif role == "loader":
        store = open_store(master, host, int(sys.argv[4]))
        answer_loads(store, int(sys.argv[5]), int(sys.argv[6]))
    else:
        store = open_store(master, host, 0)
        calls, _memory = client_calls(store, int(sys.argv[4]), int(sys.argv[5]))
        say({"event": "ready"})
        for line in sys.stdin:
            wish = json.loads(line)
            prepare, call = calls[wish["operation"]]
            latencies, elapsed = timed(prepare, call, wish["seconds"])
            say({"event": "sample", "latencies_ns": latencies, "elapsed_ns": elapsed})
    store.close()


main()
