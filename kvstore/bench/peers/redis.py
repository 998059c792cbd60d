"""Redis through redis-py with hiredis, over its Unix socket and over loopback TCP."""

from __future__ import annotations

from typing import Any

from kvstore.bench.measure import Sample, time_calls
from kvstore.bench.peers.case import Case, Unavailable, Work
from kvstore.bench.processes import ProcessError
from kvstore.bench.redis_server import RedisServer


class RedisSystem:
    """A private redis-server and one client over each transport."""

    name = "redis"

    def __init__(self, work: Work) -> None:
        try:
            import hiredis  # noqa: F401  (redis-py uses it when it is there)
            import redis
        except ImportError as error:
            raise Unavailable(f"Python package missing: {error.name}") from error
        try:
            self._server = RedisServer()
        except ProcessError as error:
            raise Unavailable(str(error)) from error
        self._work = work
        self._clients: dict[str, Any] = {
            "unix": redis.Redis(unix_socket_path=self._server.socket_path),
            "tcp": redis.Redis(host="127.0.0.1", port=self._server.port),
        }
        pipeline = self._clients["unix"].pipeline(transaction=False)
        for key in work.keys:
            pipeline.set(key, work.value)
        pipeline.execute()

    def measure(self, case: Case, seconds: float) -> Sample:
        """See System."""
        client = self._clients[case.fabric]
        order, batches = self._work.order, self._work.batches
        if case.operation == "get_many":
            assert len(client.mget(batches[0])) == case.batch
            return time_calls(
                lambda i: client.mget(batches[i % len(batches)]),
                seconds,
                operations_per_call=case.batch,
            )
        assert client.get(order[0]) == self._work.value
        return time_calls(lambda i: client.get(order[i % len(order)]), seconds)

    def close(self) -> None:
        """See System."""
        for client in self._clients.values():
            client.close()
        self._server.close()
