"""One denoising call on plausible inputs, made from the networks' own table; on the meta device it has shapes alone."""

from collections.abc import Callable

import torch
from torch import Tensor

from ...engine.backends.networks import Networks
from ...engine.models.networks import ControlInputs, Denoiser, DenoiserInputs
from ...engine.models.tensors import NetworkSpec, Sizes, control_inputs, controlnet_spec, unet_inputs, unet_spec

TOKENS = 77
_SHARES = frozenset({"mask_pyramid", "tokens", "scalars", "scale"})
"""Inputs that are not negative."""


def made_inputs(
    denoiser: Denoiser, sizes: Sizes, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> tuple[ControlInputs, DenoiserInputs]:
    """Inputs of the ControlNet and of the UNet, by a seed; the UNet's residuals are to come from the ControlNet."""

    def made(spec: NetworkSpec) -> list[Tensor]:
        values = [torch.randn(sizes.of(one, spec), device=device).sin() for one in spec.inputs]
        return [
            (value.abs() if one.name in _SHARES else value).to(one.dtype or dtype)
            for value, one in zip(values, spec.inputs, strict=True)
        ]

    torch.manual_seed(seed)
    control = control_inputs(made(controlnet_spec(denoiser, TOKENS)), denoiser)
    return control, unet_inputs(made(unet_spec(denoiser, TOKENS)), denoiser)


def denoising_call(networks: Networks, rows: int) -> Callable[[], Tensor]:
    """ControlNet on all rows, then the UNet with its residuals, at the model's own size: predicts (R, C, h, w)."""
    height, width = (side // networks.components.vae_scale_factor for side in networks.components.size)
    sizes = Sizes(rows, height, width)
    control, unet = made_inputs(networks.denoiser, sizes, networks.dtype, networks.device)

    @torch.inference_mode()
    def call() -> Tensor:
        return networks.predict(unet._replace(residuals=networks.control(control)))

    return call


def as_graph(call: Callable[[], object]) -> Callable[[], None]:
    """A call on a CUDA device as a graph; static inputs are the caller's affair."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        call()
    return graph.replay
