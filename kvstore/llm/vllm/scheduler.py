"""The half of the connector that runs in vLLM's scheduler: what to load, and what to store.

It asks the store for the longest prefix of each new request, and in each step names the blocks that
this step completes. It moves no KV. One thread.

A request that another engine may be computing just now waits in vLLM's queue, by single-flight. One
that leads lets the others go when its blocks are in the store: `Landings` finds that out.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vllm.v1.attention.backends.utils import NULL_BLOCK_ID

import kvstore
from kvstore.llm.chains import Chains, Prompt
from kvstore.llm.prefix_cache import PrefixCache
from kvstore.llm.single_flight import Flight, Flights, abandon
from kvstore.llm.vllm.landings import Landings
from kvstore.llm.vllm.metadata import GroupBlocks, HandOffJob, Job, StepMetadata
from kvstore.llm.vllm.settings import Geometry, Settings

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request


@dataclass(slots=True)
class _Tracked:
    """A request that vLLM works on."""

    request: Any
    #: Tokens that vLLM's own cache held when the store was asked.
    local_tokens: int = 0
    #: Tokens from the first on whose blocks are in the store, as far as is known, or not wanted
    #: there.
    stored_tokens: int = 0
    #: A load that has not ended yet.
    loading: list[GroupBlocks] = field(default_factory=list)
    #: Of each group, what is told of its blocks.
    prompts: list[Prompt] | None = None
    #: In a prefill engine: the places of the first block that is handed off and behind the last.
    published: tuple[int, int] | None = None
    #: In a decode engine: tokens behind which what is handed off begins; None: nothing is.
    awaited_tokens: int | None = None
    #: Whether a hand-off was waited for: that is done once.
    awaited: bool = False
    #: Its blocks, as long as it is waited for.
    handed: GroupBlocks | None = None
    #: The turn to compute what the store lacks, or the wait for it; None: not asked for.
    flight: Future[Flight] | None = None


class SchedulerSide:
    """See the module."""

    def __init__(self, settings: Settings, geometry: Geometry) -> None:
        self._settings = settings
        self._geometry = geometry
        self._store = kvstore.connect(settings.target)
        # Every worker holds a part of each block: a hit needs them all.
        self._caches = [
            [
                PrefixCache(
                    self._store,
                    geometry.namespace(group, ranks),
                    limits=settings.limits(),
                    prefetch_bytes=0,
                )
                for ranks in geometry.all_ranks()
            ]
            for group in range(len(geometry.group_ids))
        ]
        self._chains = Chains()
        self._flights = Flights(self._store)
        # The step that computes the last blocks is still to come, and takes what it takes: nobody
        # waits for it longer than for a flight.
        self._landings = Landings(settings.flight_wait_s + settings.store_timeout_s)
        self._tracked: dict[str, _Tracked] = {}
        self._loads: list[Job] = []

    # ---- a new request ----

    def on_new_request(self, request: Request) -> None:
        """See KVConnectorBase_V1."""
        self._tracked[request.request_id] = _Tracked(request)

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """See KVConnectorBase_V1. None: another engine may be computing it, ask again."""
        tracked = self._tracked.setdefault(request.request_id, _Tracked(request))
        align = self._geometry.align_tokens
        tracked.local_tokens = num_computed_tokens // align * align
        # One token is left to compute: its logits are what the request wants.
        usable = (request.num_tokens - 1) // align * align
        local = tracked.local_tokens
        if self._is_handed_off(tracked, usable):
            return usable - num_computed_tokens, True
        if not self._has_turn(tracked, usable):
            return None, False
        matched = self._matched_tokens(request, local if len(self._caches) > 1 else 0, usable)
        if matched < local:
            if tracked.stored_tokens == 0 and self._is_whole():
                # The engine has what the store lost, or never got: the next step stores it.
                tracked.stored_tokens = matched
            else:
                tracked.stored_tokens = max(tracked.stored_tokens, local)
            matched = self._matched_tokens(request, local, usable)
        else:
            tracked.stored_tokens = max(tracked.stored_tokens, local)
        external = matched - num_computed_tokens
        return (external, True) if external > 0 else (0, False)

    def _is_handed_off(self, tracked: _Tracked, usable: int) -> bool:
        """Whether a prefill engine hands off what the store lacks; asked for once a request."""
        request, local = tracked.request, tracked.local_tokens
        if (
            self._settings.hand_off != "receive"
            or tracked.awaited
            or not _params(request).get("do_remote_prefill")
            or usable <= local
        ):
            return False
        matched = max(local, self._matched_tokens(request, local, usable))
        tracked.awaited_tokens = matched if matched < usable else None
        return matched < usable

    def _has_turn(self, tracked: _Tracked, usable: int) -> bool:
        """Whether the request may begin: it has nothing to wait for, or has waited."""
        if tracked.awaited:
            # The deadline of its hand-off is over: it waits for nobody else.
            return True
        if tracked.flight is None:
            tracked.flight = self._begin_flight(tracked, usable)
            if tracked.flight is None:
                return True
            tracked.flight.add_done_callback(self._count_flight)
        return tracked.flight.done()

    def _count_flight(self, begun: Future[Flight]) -> None:
        if begun.exception() is None:
            self._caches[0][0].count_flight(begun.result())

    def _begin_flight(self, tracked: _Tracked, usable: int) -> Future[Flight] | None:
        request, local, geometry = tracked.request, tracked.local_tokens, self._geometry
        missing_tokens = usable - local
        wait_s = self._settings.flight_timeout_s(missing_tokens)
        if wait_s <= 0 or missing_tokens <= 0:
            return None
        cache = self._caches[0][0]

        def look() -> tuple[int, bytes | None]:
            """On a waiting thread too: it reads nothing that changes but the store."""
            matched = max(local, self._matched_tokens(request, 0, usable))
            if matched >= usable:
                return matched, None
            return matched, cache.key_of(geometry.hashes(0, hashes, matched // step, 1)[0])

        step = geometry.block_tokens[0]
        hashes = list(request.block_hashes)
        return self._flights.begin(look, wait_s)

    def _land(self, tracked: _Tracked) -> None:
        """End the flight of a request whose prompt's last blocks are on their way to the store."""
        flight, tracked.flight = tracked.flight, _no_flight()
        if flight is None or not flight.done() or flight.exception() is not None:
            return
        if flight.result().leads:
            geometry, end = self._geometry, tracked.stored_tokens
            if end <= 0:
                flight.result().end()
                return
            hashes = tracked.request.block_hashes
            last = [
                (cache, geometry.hashes(group, hashes, end // tokens - 1, 1)[0])
                for group, tokens in enumerate(geometry.block_tokens)
                for cache in self._caches[group]
            ]
            self._landings.add(flight.result(), last)

    def _is_whole(self) -> bool:
        """Whether every node is up: then what the store lacks it can be given."""
        return all(member.state == "up" for member in self._store.members())

    def _matched_tokens(self, request: Request, local: int, usable: int) -> int:
        """Tokens up to which every group and every worker has all blocks behind `local`."""
        geometry = self._geometry
        end: int = min(usable, len(request.block_hashes) * geometry.hash_tokens)
        for group, caches in enumerate(self._caches):
            tokens = geometry.block_tokens[group]
            first = local // tokens
            for cache in caches:
                if end <= local:
                    return local
                hashes = geometry.hashes(group, request.block_hashes, first, end // tokens - first)
                end = min(end, (first + cache.match(hashes)) * tokens)
        return end // geometry.align_tokens * geometry.align_tokens

    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        """See KVConnectorBase_V1. The second call for an asynchronous load has no tokens."""
        if num_external_tokens <= 0:
            return
        tracked = self._tracked[request.request_id]
        tables = blocks.get_block_ids()
        begin = tracked.local_tokens
        end = begin + num_external_tokens
        middle = end if tracked.awaited_tokens is None else tracked.awaited_tokens
        groups = self._blocks(tracked, tables, begin, middle)
        job = Job(request.request_id, groups, self._prompts(tracked))
        if middle < end:
            (job.handed,) = self._blocks(tracked, tables, middle, end)
            tracked.handed, tracked.awaited_tokens, tracked.awaited = job.handed, None, True
        self._loads.append(job)
        tracked.loading = groups
        tracked.stored_tokens = end

    def _blocks(
        self, tracked: _Tracked, tables: tuple[list[int], ...], begin: int, end: int
    ) -> list[GroupBlocks]:
        """The blocks of each group that hold the tokens from `begin` to `end`."""
        geometry = self._geometry
        groups = []
        for group, group_id in enumerate(geometry.group_ids):
            tokens = geometry.block_tokens[group]
            first, last = begin // tokens, end // tokens
            hashes = geometry.hashes(group, tracked.request.block_hashes, first, last - first)
            groups.append(_present(group, tables[group_id][first:last], hashes, first))
        return groups

    def _prompts(self, tracked: _Tracked) -> list[Prompt]:
        """Of each group, what eviction is told of the request's blocks; it is served now."""
        if tracked.prompts is None:
            tracked.prompts = []
            for group in range(len(self._geometry.block_tokens)):
                keys = self._prompt_keys(tracked.request, group)
                prompt = self._chains.prompt(keys)
                self._chains.served(keys, prompt)
                tracked.prompts.append(prompt)
        return tracked.prompts

    def _prompt_keys(self, request: Request, group: int) -> list[bytes]:
        geometry = self._geometry
        hashed = len(request.block_hashes) * geometry.hash_tokens
        blocks = min(request.num_prompt_tokens, hashed) // geometry.block_tokens[group]
        hashes = geometry.hashes(group, request.block_hashes, 0, blocks)
        return [bytes([group % 256]) + digest for digest in hashes]

    # ---- a step ----

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> StepMetadata:
        """See KVConnectorBase_V1."""
        idle = scheduler_output.total_num_scheduled_tokens == 0
        metadata = StepMetadata(loads=self._loads, idle=idle)
        self._loads = []
        computed = {r.req_id: r.num_computed_tokens for r in scheduler_output.scheduled_new_reqs}
        running = scheduler_output.scheduled_cached_reqs
        computed.update(zip(running.req_ids, running.num_computed_tokens, strict=True))
        for request_id, count in scheduler_output.num_scheduled_tokens.items():
            tracked = self._tracked.get(request_id)
            table = scheduler_output.kv_connector_block_state.get_block_ids(request_id)
            if tracked is not None and table is not None:
                job = self._save_job(tracked, table, computed[request_id] + count)
                if job is not None:
                    metadata.saves.append(job)
                    metadata.hand_offs += self._hand_offs(tracked, job)
                prompt = tracked.request.num_prompt_tokens
                if computed[request_id] + count >= prompt:
                    self._land(tracked)
        return metadata

    def _save_job(
        self, tracked: _Tracked, table: tuple[list[int], ...], computed_tokens: int
    ) -> Job | None:
        """The blocks that are complete once `computed_tokens` tokens are computed."""
        geometry, request = self._geometry, tracked.request
        # Drafts that may be rejected have no hash, so no block of theirs is complete.
        end = min(computed_tokens, len(request.block_hashes) * geometry.hash_tokens)
        if not self._settings.save_decode:
            end = min(end, request.num_prompt_tokens)
        end = end // geometry.align_tokens * geometry.align_tokens
        begin = tracked.stored_tokens
        if end <= begin:
            return None
        groups = self._blocks(tracked, table, begin, end)
        tracked.stored_tokens = end
        return Job(request.request_id, groups, self._prompts(tracked))

    def _hand_offs(self, tracked: _Tracked, job: Job) -> list[HandOffJob]:
        """What of a step's blocks a decode engine waits for: all but the prompt's last token's."""
        if not self._publishes(tracked.request):
            return []
        (blocks,), request = job.groups, tracked.request
        hashes = []
        if tracked.published is None:
            end = (request.num_prompt_tokens - 1) // self._geometry.block_tokens[0]
            if end <= blocks.first:
                return []
            tracked.published = blocks.first, end
            count = end - blocks.first
            hashes = self._geometry.hashes(0, request.block_hashes, blocks.first, count)
        begin, end = tracked.published
        wanted = blocks.block_ids[: max(0, end - blocks.first)]
        if not wanted or blocks.first < begin:
            return []
        return [HandOffJob(job.request_id, wanted, blocks.first - begin, hashes)]

    def _publishes(self, request: Request) -> bool:
        return self._settings.hand_off == "publish" and bool(
            _params(request).get("do_remote_decode")
        )

    # ---- the end of a load, and of a request ----

    def update_connector_output(self, connector_output: Any) -> None:
        """See KVConnectorBase_V1. What failed to load is computed, and then stored again.

        It is a miss from here on: vLLM may ask again at once, and a block that is offered and
        fails, time after time, would keep its request from ever beginning.
        """
        invalid: set[int] = connector_output.invalid_block_ids or set()
        failed: set[str] = connector_output.failed_recving or set()
        done: set[str] = connector_output.finished_recving or set()
        for request_id, tracked in self._tracked.items():
            for blocks in tracked.loading:
                bad = [
                    digest
                    for block, digest in zip(blocks.block_ids, blocks.hashes, strict=True)
                    if request_id in failed or block in invalid
                ]
                if bad:
                    tracked.stored_tokens = tracked.local_tokens
                    for cache in self._caches[blocks.group]:
                        cache.refuse(bad)
            handed = tracked.handed
            if handed is not None and not invalid.isdisjoint(handed.block_ids):
                tracked.stored_tokens = tracked.local_tokens
            if request_id in done:
                tracked.loading, tracked.handed = [], None

    def request_finished(self, request: Request) -> dict[str, Any] | None:
        """See KVConnectorBase_V1. Returns what a proxy tells the decode engine."""
        tracked = self._tracked.pop(request.request_id, None)
        if tracked is not None and tracked.flight is not None:
            abandon(tracked.flight)
        return {"do_remote_prefill": True} if self._publishes(request) else None

    def caches(self) -> list[PrefixCache]:
        """The caches, for their counters."""
        return [cache for group in self._caches for cache in group]

    def shutdown(self) -> None:
        """Leave the store."""
        for tracked in self._tracked.values():
            if tracked.flight is not None:
                abandon(tracked.flight)
        self._landings.close()
        self._store.close()


def _present(group: int, block_ids: list[int], hashes: list[bytes], first: int) -> GroupBlocks:
    """Leaves out the places of a sliding window that vLLM keeps no block for."""
    pairs = [(b, h) for b, h in zip(block_ids, hashes, strict=True) if b != NULL_BLOCK_ID]
    # What is left out stands before the rest: the window's end is kept.
    first += len(hashes) - len(pairs)
    return GroupBlocks(group, [b for b, _ in pairs], [h for _, h in pairs], first)


def _params(request: Any) -> dict[str, Any]:
    """What the request says of transfers, as vLLM's proxies do."""
    return request.kv_transfer_params or {}


def _no_flight() -> Future[Flight]:
    """What a request has that needs no turn any more."""
    done: Future[Flight] = Future()
    done.set_result(Flight(0))
    return done
