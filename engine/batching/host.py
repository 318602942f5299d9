"""A step's own arithmetic on a processor: by kernels that know the slots, from numbers that the host has anyway."""

import math

import numpy as np
import torch
from torch import Tensor

from ...kernels import HostSteps
from .buffers import StepBuffers
from .slots import Arena

_JOB_COLUMNS = ("job_slots", "job_rows", "job_weights", "job_steps", "job_pairs", "job_rescales")
"""What `HostSteps.step` reads of jobs, in its order."""


class HostArithmetic:
    """What is computed of an arena before and after its networks, row by row and job by job.

    A picture's latent is small: a call of PyTorch for all rows takes longer than NumPy's for each.
    """

    def __init__(self, steps: HostSteps, arena: Arena, buffers: StepBuffers) -> None:
        self._steps, self._buffers = steps, buffers
        self._padding = len(arena.latents)
        self._contrasts, self._magnitudes = arena.contrasts.numpy(), arena.magnitudes.numpy()

    def gather(self, rows: int, slots: str, steps: str, into: Tensor) -> bool:
        """Latents of the slots in one column, scaled as their steps in another say; False for a dtype NumPy lacks."""
        if into.dtype is not torch.float32:
            return False
        self._steps.gather(self._buffers.read(slots, rows), self._buffers.read(steps, rows), into.numpy())
        return True

    def advance(self, rows: int, predicted: Tensor) -> None:
        """Guidance and solver, in place on the slots."""
        self._steps.step(predicted, *(self._buffers.read(name, rows) for name in _JOB_COLUMNS))

    def contrast(self, rows: int, predicted: Tensor) -> None:
        """Keep conditional minus unconditional prediction (R, C, h, w) of each job that has both, and its size."""
        outputs, read = predicted.float().numpy(), self._buffers.read
        for slot, pair, step in zip(
            read("pair_slots", rows), read("job_pairs", rows), read("job_steps", rows), strict=True
        ):
            if slot < self._padding:
                contrast = outputs[pair[1]] - outputs[pair[0]]
                self._contrasts[slot] = contrast
                squares = np.add.reduce(np.square(contrast), axis=None)
                self._magnitudes[slot, step] = math.sqrt(squares / contrast.size)
