"""The errors of kvstore: one class a cause, all of them under `KvError`.

A batch operation puts them into its list of outcomes instead of raising them. Each message says
what was wrong and what to do next. Where Python has a fitting built-in class the error is one of
those too, so that `except TimeoutError` or `except ConnectionError` work as anybody expects.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final


class KvError(Exception):
    """The base class of every error that kvstore raises on purpose."""


class KeyInvalid(KvError, ValueError):
    """A key is not bytes-like or text, or not of 1 to 1,024 bytes."""


class ValueInvalid(KvError, TypeError):
    """A value or buffer is not a contiguous buffer in the memory of this process."""


class ValueTooLarge(KvError, ValueError):
    """The value does not fit into its node, however empty the node is."""


class BufferTooSmall(KvError, ValueError):
    """The buffer of `get_into` cannot hold the value; `needed` is the value's length."""

    def __init__(self, message: str, *, needed: int = 0) -> None:
        super().__init__(message)
        self.needed = needed


class ConditionFailed(KvError):
    """The key exists (`if_absent`) or has another version (`if_version`). Nothing was changed.

    `version` is the one that the key has, 0 where it is not known or there is no such key.
    """

    def __init__(self, message: str, *, version: int = 0) -> None:
        super().__init__(message)
        self.version = version


class OutOfMemory(KvError):
    """The node is full and was started to evict nothing."""


class NodeUnreachable(KvError, ConnectionError):
    """The key's node is down. Nothing was applied; keys of other nodes are served as before."""


class Fenced(NodeUnreachable):
    """The node took this client for dead and cut it off. Nothing was applied.

    The client attaches again by itself; the next call may succeed.
    """


class DeadlineExceeded(KvError, TimeoutError):
    """The time-out passed first. Nothing was applied."""


class Busy(DeadlineExceeded):
    """Every lane of the client was taken by other threads until the time-out passed."""


class WouldDeadlock(KvError, RuntimeError):
    """The caller holds the lock already, and would wait for itself for ever."""


class NotHeld(KvError, RuntimeError):
    """The lock is not held through this object, so it has no token and can't be released."""


class LockLost(KvError):
    """The lock was lost before it was released: others may have held it meanwhile.

    Its lease has ended, its node is gone, or took this client for dead and cut it off.
    """


class FencedWrite(KvError):
    """Somebody who had the lock later has written the key. Nothing was applied.

    The lock that `fence` belongs to was lost meanwhile: others may have had it since.
    """


class FenceMismatch(KvError):
    """The key is written under another lock than the one that `fence` belongs to."""


class LockWornOut(KvError):
    """The lock has been granted as often as its words at the node can count."""


class OutcomeUnknown(KvError):
    """The connection broke at the deciding moment: the change was applied or it was not.

    Read the key to learn which, or repeat the operation where that does no harm.
    """


class CorruptObject(KvError):
    """What the node returned failed its checks again and again."""


class CodecMismatch(KvError, TypeError):
    """The value was not stored by `put_object`, or in a way this version does not know."""


class AuthenticationFailed(KvError, PermissionError):
    """The node wants a token, or another one."""


class MembershipMismatch(KvError):
    """The node belongs to a cluster with another member list: `ours` and `theirs` are the two."""

    def __init__(
        self, message: str, *, ours: Sequence[str] = (), theirs: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.ours = tuple(ours)
        self.theirs = tuple(theirs)


class DomainMismatch(KvError):
    """The node's memory is changed by another kind of atomic operations than this client's."""


class ConsistencyMismatch(KvError):
    """The node keeps another consistency than `connect` asks for: `theirs` and `ours`."""

    def __init__(self, message: str, *, ours: str = "", theirs: str = "") -> None:
        super().__init__(message)
        self.ours = ours
        self.theirs = theirs


class LayoutMismatch(KvError):
    """The node's memory is laid out by another version of kvstore."""


class AttachRefused(KvError):
    """The node refused this client; the message says why."""


class ConfigurationError(KvError, ValueError):
    """An option makes no sense or cannot be had on this machine."""


class ForkedError(KvError, RuntimeError):
    """The store was opened in the parent process. Call `kvstore.connect` again in this one."""


class StoreClosed(KvError, RuntimeError):
    """The store, or what it stands on, was closed."""


class Interrupted(KvError):
    """A wait was interrupted."""


class InternalError(KvError):
    """The native core rejected what kvstore itself asked of it: a defect, please report it."""


#: The line of a node whose consistency is another one.
_CONSISTENCIES: Final = re.compile(r"consistency is ([a-z]+), and this client asks for ([a-z]+)")
#: What the line of a refused attachment contains, and the error that it stands for. The first match
#: counts; the lines are those of the core.
_REFUSALS: Final[tuple[tuple[type[KvError], tuple[str, ...]], ...]] = (
    (MembershipMismatch, ("other members", "member list", "cluster")),
    (LayoutMismatch, ("layout", "another version", "magic")),
    (DomainMismatch, ("domain",)),
    (
        NodeUnreachable,
        ("no node answers", "did not answer", "no welcome", "draining", "restarted", "in time"),
    ),
    (AuthenticationFailed, ("token", "own user", "who you are", "admission")),
)


def refusal(line: str, *, ours: Sequence[str] = ()) -> KvError:
    """Returns the typed error of an attachment that the core or the node refused with this line."""
    if found := _CONSISTENCIES.search(line):
        return ConsistencyMismatch(line, theirs=found[1], ours=found[2])
    for kind, marks in _REFUSALS:
        if any(mark in line for mark in marks):
            if kind is MembershipMismatch:
                return MembershipMismatch(line, ours=ours)
            return kind(line)
    return AttachRefused(line)
