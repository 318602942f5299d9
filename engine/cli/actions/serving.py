"""What `twig serve` and `twig keys` do. The server needs the extra `serve`, and keys do not."""

import sys
from pathlib import Path
from typing import Any

from ...api.choices import Role
from ...serve.keys import Key, Keys
from ..options import Manner, given
from ..status import DONE
from .extras import serving
from .speaking import write_json


def serve(path: Path | None, *, host: str | None, port: int | None, devices: str | None, only_check: bool) -> int:
    """Serve as the file at `path` says, at another host and port, and on several devices, where they are given.

    Return the exit code.
    """
    settings = serving("config")
    config = settings.ServeConfig() if path is None else settings.ServeConfig.load(path)
    config = config.with_("listen", **given(host=host, port=port))
    if devices is not None and not only_check:
        several = serving("devices.server")
        several.serve_devices(config, several.device_names(devices))
        return DONE
    serving("server").serve(config, only_check=only_check)
    if only_check:
        print("nothing is wrong: the model loads, its rule is measured, and records can be kept")
    return DONE


def add_key(
    path: Path,
    name: str,
    roles: tuple[Role, ...],
    *,
    priority: int,
    rows_per_minute: int | None,
    concurrent: int | None,
) -> int:
    """Make a key, print it to stdout and what to do with it to stderr."""
    limits: dict[str, Any] = {"rows_per_minute": rows_per_minute, "concurrent": concurrent}
    print(Keys(path).add(name, roles=roles, priority=priority, **limits))
    print(f"kept nowhere: {path} holds a digest of it, under its id", file=sys.stderr)
    return DONE


def list_keys(path: Path, manner: Manner) -> int:
    """Print a line for each key, or all of them as JSON."""
    keys = Keys(path).all()
    if manner.json:
        write_json({"keys": [key.model_dump(mode="json", exclude={"digest"}) for key in keys]})
        return DONE
    for key in keys:
        print(_line(key))
    return DONE


def revoke_key(path: Path, id: str) -> int:
    """Revoke a key."""
    Keys(path).revoke(id)
    return DONE


def _line(key: Key) -> str:
    limits = [f"priority up to {key.priority}"]
    limits += [f"{key.rows_per_minute} rows a minute"] if key.rows_per_minute is not None else []
    limits += [f"{key.concurrent} at a time"] if key.concurrent is not None else []
    ended = f", revoked {key.revoked:%Y-%m-%d %H:%M}" if key.revoked is not None else ""
    return f"{key.id}  {key.name!r}  {'+'.join(key.roles)}  {', '.join(limits)}{ended}"
