"""Bright ending: how much the last step of a run attends to the end of its prompt (Chen et al., ICLR 2025, 2410.21665).

Patches that are recited look to the end token more than others do.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from ....engine.models.networks import Denoiser
from ....kernels import StepColumns
from .steering import Beside, Taken, conditional_text


@torch.inference_mode()
def end_attention(beside: Beside, taken: Sequence[Taken], positions: Sequence[Sequence[int]]) -> Tensor:
    """Share of each pixel's attention that goes to P tokens of a step's prompt: (B, P, L, h, w), L layers.

    positions: of those tokens, for each step. Heads are averaged and layers brought to the latent's size. PyTorch runs
    the network on the latents that the steps began with, a row each; queries are taken where layers make them.
    """
    timesteps = torch.tensor([each.run.timesteps[each.number] for each in taken])
    scales = torch.stack([beside.columns(each)[StepColumns.INPUT_SCALE] for each in taken])
    inputs = beside.inputs(taken, [conditional_text(each.job) for each in taken], timesteps, scales)
    denoiser = beside.arenas.networks.denoiser
    with _queries(denoiser) as queries:
        denoiser.predict(inputs)
    size = taken[0].latent.shape[-2:]
    maps = []
    for layer, kv in zip(denoiser.layers, inputs.text_kv, strict=True):
        attended = _attention(queries[layer.name], kv.chunk(2, dim=-1)[0], layer.heads)
        tokens = torch.stack([one[:, list(own)].T for one, own in zip(attended, positions, strict=True)])
        grid = -(-size[0] // 2**layer.level), -(-size[1] // 2**layer.level)
        maps.append(F.interpolate(tokens.unflatten(2, grid), size, mode="nearest"))
    return torch.stack(maps, dim=2).float()


@contextmanager
def _queries(denoiser: Denoiser) -> Iterator[dict[str, Tensor]]:
    """Queries (B, N, inner) of each cross-attention layer by its name, as the network's next run makes them."""
    found: dict[str, Tensor] = {}

    def keep(name: str, made: Tensor) -> None:
        found[name] = made

    hooks = [
        denoiser.unet.get_submodule(f"{layer.name}.to_q").register_forward_hook(
            lambda _, __, made, name=layer.name: keep(name, made)
        )
        for layer in denoiser.layers
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _attention(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """Queries (B, N, inner) and keys (B, T, inner) -> attention (B, N, T), the mean over heads."""
    q, k = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (query, key))
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1).mean(1)
