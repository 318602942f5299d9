"""Static buffers of the denoising step: allocated once for the largest batch, refilled and read at fixed addresses.

A CUDA graph belongs to the addresses it was captured with, so a step reads its inputs from here and nowhere else.
The eager path goes through the same buffers, which lets a CPU catch what would be a stale address or a padding leak
on a GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..models.networks import Denoiser
from ..models.tensors import NetworkSpec, Sizes, controlnet_spec, unet_spec
from ..sampling.rows import MAX_ROWS
from .slots import Arena, nested_tensors

UNUSED = -1
"""Slot index of a padding row or job: kernels read zeros for it and write nothing."""


@dataclass
class StepPlan:
    """One denoising step on the host, row by row and job by job (R rows, C controlled rows, J jobs).

    row_slots, row_contexts, row_steps (R,); timesteps (R,); scalars (R, L, 3); job_slots (`UNUSED` while a job probes
    its noise), job_steps (J,); job_rows, job_weights (J, 4); pair_slots (J,); job_pairs (J, 2): rows of the
    unconditional and the conditional prediction;
    control_rows (C,) indices into the rows; control_scales, control_hints (C,).
    """

    row_slots: list[int] = field(default_factory=list)
    row_contexts: list[int] = field(default_factory=list)
    row_steps: list[int] = field(default_factory=list)
    timesteps: list[float] = field(default_factory=list)
    scalars: list[np.ndarray] = field(default_factory=list)
    job_slots: list[int] = field(default_factory=list)
    job_steps: list[int] = field(default_factory=list)
    job_rows: list[list[int]] = field(default_factory=list)
    job_weights: list[list[float]] = field(default_factory=list)
    pair_slots: list[int] = field(default_factory=list)
    job_pairs: list[tuple[int, int]] = field(default_factory=list)
    control_rows: list[int] = field(default_factory=list)
    control_scales: list[float] = field(default_factory=list)
    control_hints: list[int] = field(default_factory=list)


class StepBuffers:
    """Buffers of one arena for up to `rows` rows. Padding rows have slot `UNUSED` and context 0.

    order: the memory order of latents, hints and residuals.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        arena: Arena,
        rows: int,
        dtype: torch.dtype,
        order: torch.memory_format = torch.contiguous_format,
    ) -> None:
        device = arena.latents.device
        unet = unet_spec(denoiser, arena.tokens.shape[-1])
        sizes = Sizes(rows, *arena.shape)

        def integers(*shape: int) -> Tensor:
            return torch.full(shape, UNUSED, dtype=torch.int64, device=device)

        def static(network: NetworkSpec, prefix: str, sizes: Sizes = sizes) -> tuple[Tensor, ...]:
            chosen = [t for t in (*network.inputs, *network.outputs) if t.name.startswith(prefix)]
            made = (torch.zeros(sizes.of(t, network), dtype=t.dtype or dtype, device=device) for t in chosen)
            return tuple(one.contiguous(memory_format=order) if one.ndim == 4 else one for one in made)

        self.row_slots, self.row_steps, self.row_contexts = integers(rows), integers(rows), integers(rows)
        self.job_slots, self.job_steps, self.job_rows = integers(rows), integers(rows), integers(rows, MAX_ROWS)
        self.job_weights = torch.zeros(rows, MAX_ROWS, device=device)
        self.pair_slots, self.job_pairs = integers(rows), integers(rows, 2)
        (self.sample,), self.timesteps = static(unet, "sample"), torch.zeros(rows, device=device)
        (self.pyramid,), (self.tokens,) = static(unet, "mask_pyramid"), static(unet, "tokens")
        (self.scalars,) = static(unet, "scalars")
        self.text_kv, self.added = static(unet, "text_kv"), static(unet, "added")
        if denoiser.controlnet is not None:
            control = controlnet_spec(denoiser, arena.tokens.shape[-1])
            self.control_rows, self.control_slots, self.control_hints = (integers(rows) for _ in range(3))
            self.control_steps, self.control_contexts = integers(rows), integers(rows)
            (self.control_sample,), self.control_timesteps = static(control, "sample"), torch.zeros(rows, device=device)
            (self.control_scales,), (self.hints,) = static(control, "scale"), static(control, "hint")
            self.control_kv, self.control_added = static(control, "text_kv"), static(control, "added")
            # One row more than can be used: padding rows of the ControlNet scatter there.
            self.residuals = static(control, "residual", Sizes(rows + 1, *arena.shape))

    def load(self, plan: StepPlan, rows: int, control_rows: int) -> None:
        """Write a step, padded to its buckets: `rows` rows and `control_rows` controlled rows."""
        _fill(self.row_slots, plan.row_slots, rows, UNUSED)
        _fill(self.row_contexts, plan.row_contexts, rows, 0)
        _fill(self.row_steps, plan.row_steps, rows, 0)
        _fill(self.timesteps, plan.timesteps, rows, 0.0)
        _fill(self.scalars, np.stack(plan.scalars), rows, 0.0)
        _fill(self.job_slots, plan.job_slots, rows, UNUSED)
        _fill(self.job_steps, plan.job_steps, rows, 0)
        _fill(self.job_rows, plan.job_rows, rows, 0)
        _fill(self.job_weights, plan.job_weights, rows, 0.0)
        _fill(self.pair_slots, plan.pair_slots, rows, UNUSED)
        _fill(self.job_pairs, plan.job_pairs, rows, 0)
        if not control_rows:
            return
        dump = len(self.residuals[0]) - 1
        chosen = plan.control_rows
        _fill(self.control_rows, chosen, control_rows, dump)
        _fill(self.control_scales, plan.control_scales, control_rows, 0.0)
        _fill(self.control_hints, plan.control_hints, control_rows, 0)
        _fill(self.control_slots, [plan.row_slots[r] for r in chosen], control_rows, UNUSED)
        _fill(self.control_contexts, [plan.row_contexts[r] for r in chosen], control_rows, 0)
        _fill(self.control_steps, [plan.row_steps[r] for r in chosen], control_rows, 0)
        _fill(self.control_timesteps, [plan.timesteps[r] for r in chosen], control_rows, 0.0)

    def tensors(self) -> list[Tensor]:
        """Every buffer."""
        return nested_tensors(vars(self).values())

    @torch.inference_mode()
    def poison(self) -> None:
        """Fill every buffer with values that cannot go unnoticed: what a step reads it must have written."""
        for tensor in self.tensors():
            tensor.fill_(float("nan") if tensor.is_floating_point() else 2**40)


def _fill(buffer: Tensor, values: Sequence[object] | np.ndarray, size: int, padding: float) -> None:
    """Copy `values` into the head of `buffer` and padding up to `size`, in one transfer."""
    host = np.full((size, *buffer.shape[1:]), padding, dtype=np.int64 if padding.__class__ is int else np.float32)
    if len(values):
        host[: len(values)] = values
    buffer[:size].copy_(torch.from_numpy(host), non_blocking=True)
