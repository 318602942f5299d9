"""A server over several devices: their processes, the front before them, and an end that loses nothing."""

import asyncio
from collections.abc import Sequence

from ...api.errors import TwigError
from ..checking import check
from ..config import ServeConfig
from ..listening import Listener
from ..logs import log_as_json
from .fleet import Fleet
from .front import Front, front_application


def serve_devices(config: ServeConfig, devices: Sequence[str]) -> None:
    """Serve on `devices`, names such as "cuda:0", until SIGTERM or Ctrl-C.

    Raises what `check` raises before anything is started, and TwigError where a device's engine does not start.
    """
    check(config)
    log_as_json()
    asyncio.run(_serve(config, devices))


def device_names(text: str) -> list[str]:
    """The devices that "0,1" or "cuda:0,cpu" names: a number is that of a GPU. Raises TwigError for none."""
    names = [part.strip() for part in text.split(",")]
    if not all(names):
        raise TwigError(f"--devices takes names such as 0,1 or cpu,cpu, got {text!r}")
    return [f"cuda:{name}" if name.isdecimal() else name for name in names]


async def _serve(config: ServeConfig, devices: Sequence[str]) -> None:
    front = Front(config, Fleet(config, devices))
    server = Listener(front_application(front), config, front)
    failing = asyncio.ensure_future(front.fleet.failed.wait())
    serving = asyncio.ensure_future(server.serve())
    await asyncio.wait({failing, serving}, return_when=asyncio.FIRST_COMPLETED)
    failing.cancel()
    if not serving.done():
        server.stop()
    await serving
    if front.fleet.failed.is_set():
        raise TwigError("a device's engine did not start; its own message stands above")
