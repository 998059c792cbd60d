"""LMDB through py-lmdb: a fresh read transaction a get, the value copied."""

from __future__ import annotations

import shutil
import tempfile
from typing import Any

from kvstore.bench.measure import Sample, time_calls
from kvstore.bench.peers.case import Case, Unavailable, Work

_MAP_BYTES = 256 << 20


class LmdbSystem:
    """An environment in a folder of its own, all of it in the page cache."""

    name = "lmdb"

    def __init__(self, work: Work) -> None:
        try:
            import lmdb
        except ImportError as error:
            raise Unavailable(f"Python package missing: {error.name}") from error
        self._work = work
        self._folder = tempfile.mkdtemp(prefix="kvstore-lmdb-")
        self._environment: Any = lmdb.open(self._folder, map_size=_MAP_BYTES, sync=False)
        with self._environment.begin(write=True) as transaction:
            for key in work.keys:
                transaction.put(key, work.value)

    def measure(self, case: Case, seconds: float) -> Sample:
        """See System."""
        begin = self._environment.begin
        order, batches = self._work.order, self._work.batches

        def get(i: int) -> bytes:
            with begin() as transaction:
                value: bytes = transaction.get(order[i % len(order)])
                return value

        def get_many(i: int) -> list[bytes]:
            with begin() as transaction:
                return [transaction.get(key) for key in batches[i % len(batches)]]

        if case.operation == "get_many":
            return time_calls(get_many, seconds, operations_per_call=case.batch)
        assert get(0) == self._work.value
        return time_calls(get, seconds)

    def close(self) -> None:
        """See System."""
        self._environment.close()
        shutil.rmtree(self._folder, ignore_errors=True)
