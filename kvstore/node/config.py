"""What a `kvstore-node` was told, checked.

Everything that can be known to be wrong before memory is taken is found here, and said in one line
by a `ConfigurationError`.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
import ssl
import stat
import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kvstore import errors
from kvstore.cluster.local_tier import can_listen
from kvstore.node.memory_limits import memory_limit
from kvstore.node.memory_node import CAPACITY_BYTES_MIN
from kvstore.node.units import format_bytes

#: Left to the rest of the machine and to this process beside the region.
_RESERVE_BYTES: Final = 64 << 20
_TOKEN_CHARACTERS_MAX: Final = 4096
#: The SSD tier's size, in sizes of the memory.
SSD_SHARE_MIN: Final = 2
#: The index's part of the tier's size: enough for blocks of 64 KiB.
_SSD_INDEX_SHARE: Final = 128
SSD_INDEX_BYTES_MIN: Final = 2 << 20


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """The settings of one daemon; the names are those of the options."""

    capacity_bytes: int
    listen_host: str
    listen_port: int
    data_port: int
    advertise: str
    #: None: no shm.
    shm_name: str | None
    hugepages: bool
    prefault: bool
    eviction: str
    consistency: str
    token: str | None
    #: Certificate chain and key in PEM; None: clear text.
    certificate: tuple[bytes, bytes] | None
    metrics_port: int | None
    cluster_id: str
    members: tuple[str, ...]
    fence_after_ms: int
    membership_lease_ms: int
    data_threads: int
    grace_s: float
    #: None: the `cpu` domain; empty: the RDMA device with the address `verbs_address`.
    verbs_device: str | None = None
    verbs_address: str = ""
    #: None: no SSD tier.
    ssd_path: str | None = None
    ssd_bytes: int = 0
    #: Memory for the index of the tier. 0: by its size.
    ssd_index_bytes: int = 0

    def __post_init__(self) -> None:
        """Fills in what follows from the rest."""
        if self.ssd_path is not None and not self.ssd_index_bytes:
            size = max(self.ssd_bytes // _SSD_INDEX_SHARE, SSD_INDEX_BYTES_MIN)
            object.__setattr__(self, "ssd_index_bytes", size)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the node."""
        if self.listen_host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.listen_host).is_loopback
        except ValueError:
            return False

    def check(self, *, insecure: bool) -> None:
        """Raises `ConfigurationError` for what would fail later, or be unsafe."""
        if not (self.is_loopback or self.token or self.certificate or insecure):
            raise errors.ConfigurationError(
                f"{self.listen_host} is reachable from other machines, and neither --token-file"
                " nor --tls-cert is given; give one, or --insecure to let anyone in"
            )
        self._check_memory()
        self._check_ssd()
        for name, port in (
            ("--listen", self.listen_port),
            ("--data-port", self.data_port),
            ("--metrics-port", self.metrics_port or 0),
        ):
            check_port_free(name, self.listen_host, port)

    def _check_ssd(self) -> None:
        if self.ssd_path is None:
            if self.ssd_bytes or self.ssd_index_bytes:
                option = "--ssd-bytes" if self.ssd_bytes else "--ssd-index-bytes"
                raise errors.ConfigurationError(f"{option} without --ssd: give the file too")
            return
        if self.ssd_index_bytes < SSD_INDEX_BYTES_MIN:
            raise errors.ConfigurationError(
                f"--ssd-index-bytes {format_bytes(self.ssd_index_bytes)} is below the least,"
                f" {format_bytes(SSD_INDEX_BYTES_MIN)}"
            )
        if self.verbs_device is not None:
            raise errors.ConfigurationError(
                "--ssd does not go with --fabric verbs yet: the node cannot put what it reads"
            )
        if self.shm_name is not None and not can_listen(self.shm_name):
            raise errors.ConfigurationError(
                f"--shm {self.shm_name} leaves no room for the name of the SSD tier's socket: give"
                " a shorter one"
            )
        if self.ssd_bytes < SSD_SHARE_MIN * self.capacity_bytes:
            raise errors.ConfigurationError(
                f"--ssd-bytes {format_bytes(self.ssd_bytes)} is below twice the --capacity: what is"
                " in memory is on the SSD too, so a smaller one would hold little else and be"
                f" written over and over; give {format_bytes(SSD_SHARE_MIN * self.capacity_bytes)}"
                " or more"
            )

    def _check_memory(self) -> None:
        if self.capacity_bytes < CAPACITY_BYTES_MIN:
            raise errors.ConfigurationError(
                f"--capacity {format_bytes(self.capacity_bytes)} is below the least,"
                f" {format_bytes(CAPACITY_BYTES_MIN)}"
            )
        limit = memory_limit()
        index_bytes = self.ssd_index_bytes
        beside = _RESERVE_BYTES + index_bytes
        if self.hugepages:
            # The rest of this process is not in huge pages.
            if index_bytes and beside > limit.available_bytes:
                raise errors.ConfigurationError(
                    f"--ssd-index-bytes {format_bytes(index_bytes)} is more than can be had beside"
                    f" the huge pages: {format_bytes(limit.available_bytes)} ({limit.source})"
                )
            limit, beside = memory_limit(hugepages=True), 0
        if self.capacity_bytes + beside > limit.available_bytes:
            index = (
                f" with {format_bytes(index_bytes)} for --ssd-index-bytes"
                if index_bytes and beside
                else ""
            )
            raise errors.ConfigurationError(
                f"--capacity {format_bytes(self.capacity_bytes)}{index} is more than can be had:"
                f" {format_bytes(limit.available_bytes)} ({limit.source})"
            )


def parse_listen(text: str) -> tuple[str, int]:
    """`host:port` or `[v6]:port`; port 0 is any free one."""
    host, colon, port = text.rpartition(":")
    host = host.strip("[]") if host.startswith("[") and host.endswith("]") else host
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise errors.ConfigurationError(f"--listen {text!r} is not HOST:PORT")
    return host, int(port)


def rdma_address(advertise: str, listen_host: str) -> str:
    """The IP address by which a node finds its RDMA device; empty: any that is active."""
    for host in (advertise, listen_host):
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            continue
        if not (address.is_loopback or address.is_unspecified):
            return host
    return ""


def default_data_port(listen_port: int) -> int:
    """The port after the control plane's; any free one beside any free one."""
    if listen_port == 65535:
        raise errors.ConfigurationError("--listen has the last port; give --data-port")
    return listen_port + 1 if listen_port else 0


def default_shm_name() -> str:
    """A name that no other node of this host has."""
    return f"kvstore-{os.getpid()}-{secrets.token_hex(4)}"


def check_port_free(option: str, host: str, port: int) -> None:
    """Finds a taken port before memory is taken. The real bind is a step later, and checks too."""
    if port == 0:
        return
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            # Two sockets that both allow reuse can be bound to one port until one listens.
            probe.listen(1)
    except OSError as error:
        raise errors.ConfigurationError(
            f"{option}: cannot use {host}:{port}: {error.strerror}"
        ) from error


def read_token(path: str) -> str:
    """The token in a file: one line of printable ASCII."""
    token = _read("--token-file", path).decode("utf-8", "replace").strip()
    if not token:
        raise errors.ConfigurationError(f"--token-file {path} is empty")
    if len(token) > _TOKEN_CHARACTERS_MAX or not (token.isascii() and token.isprintable()):
        raise errors.ConfigurationError(
            f"--token-file {path} holds no token: one line of printable ASCII is wanted"
        )
    return token


def others_can_read(path: str) -> bool:
    """Whether the file's mode lets other users read it."""
    return bool(os.stat(path).st_mode & (stat.S_IRGRP | stat.S_IROTH))


def read_certificate(certificate: str | None, key: str | None) -> tuple[bytes, bytes] | None:
    """The chain and the key, both or none."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise errors.ConfigurationError("--tls-cert and --tls-key go together")
    chain, secret = _read("--tls-cert", certificate), _read("--tls-key", key)
    try:
        # Without the callback an encrypted key would ask on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, lambda: "")
    except (ssl.SSLError, OSError) as error:
        raise errors.ConfigurationError(
            f"--tls-cert {certificate} and --tls-key {key} are no PEM certificate with its key:"
            f" {error.strerror or error}"
        ) from error
    return chain, secret


def read_config_file(path: str, options: Collection[str]) -> dict[str, Any]:
    """The options in a TOML file, by their names without dashes in front."""
    try:
        table = tomllib.loads(_read("--config", path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise errors.ConfigurationError(f"--config {path}: {error}") from error
    values = {}
    for name, value in table.items():
        option = name.replace("-", "_")
        if option not in options:
            raise errors.ConfigurationError(f"--config {path}: there is no option {name!r}")
        if isinstance(value, list):
            value = ",".join(str(item) for item in value)
        if isinstance(value, dict):
            raise errors.ConfigurationError(f"--config {path}: {name!r} is a table")
        values[option] = value
    return values


def _read(option: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise errors.ConfigurationError(
            f"{option}: cannot read {path}: {error.strerror}"
        ) from error
