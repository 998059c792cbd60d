"""The HTTP endpoint: one address in front of many OpenAI-compatible servers.

Requests are passed on as they came, and answers piece by piece. What is told apart by its prompt
goes where `Router` says, the rest to the lightest instance. An instance that cannot be reached is
replaced by another one, and so is one that fails before the first byte of its answer, if the
request is one that may be computed twice. What fails later fails visibly: the connection to the
caller ends before the answer does. A caller that goes away ends its request at the instance too.
Every wait has a deadline, one for all attempts; requests in flight, the memory that their bodies
take, and the instances that one request is sent to have bounds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from kvstore.llm.router.health import Health, is_own_lack, is_refusal
from kvstore.llm.router.metrics import RouterMetrics
from kvstore.llm.router.prefills import Prefills
from kvstore.llm.router.prompts import PromptShape, shape_of
from kvstore.llm.router.routing import Router, Ticket
from kvstore.node.log import Log

_BODY_BYTES_MAX: Final = 32 << 20
_KEEP_ALIVE_S: Final = 3.0
#: Instances that one request is sent to, at most; those that cannot be reached do not count.
_ATTEMPTS_MAX: Final = 3
#: What may be computed twice, unless the instance was asked to keep it.
_REPEATABLE: Final = ("/v1/completions", "/v1/chat/completions", "/v1/embeddings")
#: Headers between neighbours (RFC 9110, 7.6.1), and those that depend on how a body is sent.
_OWN_HEADERS: Final = frozenset(
    (
        *(
            "connection",
            "keep-alive",
            "proxy-authenticate",
            "proxy-authorization",
            "proxy-connection",
        ),
        *("te", "trailer", "transfer-encoding", "upgrade", "host", "content-length", "expect"),
    )
)


@dataclass(frozen=True, slots=True)
class ProxyLimits:
    """Deadlines and bounds of the endpoint.

    Args:
        connect_s: To open a connection to an instance.
        answer_s: From then to the first byte of its answer: the whole of it unless it is streamed.
            Both together bound all attempts of one request.
        idle_s: For a request's body, and between two pieces of an answer, or of a caller that
            takes them slowly.
        health_s: Of a health check; also the time between two.
        health_path: What health checks ask for.
        in_flight_max: Requests at one time; those beyond get 503.
        bodies_bytes_max: What the bodies of these may take together; likewise.
    """

    connect_s: float = 2.0
    answer_s: float = 600.0
    idle_s: float = 60.0
    health_s: float = 2.0
    health_path: str = "/health"
    in_flight_max: int = 1024
    bodies_bytes_max: int = 512 << 20


class _Unanswered(Exception):
    """An instance gave no answer. `again` says that another one may be asked."""

    def __init__(self, kind: str, again: bool) -> None:
        super().__init__(kind)
        self.kind = kind
        self.again = again


class _NoRoom(Exception):
    """Too many bytes of bodies are in flight."""


class Proxy:
    """Serves requests by passing them on.

    Args:
        instances: URLs of the servers.
        router: Decides; it is given the instances.
        limits: See ProxyLimits.
        log: Hears of instances that come and go, and of answers that did not come whole.
        prefills: URLs of prefill engines, which compute prompts for the instances.
        prefill_router: Decides among those.
    """

    def __init__(
        self,
        instances: Sequence[str],
        router: Router,
        limits: ProxyLimits,
        log: Log,
        *,
        prefills: Sequence[str] = (),
        prefill_router: Router | None = None,
    ) -> None:
        self._instances = [instance.rstrip("/") for instance in instances]
        self._router = router
        self._limits = limits
        self._log = log
        self._prefill_urls = [instance.rstrip("/") for instance in prefills]
        self._prefill_router = prefill_router or Router()
        self._metrics = RouterMetrics(router, self._prefill_router)
        self._in_flight = 0
        self._bodies_bytes = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._session: aiohttp.ClientSession
        self._health: Health
        self._prefills: Prefills
        for instance in self._instances:
            router.add(instance)
        for instance in self._prefill_urls:
            self._prefill_router.add(instance)

    def application(self) -> web.Application:
        """Return the application; its health checks begin, and go round once, before it serves.

        Its runner must decompress no bodies (`auto_decompress=False`): they pass as they came.
        """
        application = web.Application(client_max_size=_BODY_BYTES_MAX)
        application.cleanup_ctx.append(self._run)
        application.router.add_get("/health", self._get_health)
        application.router.add_get("/metrics", self._get_metrics)
        application.router.add_route("*", "/{path:.*}", self._serve)
        return application

    async def idle(self) -> None:
        """Wait until no request is in flight."""
        await self._idle.wait()

    async def _run(self, _application: web.Application) -> AsyncIterator[None]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self._limits.connect_s)
        # Servers close idle connections after 5 s (uvicorn): a request must not meet that moment.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S)
        async with aiohttp.ClientSession(
            timeout=timeout,
            connector=connector,
            auto_decompress=False,
            # One caller's cookies are nobody else's.
            cookie_jar=aiohttp.DummyCookieJar(),
        ) as session:
            self._session = session
            self._health = self._health_of(self._router, self._instances)
            health = self._health_of(self._prefill_router, self._prefill_urls)
            self._prefills = Prefills(
                session, self._prefill_router, health, self._metrics, self._log
            )
            await asyncio.gather(self._health.check(), health.check())
            checks = [asyncio.create_task(self._health.run()), asyncio.create_task(health.run())]
            yield
            for check in checks:
                check.cancel()
            await asyncio.gather(*checks, return_exceptions=True)

    def _health_of(self, router: Router, instances: Sequence[str]) -> Health:
        return Health(
            self._session,
            router,
            instances,
            path=self._limits.health_path,
            interval_s=self._limits.health_s,
            deadline_s=self._limits.health_s,
            log=self._log,
        )

    async def _get_health(self, _request: web.Request) -> web.Response:
        views = self._router.instances()
        alive = [view.name for view in views if view.alive]
        return web.json_response(
            {"alive": len(alive), "instances": len(views)}, status=200 if alive else 503
        )

    async def _get_metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), content_type="text/plain", charset="utf-8")

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if self._in_flight >= self._limits.in_flight_max:
            self._metrics.refused.labels("overloaded").inc()
            return _refusal(503, "too many requests are in flight")
        if not request.raw_path.startswith("/"):
            return _refusal(400, "the request's target is not a path")
        body = bytearray()
        self._in_flight += 1
        self._metrics.in_flight.set(self._in_flight)
        self._idle.clear()
        try:
            async with asyncio.timeout(self._limits.idle_s):
                await self._read(request, body)
        except TimeoutError:
            return _refusal(408, "the request's body did not come")
        except _NoRoom:
            self._metrics.refused.labels("overloaded").inc()
            return _refusal(503, "too many bytes of requests are in flight")
        else:
            return await self._route(request, body)
        finally:
            self._bodies_bytes -= len(body)
            self._in_flight -= 1
            self._metrics.in_flight.set(self._in_flight)
            if self._in_flight == 0:
                self._idle.set()

    async def _read(self, request: web.Request, body: bytearray) -> None:
        """Read a body; what of it is there counts as in flight, also where this fails."""
        while piece := await request.content.readany():
            body += piece
            self._bodies_bytes += len(piece)
            if len(body) > _BODY_BYTES_MAX:
                raise web.HTTPRequestEntityTooLarge(_BODY_BYTES_MAX)
            if self._bodies_bytes > self._limits.bodies_bytes_max:
                raise _NoRoom

    async def _route(self, request: web.Request, body: bytearray) -> web.StreamResponse:
        shape = shape_of(body) if request.method == "POST" else PromptShape()
        if not self._prefill_urls:
            return await self._send(request, shape, body)
        headers = _passed_on(request.headers)
        async with self._prefills.computing(request.path, headers, shape, body) as passed_on:
            return await self._send(request, shape, passed_on)

    async def _send(
        self, request: web.Request, shape: PromptShape, body: bytearray
    ) -> web.StreamResponse:
        """Send a request to one instance, and to others where that fails."""
        began = time.monotonic()
        deadline = asyncio.get_running_loop().time() + (
            self._limits.connect_s + self._limits.answer_s
        )
        again = bool(shape.hashes) and not shape.is_kept and request.path in _REPEATABLE
        failed: list[str] = []
        sent = 0
        refusal = _refusal(503, "no instance is alive")
        while sent < _ATTEMPTS_MAX:
            ticket = self._router.choose(shape.hashes, shape.input_tokens, without=failed)
            if ticket is None:
                break
            self._count(ticket)
            try:
                asked = self._ask(request, body, ticket.instance, deadline, again)
                async with asked as (answer, first):
                    self._metrics.first_byte_s.observe(time.monotonic() - began)
                    self._router.first_token(ticket)
                    return await self._pass_on(request, ticket.instance, answer, first)
            except _Unanswered as error:
                self._metrics.failures.labels(ticket.instance, error.kind).inc()
                refusal = _refusal(*_EXPLAINED[error.kind])
                failed.append(ticket.instance)
                sent += error.kind != "unreachable"
                if not error.again:
                    break
            finally:
                self._router.finish(ticket)
        self._metrics.refused.labels("unanswered" if failed else "nobody").inc()
        return refusal

    def _count(self, ticket: Ticket) -> None:
        self._metrics.requests.labels(ticket.instance, ticket.reason.value).inc()
        self._metrics.input_tokens.inc(ticket.input_tokens)
        self._metrics.matched_tokens.inc(ticket.matched_tokens)

    @asynccontextmanager
    async def _ask(
        self, request: web.Request, body: bytearray, instance: str, deadline: float, again: bool
    ) -> AsyncIterator[tuple[aiohttp.ClientResponse, bytes]]:
        """Send a request on, and wait for the first piece of the answer.

        An answer that was not wanted to its end has its connection closed, which ends the work.
        `again` says that the request may be sent to another instance after this one had it.
        """
        answer: aiohttp.ClientResponse | None = None
        try:
            async with asyncio.timeout_at(deadline):
                answer = await self._session.request(
                    request.method,
                    URL(instance + request.raw_path, encoded=True),
                    headers=_passed_on(request.headers),
                    skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                    data=body or None,
                    allow_redirects=False,
                )
                first = await answer.content.readany()
        except BaseException as error:
            if answer is not None:
                answer.close()
            if not isinstance(error, Exception):
                raise
            self._log.warning("no answer", instance=instance, why=repr(error))
            raise self._unanswered(error, instance, again) from error
        try:
            if answer.status == 503 and again:
                raise _Unanswered("busy", again=True)
            yield answer, first
        finally:
            answer.close()

    def _unanswered(self, error: Exception, instance: str, again: bool) -> _Unanswered:
        """Say what an attempt's failure means.

        What was not sent may always go elsewhere. A late answer is not asked for again: the next
        instance would have the same work.
        """
        if is_own_lack(error):
            return _Unanswered("exhausted", again=False)
        if is_refusal(error):
            self._health.refused(instance)
        else:
            self._health.doubt()
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
            return _Unanswered("unreachable", again=True)
        if isinstance(error, TimeoutError):
            return _Unanswered("late", again=False)
        return _Unanswered("broken", again=again)

    async def _pass_on(
        self, request: web.Request, instance: str, answer: aiohttp.ClientResponse, piece: bytes
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            status=answer.status, reason=answer.reason, headers=_passed_on(answer.headers)
        )
        response.content_length = answer.content_length
        try:
            async with asyncio.timeout(self._limits.idle_s):
                await response.prepare(request)
            while piece:
                async with asyncio.timeout(self._limits.idle_s):
                    await response.write(piece)
                piece = await self._next_piece(answer)
            async with asyncio.timeout(self._limits.idle_s):
                await response.write_eof()
        except _Unanswered as error:
            self._metrics.failures.labels(instance, error.kind).inc()
            self._log.warning("an answer broke off", instance=instance, why=repr(error.__cause__))
            _break_off(request)
        except OSError:
            # The caller went away, or takes nothing any more.
            _break_off(request)
        return response

    async def _next_piece(self, answer: aiohttp.ClientResponse) -> bytes:
        """Return the next piece of an answer, empty at its end; `_Unanswered` if none comes."""
        try:
            async with asyncio.timeout(self._limits.idle_s):
                return await answer.content.readany()
        except Exception as error:
            self._health.doubt()
            kind = "late" if isinstance(error, TimeoutError) else "broken"
            raise _Unanswered(kind, again=False) from error


def _break_off(request: web.Request) -> None:
    """End the caller's connection, so that what it has is not taken for the whole answer."""
    if request.transport is not None:
        request.transport.abort()


_EXPLAINED: Final = {
    "unreachable": (502, "no instance could be reached"),
    "exhausted": (503, "the router is out of connections or files"),
    "late": (504, "the instance did not answer in time"),
    "broken": (502, "the instance broke the connection"),
    "busy": (503, "all instances that were asked are busy"),
}


def _refusal(status: int, message: str) -> web.Response:
    """An error as OpenAI's interface puts it."""
    headers = {"Retry-After": "1"} if status == 503 else None
    return web.json_response(
        {"error": {"message": f"router: {message}", "type": "router_error", "code": status}},
        status=status,
        headers=headers,
    )


def _passed_on(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    connection = ",".join(headers.getall("Connection", []))
    named = {name.strip().lower() for name in connection.split(",")}
    dropped = _OWN_HEADERS | named
    return CIMultiDict((k, v) for k, v in headers.items() if k.lower() not in dropped)
