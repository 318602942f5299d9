"""The device arena: what a job needs at every denoising step, one slot a job, written once and indexed ever after."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels import StepColumns, neutral_tokens
from ..models.attention import latent_grids
from ..models.networks import Denoiser, EncodedText
from ..models.transfers import sent
from ..sampling.rows import Branch, Hint

NUM_BRANCHES = len(Branch)
NUM_HINTS = len(Hint)


class SlotState(NamedTuple):
    """What is written into a slot when a denoising run starts.

    latent (C, h, w) initial noise; mask (h, w), pyramid (P,) and tokens (5, T) None for a run without a mask or
    rule; columns (steps, K); hints (width, h, w) by `Hint`, None where no row uses it; texts by `Branch`; seed of the
    step noise;
    sharpness: lengths of the initial noise's sharpness steps, `sharpness_lengths`.
    """

    latent: Tensor
    columns: Tensor
    seed: int
    texts: Sequence[EncodedText]
    mask: Tensor | None = None
    pyramid: Tensor | None = None
    tokens: Tensor | None = None
    hints: Sequence[Tensor | None] = (None, None)
    sharpness: tuple[float, float] = (0.0, 0.0)


class Arena:
    """Slots of one latent shape (S slots; contexts are indexed `slot * 2 + branch`).

    latents, history, carried (S, C, h, w) float32: the running sample, the last predicted x0, and what a solver carries
    over from step to step. columns (S, max_steps, K),
    masks (S, h, w), seeds (S,), pyramid (S, P), tokens (S, 5, T): as `SlotState`. text_kv, control_kv: per layer
    (S * 2, T, 2 * inner). added: per condition of `Added` (S * 2, width). hints (S * 2, width, h, w), indexed
    `slot * 2 + hint`, in the memory order `order`, or None without a ControlNet. sharpness (S, 2). contrasts
    (S + 1, C, h, w): conditional minus unconditional prediction of the last step that ran both; magnitudes
    (S + 1, max_steps): its root mean square at each of them. Padding jobs write the last row of both.
    pushes (S, max_steps): how far protected works repelled each step's predicted x0, root mean square.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        num_slots: int,
        max_steps: int,
        shape: tuple[int, int],
        num_tokens: int,
        device: torch.device,
        dtype: torch.dtype,
        order: torch.memory_format = torch.contiguous_format,
    ) -> None:
        channels = denoiser.unet.config.in_channels
        grids = latent_grids(shape, denoiser.num_levels)
        self.shape = shape
        self.max_steps = max_steps
        latent = (num_slots, channels, *shape)
        contexts = num_slots * NUM_BRANCHES
        self.latents = torch.zeros(latent, device=device)
        self.history = torch.zeros(latent, device=device)
        self.carried = torch.zeros(latent, device=device)
        self.columns = torch.zeros(num_slots, max_steps, len(StepColumns), device=device)
        self.masks = torch.zeros(num_slots, *shape, device=device)
        self.seeds = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.sharpness = torch.zeros(num_slots, 2, device=device)
        self.contrasts = torch.zeros(num_slots + 1, *latent[1:], device=device)
        self.pushes = torch.zeros(num_slots, max_steps, device=device)
        self.magnitudes = torch.zeros(num_slots + 1, max_steps, device=device)
        self.pyramid = torch.zeros(num_slots, sum(h * w for h, w in grids), device=device)
        self.tokens = neutral_tokens(num_slots, num_tokens, device)

        def kv(inner: int) -> Tensor:
            return torch.zeros(contexts, num_tokens, 2 * inner, device=device, dtype=dtype)

        self.text_kv = tuple(kv(layer.inner) for layer in denoiser.layers)
        self.control_kv = tuple(kv(layer.inner) for layer in denoiser.control_layers)
        self.added = tuple(torch.zeros(contexts, width, device=device) for width in denoiser.added_widths)
        self.hints = None
        if denoiser.controlnet is not None:
            width = denoiser.controlnet.config.block_out_channels[0]
            hints = torch.zeros(num_slots * NUM_HINTS, width, *shape, device=device, dtype=dtype)
            self.hints = hints.contiguous(memory_format=order)

    def write(self, slot: int, state: SlotState) -> None:
        """Start a run in `slot`: everything a former run left there is overwritten, in one copy to the device."""
        targets = (self.latents, self.sharpness, self.masks, self.pyramid, self.tokens)
        values = [
            state.latent,
            torch.tensor(state.sharpness),
            torch.zeros(self.masks.shape[1:]) if state.mask is None else state.mask,
            torch.zeros(self.pyramid.shape[1:]) if state.pyramid is None else state.pyramid,
            neutral_tokens(1, self.tokens.shape[-1])[0] if state.tokens is None else state.tokens,
        ]
        *values, columns = sent([*values, state.columns], self.latents.device)
        for target, value in zip(targets, values, strict=True):
            target[slot] = value
        self.columns[slot, : len(columns)] = columns
        self.history[slot] = 0
        self.carried[slot] = 0
        self.seeds[slot].fill_(state.seed)  # an assignment of a number would be a copy
        self.pushes[slot] = 0
        if self.hints is not None:
            for which, hint in enumerate(state.hints):
                self.hints[slot * NUM_HINTS + which] = 0 if hint is None else hint
        for branch, text in enumerate(state.texts):
            context = slot * NUM_BRANCHES + branch
            for arena, kv in zip(self.text_kv, text.unet, strict=True):
                arena[context] = kv
            for arena, kv in zip(self.control_kv, text.controlnet, strict=True):
                arena[context] = kv
            for arena, condition in zip(self.added, text.added, strict=True):
                arena[context] = condition

    def tensors(self) -> list[Tensor]:
        """Every tensor of the arena."""
        return nested_tensors(vars(self).values())


def nested_tensors(values: Iterable[object]) -> list[Tensor]:
    """Tensors among `values`, which may be tuples of them."""
    groups = (value if isinstance(value, tuple) else (value,) for value in values)
    return [tensor for group in groups for tensor in group if isinstance(tensor, Tensor)]
