"""What `twig batch` does. It needs the extra `serve`, whose bodies and operator's file it reads."""

import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console

from ..interruption import interrupted_between_steps
from ..options import Manner
from ..progress import LineBar
from ..status import DONE, USER_ERROR
from .extras import serving
from .speaking import write_json


def batch(
    requests: Path, out: Path, path: Path | None, *, device: str | None, workers: int | None, manner: Manner
) -> int:
    """Answer the lines of `requests` that have no answer in the folder `out`; return the exit code.

    workers: engines on a cluster of Ray's; None for one engine here.
    """
    settings = serving("config")
    config = settings.ServeConfig() if path is None else settings.ServeConfig.load(path)
    with serving("offline.batch").opened(requests, out) as found:
        status = _drawn(found, config if device is None else config.on(device), workers, manner)
        if not manner.quiet:
            print(f"{found.results} of {found.total} lines answered, {found.errors} failed: {out}", file=sys.stderr)
        return status or (USER_ERROR if found.errors else DONE)


def _drawn(found: Any, config: Any, workers: int | None, manner: Manner) -> int:
    """Draw what is left of a batch; return the exit code of a run that was stopped, else that of one that was not."""
    bar = LineBar(found.total, found.total - len(found.left), Console(stderr=True), quiet=manner.quiet)
    with bar, interrupted_between_steps() as stop:
        if workers is None:
            answers = found.answers(config, stop.is_set)
        else:
            answers = serving("offline.cluster", "ray").spread(found, config, workers, stop.is_set)
        with closing(answers):
            for answer in answers:
                bar.advance()
                if manner.json:
                    write_json(answer)
    return stop.status if stop.is_set() else DONE
