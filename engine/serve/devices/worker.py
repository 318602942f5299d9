"""The engines of one device, served on a Unix socket to the front alone: `python -m twig.engine.serve.devices.worker`.

Its words are the paths of that socket and of the front's counts of keys. The front writes the configuration as a line
to stdin and keeps that open: where it ends, so does the worker, however the front ended.
"""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from ...api.errors import TwigError
from ..app import application
from ..config import ServeConfig
from ..logs import log_as_json
from ..server import Server, check_drawing, load_all
from ..service import Service
from ..tenants import Tenants
from .counting import FrontTenants
from .load import LOAD


def main() -> int:
    """Serve until SIGTERM, or until stdin ends; return the exit code."""
    config = ServeConfig.model_validate_json(sys.stdin.readline())
    log_as_json()
    try:
        app = worker_application(config, FrontTenants(Path(sys.argv[2])))
    except (TwigError, OSError) as error:
        print(f"twig: {config.model.device}: {error}", file=sys.stderr)
        return 2
    threading.Thread(target=_end_with_front, daemon=True).start()
    Server(app, config, Path(sys.argv[1])).run()
    return 0


def worker_application(config: ServeConfig, tenants: Tenants) -> FastAPI:
    """The application of one device, which also tells its load. Raises what loading and keeping records raise.

    tenants: the front's, so that keys' limits hold over all devices.
    """
    app = application(load_all(config), config, tenants)
    service: Service = app.state.service
    check_drawing(service)
    service.prepare()

    async def told() -> dict[str, Any]:
        return {"standing": service.standing, **service.load._asdict()}

    app.add_api_route(LOAD, told)
    return app


def _end_with_front() -> None:
    while sys.stdin.read(2**16):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
