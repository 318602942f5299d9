"""The commands `twig serve` and `twig keys`."""

from pathlib import Path
from typing import Annotated

import typer

from ..api.choices import Role
from . import actions
from .options import JsonOption, Manner
from .plain import PlainCommand

DEFAULT_KEYS = Path("keys.json")

keys_app = typer.Typer(no_args_is_help=True, help="Keys of those who may ask a server for pictures.")

KeysOption = Annotated[Path, typer.Option("--keys", help="The file of keys.")]


def serve(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="The operator's file, YAML or TOML; else the package's model.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen to; else as in the file, or 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen to; else as in the file, or 8000.")] = None,
    devices: Annotated[
        str | None,
        typer.Option(help="An engine on each: 0,1 are GPUs, cpu,cpu is for trials; else one."),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Load everything, say what is wrong, and end.")] = False,
) -> int:
    """Serve pictures over HTTP as the OpenAI images API does, with Twig's verdicts, until SIGTERM or Ctrl-C.

    Without keys only this machine is listened to.
    """
    return actions.serve(config, host=host, port=port, devices=devices, only_check=check)


@keys_app.command("add", cls=PlainCommand)
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose it is.")],
    keys: KeysOption = DEFAULT_KEYS,
    role: Annotated[
        list[Role] | None,
        typer.Option(metavar="ROLE", help="What it opens: generate (unless said), audit or metrics; may be repeated."),
    ] = None,
    priority: Annotated[int, typer.Option(help="Highest priority of its requests, -100 to 100.")] = 0,
    rows_per_minute: Annotated[int | None, typer.Option(min=1, help="UNet rows a minute; else no limit.")] = None,
    concurrent: Annotated[int | None, typer.Option(min=1, help="Requests at a time; else no limit.")] = None,
) -> int:
    """Make a key and print it, once: the file keeps only a digest of it."""
    roles = tuple(role or [Role.GENERATE])
    return actions.add_key(keys, name, roles, priority=priority, rows_per_minute=rows_per_minute, concurrent=concurrent)


@keys_app.command("list")
def list_keys(keys: KeysOption = DEFAULT_KEYS, json: JsonOption = False) -> int:
    """Name the keys: id, whose, what each opens, its limits, and when it was revoked."""
    return actions.list_keys(keys, Manner(json))


@keys_app.command("revoke", cls=PlainCommand)
def revoke(
    id: Annotated[str, typer.Argument(metavar="ID", help="Id, as `twig keys list` names it.")],
    keys: KeysOption = DEFAULT_KEYS,
) -> int:
    """Let a key open nothing any more, in running servers too."""
    return actions.revoke_key(keys, id)
