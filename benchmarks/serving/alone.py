"""The engine that a server would have, without the server: bodies in, a line of JSON a batch; `processes.Alone`."""

import json
import sys
from pathlib import Path

import typer

from ...engine.api.result import GenerationResult, Verdict
from ...engine.serve.asking import Asking
from ...engine.serve.bodies import ImageBody, from_values
from ...engine.serve.config import ServeConfig
from ...engine.serve.keys import LOCAL
from ...engine.serve.server import load
from ..clocks import stopwatch
from .pictures import encoded


def main(config: Path) -> None:
    """Draw the bodies of each line of stdin at once, as a server under `config` would ask its engine to."""
    served = ServeConfig.load(config)
    engine = load(served)
    engine.warmup()
    asking = Asking.over(engine, served)
    _say({"ready": True})
    for line in sys.stdin:
        requests = [asking.request(from_values(body, ImageBody), LOCAL) for body in json.loads(line)]
        with stopwatch() as spent:
            results = engine.generate(requests)
        pictures = [_shown(result) for result in results]
        _say({"wall": spent.wall, "cpu": spent.cpu, "pictures": pictures, "rows": sum(each.rows for each in results)})


def _shown(result: GenerationResult) -> str | None:
    """The picture as a server would show it: a refused one never."""
    shown = None if result.verdict is Verdict.REFUSED else result.image
    return None if shown is None else encoded(shown)


def _say(told: dict[str, object]) -> None:
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    typer.run(main)
