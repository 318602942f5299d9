"""A batch over a cluster, by Ray Data: an engine on each device, and one process that writes the answers.

A block of lines whose worker is lost runs again, with the same seeds: its pictures' records are found where they were
written, and answers are written by the driver alone, once.
"""

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data

from ...api.errors import TwigError
from ..config import ServeConfig
from ..server import load_all, on_cpu
from .batch import Batch
from .drawing import Drawer
from .ledger import Answered
from .lines import Place, read

_BLOCK = 16
"""Lines of a block, at least: what is drawn again where a worker is lost."""

_BLOCKS = 4096
"""Blocks of a batch, at most."""


class Blocks:
    """Draws blocks on one device: an actor of Ray Data."""

    def __init__(self, requests: Path, out: Path, config: ServeConfig) -> None:
        self.requests = requests
        self.drawer = Drawer(load_all(config), config, out)

    def __call__(self, block: dict[str, Any]) -> list[dict[str, Any]]:
        """Answers to the lines of a block."""
        places = (Place(int(number), int(offset), bool(repeats)) for number, offset, repeats in block["places"])
        return [{"answer": answer} for answer in self.drawer.answers(read(self.requests, places))]


def spread(
    batch: Batch, config: ServeConfig, workers: int, stopped: Callable[[], bool] = lambda: False
) -> Generator[dict[str, Any]]:
    """Draw what is left of a batch on `workers` engines of the cluster, and yield each answer when it is on the disk.

    The cluster is the one that RAY_ADDRESS names, else one on this machine alone. Its machines see the batch's file and
    folder under the same paths. Raises TwigError where a worker cannot do its work.
    """
    if not len(batch.left):
        return
    out = batch.ledger.folder.absolute()
    ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False)
    blocks = ray.data.from_items(list(_blocks(batch)))
    answers = blocks.flat_map(
        Blocks,
        fn_constructor_args=(batch.survey.path.absolute(), out, config),
        concurrency=workers,
        num_gpus=0 if on_cpu(config) else 1,
        num_cpus=1,
    )
    try:
        for row in answers.iter_rows():
            if stopped():
                return
            yield batch.ledger.write(Answered(*row["answer"]))
    except ray.exceptions.RayError as error:
        raise TwigError(f"a worker of the cluster failed: {error}") from error


def _blocks(batch: Batch) -> Iterator[dict[str, Any]]:
    size = max(_BLOCK, -(-len(batch.left) // _BLOCKS))
    for start in range(0, len(batch.left), size):
        places = list(batch.survey.places(batch.left[start : start + size]))
        yield {"places": np.array(places, dtype=np.int64)}
