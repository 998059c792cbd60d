"""Drives client processes through a workload, in file order, and keeps the account.

A request is handed out when at most `in_flight_max` others run and none of those is writing a
block that it wants: so it finds what every earlier request wrote, as in the definition of the hit
ratio, and hits do not depend on timing. When a client dies, the requests that it had taken go to
the others, first.
"""

from __future__ import annotations

import selectors
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from kvstore.bench.processes import Child, ProcessError
from kvstore.demo.trace import Request

IN_FLIGHT_MAX: Final = 8
_STALL_TIMEOUT_S: Final = 60.0
_AUDIT_BLOCKS: Final = 4096


@dataclass
class Account:
    """What a replay did. Latencies are in microseconds, one a request."""

    completed: int = 0
    input_tokens: int = 0
    hit_tokens: int = 0
    blocks_read: int = 0
    blocks_written: int = 0
    mismatches: int = 0
    failed_writes: dict[str, int] = field(default_factory=dict)
    match_us: list[float] = field(default_factory=list)
    read_us: list[float] = field(default_factory=list)
    write_us: list[float] = field(default_factory=list)
    request_us: list[float] = field(default_factory=list)
    seconds: float = 0.0
    stopped_early: bool = False
    killed_at: int | None = None  # requests completed when node and client were killed
    seconds_before_kill: float = 0.0
    hit_tokens_before_kill: int = 0
    input_tokens_before_kill: int = 0
    resume_ms: float | None = None
    requests_taken_over: int = 0
    keys_acknowledged: int = 0
    keys_lost: int = 0
    keys_missing: int = 0  # acknowledged by a node that lives, yet not there
    counters: dict[str, int] = field(default_factory=dict)

    @property
    def token_hit_ratio(self) -> float:
        """Tokens hit over tokens asked for."""
        return self.hit_tokens / self.input_tokens if self.input_tokens else 0.0


@dataclass
class _Flight:
    request: int
    client: Child
    started: float
    writing: list[int]


class Replay:
    """One run of a workload through running clients."""

    def __init__(
        self,
        requests: Sequence[Request],
        clients: Sequence[Child],
        *,
        speed: float = 0.0,
        kill_after: int | None = None,
        kill: Callable[[], Iterable[Child]] | None = None,
        deadline_s: float | None = None,
        progress: Callable[[Account], None] = lambda account: None,
    ) -> None:
        """`speed` 0 replays as fast as it goes, 1 at the recorded arrival times.

        `kill` is called once, when `kill_after` requests are done or two thirds of `deadline_s`
        have passed, and returns the clients that it killed.
        """
        self.account = Account()
        self._requests = requests
        self._clients = list(clients)
        self._speed = speed
        self._kill_after = kill_after if kill is not None else None
        self._kill = kill
        self._deadline_s = deadline_s
        self._progress = progress
        self._next = 0
        self._again: deque[int] = deque()
        self._flights: dict[int, _Flight] = {}
        self._written: set[int] = set()
        self._writing: set[int] = set()
        self._refused: set[int] = set()
        self._counters: dict[str, dict[str, int]] = {}
        self._killed_at_s: float | None = None
        self._started = 0.0

    def run(self) -> Account:
        """Replays everything, then audits what was acknowledged if a node was killed."""
        self._started = time.perf_counter()
        with selectors.DefaultSelector() as selector:
            for client in self._clients:
                selector.register(client.stdout, selectors.EVENT_READ, client)
            self._loop(selector)
        self.account.seconds = time.perf_counter() - self._started
        for counters in self._counters.values():
            for name, count in counters.items():
                self.account.counters[name] = self.account.counters.get(name, 0) + count
        self.account.keys_acknowledged = len(self._written - self._refused)
        if self._killed_at_s is not None:
            self._audit()
        self._progress(self.account)
        return self.account

    def _loop(self, selector: selectors.BaseSelector) -> None:
        last_event = time.perf_counter()
        while self._has_more() or self._flights:
            now = time.perf_counter()
            self._kill_if_due(now, selector)
            self._hand_out(now)
            if not self._flights and not self._has_more():
                break
            for key, _ in selector.select(0.05):
                last_event = now
                self._hear(key.data, selector)
            if self._flights and now - last_event > _STALL_TIMEOUT_S:
                raise ProcessError(f"no request finished within {_STALL_TIMEOUT_S:g} s")
            self._progress(self.account)

    def _has_more(self) -> bool:
        if self._deadline_s is not None and not self.account.stopped_early:
            self.account.stopped_early = (
                self._next < len(self._requests)
                and time.perf_counter() - self._started > self._deadline_s
            )
        if self._again:
            return True
        return self._next < len(self._requests) and not self.account.stopped_early

    def _hand_out(self, now: float) -> None:
        while len(self._flights) < IN_FLIGHT_MAX and self._has_more():
            number = self._again[0] if self._again else self._next
            request = self._requests[number]
            due = self._started + request.timestamp_ms / 1e3 / self._speed if self._speed else now
            if due > now or any(block in self._writing for block in request.blocks):
                return
            if self._again:
                self._again.popleft()
            else:
                self._next += 1
            self._send(number, request)

    def _send(self, number: int, request: Request) -> None:
        busy = dict.fromkeys((client.pid for client in self._clients), 0)
        for flight in self._flights.values():
            busy[flight.client.pid] += 1
        client = min(self._clients, key=lambda candidate: busy[candidate.pid])
        writing = [block for block in request.blocks if block not in self._written]
        self._writing.update(writing)
        self._flights[number] = _Flight(number, client, time.perf_counter(), writing)
        client.send({"request": number, "blocks": request.blocks})

    def _hear(self, client: Child, selector: selectors.BaseSelector) -> None:
        if client not in self._clients:
            return
        if not client.fill():
            raise client.death()
        for message in client.messages():
            if message["event"] == "failed":
                raise ProcessError(f"{client.name}: {message['error']}")
            if message["event"] == "done":
                self._finish(self._flights.pop(message["request"]), message)

    def _finish(self, flight: _Flight, message: dict[str, Any]) -> None:
        account, request = self.account, self._requests[flight.request]
        self._writing.difference_update(flight.writing)
        self._written.update(request.blocks)
        for block, error in message["failed"]:
            account.failed_writes[error] = account.failed_writes.get(error, 0) + 1
            # A block that was acknowledged earlier stays so: it is lost, not refused.
            if block in flight.writing:
                self._refused.add(block)
        hit_tokens = request.hit_tokens(message["matched"])
        account.completed += 1
        account.input_tokens += request.input_tokens
        account.hit_tokens += hit_tokens
        account.blocks_read += message["matched"]
        account.blocks_written += message["written"]
        account.mismatches += message["wrong"]
        for name in ("match_us", "read_us", "write_us", "request_us"):
            getattr(account, name).append(message[name])
        self._counters[flight.client.name] = message["counters"]
        if self._killed_at_s is None:
            account.hit_tokens_before_kill += hit_tokens
            account.input_tokens_before_kill += request.input_tokens
        elif account.resume_ms is None and flight.started > self._killed_at_s:
            account.resume_ms = 1e3 * (time.perf_counter() - self._killed_at_s)

    def _kill_if_due(self, now: float, selector: selectors.BaseSelector) -> None:
        if self._kill is None or self._kill_after is None or self._killed_at_s is not None:
            return
        late = self._deadline_s is not None and now - self._started > self._deadline_s * 2 / 3
        if self.account.completed < self._kill_after and not late:
            return
        self.account.killed_at = self.account.completed
        self.account.seconds_before_kill = now - self._started
        self._killed_at_s = time.perf_counter()
        for client in self._kill():
            selector.unregister(client.stdout)
            self._clients.remove(client)
            self._take_over(client)

    def _take_over(self, dead: Child) -> None:
        """Puts the requests of a dead client back at the front, in file order."""
        orphans = sorted(n for n, flight in self._flights.items() if flight.client is dead)
        for number in orphans:
            self._writing.difference_update(self._flights.pop(number).writing)
        self._again.extendleft(reversed(orphans))
        self.account.requests_taken_over = len(orphans)

    def _audit(self) -> None:
        """Asks for every acknowledged key; none may be missing from a node that lives."""
        acknowledged = sorted(self._written - self._refused)
        client = self._clients[0]
        for begin in range(0, len(acknowledged), _AUDIT_BLOCKS):
            client.send({"audit": acknowledged[begin : begin + _AUDIT_BLOCKS]})
            answer = client.receive(_STALL_TIMEOUT_S)
            if answer["event"] != "audited":
                raise ProcessError(f"{client.name}: {answer.get('error', answer)}")
            counts = answer["counts"]
            self.account.keys_lost += counts.get("NodeUnreachable", 0)
            self.account.keys_missing += counts.get("absent", 0)


def start_clients(
    target: str,
    *,
    count: int,
    block_bytes: int,
    seed: int,
    fabric: str = "auto",
    name: str = "client",
) -> tuple[list[Child], str]:
    """Starts `count` client processes on `target`, waits until all are connected.

    Returns them and the fabric that they use.
    """
    clients: list[Child] = []
    try:
        for number in range(count):
            child = Child(f"{name} {number}", [sys.executable, "-m", "kvstore.demo.client"])
            clients.append(child)
            child.send(
                {
                    "target": target,
                    "block_bytes": block_bytes,
                    "seed": seed,
                    "fabric": fabric,
                    "threads": IN_FLIGHT_MAX // count,
                }
            )
        fabrics = {child.receive()["fabric"] for child in clients}
    except ProcessError:
        for child in clients:
            child.stop()
        raise
    return clients, "+".join(sorted(fabrics))
