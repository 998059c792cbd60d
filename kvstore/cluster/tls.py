"""TLS of the control plane, from the client's side.

Covers gRPC only. The data path is opened by a 128-bit token that travels inside the control plane,
and is not encrypted; see docs/security.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kvstore import errors


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """Asks for TLS, and says whom to believe."""

    #: PEM file of the authorities that may have signed the node's certificate; None: those of
    #: the system.
    ca_file: str | None = None
    #: The name that the certificate must bear, where it is not the host of the address.
    server_name: str | None = None

    def read_ca(self) -> bytes | None:
        """The text of `ca_file`. `ConfigurationError` if it cannot be read."""
        if self.ca_file is None:
            return None
        try:
            text = Path(self.ca_file).read_bytes()
        except OSError as error:
            raise errors.ConfigurationError(
                f"cannot read the CA file {self.ca_file}: {error.strerror}"
            ) from error
        if b"-----BEGIN CERTIFICATE-----" not in text:
            raise errors.ConfigurationError(f"the CA file {self.ca_file} holds no PEM certificate")
        return text
