"""Prompts that are computed by prefill engines while the engines that decode wait for them.

A request goes to a decode engine as ever, with the word that a prefill engine computes its prompt,
and at the same moment a copy of it that wants one token goes to a prefill engine. The engines hand
the prompt over between themselves (`docs/llm-vllm.md`); who decodes never depends on it: where the
copy fails, it computes after a while. Where no prefill engine is alive, requests go as they came.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import aiohttp
from multidict import CIMultiDict

from kvstore.llm.router.health import Health, is_own_lack, is_refusal
from kvstore.llm.router.metrics import RouterMetrics
from kvstore.llm.router.prompts import BLOCK_TOKENS, PromptShape
from kvstore.llm.router.routing import Router, Ticket
from kvstore.node.log import Log

#: Requests whose prompts are computed elsewhere.
_PATHS: Final = ("/v1/completions", "/v1/chat/completions")
_PARAMS: Final = "kv_transfer_params"
#: What an answer of one token does without.
_NOT_COPIED: Final = (
    *("stream", "stream_options", "n", "best_of", "min_tokens", "logprobs", "top_logprobs"),
    "max_completion_tokens",
)
_ENDED_S: Final = 1.0


class Prefills:
    """Has prompts computed. One event loop.

    Args:
        session: What requests are made with.
        router: Chooses, among the prefill engines that it was given.
        health: Hears of those that cannot be reached.
        metrics: Of the endpoint.
        log: Hears of copies that failed.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        router: Router,
        health: Health,
        metrics: RouterMetrics,
        log: Log,
    ) -> None:
        self._session = session
        self._router = router
        self._health = health
        self._metrics = metrics
        self._log = log

    @asynccontextmanager
    async def computing(
        self, path: str, headers: CIMultiDict[str], shape: PromptShape, body: bytearray
    ) -> AsyncIterator[bytearray]:
        """Have a prompt computed as long as this lasts; what is given goes to the decode engine."""
        worth = path in _PATHS and bool(shape.hashes) and shape.input_tokens >= BLOCK_TOKENS
        parts = _parts(body) if worth else None
        ticket = None
        if parts is not None:
            ticket = self._router.choose(shape.hashes, shape.input_tokens)
        if parts is None or ticket is None:
            yield body
            return
        copy, decoded = parts
        task = asyncio.create_task(self._compute(path, headers, copy, ticket))
        try:
            yield decoded
        finally:
            # Whoever decodes is done, so nobody waits for the prompt any more.
            task.cancel()
            with suppress(TimeoutError):
                async with asyncio.timeout(_ENDED_S):
                    await asyncio.gather(task, return_exceptions=True)
            self._router.finish(ticket)

    async def _compute(
        self, path: str, headers: CIMultiDict[str], copy: bytes, ticket: Ticket
    ) -> None:
        instance = ticket.instance
        outcome = "cancelled"
        try:
            async with self._session.post(
                instance + path, data=copy, headers=headers, allow_redirects=False
            ) as answer:
                async for _ in answer.content.iter_any():
                    self._router.first_token(ticket)
                outcome = "computed" if answer.status == 200 else "refused"
        except Exception as error:
            outcome = "failed"
            self._log.warning("a prompt was not computed", instance=instance, why=repr(error))
            if is_refusal(error):
                self._health.refused(instance)
            elif not is_own_lack(error):
                self._health.doubt()
        finally:
            self._metrics.prefills.labels(instance, outcome).inc()


def _parts(body: bytearray) -> tuple[bytes, bytearray] | None:
    """Return what the prefill engine gets and what the decode engine does.

    None for a request that says itself how its KV is moved.
    """
    request: Any = json.loads(body)
    if request.get(_PARAMS) is not None:
        return None
    copy = {name: value for name, value in request.items() if name not in _NOT_COPIED}
    return (
        _encoded(copy | {"max_tokens": 1, _PARAMS: {"do_remote_decode": True}}),
        bytearray(_encoded(request | {_PARAMS: {"do_remote_prefill": True}})),
    )


def _encoded(request: Mapping[str, Any]) -> bytes:
    return json.dumps(request, separators=(",", ":")).encode()
