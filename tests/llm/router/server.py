"""A small OpenAI-compatible server for the tests of the endpoint, as a process of its own.

It answers with words, as a stream where it is asked to. A request says what else is wanted:
`status`; `hold`: `first` waits before the first byte, `middle` after the first piece, until
somebody posts to `/release/KEY`, where the request says which `key`. `/seen` tells what happened.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter, defaultdict

from aiohttp import web

WORDS = ["one", "two", "three"]
seen: Counter[str] = Counter()
releases: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)


async def complete(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    seen["started"] += 1
    seen[f"encoding {request.headers.get('Content-Encoding')}"] += 1
    seen[f"started {body.get('key')}"] += 1
    seen[f"tokens {body.get('max_tokens')} of {list(body.get('kv_transfer_params') or ())}"] += 1
    try:
        return await answer(request, body)
    except asyncio.CancelledError:
        seen[f"cancelled {body.get('key')}"] += 1
        raise


async def answer(request: web.Request, body: dict[str, str]) -> web.StreamResponse:
    if body.get("hold") == "first":
        await releases[body["key"]].wait()
    status = int(body.get(f"status_{os.getpid()}", body.get("status", 200)))
    headers = {"X-Server": str(os.getpid()), "X-Query": request.rel_url.raw_query_string}
    headers["X-Cookie"] = request.headers.get("Cookie", "")
    if "cookie" in body:
        headers["Set-Cookie"] = body["cookie"]
    if not body.get("stream"):
        text = {"words": WORDS, "pid": os.getpid(), "key": request.headers.get("Authorization")}
        return web.json_response(text, status=status, headers=headers)
    response = web.StreamResponse(headers={**headers, "Content-Type": "text/event-stream"})
    await response.prepare(request)
    for word in WORDS:
        await response.write(b"data: " + json.dumps({"word": word}).encode() + b"\n\n")
        if body.get("hold") == "middle":
            await releases[body["key"]].wait()
    await response.write(b"data: [DONE]\n\n")
    return response


async def get_seen(_request: web.Request) -> web.Response:
    return web.json_response({"pid": os.getpid(), **seen})


async def post_release(request: web.Request) -> web.Response:
    releases[request.match_info["key"]].set()
    return web.Response()


async def get_health(_request: web.Request) -> web.Response:
    return web.Response()


async def main(port: int) -> None:
    application = web.Application(client_max_size=4 << 20)
    application.router.add_post("/v1/{kind:.*}", complete)
    application.router.add_get("/seen", get_seen)
    application.router.add_post("/release/{key}", post_release)
    application.router.add_get("/health", get_health)
    runner = web.AppRunner(application, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
