"""The main job as one function: nodes, clients, replay, kill, the same through Redis, clean-up."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from kvstore.bench.processes import Child, ProcessError, start_node, target_of
from kvstore.demo.replay import Account, Replay, start_clients
from kvstore.demo.report import Progress, Setting, add_redis, row_of
from kvstore.demo.trace import Request, WorkloadFacts
from kvstore.node.units import format_bytes

NODES: Final = 2
CLIENTS: Final = 2
_CAPACITY_BYTES_MIN: Final = 64 << 20
_CAPACITY_MARGIN: Final = 1.3


@dataclass(frozen=True)
class Plan:
    """What to run. `capacity_bytes` None: room for every block; limits None: no limit."""

    workload: str
    synthetic: bool
    block_bytes: int
    fabric: str = "auto"
    capacity_bytes: int | None = None
    speed: float = 0.0
    kill: bool = False
    redis: bool = True
    limit_s: float | None = None
    redis_limit_s: float | None = None
    quiet: bool = False


def run_job(
    plan: Plan, requests: Sequence[Request], facts: WorkloadFacts
) -> tuple[Setting, Account, dict[str, Any]]:
    """Runs the plan; returns what was set up, what happened, and its row for `--json`."""
    capacity_bytes = plan.capacity_bytes or capacity_for(facts.distinct_blocks, plan.block_bytes)
    eviction = "adaptive" if plan.capacity_bytes else "none"
    check_memory(NODES * capacity_bytes)
    setting = Setting(
        workload=plan.workload,
        synthetic=plan.synthetic,
        facts=facts,
        block_bytes=plan.block_bytes,
        fabric=plan.fabric,
        nodes=NODES,
        capacity_bytes=capacity_bytes,
        eviction=eviction,
    )
    account = _replay_kvstore(plan, setting, requests)
    row = row_of(setting, account)
    if plan.redis:
        add_redis(row, *_replay_redis(plan, requests))
    else:
        add_redis(row, None, "not asked for")
    return setting, account, row


def capacity_for(distinct_blocks: int, block_bytes: int) -> int:
    """Capacity of each node that holds its share of all blocks, index and slack included."""
    # 128 bytes a block are headers, keys, eviction metadata and index slots.
    share = distinct_blocks * (block_bytes + 128) / NODES
    pages = -(-int(_CAPACITY_MARGIN * share) // (1 << 20))
    return max(_CAPACITY_BYTES_MIN, pages << 20)


def check_memory(needed_bytes: int) -> None:
    """Raises ProcessError where the machine has not that much free memory."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                available_bytes = int(line.split()[1]) << 10
                if needed_bytes > available_bytes:
                    raise ProcessError(
                        f"the nodes need {format_bytes(needed_bytes)} and this machine has "
                        f"{format_bytes(available_bytes)} free: use a smaller --block-bytes, "
                        "--limit or --capacity"
                    )


def _replay_kvstore(plan: Plan, setting: Setting, requests: Sequence[Request]) -> Account:
    with contextlib.ExitStack() as stack:
        nodes = []
        for number in range(NODES):
            node = start_node(
                setting.capacity_bytes, name=f"node {number}", eviction=setting.eviction
            )
            stack.callback(node.child.stop)
            nodes.append(node)
        clients, setting.fabric = start_clients(
            target_of(nodes, plan.fabric),
            count=CLIENTS,
            block_bytes=plan.block_bytes,
            seed=os.getpid(),
            fabric=plan.fabric,
        )
        for client in clients:
            stack.callback(client.stop)
        progress = Progress("kvstore", len(requests), quiet=plan.quiet)
        stack.callback(progress.close)
        victim_node, victim_client = nodes[-1].child, clients[-1]
        progress.note(
            f"{NODES} nodes on {', '.join(node.listen for node in nodes)}; "
            f"{CLIENTS} clients, pids {', '.join(str(client.pid) for client in clients)}"
        )

        def kill() -> list[Child]:
            victim_node.kill()
            victim_client.kill()
            progress.note(
                f"killed node {victim_node.pid} and client {victim_client.pid} with SIGKILL"
            )
            return [victim_client]

        replay = Replay(
            requests,
            clients,
            speed=plan.speed,
            kill_after=2 * len(requests) // 3 if plan.kill else None,
            kill=kill if plan.kill else None,
            deadline_s=plan.limit_s,
            progress=progress,
        )
        return replay.run()


def _replay_redis(plan: Plan, requests: Sequence[Request]) -> tuple[Account | None, str]:
    """The same requests through Redis; None and the reason where it can't be."""
    from kvstore.bench.redis_server import RedisServer, is_installed

    try:
        import redis  # noqa: F401
    except ImportError:
        return None, "the Python package redis is not installed"
    if not is_installed():
        return None, "redis-server is not installed"
    try:
        with contextlib.ExitStack() as stack:
            server = RedisServer()
            stack.callback(server.close)
            clients, _ = start_clients(
                f"redis://{server.socket_path}",
                count=CLIENTS,
                block_bytes=plan.block_bytes,
                seed=os.getpid(),
                name="redis client",
            )
            for client in clients:
                stack.callback(client.stop)
            progress = Progress("Redis", len(requests), quiet=plan.quiet)
            stack.callback(progress.close)
            replay = Replay(
                requests,
                clients,
                speed=plan.speed,
                deadline_s=plan.redis_limit_s,
                progress=progress,
            )
            return replay.run(), ""
    except ProcessError as error:
        return None, str(error)
