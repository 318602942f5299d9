"""Static buffers of the denoising step: allocated once for the largest batch, refilled and read at fixed addresses.

A CUDA graph belongs to the addresses it was captured with, so a step reads its inputs from here and nowhere else.
The eager path goes through the same buffers, which lets a CPU catch what would be a stale address or a padding leak
on a GPU.
"""

from collections.abc import Hashable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...kernels import TokenRow
from ..models.layers import CrossLayer
from ..models.networks import Denoiser
from ..models.tensors import NetworkSpec, Sizes, controlnet_spec, unet_spec
from ..sampling.rows import KEPT_ROWS
from .columns import Columns
from .controls import ControlBuffers, column_of
from .planning import StepPlan, columns_with
from .slots import Arena, nested_tensors
from .zeros import zeros

Told = tuple[object, ...] | None
"""What rows a buffer was filled for, and after how many writes to the arena; None where that is not told."""


class TextBuffers(NamedTuple):
    """What rows read of texts of one length: keys and values, and token vectors; of controlled rows the same."""

    text_kv: tuple[Tensor, ...]
    control_kv: tuple[Tensor, ...]
    tokens: Tensor
    control_tokens: Tensor


class StepBuffers:
    """Buffers of one arena for up to `rows` rows. Padding rows have slot `UNUSED` and context 0.

    columns: `columns_with`, by name. controls: what further ControlNets read, by name. The rest is named as in the I/O
    table. order: the memory order of latents, hints and residuals. texts: by number of tokens.
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
        self._denoiser, self._rows, self._dtype = denoiser, rows, dtype
        self._filled: dict[Hashable, Told] = {}
        self._whole: dict[Hashable, Told] = {}
        unet = unet_spec(denoiser, arena.num_tokens)
        sizes = Sizes(rows, *arena.shape)
        most = {"rows": rows, "control_rows": rows, "slots": len(arena.latents), "layers": len(denoiser.layers)}
        most["kept"] = len(arena.latents) * KEPT_ROWS
        most |= {column_of("control_rows", name): rows for name in arena.controls}
        self._block = Columns(columns_with(arena.controls), most, device)
        self._slots = len(arena.latents)
        self.columns = self._block.views

        def static(network: NetworkSpec, prefix: str, sizes: Sizes = sizes) -> tuple[Tensor, ...]:
            chosen = [t for t in (*network.inputs, *network.outputs) if t.name.startswith(prefix)]
            made = ((sizes.of(each, network), each.dtype or dtype) for each in chosen)
            return tuple(
                zeros(*shape, dtype=own, device=device, order=order if len(shape) == 4 else torch.contiguous_format)
                for shape, own in made
            )

        (self.sample,), (self.pyramid,) = static(unet, "sample"), static(unet, "mask_pyramid")
        (self.time_proj,) = static(unet, "time_proj")
        self.added = static(unet, "added")
        self.texts = {arena.num_tokens: self._texts(arena.num_tokens, device)}
        if denoiser.controlnet is not None:
            control = controlnet_spec(denoiser, arena.num_tokens)
            (self.control_sample,), (self.hints,) = static(control, "sample"), static(control, "hint")
            self.control_added = static(control, "added")
            # One row more than can be used: padding rows of the ControlNet scatter there.
            self.residuals = static(control, "residual", Sizes(rows + 1, *arena.shape))
        self.controls = {
            name: ControlBuffers(each, self.control_sample, self.control_added, order)
            for name, each in arena.controls.items()
        }

    def lengthen(self, arena: Arena, num_tokens: int) -> None:
        """Make buffers for texts of so many tokens too."""
        if num_tokens not in self.texts:
            self.texts[num_tokens] = self._texts(num_tokens, self.sample.device)
            for name, control in self.controls.items():
                control.lengthen(arena.controls[name], num_tokens)

    def _texts(self, num_tokens: int, device: torch.device) -> "TextBuffers":
        """Buffers of what rows read of texts."""

        def kv(layer: CrossLayer) -> Tensor:
            return zeros(self._rows, num_tokens, 2 * layer.inner, dtype=self._dtype, device=device)

        tokens = torch.zeros(self._rows, len(TokenRow), num_tokens, device=device)
        layers, control = self._denoiser.layers, self._denoiser.control_layers
        return TextBuffers(tuple(map(kv, layers)), tuple(map(kv, control)), tokens, tokens.clone())

    def load(
        self, plan: StepPlan, rows: int, control_rows: int, further: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        """Write a step, padded to its buckets, in one copy: `rows` rows and `control_rows` controlled rows.

        further: how many each of the further ControlNets has, those that have any.
        """
        others = {column_of("control_rows", name): further.get(name, 0) for name in self.controls}
        self._block.write(plan, {"rows": rows, "control_rows": control_rows, "slots": self._slots} | others)

    def lacks(self, name: Hashable, told: Told) -> bool:
        """Whether the buffer called `name` has to be filled for `told`: rows that stay need not be copied each step."""
        return told is None or self._filled.get(name) != told

    def has(self, name: Hashable, told: Told) -> None:
        """Say what the buffer called `name` was filled for."""
        self._filled[name] = told
        self._whole.clear()

    def lacks_any(self, names: Hashable, told: Told) -> bool:
        """Whether any of the buffers that are called `names` together has to be filled for `told`."""
        return told is None or self._whole.get(names) != told

    def has_all(self, names: Hashable, told: Told) -> None:
        """Say what all buffers that are called `names` together were filled for, until any of them is filled anew."""
        self._whole[names] = told

    def read(self, column: str, count: int) -> list[Any]:
        """The first values of a column, where steps run on the host."""
        return self._block.read(column, count)

    def tensors(self) -> list[Tensor]:
        """Every buffer."""
        return [*self.columns.values(), *self._own()]

    def _own(self) -> list[Tensor]:
        texts = (tensor for buffers in self.texts.values() for tensor in buffers)
        further = (tensor for each in self.controls.values() for tensor in each.tensors())
        return [*nested_tensors([*vars(self).values(), *texts]), *further]

    @torch.inference_mode()
    def poison(self) -> None:
        """Fill every buffer with values that cannot go unnoticed: what a step reads it must have written."""
        self._block.poison()
        self._filled.clear()
        self._whole.clear()
        for tensor in self._own():
            tensor.fill_(float("nan"))
