"""The commands on keys: get, put, rm, ls, clear."""

from __future__ import annotations

import base64
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from kvstore import errors
from kvstore.cli.output import json_option, print_document, print_table, table_of
from kvstore.cli.settings import EXIT_ABSENT, EXIT_FOUND, Settings

hex_option = click.option("--hex", "is_hex", is_flag=True, help="KEY is written in hexadecimal.")


def key_of(text: str, is_hex: bool) -> bytes:
    """The key that was written on the command line."""
    if not is_hex:
        return text.encode("utf-8", "surrogateescape")
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise errors.ConfigurationError(f"{text!r} is not hexadecimal") from None


def key_fields(key: bytes) -> dict[str, Any]:
    """A key in a row: as text, and exactly."""
    return {"key": key_text(key), "key_hex": key.hex()}


def key_text(key: bytes) -> str:
    """A key as people read it: what is not printable is escaped."""
    text = key.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@click.command(
    epilog="\b\nExamples:\n  kvstore get greeting\n  kvstore get model --output model.bin"
)
@click.argument("key")
@click.option("--output", metavar="FILE", help="Write the value there instead of to stdout.")
@hex_option
@json_option
@click.pass_obj
def get(settings: Settings, key: str, output: str | None, is_hex: bool, as_json: bool) -> int:
    """Write the value of KEY to stdout, as it is. Exit code 1 if there is no such key."""
    name = key_of(key, is_hex)
    with settings.connect() as store:
        found = store.get_versioned(name)
    if output is not None and found is not None:
        Path(output).write_bytes(found[0])
    if as_json:
        print_document("get", settings, [] if found is None else [_value_row(name, *found)])
    elif found is None:
        print(f"kvstore: there is no key {key_text(name)!r}", file=sys.stderr)
    elif output is None:
        sys.stdout.buffer.write(found[0])
        if sys.stdout.isatty():
            sys.stdout.write("\n")
        sys.stdout.flush()
    return EXIT_ABSENT if found is None else EXIT_FOUND


def _value_row(key: bytes, value: bytes, version: int) -> dict[str, Any]:
    row = {**key_fields(key), "value_bytes": len(value), "version": version}
    try:
        return {**row, "value": value.decode()}
    except UnicodeDecodeError:
        return {**row, "value_base64": base64.b64encode(value).decode()}


@click.command(
    epilog="\b\nExamples:\n  kvstore put greeting hello\n  kvstore put model --file model.bin\n"
    "  date | kvstore put now --ttl 60"
)
@click.argument("key")
@click.argument("value", required=False)
@click.option("--file", "file_name", metavar="FILE", help="Take the value from a file.")
@click.option("--ttl", "ttl_s", type=float, metavar="SECONDS", help="Forget the key after so long.")
@click.option("--if-absent", is_flag=True, help="Only if there is no such key; exit code 1 if so.")
@hex_option
@json_option
@click.pass_obj
def put(
    settings: Settings,
    key: str,
    value: str | None,
    file_name: str | None,
    ttl_s: float | None,
    if_absent: bool,
    is_hex: bool,
    as_json: bool,
) -> int:
    """Store VALUE, a file, or what comes on stdin under KEY."""
    if value is not None and file_name is not None:
        raise click.UsageError("VALUE and --file exclude each other")
    name = key_of(key, is_hex)
    content = _content(value, file_name)
    with settings.connect() as store:
        try:
            version = store.put(name, content, ttl_s=ttl_s, if_absent=if_absent)
        except errors.ConditionFailed:
            print(f"kvstore: the key {key_text(name)!r} exists", file=sys.stderr)
            if as_json:
                print_document("put", settings, [])
            return EXIT_ABSENT
    if as_json:
        row = {**key_fields(name), "value_bytes": len(content), "version": version}
        print_document("put", settings, [row])
    return EXIT_FOUND


def _content(value: str | None, file_name: str | None) -> bytes:
    if value is not None:
        return value.encode("utf-8", "surrogateescape")
    if file_name is not None:
        try:
            return Path(file_name).read_bytes()
        except OSError as error:
            raise errors.ConfigurationError(f"cannot read {file_name}: {error.strerror}") from error
    if sys.stdin.isatty():
        raise click.UsageError("give VALUE, --file FILE, or the value on stdin")
    return sys.stdin.buffer.read()


@click.command(epilog="\b\nExample:\n  kvstore rm greeting model")
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@hex_option
@json_option
@click.pass_obj
def rm(settings: Settings, keys: tuple[str, ...], is_hex: bool, as_json: bool) -> int:
    """Delete keys. Exit code 1 if one of them was not there."""
    names = [key_of(key, is_hex) for key in keys]
    with settings.connect() as store:
        outcomes = store.delete_many(names)
    failed = [outcome for outcome in outcomes if isinstance(outcome, errors.KvError)]
    if failed:
        raise failed[0]
    if as_json:
        rows = [{**key_fields(n), "deleted": o} for n, o in zip(names, outcomes, strict=True)]
        print_document("rm", settings, rows)
    else:
        for name, outcome in zip(names, outcomes, strict=True):
            if not outcome:
                print(f"kvstore: there is no key {key_text(name)!r}", file=sys.stderr)
    return EXIT_FOUND if all(outcomes) else EXIT_ABSENT


@click.command(
    epilog="\b\nExamples:\n  kvstore ls --limit 20\n  kvstore ls --prefix user: --long --json"
)
@click.option("--prefix", default="", help="Only keys that begin so.")
@click.option("--limit", type=click.IntRange(min=0), help="At most so many.")
@click.option("--long", "is_long", is_flag=True, help="With sizes and versions; reads each value.")
@json_option
@click.pass_obj
def ls(settings: Settings, prefix: str, limit: int | None, is_long: bool, as_json: bool) -> int:
    """List keys, in no order. Walks the whole store, whatever the prefix."""
    start = prefix.encode("utf-8", "surrogateescape")
    with settings.connect() as store:
        found = (key for key in store if key.startswith(start))
        keys = itertools.islice(found, limit)
        if not is_long and not as_json:
            for key in keys:
                print(key_text(key))
            return EXIT_FOUND
        rows = list(_long_rows(store, keys) if is_long else map(key_fields, keys))
    if as_json:
        print_document("ls", settings, rows)
    else:
        cells = [[str(r["value_bytes"]), str(r["version"]), r["key"]] for r in rows]
        print_table(table_of(("value_bytes", "version", "key"), cells))
    return EXIT_FOUND


def _long_rows(store: Any, keys: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """Sizes and versions, a few values at once; a key that has gone meanwhile is left out."""
    while batch := list(itertools.islice(keys, 16)):
        for key, found in zip(batch, store.get_versioned_many(batch), strict=True):
            if isinstance(found, errors.KvError):
                raise found
            if found is not None:
                value, version = found
                yield {**key_fields(key), "value_bytes": len(value), "version": version}


@click.command(epilog="\b\nExample:\n  kvstore clear --yes")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_context
def clear(ctx: click.Context, yes: bool, as_json: bool) -> int:
    """Delete every key of every node."""
    settings: Settings = ctx.obj
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("this deletes every key; say --yes")
        click.confirm(f"Delete every key of {settings.target}?", abort=True, err=True)
    with settings.connect() as store:
        down = [member.address for member in store.members() if member.state != "up"]
        if down:
            raise errors.NodeUnreachable(f"{', '.join(down)}: down; nothing was deleted")
        deleted = store.clear()
    if as_json:
        print_document("clear", settings, [{"deleted_keys": deleted}])
    else:
        print(f"{deleted} keys deleted")
    return EXIT_FOUND
