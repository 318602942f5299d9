"""How PyTorch runs the networks: compiled or not, in which memory order, how precisely and how repeatably."""

import copy
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ...kernels import AVAILABLE
from .. import backends
from ..api.errors import BackendError
from ..models.networks import Denoiser
from .attention_choice import attend

MODES = ("default", "max-autotune-no-cudagraphs")
"""Modes of `torch.compile` without CUDA graphs, which the engine captures itself."""


@dataclass(frozen=True)
class TorchOptions:
    """Options of the torch backend; each is off, or left as the process has it, where it is not given and nothing else
    is said.

    compile: a mode of `torch.compile` for the repeated blocks of UNet and ControlNet, `default` or
    `max-autotune-no-cudagraphs`. One forward is compiled for each kind of block, shape of its input, and one or several
    rows; `Engine.warmup` compiles what its sizes need, so that serving them never compiles.
    channels_last: keep weights and pictures of UNet, ControlNet and VAE in that order; weights are reordered in place.
    On where not given on CUDA.
    fused: run their blocks on our operators, each normalisation with the additions and the activation beside it; it
    takes channels last. On where not given on CUDA with Triton, unless that order is refused.
    fp8: compute the linear layers and 1x1 convolutions of UNet and ControlNet, `fused`, in eight bits (e4m3), on CUDA
    from compute capability 8.9 on; on a CPU the same numbers are emulated, to see what pictures lose. The weights are
    held once more, in eight bits.
    tune: during `Engine.warmup`, try cuDNN's algorithms for each convolution and PyTorch's kernels for each level's
    self-attention, and keep to the fastest. On where not given on CUDA, unless `deterministic`.
    tf32: whether matrix products and convolutions in float32 may round their inputs to TensorFloat-32.
    deterministic: whether an operation with no deterministic form raises, and cuDNN picks its algorithms by rule and
    not by trial; on CUDA that takes the environment variable CUBLAS_WORKSPACE_CONFIG=:4096:8.

    The last two are settings of the whole process: they are set while the engine steps and then put back.
    Raises BackendError for a mode that there is not.
    """

    compile: str | None = None
    channels_last: bool | None = None
    fused: bool | None = None
    fp8: bool = False
    tune: bool | None = None
    tf32: bool | None = None
    deterministic: bool | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be served."""
        if self.compile not in (None, *MODES):
            raise BackendError(f"compile is {self.compile!r}; the modes are {', '.join(MODES)}")
        if self.tune and self.deterministic:
            raise BackendError("tune picks the fastest by trial, deterministic by rule: ask for one of them")
        if self.fp8 and self.fused is False:
            raise BackendError("fp8 is of fused blocks; leave fused out, or refuse fp8 too")
        if (self.fused or self.fp8) and self.channels_last is False:
            raise BackendError("fused runs channels last; leave channels_last out, or refuse fused too")

    def on(self, device: torch.device) -> "TorchOptions":
        """Return these options with what is not given settled for `device`."""
        cuda = device.type == "cuda"
        by_default = self.fp8 or (cuda and AVAILABLE and self.channels_last is not False)
        fused = self.fused if self.fused is not None else by_default
        channels_last = self.channels_last if self.channels_last is not None else cuda or fused
        tune = self.tune if self.tune is not None else cuda and not self.deterministic
        return replace(self, channels_last=channels_last, fused=fused, tune=tune)

    @property
    def memory_format(self) -> torch.memory_format:
        """The order in which the networks read and write pictures fastest."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def check(self, device: torch.device) -> None:
        """Raise BackendError for what the process was not started for."""
        if self.deterministic and device.type == "cuda" and "CUBLAS_WORKSPACE_CONFIG" not in os.environ:
            raise BackendError("deterministic needs CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment at the start")
        if (
            self.fp8
            and device.type == "cuda"
            and (found := torch.cuda.get_device_capability(device)) < backends.fp8.CAPABILITY
        ):
            raise BackendError(f"fp8 needs compute capability 8.9 or later; {device} has {'.'.join(map(str, found))}")

    def denoiser(self, denoiser: Denoiser) -> Denoiser:
        """Return a denoiser on the same weights that runs as these options say; `denoiser` itself stays as it is."""
        if self.channels_last:
            for network in (
                denoiser.unet,
                denoiser.controlnet,
                *(each.controlnet for each in denoiser.further.values()),
            ):
                reorder(network)
        if self.compile is None and not self.fused:
            return denoiser
        unet, controlnet = (_with_same_weights(network) for network in (denoiser.unet, denoiser.controlnet))
        further = {name: _with_same_weights(each.controlnet) for name, each in denoiser.further.items()}
        networks, made = [unet, controlnet, *further.values()], Denoiser(unet, controlnet, further)
        regions = None if self.compile is None else backends.regions.Regions(self.compile)
        for network in networks:
            if network is not None and self.fused:
                backends.fused.fuse(network)
            if network is not None and self.fp8:
                backends.fp8.quantise(network)
            if network is not None and regions is not None:
                regions.install(network)
        return made

    def autoencoder(self, vae: nn.Module) -> nn.Module:
        """Return an autoencoder on the same weights that runs as these options say; `vae` itself stays as it is."""
        if self.channels_last:
            reorder(vae)
        if not self.fused:
            return vae
        made = _with_same_weights(vae)
        backends.fused.fuse(made)
        return made

    @contextmanager
    def warming(self) -> Iterator[None]:
        """What holds beside `in_force` while an engine warms up."""
        with _trials() if self.tune else nullcontext():
            yield

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Set the process's switches that are given, and put them back."""
        with ExitStack() as stack:
            if self.tf32 is not None:
                stack.enter_context(_tf32(self.tf32))
            if self.deterministic is not None:
                stack.enter_context(_deterministic(self.deterministic))
            yield


@contextmanager
def _trials() -> Iterator[None]:
    """What cuDNN finds by trial it keeps by shape, whether or not trials are on when that shape comes again."""
    cudnn = torch.backends.cudnn
    before, cudnn.benchmark = cudnn.benchmark, True
    try:
        with attend.measuring():
            yield
    finally:
        cudnn.benchmark = before


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution


@contextmanager
def _deterministic(demanded: bool) -> Iterator[None]:
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    by_rule, by_trial = cudnn.deterministic, cudnn.benchmark
    torch.use_deterministic_algorithms(demanded)
    cudnn.deterministic, cudnn.benchmark = demanded, by_trial and not demanded
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = by_rule, by_trial


def reorder(network: Any) -> None:
    """Keep the weights of a network in channels-last order from now on; None has no weights."""
    if network is not None:
        network.to(memory_format=torch.channels_last)


def _with_same_weights(network: Any) -> Any:
    """Copy the modules of `network`, but not their tensors."""
    if network is None:
        return None
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, shared)
