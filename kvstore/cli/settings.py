"""What all commands share: where the store is, how to open it, and what the exit codes mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kvstore import errors
from kvstore.cluster.target import Target, parse_target, read_token, read_token_file
from kvstore.cluster.tls import TlsConfig

if TYPE_CHECKING:
    from kvstore.client.store import Store

EXIT_FOUND: Final = 0
EXIT_ABSENT: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNREACHABLE: Final = 3
EXIT_FAILED: Final = 4

#: Where `kvstore-node` listens unless told otherwise.
TARGET_DEFAULT: Final = "kv://127.0.0.1:7400"


@dataclass(frozen=True, slots=True)
class Settings:
    """The global options. Nothing is opened or read before a command asks for it."""

    target_text: str
    token_file: str | None
    tls_ca: str | None
    timeout_s: float
    #: Nobody named a target.
    target_is_default: bool = False

    @property
    def target(self) -> Target:
        """The parsed target; `ConfigurationError` if it is none."""
        return parse_target(self.target_text)

    @property
    def token(self) -> str | None:
        """The token in the file; `ConfigurationError` if it cannot be read."""
        return read_token_file(self.token_file) if self.token_file else read_token(None)

    @property
    def tls(self) -> TlsConfig | None:
        """TLS, if an authority was named."""
        return TlsConfig(ca_file=self.tls_ca) if self.tls_ca else None

    def connect(self) -> Store:
        """Opens the store as one of its clients."""
        import kvstore

        return kvstore.connect(
            self.target_text, token=self.token, tls=self.tls, timeout_s=self.timeout_s
        )

    def control_addresses(self) -> tuple[str, ...]:
        """The nodes' control planes; `ConfigurationError` if the target names none."""
        target = self.target
        if target.scheme not in ("kv", "tcp"):
            raise errors.ConfigurationError(
                f"{target} names no control plane; give --target kv://HOST:PORT"
            )
        return target.members


def exit_code_of(error: errors.KvError) -> int:
    """The exit code that an error ends a command with."""
    if isinstance(error, errors.NodeUnreachable | errors.DeadlineExceeded):
        return EXIT_UNREACHABLE
    usage = (
        errors.ConfigurationError,
        errors.AuthenticationFailed,
        errors.MembershipMismatch,
        errors.DomainMismatch,
        errors.LayoutMismatch,
        errors.ConsistencyMismatch,
        errors.AttachRefused,
        errors.KeyInvalid,
        errors.ValueTooLarge,
    )
    return EXIT_USAGE if isinstance(error, usage) else EXIT_FAILED
