"""`kvstore-bench`: one command a subject, each loaded when it is used."""

from __future__ import annotations

import importlib
from typing import Final

import click

from kvstore._version import __version__

#: Command name -> where it is, and one line for the overview.
_COMMANDS: Final = {
    "cache": (
        "kvstore.bench.cache:cache",
        "Measure reads from copies in the client against reads from the node.",
    ),
    "kv": ("kvstore.bench.kv:kv", "Measure the store: throughput, latency, verbs an operation."),
    "llm": ("kvstore.bench.llm.command:llm", "Replay prompts: what a prefix cache hits and costs."),
    "lock": (
        "kvstore.bench.locks.command:lock",
        "Measure locks, simulated beside published ones, or over a real fabric.",
    ),
    "peers": (
        "kvstore.bench.peers.command:peers",
        "Compare the store with other systems on the same work.",
    ),
    "scale": (
        "kvstore.bench.sim.scale:scale",
        "Simulate clusters that grow: throughput, latency, and what is full.",
    ),
    "sim": (
        "kvstore.bench.sim.command:sim",
        "Simulate clusters with faults, one world for each seed.",
    ),
}


class _LazyGroup(click.Group):
    """A group whose commands are imported only when they run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in sorted(_COMMANDS.items())])


@click.group(cls=_LazyGroup)
@click.version_option(__version__, prog_name="kvstore-bench")
def main() -> None:
    """Measure kvstore, alone and beside other systems."""


if __name__ == "__main__":
    main()
