"""The device arena: what a job needs at every denoising step, one slot a job, written once and indexed ever after."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels import HIDDEN, StepColumns, TokenRow, neutral_tokens
from ..models.layers import CrossLayer, latent_grids
from ..models.networks import Denoiser, EncodedText
from ..models.shallow import deep_channels, num_skips
from ..models.transfers import sent
from ..sampling.rows import KEPT_ROWS, Branch, Hint
from .controls import ControlSlots, behind, write_text
from .zeros import zeros

NUM_BRANCHES = len(Branch)
NUM_HINTS = len(Hint)


class SlotState(NamedTuple):
    """What is written into a slot when a denoising run starts.

    latent (C, h, w) initial noise; mask (h, w), pyramid (P,) and tokens (5, T), as many as the texts have, None for a
    run without a mask or rule; columns (steps, K); hints (width, h, w) by `Hint`, None where no row uses it; texts by
    `Branch`; seed of the step noise; sharpness: lengths of the initial noise's sharpness steps, `sharpness_lengths`.
    further: hints (width, h, w) of further ControlNets, by name.
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
    further: Mapping[str, Tensor] = MappingProxyType({})


class Arena:
    """Slots of one latent shape (S slots; contexts are indexed `slot * 2 + branch`).

    latents, history, carried (S, C, h, w) float32: the running sample, the last predicted x0, and what a solver carries
    over from step to step. columns (S, max_steps, K), masks (S, h, w), seeds (S,), pyramid (S, P), tokens
    (S, 5, longest): as `SlotState`, hidden behind a slot's own. text_kv, control_kv: per layer (S * 2, T, 2 * inner),
    of the first T tokens; more_text_kv, more_control_kv (S * 2, longest - T, 2 * inner): of those behind, once some
    prompt has any; `lengthen`. lengths: tokens of each slot's texts. added: per condition of `Added` (S * 2, width).
    hints (S * 2, width, h, w), indexed
    `slot * 2 + hint`, in the memory order `order`, or None without a ControlNet. sharpness (S, 2). contrasts
    (S + 1, C, h, w): conditional minus unconditional prediction of the last step that ran both; magnitudes
    (S + 1, max_steps): its root mean square at each of them. Padding jobs write the last row of both.
    controls: what further ControlNets need, by name. deep (S * 2 + 1, D, h, w), kept_residuals: of the last rows that
    were computed in full what a shallow step takes over, indexed `slot * 2 + row`, once some run has such steps;
    `deepen`. Rows of which nothing is kept write the last.
    writes: how often texts, maps or rules of slots changed, by which who copied them knows whether they are current.
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
        max_tokens: int,
        device: torch.device,
        dtype: torch.dtype,
        order: torch.memory_format = torch.contiguous_format,
    ) -> None:
        channels = denoiser.unet.config.in_channels
        self._denoiser, self._order = denoiser, order
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
        self.tokens = neutral_tokens(num_slots, max_tokens, device)
        self.num_tokens = num_tokens
        self.writes = 0
        self.lengths = [num_tokens] * num_slots

        def kv(layer: CrossLayer) -> Tensor:
            return zeros(contexts, num_tokens, 2 * layer.inner, device=device, dtype=dtype)

        self.text_kv = tuple(map(kv, denoiser.layers))
        self.control_kv = tuple(map(kv, denoiser.control_layers))
        self.more_text_kv: tuple[Tensor, ...] = ()
        self.more_control_kv: tuple[Tensor, ...] = ()
        self.added = tuple(torch.zeros(contexts, width, device=device) for width in denoiser.added_widths)
        self.hints = None
        if denoiser.controlnet is not None:
            width = denoiser.controlnet.config.block_out_channels[0]
            self.hints = zeros(num_slots * NUM_HINTS, width, *shape, dtype=dtype, device=device, order=order)
        self.deep: Tensor | None = None
        self.kept_residuals: tuple[Tensor, ...] = ()
        self.controls = {
            name: ControlSlots(each, num_slots, num_tokens, shape, device, dtype, order)
            for name, each in denoiser.further.items()
        }

    @property
    def longest(self) -> int:
        """Most tokens of a prompt."""
        return self.tokens.shape[-1]

    def lengthen(self) -> None:
        """Make room for tokens behind the first T, where there is none yet."""
        if self.more_text_kv or self.longest == self.num_tokens:
            return
        self.writes += 1
        more = self.longest - self.num_tokens
        self.more_text_kv, self.more_control_kv = behind(self.text_kv, more), behind(self.control_kv, more)
        for control in self.controls.values():
            control.lengthen(more)

    def deepen(self) -> None:
        """Make room for what shallow steps take over, where there is none yet."""
        if self.deep is not None:
            return

        def kept(shape: tuple[int, ...]) -> Tensor:
            like, places = self.text_kv[0], len(self.latents) * KEPT_ROWS + 1
            return zeros(places, *shape, dtype=like.dtype, device=like.device, order=self._order)

        unet = self._denoiser.unet
        self.deep = kept((deep_channels(unet), *self.shape))
        if self.hints is not None:
            shapes = self._denoiser.residual_shapes(self.shape)[: num_skips(unet)]
            self.kept_residuals = tuple(map(kept, shapes))

    def write(self, slot: int, state: SlotState) -> None:
        """Start a run in `slot`: everything a former run left there is overwritten, in one copy to the device."""
        self.writes += 1
        targets = (self.latents, self.sharpness, self.masks, self.pyramid, self.tokens)
        values = [
            state.latent,
            torch.tensor(state.sharpness),
            torch.zeros(self.masks.shape[1:]) if state.mask is None else state.mask,
            torch.zeros(self.pyramid.shape[1:]) if state.pyramid is None else state.pyramid,
            self._tokens(state.tokens, state.texts[0].num_tokens),
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
        for name, control in self.controls.items():
            control.write(slot, state.further.get(name), [text.further[name] for text in state.texts])
        self.lengths[slot] = state.texts[0].num_tokens
        for branch, text in enumerate(state.texts):
            self._write_text(slot * NUM_BRANCHES + branch, text)

    def say(self, slot: int, text: EncodedText, tokens: Tensor) -> None:
        """Let a text, of as many tokens, take the place of the conditional one of a run; tokens (5, T): its vectors."""
        self.writes += 1
        context = slot * NUM_BRANCHES + Branch.CONDITIONAL
        (sent_tokens,) = sent([self._tokens(tokens, text.num_tokens)], self.tokens.device)
        self.tokens[slot] = sent_tokens
        self._write_text(context, text)
        for name, control in self.controls.items():
            write_text(context, control.text_kv, control.more_kv, text.further[name])

    def _write_text(self, context: int, text: EncodedText) -> None:
        write_text(context, self.text_kv, self.more_text_kv, text.unet)
        write_text(context, self.control_kv, self.more_control_kv, text.controlnet)
        for arena, condition in zip(self.added, text.added, strict=True):
            arena[context] = condition

    def _tokens(self, own: Tensor | None, length: int) -> Tensor:
        """Token vectors (5, longest) of a run, hidden behind its own texts, which have so many tokens."""
        tokens = neutral_tokens(1, self.longest)[0]
        tokens[TokenRow.PAD, length:] = HIDDEN
        if own is not None:
            tokens[:, :length] = own
        return tokens

    def tensors(self) -> list[Tensor]:
        """Every tensor of the arena."""
        further = (tensor for each in self.controls.values() for tensor in each.tensors())
        return [*nested_tensors(vars(self).values()), *further]


def nested_tensors(values: Iterable[object]) -> list[Tensor]:
    """Tensors among `values`, which may be tuples of them."""
    groups = (value if isinstance(value, tuple) else (value,) for value in values)
    return [tensor for group in groups for tensor in group if isinstance(tensor, Tensor)]
