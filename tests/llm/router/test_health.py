"""Health checks against real sockets: what counts against an instance, and what does not."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from io import StringIO

import aiohttp
import pytest
from aiohttp import web

from kvstore.llm.router.health import Health, is_own_lack, is_refusal
from kvstore.llm.router.proxy import Proxy, ProxyLimits
from kvstore.llm.router.routing import Router
from kvstore.node.log import Log

LOG = Log("text", StringIO())


def health_of(session: aiohttp.ClientSession, router: Router, *instances: str) -> Health:
    for instance in instances:
        router.add(instance)
    return Health(session, router, instances, path="/", interval_s=60.0, deadline_s=5.0, log=LOG)


def alive(router: Router) -> int:
    return sum(view.alive for view in router.instances())


@asynccontextmanager
async def serving(application: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    try:
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


def answering() -> web.Application:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response()

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    return application


@contextmanager
def no_more_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_this_process_lacks_is_no_instances_fault() -> None:
    async def scenario() -> None:
        router = Router()
        async with serving(answering()) as url, aiohttp.ClientSession() as session:
            health = health_of(session, router, url)
            with no_more_files():
                for _ in range(3):
                    await health.check()
                with pytest.raises(aiohttp.ClientConnectorError) as caught:
                    await session.get(url)
            assert is_own_lack(caught.value)
            assert alive(router) == 1

    asyncio.run(scenario())


def test_only_a_refusal_counts_at_once() -> None:
    async def scenario() -> None:
        router = Router()
        with socket.create_server(("127.0.0.1", 0)) as gone:
            url = f"http://127.0.0.1:{gone.getsockname()[1]}"
        timeout = aiohttp.ClientTimeout(sock_connect=0.1)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            with pytest.raises(aiohttp.ClientConnectorError) as refused:
                await session.get(url)
            assert is_refusal(refused.value)
            with pytest.raises(aiohttp.ClientConnectorError) as unnamed:
                await session.get("http://name.invalid")
            assert not is_refusal(unnamed.value)
            health = health_of(session, router, url, "http://name.invalid")
            await health.check()
            assert alive(router) == 1
            await health.check()
            assert alive(router) == 0

    asyncio.run(scenario())


def test_no_error_ends_the_checks() -> None:
    async def scenario() -> None:
        router = Router()
        session = aiohttp.ClientSession()
        health = health_of(session, router, "http://127.0.0.1:1")
        await session.close()
        for _ in range(2):
            await health.check()
        assert alive(router) == 0

    asyncio.run(scenario())


def test_a_request_goes_on_past_all_instances_that_cannot_be_reached() -> None:
    async def scenario() -> None:
        async with serving(answering()) as survivor:
            gone = [serving(answering()) for _ in range(7)]
            urls = [await one.__aenter__() for one in gone]
            limits = ProxyLimits(health_s=60.0)
            proxy = Proxy([*urls, survivor], Router(), limits, LOG)
            async with serving(proxy.application()) as url, aiohttp.ClientSession() as session:
                for one in gone:
                    await one.__aexit__(None, None, None)
                async with session.post(url + "/v1/files", data=b"x") as answer:
                    assert answer.status == 200

    asyncio.run(scenario())
