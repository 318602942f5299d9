"""What the avoidance mechanisms turn into: masks per attention level, token vectors, schedules, noise of steps.

Pure functions; the moved control map lies in `placement`, the noise a run starts from in `initial_noise`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...kernels import ScalarColumn, StepColumns, TokenRow, neutral_tokens
from ..api.errors import InvalidRequestError
from ..api.mechanisms import MaskedAttention, MaskedNoise
from ..sampling.solver import SolverTable
from .pieces import intersection_over_union
from .placement import avoidance_mask, moved_labels

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "attention_scalars",
    "avoidance_mask",
    "intersection_over_union",
    "mask_pyramid",
    "masked_noise_columns",
    "moved_labels",
    "spikes",
    "token_vectors",
    "transition_point",
]

LayerGroup = Literal["down", "mid", "up"]


def mask_pyramid(mask: Tensor, levels: Sequence[tuple[int, int]]) -> Tensor:
    """Pool a mask (H, W) to each level's (height, width) by area; flat float32 (sum of height * width)."""
    pixels = mask.float()[None, None]
    return torch.cat([F.interpolate(pixels, size, mode="area").flatten() for size in levels])


def token_vectors(
    policy: MaskedAttention | None,
    input_ids: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    masses: Tensor | None = None,
) -> Tensor:
    """Token vectors (5, T) float32 in the order of `TokenRow` for a prompt's ids (T,); neutral without a policy.

    The rule touches the words (up to the end token), the end token and padding, or both, or the positions that the
    policy lists, or those that spike in the draft's attention masses (T,); the start token never, for much of every
    pixel's attention rests on it. Raises InvalidRequestError for a position that is not in the sequence or is the start
    token.
    """
    tokens = neutral_tokens(1, len(input_ids))[0]
    if policy is None:
        return tokens
    chosen = _chosen_tokens(policy, input_ids.tolist(), tokenizer, masses)
    tokens[TokenRow.B, chosen] = policy.bias
    tokens[TokenRow.BBAR, chosen] = policy.outside_bias
    tokens[TokenRow.C, chosen] = policy.scale
    tokens[TokenRow.G, chosen] = policy.gain
    return tokens


def _chosen_tokens(
    policy: MaskedAttention, ids: list[int], tokenizer: PreTrainedTokenizerBase, masses: Tensor | None
) -> list[int]:
    kinds = _token_kinds(ids, tokenizer.bos_token_id, tokenizer.eos_token_id)
    if policy.listens:
        assert masses is not None, "spikes are found in a draft's attention"
        others = torch.tensor([position for position, kind in enumerate(kinds) if kind != "start"])
        return others[spikes(masses[others], policy.spike_threshold)].tolist()
    if isinstance(policy.tokens, str):
        wanted = {"words", "padding"} if policy.tokens == "all" else {policy.tokens}
        return [position for position, kind in enumerate(kinds) if kind in wanted]
    for position in policy.tokens:
        if not 0 <= position < len(ids):
            raise InvalidRequestError(f"token position {position}: the prompt has positions 1 to {len(ids) - 1}")
        if kinds[position] == "start":
            raise InvalidRequestError(f"token position {position} is the start token, which cannot be reweighted")
    return list(policy.tokens)


def _token_kinds(ids: list[int], bos: int | None, eos: int | None) -> list[str]:
    """Whether each token is a start, a word, or padding, which begins with the end token; long prompts start anew."""
    kinds: list[str] = []
    ended = False
    for position, token in enumerate(ids):
        started = position == 0 or (token == bos and bos != eos)
        ended = not started and (ended or token == eos)
        kinds.append("start" if started else "padding" if ended else "words")
    return kinds


def spikes(masses: Tensor, threshold: float) -> Tensor:
    """Which of the masses (T,) lie more than `threshold` standard deviations above their mean, bool (T,)."""
    spread = masses.std(correction=0)
    return masses - masses.mean() > threshold * spread.clamp_min(1e-12)


def attention_scalars(
    policy: MaskedAttention | None, step: int, num_steps: int, layer_groups: Sequence[LayerGroup | str]
) -> np.ndarray:
    """Scalars (L, 3) float32 in the order of `ScalarColumn`, one row a cross-attention layer.

    Zero, which is exactly off, outside the policy's steps and layers; `layer_groups` says where each layer stands.
    """
    scalars = np.zeros((len(layer_groups), len(ScalarColumn)), np.float32)
    if policy is None or not policy.active(step, num_steps):
        return scalars
    acting = [group in policy.layers for group in layer_groups]
    scalars[acting, ScalarColumn.ETA] = 1
    scalars[acting, ScalarColumn.RHO] = policy.renormalise
    scalars[acting, ScalarColumn.GAMMA] = policy.damping
    return scalars


def transition_point(magnitudes: np.ndarray | None) -> float | None:
    """Fraction of a draft's steps at which its guidance magnitudes (S,) reach their first minimum; None without one.

    Inside the basin of a recited picture guidance starts large and falls; Jain et al. (CVPR 2025) guide from the first
    minimum on. A magnitude that never turns has no such point: the run may be in the basin to its end.
    """
    if magnitudes is None:
        return None
    falls, rises = magnitudes[1:-1] <= magnitudes[:-2], magnitudes[1:-1] < magnitudes[2:]
    minima = np.flatnonzero(falls & rises)
    return float(minima[0] + 1) / len(magnitudes) if len(minima) else None


def masked_noise_columns(table: SolverTable, policy: MaskedNoise | None) -> Tensor:
    """Copy a solver's columns (S, K), with m, r and n filled for the steps of the policy.

    After such a step the mask holds 1 - m parts of the latent and m parts of the predicted x0, noised afresh to the
    level the next step starts from: m (alpha x0 + sigma e).
    """
    columns = table.columns.clone()
    if policy is None:
        return columns
    acting = torch.tensor([policy.active(step, table.num_steps) for step in range(table.num_steps)])
    columns[acting, StepColumns.M] = policy.strength
    columns[acting, StepColumns.R] = table.alphas[1:][acting].float()
    columns[acting, StepColumns.N] = table.sigmas[1:][acting].float()
    return columns
