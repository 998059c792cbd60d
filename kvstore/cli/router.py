"""`kvstore router`: one address in front of several serving engines."""

from __future__ import annotations

import asyncio
import resource
import signal
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from kvstore.errors import ConfigurationError
from kvstore.node.log import FORMATS, Log

if TYPE_CHECKING:
    from kvstore.llm.router.proxy import Proxy

_EXAMPLES = """\b
Examples:
  kvstore router --instance http://gpu1:8000 --instance http://gpu2:8000
  kvstore router --listen 0.0.0.0:8080 --first-token 2 --prefill-rate 20000 \\
    --instance http://gpu1:8000 --instance http://gpu2:8000 --instance http://gpu3:8000
  curl http://127.0.0.1:8080/v1/models
  curl http://127.0.0.1:8080/metrics
"""
#: Idle connections, health checks, and whatever a process has open besides.
_OTHER_FILES = 512
#: For what is left once nothing is in flight, or the time for it is over.
_CLEANUP_S = 0.5
_SECONDS = click.FloatRange(min=0.001)


def _url(_context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]) -> list[str]:
    urls = [text.rstrip("/") for text in texts]
    for url in urls:
        try:
            parts = urlsplit(url)
            named = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            named = False
        if not named or parts.query or parts.fragment or parts.username:
            raise click.BadParameter(f"a server is http://HOST:PORT, not {url!r}")
    if len(set(urls)) != len(urls):
        raise click.BadParameter("each instance is named once")
    return urls


def _address(_context: click.Context, _parameter: click.Parameter, text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise click.BadParameter(f"an address is HOST:PORT, not {text!r}")
    return host.strip("[]"), int(port)


@click.command(epilog=_EXAMPLES)
@click.option(
    "--instance", "instances", required=True, multiple=True, callback=_url, metavar="URL",
    help="An OpenAI-compatible server. Given once for each.",
)  # fmt: skip
@click.option(
    "--prefill", "prefills", multiple=True, callback=_url, metavar="URL",
    help="A vLLM server that computes prompts for the instances (docs/llm-vllm.md).",
)  # fmt: skip
@click.option(
    "--listen", default="127.0.0.1:8080", show_default=True, callback=_address,
    metavar="HOST:PORT", help="Port 0: any free one.",
)  # fmt: skip
@click.option(
    "--first-token", "first_token_s", type=_SECONDS, default=5.0, show_default=True,
    metavar="SECONDS", help="Where an instance would take longer, load counts more than affinity.",
)  # fmt: skip
@click.option(
    "--prefill-rate", type=_SECONDS, default=10_000.0, show_default=True,
    metavar="TOKENS/S", help="How fast an instance computes prompts, for that estimate.",
)  # fmt: skip
@click.option(
    "--remembered-tokens", type=click.IntRange(1), default=2_000_000, show_default=True,
    metavar="TOKENS", help="Tokens that an instance's own cache holds, about.",
)  # fmt: skip
@click.option(
    "--connect-deadline", "connect_s", type=_SECONDS, default=2.0, show_default=True,
    metavar="SECONDS",
)  # fmt: skip
@click.option(
    "--answer-deadline", "answer_s", type=_SECONDS, default=600.0, show_default=True,
    metavar="SECONDS", help="To the first byte; that is the whole answer unless it is streamed.",
)  # fmt: skip
@click.option(
    "--idle-deadline", "idle_s", type=_SECONDS, default=60.0, show_default=True,
    metavar="SECONDS", help="Between two pieces of an answer; also for a request's body.",
)  # fmt: skip
@click.option("--health-path", default="/health", show_default=True, metavar="PATH")
@click.option(
    "--health-interval", "health_s", type=_SECONDS, default=2.0, show_default=True,
    metavar="SECONDS", help="Also how long a health check may take.",
)  # fmt: skip
@click.option(
    "--in-flight-max", type=click.IntRange(1), default=1024, show_default=True,
    help="Requests at one time; those beyond get 503.",
)  # fmt: skip
@click.option(
    "--bodies-max", type=click.IntRange(1), default=512, show_default=True, metavar="MIB",
    help="Memory for the bodies of these; likewise.",
)  # fmt: skip
@click.option("--log-format", type=click.Choice(FORMATS), default="text", show_default=True)
def router(
    instances: list[str],
    prefills: list[str],
    listen: tuple[str, int],
    first_token_s: float,
    prefill_rate: float,
    remembered_tokens: int,
    connect_s: float,
    answer_s: float,
    idle_s: float,
    health_path: str,
    health_s: float,
    in_flight_max: int,
    bodies_max: int,
    log_format: str,
) -> int:
    """Send requests to the serving engine that holds their prompt's beginning.

    Prompts that begin alike go to one of two instances, so that its cache serves them; to the
    other one where the first would be late. Ends with SIGTERM or Ctrl-C, after what is in flight.
    """
    try:
        from kvstore.llm.router.proxy import Proxy, ProxyLimits
    except ImportError as error:
        raise ConfigurationError(
            f"the router needs {error.name}: pip install 'kvstore-dm[router]'"
        ) from error
    from kvstore.llm.router.prompts import BLOCK_TOKENS
    from kvstore.llm.router.routing import Router, Rules

    rules = Rules(
        first_token_s=first_token_s,
        prefill_tokens_per_s=prefill_rate,
        block_tokens=BLOCK_TOKENS,
        remembered_blocks=max(1, remembered_tokens // BLOCK_TOKENS),
    )
    limits = ProxyLimits(
        connect_s=connect_s,
        answer_s=answer_s,
        idle_s=idle_s,
        health_s=health_s,
        health_path="/" + health_path.lstrip("/"),
        in_flight_max=in_flight_max,
        bodies_bytes_max=bodies_max << 20,
    )
    log = Log(log_format)
    proxy = Proxy(
        instances,
        Router(rules=rules),
        limits,
        log,
        prefills=prefills,
        prefill_router=Router(rules=rules),
    )
    _allow_files(3 * in_flight_max)
    return asyncio.run(_serve(proxy, listen, idle_s, log))


def _allow_files(connections: int) -> None:
    """Raise the limit of open files for so many connections, as far as it can be raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def _serve(proxy: Proxy, listen: tuple[str, int], idle_s: float, log: Log) -> int:
    from aiohttp import web

    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    runner = web.AppRunner(
        proxy.application(),
        handler_cancellation=True,
        access_log=None,
        auto_decompress=False,
        # A little longer than callers keep connections; also bounds how long a request's headers
        # may take.
        keepalive_timeout=1.25 * idle_s,
        # Passed twice where a request does not end (aiohttp): what is in flight is waited for here.
        shutdown_timeout=_CLEANUP_S,
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, *listen)
        try:
            await site.start()
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {listen[0]}:{listen[1]}: {error.strerror}"
            ) from error
        host, port = runner.addresses[0][:2]
        log.ready(listen=f"{host}:{port}")
        await ended.wait()
        # Whoever does not want to wait for what is in flight says so again.
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        await site.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(idle_s):
                await proxy.idle()
    finally:
        await runner.cleanup()
    return 0
