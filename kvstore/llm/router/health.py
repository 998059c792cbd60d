"""Health checks: which instances are sent requests.

Each instance is asked every few seconds, all at the same time. One that answers is alive; one that
refuses the connection is dead at once, and one that is silent or answers with an error is dead the
second time in a row. The dead are asked on, and live again with their first good answer. What this
process lacks, such as files that it may open, is no instance's fault.
"""

from __future__ import annotations

import asyncio
import errno
from collections import Counter
from collections.abc import Sequence
from typing import Final

import aiohttp

from kvstore.llm.router.routing import Router
from kvstore.node.log import Log

_FAILURES_MAX: Final = 2
_REFUSALS: Final = (errno.ECONNREFUSED, errno.ECONNRESET)
_OWN_LACKS: Final = (
    *(errno.EMFILE, errno.ENFILE),
    *(errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL),
)


def is_refusal(error: Exception) -> bool:
    """Whether nobody listens there: silence, or a name that is not found, says less."""
    return isinstance(error, aiohttp.ClientConnectorError) and error.errno in _REFUSALS


def is_own_lack(error: Exception) -> bool:
    """Whether a connection failed for something that this process or its machine is out of."""
    return isinstance(error, OSError) and error.errno in _OWN_LACKS


class Health:
    """Asks instances and tells the router. One event loop.

    Args:
        session: What requests are made with.
        router: What is told.
        instances: URLs, without a slash at the end.
        path: What is asked for: any answer below 400 is good.
        interval_s: Time between two rounds of questions.
        deadline_s: How long an answer may take.
        log: Hears of changes.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        router: Router,
        instances: Sequence[str],
        *,
        path: str,
        interval_s: float,
        deadline_s: float,
        log: Log,
    ) -> None:
        self._session = session
        self._router = router
        self._instances = instances
        self._path = path
        self._interval_s = interval_s
        self._deadline_s = deadline_s
        self._log = log
        self._failures: Counter[str] = Counter()
        self._hurry = asyncio.Event()

    async def check(self) -> None:
        """Ask all instances once."""
        await asyncio.gather(*map(self._check_one, self._instances))

    async def run(self) -> None:
        """Ask all instances again and again, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._interval_s):
                    await self._hurry.wait()
            except TimeoutError:
                pass
            self._hurry.clear()
            await self.check()

    def doubt(self) -> None:
        """Ask soon: a request failed in a way that says little."""
        self._hurry.set()

    def refused(self, instance: str) -> None:
        """An instance refused a connection: it is dead until it answers a check."""
        self._failures[instance] = _FAILURES_MAX
        self._tell(instance, False, "refuses connections")

    async def _check_one(self, instance: str) -> None:
        try:
            async with asyncio.timeout(self._deadline_s):
                async with self._session.get(instance + self._path) as answer:
                    status = answer.status
        except TimeoutError:
            self._failed(instance, "is silent")
        except Exception as error:
            # Whatever it is, the other instances are asked on.
            if is_own_lack(error):
                self._log.warning("no health check", instance=instance, why=str(error))
            elif is_refusal(error):
                self.refused(instance)
            else:
                self._failed(instance, str(error) or type(error).__name__)
        else:
            if status < 400:
                self._failures[instance] = 0
                self._tell(instance, True, "")
            else:
                self._failed(instance, f"answers {status}")

    def _failed(self, instance: str, why: str) -> None:
        self._failures[instance] += 1
        if self._failures[instance] >= _FAILURES_MAX:
            self._tell(instance, False, why)

    def _tell(self, instance: str, alive: bool, why: str) -> None:
        if self._router.set_alive(instance, alive):
            if alive:
                self._log.info("instance is back", instance=instance)
            else:
                self._log.warning("instance is down", instance=instance, why=why)
