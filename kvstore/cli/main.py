"""The entry point of `kvstore`: global options, the list of commands, errors as exit codes."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final

import click

from kvstore._version import __version__

#: Each command and the module that has it; a module is loaded when its command is wanted.
_COMMANDS: Final = {
    "get": "kvstore.cli.keys",
    "put": "kvstore.cli.keys",
    "rm": "kvstore.cli.keys",
    "ls": "kvstore.cli.keys",
    "clear": "kvstore.cli.keys",
    "stat": "kvstore.cli.cluster",
    "nodes": "kvstore.cli.cluster",
    "drain": "kvstore.cli.drain",
    "locks": "kvstore.cli.locks",
    "top": "kvstore.cli.top",
    "doctor": "kvstore.cli.doctor",
    "demo": "kvstore.cli.demo",
    "router": "kvstore.cli.router",
    "rxe": "kvstore.cli.rxe",
}

_EPILOG: Final = """\b
Examples:
  kvstore put greeting hello
  kvstore --target kv://mn1:7400,mn2:7400 get greeting
  kvstore doctor

\b
Exit codes: 0 found or done, 1 absent, 2 wrong usage or configuration,
3 unreachable, 4 failed.
"""


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(importlib.import_module(_COMMANDS[cmd_name]), cmd_name)
        assert isinstance(command, click.Command)
        return command


@click.group(
    cls=_LazyGroup,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--target",
    envvar="KVSTORE_TARGET",
    show_envvar=True,
    metavar="TARGET",
    help="kv://HOST:PORT[,HOST:PORT], tcp://…, verbs://… or shm://NAME."
    "  [default: kv://127.0.0.1:7400]",
)
@click.option(
    "--token-file",
    envvar="KVSTORE_TOKEN_FILE",
    show_envvar=True,
    metavar="FILE",
    help="What the nodes ask clients for.",
)
@click.option(
    "--tls-ca",
    envvar="KVSTORE_TLS_CA",
    show_envvar=True,
    metavar="FILE",
    help="Use TLS on the control plane, and believe this authority (PEM).",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0.001),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long one operation may take.",
)
@click.version_option(__version__, prog_name="kvstore")
@click.pass_context
def command(
    ctx: click.Context,
    target: str | None,
    token_file: str | None,
    tls_ca: str | None,
    timeout_s: float,
) -> None:
    """Look into and change a key-value store on disaggregated memory."""
    from kvstore.cli.settings import TARGET_DEFAULT, Settings

    ctx.obj = Settings(
        target or TARGET_DEFAULT, token_file, tls_ca, timeout_s, target_is_default=not target
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. What went wrong is one line on stderr."""
    from kvstore import errors

    # gRPC's own lines would come beside ours and say less.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        code = command.main(arguments, prog_name="kvstore", standalone_mode=False)
    except click.ClickException as error:
        return _say(error.format_message(), error.exit_code)
    except errors.KvError as error:
        from kvstore.cli.settings import exit_code_of

        return _say(str(error), exit_code_of(error))
    except click.Abort:
        return _say("interrupted", 130)
    except BrokenPipeError:
        # Whoever read our output has what it wanted, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ImportError, OSError) as error:
        return _say(str(error), 4)
    return code if isinstance(code, int) else 0


def _say(reason: str, code: int) -> int:
    print(f"kvstore: {' '.join(reason.split())}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
