"""A contender as a process of its own on one core, asked and answering over pipes."""

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .theirs import Asked

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
_TAIL = 2000


@dataclass(frozen=True)
class Drawn:
    """Pictures (N, H, W, 3) uint8, seconds of wall and processor that they took, and what the process took by then."""

    pictures: np.ndarray
    wall: float
    cpu: float
    cpu_since_start: float
    peak_mib: float


def asked(prompt: str, seeds: Sequence[int], steps: int, guidance: float, side: int) -> Asked:
    """What every contender is asked, with the latents (N, 4, side, side) that Twig draws for these seeds."""
    made = [torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return Asked(prompt, torch.cat(made).numpy(), list(seeds), steps, guidance)


class Process:
    """A contender that was started; what it says of itself goes to `log`."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.log = log
        self.files = tempfile.TemporaryDirectory()
        core = str(max(os.sched_getaffinity(0)))
        with log.open("wb") as errors:
            self.started = subprocess.Popen(
                ["taskset", "-c", core, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                text=True, env={**os.environ, **_ONE_THREAD},
            )  # fmt: skip

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *raised: object) -> None:
        """End it."""
        self.started.communicate()
        self.files.cleanup()

    def draw(self, wanted: Asked) -> Drawn:
        """Have it draw. Raises RuntimeError with the end of its log where it ended."""
        latents, out = (Path(self.files.name) / name for name in ("latents.npy", "pictures.npy"))
        np.save(latents, wanted.latents)
        line = json.dumps({**wanted._asdict(), "latents": str(latents), "out": str(out)})
        assert self.started.stdin is not None
        assert self.started.stdout is not None
        try:
            self.started.stdin.write(line + "\n")
            self.started.stdin.flush()
        except BrokenPipeError:
            raise RuntimeError(self._ended()) from None
        told = self.started.stdout.readline()
        if not told:
            raise RuntimeError(self._ended())
        return Drawn(np.load(out), **json.loads(told))

    def _ended(self) -> str:
        self.started.wait()
        return f"{self.log.stem} ended: {self.log.read_text(errors='replace').strip()[-_TAIL:]}"
