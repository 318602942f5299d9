"""The one table of what every network reads and writes: names, axes and dtypes.

Static buffers, ONNX axes, TensorRT profiles, parity checks and benchmark inputs are all made from it. An axis is a
number, the name of one that `Sizes` knows, or in outputs `out_height` and `out_width`, which the network decides; a
dtype of None is the network's own precision.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...kernels import ScalarColumn, TokenRow
from .components import Components
from .layers import CrossLayer, latent_grids
from .networks import ControlInputs, Denoiser, DenoiserInputs, Residuals
from .shallow import ShallowInputs, deep_channels, num_skips

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

Axis = int | str
_NUM_CONDITIONS = 3


class Network(StrEnum):
    """The networks a checkpoint is run as."""

    UNET = "unet"
    UNET_SHALLOW = "unet_shallow"
    CONTROLNET = "controlnet"
    VAE_DECODER = "vae_decoder"
    VAE_ENCODER = "vae_encoder"
    PREVIEW_DECODER = "preview_decoder"
    TEXT_ENCODER = "text_encoder"
    TEXT_ENCODER_2 = "text_encoder_2"
    SEGMENTER = "segmenter"


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a network."""

    name: str
    shape: tuple[Axis, ...]
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class NetworkSpec:
    """A network's flat signature. step: its `height` and `width` are multiples of it. levels: resolutions within."""

    network: Network
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    step: int = 1
    levels: int = 1

    def __getitem__(self, name: str) -> TensorSpec:
        """Return the input or output called `name`."""
        return next(spec for spec in (*self.inputs, *self.outputs) if spec.name == name)


@dataclass(frozen=True)
class Sizes:
    """Values of the symbolic axes: `rows` of a call, its `height` and `width` (latents, or pixels of pictures)."""

    rows: int
    height: int = 1
    width: int = 1

    def of(self, spec: TensorSpec, network: NetworkSpec) -> tuple[int, ...]:
        """Shape of a tensor of `network` at these sizes."""
        values = self._axes(network)
        return tuple(values[axis] if isinstance(axis, str) else axis for axis in spec.shape)

    def _axes(self, network: NetworkSpec) -> dict[str, int]:
        grids = latent_grids((self.height, self.width), network.levels)
        axes = {"rows": self.rows, "height": self.height, "width": self.width}
        axes["pyramid"] = sum(height * width for height, width in grids)
        for level, (height, width) in enumerate(grids):
            axes |= {f"height_{level}": height, f"width_{level}": width}
        return axes


def network_specs(components: Components, denoiser: Denoiser, chunks: int = 1) -> dict[Network, NetworkSpec]:
    """Return the table for one checkpoint: the networks that it has. chunks: of the longest prompt."""
    tokens = chunks * components.max_tokens
    specs = [unet_spec(denoiser, tokens), *_vae_specs(components), *_text_specs(components)]
    if denoiser.splits:
        specs.append(shallow_spec(denoiser, tokens))
    if denoiser.controlnet is not None:
        specs.append(controlnet_spec(denoiser, tokens, hiding=chunks > 1))
    if components.segmenter is not None:
        specs.append(_segmenter_spec(components))
    return {spec.network: spec for spec in specs}


def unet_spec(denoiser: Denoiser, num_tokens: int) -> NetworkSpec:
    """`DenoiserInputs` laid flat. Beside a ControlNet, residuals are inputs, zero in rows without control.

    A UNet that can be split hands out its deep part's feature beside what it predicts.
    """
    inputs = [*_sampled(denoiser, denoiser.layers, num_tokens), *_conditions(denoiser, num_tokens)]
    if denoiser.controlnet is not None:
        inputs += _residuals(denoiser)
    outputs = [_predicted(denoiser), _deep(denoiser)] if denoiser.splits else [_predicted(denoiser)]
    return _denoising(Network.UNET, denoiser, inputs, outputs)


def shallow_spec(denoiser: Denoiser, num_tokens: int) -> NetworkSpec:
    """`ShallowInputs` laid flat, as a UNet's; what speaks to attention is left out where no layer of it attends."""
    layers = [denoiser.layers[layer] for layer in denoiser.shallow_layers]
    inputs = _sampled(denoiser, layers, num_tokens)
    if layers:
        inputs += _conditions(denoiser, num_tokens)
    inputs.append(_deep(denoiser))
    if denoiser.controlnet is not None:
        inputs += _residuals(denoiser)[: num_skips(denoiser.unet)]
    return _denoising(Network.UNET_SHALLOW, denoiser, inputs, [_predicted(denoiser)])


def controlnet_spec(denoiser: Denoiser, num_tokens: int, *, hiding: bool = False) -> NetworkSpec:
    """`ControlInputs` laid flat; the outputs are the UNet's residuals. hiding: whether rows may hide tokens."""
    assert denoiser.controlnet is not None
    config = denoiser.controlnet.config
    inputs = [
        TensorSpec("sample", ("rows", config.in_channels, "height", "width")),
        TensorSpec("time_proj", ("rows", denoiser.controlnet.time_embedding.width), torch.float32),
        *_text_kv(denoiser.control_layers, num_tokens),
        *_added(denoiser),
        TensorSpec("hint", ("rows", config.block_out_channels[0], "height", "width")),
        TensorSpec("scale", ("rows",), torch.float32),
    ]
    if hiding:
        inputs.append(TensorSpec("tokens", ("rows", len(TokenRow), num_tokens), torch.float32))
    return _denoising(Network.CONTROLNET, denoiser, inputs, _residuals(denoiser))


def flatten(inputs: DenoiserInputs | ShallowInputs | ControlInputs) -> tuple[Tensor, ...]:
    """Tensors of a call in the table's order."""
    if isinstance(inputs, ControlInputs):
        hidden = () if inputs.tokens is None else (inputs.tokens,)
        return inputs.sample, inputs.time_proj, *inputs.text_kv, *inputs.added, inputs.hint, inputs.scale, *hidden
    read = inputs.sample, inputs.time_proj, *inputs.text_kv, *inputs.added
    conditions, residuals = (inputs.mask_pyramid, inputs.tokens, inputs.scalars), inputs.residuals or ()
    if isinstance(inputs, ShallowInputs):
        return *read, *(conditions if inputs.text_kv else ()), inputs.deep, *residuals
    return *read, *conditions, *residuals


def unet_inputs(tensors: Sequence[Tensor], denoiser: Denoiser) -> DenoiserInputs:
    """Undo `flatten` for a UNet."""
    sample, time_proj, *rest = tensors
    text_kv, added, others = _split(rest, len(denoiser.layers), len(denoiser.added_widths))
    pyramid, tokens, scalars, *residuals = others
    return DenoiserInputs(sample, time_proj, text_kv, added, pyramid, tokens, scalars, tuple(residuals) or None)


def shallow_inputs(tensors: Sequence[Tensor], denoiser: Denoiser) -> ShallowInputs:
    """Undo `flatten` for a UNet's shallow part."""
    sample, time_proj, *rest = tensors
    layers = len(denoiser.shallow_layers)
    text_kv, added, told, others = _split(rest, layers, len(denoiser.added_widths), _NUM_CONDITIONS if layers else 0)
    pyramid, tokens, scalars = told or [sample] * _NUM_CONDITIONS  # which nothing reads
    deep, *residuals = others
    return ShallowInputs(sample, time_proj, text_kv, added, pyramid, tokens, scalars, deep, tuple(residuals) or None)


def control_inputs(tensors: Sequence[Tensor], denoiser: Denoiser) -> ControlInputs:
    """Undo `flatten` for a ControlNet."""
    sample, time_proj, *rest = tensors
    text_kv, added, others = _split(rest, len(denoiser.control_layers), len(denoiser.added_widths))
    return ControlInputs(sample, time_proj, text_kv, added, *others)


def _split(tensors: Sequence[Tensor], *counts: int) -> list[tuple[Tensor, ...]]:
    """Groups of so many tensors, then what is left."""
    ends = list(itertools.accumulate(counts))
    return [tuple(tensors[start:end]) for start, end in itertools.pairwise([0, *ends, len(tensors)])]


def zero_residuals(denoiser: Denoiser, sizes: Sizes, dtype: torch.dtype, device: torch.device) -> Residuals:
    """Residuals of a call in which no row is controlled."""
    shapes = denoiser.residual_shapes((sizes.height, sizes.width))
    return tuple(torch.zeros((sizes.rows, *shape), dtype=dtype, device=device) for shape in shapes)


def _denoising(
    network: Network, denoiser: Denoiser, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> NetworkSpec:
    levels = denoiser.num_levels
    return NetworkSpec(network, tuple(inputs), tuple(outputs), step=2 ** (levels - 1), levels=levels)


def _sampled(denoiser: Denoiser, layers: Sequence[CrossLayer], num_tokens: int) -> list[TensorSpec]:
    """What a UNet's call begins with; of the cross-attention `layers`."""
    return [
        TensorSpec("sample", ("rows", denoiser.unet.config.in_channels, "height", "width")),
        TensorSpec("time_proj", ("rows", denoiser.unet.time_embedding.width), torch.float32),
        *_text_kv(layers, num_tokens),
        *_added(denoiser),
    ]


def _conditions(denoiser: Denoiser, num_tokens: int) -> list[TensorSpec]:
    """What reweighs attention."""
    return [
        TensorSpec("mask_pyramid", ("rows", "pyramid"), torch.float32),
        TensorSpec("tokens", ("rows", len(TokenRow), num_tokens), torch.float32),
        TensorSpec("scalars", ("rows", len(denoiser.layers), len(ScalarColumn)), torch.float32),
    ]


def _predicted(denoiser: Denoiser) -> TensorSpec:
    return TensorSpec("predicted", ("rows", denoiser.unet.config.out_channels, "height", "width"))


def _deep(denoiser: Denoiser) -> TensorSpec:
    """What enters a UNet's last block of its deep part."""
    return TensorSpec("deep", ("rows", deep_channels(denoiser.unet), "height", "width"))


def _text_kv(layers: Sequence[CrossLayer], num_tokens: int) -> list[TensorSpec]:
    return [TensorSpec(f"text_kv_{i}", ("rows", num_tokens, 2 * layer.inner)) for i, layer in enumerate(layers)]


def _added(denoiser: Denoiser) -> list[TensorSpec]:
    """Pooled text and the sinusoids of sizes, where the networks read them."""
    names = "added_text", "added_sizes"
    widths = denoiser.added_widths
    return [TensorSpec(name, ("rows", width), torch.float32) for name, width in zip(names, widths, strict=False)]


def _residuals(denoiser: Denoiser) -> list[TensorSpec]:
    """Residuals in diffusers' order: of the first convolution, of each down block, of the mid block."""
    side = 2 ** (denoiser.num_levels - 1)
    places = [(width, (side // height).bit_length() - 1) for width, height, _ in denoiser.residual_shapes((side, side))]
    return [
        TensorSpec(f"residual_{i}", ("rows", width, f"height_{level}", f"width_{level}"))
        for i, (width, level) in enumerate(places)
    ]


def _vae_specs(components: Components) -> list[NetworkSpec]:
    channels, factor = components.vae.config.latent_channels, components.vae_scale_factor
    latents = TensorSpec("latents", ("rows", channels, "height", "width"))
    pixels = TensorSpec("pixels", ("rows", 3, "height", "width"))
    decoded = TensorSpec("decoded", ("rows", 3, "out_height", "out_width"))
    encoded = TensorSpec("encoded", ("rows", channels, "out_height", "out_width"))
    specs = [
        NetworkSpec(Network.VAE_DECODER, (latents,), (decoded,)),
        NetworkSpec(Network.VAE_ENCODER, (pixels,), (encoded,), step=factor),
    ]
    if components.preview_vae is not None:
        specs.append(NetworkSpec(Network.PREVIEW_DECODER, (latents,), (decoded,)))
    return specs


def _text_specs(components: Components) -> list[NetworkSpec]:
    """From token ids to states: the last layer's, or those before it where there are two encoders, as in SDXL."""
    first, second = components.text_encoder, components.text_encoder_2
    ids = TensorSpec("input_ids", ("rows", components.max_tokens), torch.int64)

    def states(name: str, encoder: CLIPTextModel | CLIPTextModelWithProjection) -> TensorSpec:
        return TensorSpec(name, ("rows", components.max_tokens, encoder.config.hidden_size))

    if second is None:
        return [NetworkSpec(Network.TEXT_ENCODER, (ids,), (states("states", first),))]
    pooled = TensorSpec("pooled", ("rows", second.config.projection_dim))
    return [
        NetworkSpec(Network.TEXT_ENCODER, (ids,), (states("penultimate", first),)),
        NetworkSpec(Network.TEXT_ENCODER_2, (ids,), (states("penultimate", second), pooled)),
    ]


def _segmenter_spec(components: Components) -> NetworkSpec:
    """From normalised pixels, at the size the segmenter sees, to a score of each label on a grid of its own."""
    assert components.segmenter is not None
    pixels = TensorSpec("pixels", ("rows", 3, "height", "width"))
    scores = TensorSpec("scores", ("rows", len(components.segmenter.labels), "out_height", "out_width"))
    return NetworkSpec(Network.SEGMENTER, (pixels,), (scores,), step=32)
