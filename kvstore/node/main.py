"""`kvstore-node`: the options of the daemon, and the one line that says why it did not start.

Precedence: an option on the command line, then the configuration file, then the default.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from kvstore import errors
from kvstore._version import __version__
from kvstore.node.log import FORMATS, Log
from kvstore.node.options import Seconds
from kvstore.node.units import parse_bytes

EXIT_USAGE: Final = 2

_EXAMPLES: Final = """\b
Examples:
  One machine, any free port, for a try:
    kvstore-node --capacity 1GiB --listen 127.0.0.1:0
  A member of a cluster, with a token:
    kvstore-node --capacity 64GiB --listen 0.0.0.0:7400 --advertise mn1.example \\
      --token-file /etc/kvstore/token --metrics-port 9400
  Over RDMA, on the device that has this address:
    kvstore-node --capacity 64GiB --fabric verbs --listen 192.0.2.7:7400 \\
      --token-file /etc/kvstore/token
  With an SSD tier below the memory:
    kvstore-node --capacity 64GiB --ssd /mnt/nvme/kvstore.log --ssd-bytes 1024GiB
  From a file, with one setting changed:
    kvstore-node --config /etc/kvstore/node.toml --capacity 8GiB
"""


def _bytes(_context: click.Context, _parameter: click.Parameter, value: Any) -> int:
    try:
        return parse_bytes(value)
    except (TypeError, ValueError) as error:
        raise click.BadParameter(str(error)) from error


def _load_config(ctx: click.Context, _parameter: click.Parameter, path: str | None) -> str | None:
    if path is not None:
        from kvstore.node.config import read_config_file

        options = {parameter.name for parameter in ctx.command.params if parameter.name}
        ctx.default_map = read_config_file(path, options - {"config", "version", "help"})
    return path


_PORT = click.IntRange(0, 65535)


@click.command(
    epilog=_EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--capacity",
    type=click.UNPROCESSED,
    callback=_bytes,
    required=True,
    metavar="SIZE",
    help="The region, index and all: 4GiB, 512MiB or a count of bytes.",
)
@click.option(
    "--listen",
    default="127.0.0.1:7400",
    show_default=True,
    metavar="HOST:PORT",
    help="The control plane (gRPC). Port 0: any free one.",
)
@click.option(
    "--fabric",
    type=click.Choice(["cpu", "verbs"]),
    default="cpu",
    show_default=True,
    help="'cpu' serves shm and tcp, 'verbs' RDMA; their atomics destroy each other's.",
)
@click.option(
    "--device",
    metavar="NAME[,NAME...]",
    help="The RDMA device (`rdma link show`), or NAME:PORT of it. Of several all are used, if their"
    " atomics are of one domain.  [default: the one with the address of --advertise or --listen]",
)
@click.option("--data-port", type=_PORT, help="The tcp agent.  [default: the next port]")
@click.option(
    "--advertise",
    default="",
    metavar="HOST",
    help="Where clients reach the agent, if not at the host that they were given.",
)
@click.option(
    "--shm",
    metavar="NAME",
    help="Socket for clients on this host: a name, a path with a '/', or 'none'."
    "  [default: a new name]",
)
@click.option("--hugepages", is_flag=True, help="Take the region from reserved huge pages.")
@click.option(
    "--prefault/--no-prefault",
    default=True,
    show_default=True,
    help="Touch all pages in the background, so that no first write to one has to wait.",
)
@click.option(
    "--eviction",
    type=click.Choice(["adaptive", "sampled-lru", "lfu", "fifo", "gdsf", "none"]),
    default="adaptive",
    show_default=True,
    help="What a full node does; 'none' refuses puts.",
)
@click.option(
    "--consistency",
    type=click.Choice(["linearizable", "regular"]),
    default="linearizable",
    show_default=True,
    help="What clients with copies may expect of reads, as they can ask of `connect`. With"
    " 'regular' a copy may be behind until the write that replaces its value returns; such"
    " writes take a round trip less, or wait for it and for messages at once.",
)
@click.option(
    "--ssd",
    metavar="FILE",
    help="Keep blocks of prefix caches in this file too: they survive eviction and restarts.",
)
@click.option(
    "--ssd-bytes",
    type=click.UNPROCESSED,
    callback=_bytes,
    default=0,
    metavar="SIZE",
    help="What the file takes, at once; at least twice the capacity.",
)
@click.option(
    "--ssd-index-bytes",
    type=click.UNPROCESSED,
    callback=_bytes,
    default=0,
    metavar="SIZE",
    help="Memory for the index of it, 512 bytes a block; the oldest are dropped beyond."
    "  [default: 1/128 of --ssd-bytes]",
)
@click.option("--token-file", metavar="FILE", help="What clients must present: one line.")
@click.option("--tls-cert", metavar="FILE", help="Certificate chain (PEM) of the control plane.")
@click.option("--tls-key", metavar="FILE", help="Its private key (PEM).")
@click.option("--metrics-port", type=_PORT, help="Serve Prometheus metrics. 0: any free port.")
@click.option("--cluster-id", default="", help="[default: fixed by the first client]")
@click.option(
    "--members",
    default="",
    metavar="A:1,B:2",
    help="Control addresses of all nodes, as clients name them."
    "  [default: fixed by the first client]",
)
@click.option(
    "--fence-after",
    type=Seconds(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Kill a stopped client on this host after so long. 0: never.",
)
@click.option(
    "--membership-lease",
    type=Seconds(min=0),
    default=0.0,
    metavar="SECONDS",
    help="How long a client may be silent.  [default: 5]",
)
@click.option(
    "--data-threads", type=click.IntRange(0, 256), default=0, help="Of the agent.  [default: 1]"
)
@click.option(
    "--grace",
    type=Seconds(min=0),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a drain, by SIGTERM or `kvstore drain`, leaves clients their access.",
)
@click.option(
    "--insecure", is_flag=True, help="Listen to other machines without a token and without TLS."
)
@click.option("--log-format", type=click.Choice(FORMATS), default="text", show_default=True)
@click.option(
    "--config",
    metavar="FILE",
    is_eager=True,
    callback=_load_config,
    help="TOML; the options' names without dashes in front.",
)
@click.version_option(__version__, prog_name="kvstore-node")
def command(**options: Any) -> int:
    """Serve part of this machine's memory to the clients of a key-value store.

    Prints one line on stdout when it serves, starting with `ready`; its log goes to stderr.
    SIGTERM drains and ends; a second one ends at once.
    """
    from kvstore.node import daemon

    log = Log(options["log_format"])
    config = _config_of(options)
    config.check(insecure=options["insecure"])
    _warn(config, options, log)
    return daemon.run(config, log)


def _config_of(options: dict[str, Any]) -> Any:
    from kvstore.node import config

    host, port = config.parse_listen(options["listen"])
    shm = options["shm"]
    token_file = options["token_file"]
    data_port = options["data_port"]
    verbs = options["fabric"] == "verbs"
    _check_fabric(options, verbs=verbs)
    if verbs:
        shm, data_port = "none", 0
    members = [member.strip() for member in options["members"].split(",") if member.strip()]
    return config.NodeConfig(
        capacity_bytes=options["capacity"],
        listen_host=host,
        listen_port=port,
        data_port=config.default_data_port(port) if data_port is None else data_port,
        advertise=options["advertise"],
        shm_name=None if shm == "none" else shm or config.default_shm_name(),
        hugepages=options["hugepages"],
        prefault=options["prefault"],
        eviction=options["eviction"],
        consistency=options["consistency"],
        token=config.read_token(token_file) if token_file else None,
        certificate=config.read_certificate(options["tls_cert"], options["tls_key"]),
        metrics_port=options["metrics_port"],
        cluster_id=options["cluster_id"],
        members=tuple(sorted(members)),
        fence_after_ms=round(options["fence_after"] * 1000),
        membership_lease_ms=round(options["membership_lease"] * 1000),
        data_threads=options["data_threads"],
        grace_s=options["grace"],
        verbs_device=(options["device"] or "") if verbs else None,
        ssd_path=options["ssd"],
        ssd_bytes=options["ssd_bytes"],
        ssd_index_bytes=options["ssd_index_bytes"],
        verbs_address=config.rdma_address(options["advertise"], host)
        if verbs and not options["device"]
        else "",
    )


def _check_fabric(options: dict[str, Any], *, verbs: bool) -> None:
    """What belongs to the other fabric is refused rather than ignored."""
    names = ("shm", "data_port", "data_threads") if verbs else ("device",)
    for name in names:
        if options[name] not in (None, 0) and not (name == "shm" and options[name] == "none"):
            option = name.replace("_", "-")
            raise errors.ConfigurationError(
                f"--{option} does not go with --fabric {options['fabric']}"
            )


def _warn(config: Any, options: dict[str, Any], log: Log) -> None:
    from kvstore.node.config import others_can_read

    if not config.is_loopback and config.token and not config.certificate:
        log.warning("the token crosses the network in clear text; give --tls-cert and --tls-key")
    if not config.is_loopback and not config.token:
        log.warning("no token: whoever reaches this address can read and change everything")
    for name in ("token_file", "tls_key"):
        path = options[name]
        if path and others_can_read(path):
            log.warning("other users can read a secret", file=str(Path(path)))


def main(arguments: Sequence[str] | None = None) -> int:
    """The entry point. Whatever keeps the node from starting is one line on stderr and code 2."""
    # gRPC's own lines would come beside ours and say less.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        code = command.main(arguments, prog_name="kvstore-node", standalone_mode=False)
    except click.ClickException as error:
        return _refuse(error.format_message())
    except (errors.KvError, ImportError, OSError) as error:
        return _refuse(str(error))
    except click.Abort:
        return 130
    return code if isinstance(code, int) else 0


def _refuse(reason: str) -> int:
    line = " ".join(reason.split())
    print(f"kvstore-node: {line}", file=sys.stderr, flush=True)
    return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
