"""Transactions of SmallBank under locks: accounts that are changed only by who holds their locks.

Each customer has a checking and a savings account, stored as one value. The mix is that of
DecLock's evaluation. What all accounts hold together changes by what the transactions say they paid
in and out, and by nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Final

INITIAL: Final = 1_000
#: Transaction and how many of a hundred.
MIX: Final = (
    ("send_payment", 26),
    ("amalgamate", 15),
    ("balance", 15),
    ("deposit_checking", 15),
    ("transact_savings", 15),
    ("write_check", 14),
)


def account(number: int) -> str:
    """The key of a customer's accounts, and the name of their lock."""
    return f"account/{number}"


def pack(checking: int, savings: int) -> bytes:
    """Both balances as a value."""
    return b"%d %d" % (checking, savings)


def unpack(value: bytes) -> tuple[int, int]:
    """The balances of a value."""
    checking, savings = value.split()
    return int(checking), int(savings)


class Bank:
    """One teller. `paid_in` is what its transactions added to all accounts."""

    def __init__(self, store: Any, accounts: int, seed: int) -> None:
        self.store = store
        self.accounts = accounts
        self.paid_in = 0
        self.transactions = 0
        self._random = random.Random(seed)
        names, weights = zip(*MIX, strict=True)
        self._kinds: Sequence[str] = self._random.choices(names, weights, k=4096)

    def transact(self, position: int) -> None:
        """One transaction of the mix."""
        kind = self._kinds[position % len(self._kinds)]
        first = self._random.randrange(self.accounts)
        if kind in ("send_payment", "amalgamate"):
            second = (first + 1 + self._random.randrange(self.accounts - 1)) % self.accounts
            with self.store.locks([account(first), account(second)]) as held:
                fences = {lock.name: lock.token for lock in held}
                self._move(first, second, kind, fences)
        elif kind == "balance":
            with self.store.lock(account(first), shared=True):
                unpack(self.store[account(first)])
        else:
            with self.store.lock(account(first)) as lock:
                self._change(first, kind, lock.token)
        self.transactions += 1

    def _write(self, number: int, checking: int, savings: int, token: int) -> None:
        self.store.put(account(number), pack(checking, savings), fence=token)

    def _move(self, first: int, second: int, kind: str, fences: dict[bytes, int]) -> None:
        checking, savings = unpack(self.store[account(first)])
        other_checking, other_savings = unpack(self.store[account(second)])
        if kind == "amalgamate":
            amount, checking, savings = checking + savings, 0, 0
        else:
            amount = min(checking, self._random.randrange(1, 100))
            checking -= amount
        # A transfer is two puts: who dies between them leaves it half done.
        self._write(first, checking, savings, fences[account(first).encode()])
        self._write(
            second, other_checking + amount, other_savings, fences[account(second).encode()]
        )

    def _change(self, number: int, kind: str, token: int) -> None:
        checking, savings = unpack(self.store[account(number)])
        amount = self._random.randrange(1, 100)
        if kind == "deposit_checking":
            checking += amount
        elif kind == "transact_savings":
            savings += amount
        else:
            amount = -min(checking, amount)
            checking += amount
        self._write(number, checking, savings, token)
        self.paid_in += amount


def open_accounts(store: Any, accounts: int) -> None:
    """Gives every customer the same to begin with."""
    for outcome in store.put_many({account(n): pack(INITIAL, INITIAL) for n in range(accounts)}):
        if isinstance(outcome, Exception):
            raise outcome


def total(store: Any, accounts: int) -> int:
    """What all accounts hold together."""
    values = store.get_many([account(n) for n in range(accounts)])
    return sum(sum(unpack(value)) for value in values)
