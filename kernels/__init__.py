"""Triton kernels with their plain PyTorch references: masked cross-attention, the denoising step, the gather that feeds
the UNet, counter-based noise, and what the networks' blocks run besides products.

Everything here runs on any device: CUDA tensors take the Triton kernels, all others the references. A machine
without Triton imports this package and computes by the references alone.
"""

from ._triton import AVAILABLE
from .conditioning import HIDDEN, ScalarColumn, TokenRow, neutral_scalars, neutral_tokens, sample_mask
from .denoise_step import StepColumns
from .denoise_step_cpu import HostSteps
from .layer_ops import add_bias, add_layer_norm, fp8_rows, geglu, group_norm, low_rank_rows
from .low_rank_rows import NONE as NO_ADAPTER
from .low_rank_rows import Window
from .ops import denoise_step, gather_rows, host_steps, masked_attention, masked_attention_with_mass
from .philox import NoiseStream, philox_normal

__all__ = [
    "AVAILABLE",
    "HIDDEN",
    "NO_ADAPTER",
    "HostSteps",
    "NoiseStream",
    "ScalarColumn",
    "StepColumns",
    "TokenRow",
    "Window",
    "add_bias",
    "add_layer_norm",
    "denoise_step",
    "fp8_rows",
    "gather_rows",
    "geglu",
    "group_norm",
    "host_steps",
    "low_rank_rows",
    "masked_attention",
    "masked_attention_with_mass",
    "neutral_scalars",
    "neutral_tokens",
    "philox_normal",
    "sample_mask",
]
