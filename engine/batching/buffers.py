"""Static buffers of the denoising step: allocated once for the largest batch, refilled and read at fixed addresses.

A CUDA graph belongs to the addresses it was captured with, so a step reads its inputs from here and nowhere else.
The eager path goes through the same buffers, which lets a CPU catch what would be a stale address or a padding leak
on a GPU.
"""

import torch
from torch import Tensor

from ..models.networks import Denoiser
from ..models.tensors import NetworkSpec, Sizes, controlnet_spec, unet_spec
from .columns import Columns
from .planning import COLUMNS, StepPlan
from .slots import Arena, nested_tensors


class StepBuffers:
    """Buffers of one arena for up to `rows` rows. Padding rows have slot `UNUSED` and context 0.

    columns: `COLUMNS`, by name. The rest is named as in the I/O table.
    """

    def __init__(self, denoiser: Denoiser, arena: Arena, rows: int, dtype: torch.dtype) -> None:
        device = arena.latents.device
        unet = unet_spec(denoiser, arena.tokens.shape[-1])
        sizes = Sizes(rows, *arena.shape)
        most = {"rows": rows, "control_rows": rows, "slots": len(arena.latents), "layers": len(denoiser.layers)}
        self._block = Columns(COLUMNS, most, device)
        self._slots = len(arena.latents)
        self.columns = self._block.views

        def static(network: NetworkSpec, prefix: str, sizes: Sizes = sizes) -> tuple[Tensor, ...]:
            chosen = [t for t in (*network.inputs, *network.outputs) if t.name.startswith(prefix)]
            return tuple(torch.zeros(sizes.of(t, network), dtype=t.dtype or dtype, device=device) for t in chosen)

        (self.sample,), (self.pyramid,) = static(unet, "sample"), static(unet, "mask_pyramid")
        (self.tokens,) = static(unet, "tokens")
        self.text_kv, self.added = static(unet, "text_kv"), static(unet, "added")
        if denoiser.controlnet is not None:
            control = controlnet_spec(denoiser, arena.tokens.shape[-1])
            (self.control_sample,), (self.hints,) = static(control, "sample"), static(control, "hint")
            self.control_kv, self.control_added = static(control, "text_kv"), static(control, "added")
            # One row more than can be used: padding rows of the ControlNet scatter there.
            self.residuals = static(control, "residual", Sizes(rows + 1, *arena.shape))

    def load(self, plan: StepPlan, rows: int, control_rows: int) -> None:
        """Write a step, padded to its buckets, in one copy: `rows` rows and `control_rows` controlled rows."""
        self._block.write(plan, {"rows": rows, "control_rows": control_rows, "slots": self._slots})

    def tensors(self) -> list[Tensor]:
        """Every buffer."""
        return [*self.columns.values(), *nested_tensors(vars(self).values())]

    @torch.inference_mode()
    def poison(self) -> None:
        """Fill every buffer with values that cannot go unnoticed: what a step reads it must have written."""
        self._block.poison()
        for tensor in nested_tensors(vars(self).values()):
            tensor.fill_(float("nan"))
