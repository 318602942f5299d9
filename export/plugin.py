"""Our attention kernel inside TensorRT plans: a quickly deployable plugin, its kernel compiled ahead of time.

A plan built this way holds the kernel's PTX and launches it itself: nothing of Python, Triton or this package is
needed where it runs. API: NVIDIA TensorRT Python API reference 11.x, `tensorrt.plugin`.
"""

import importlib
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from ..engine.api.errors import BackendError
from ..engine.backends.tensorrt_api import TensorRt
from ..kernels._triton import AVAILABLE
from ..kernels.aot import contiguous_attention_case, launchable
from ..kernels.tiles import attention_tile
from .form import DOMAIN, NAME

PLUGIN = f"{DOMAIN}::{NAME}"

OLDEST_ARCHITECTURE = 80
"""Compute capability of the oldest GPU that the kernel is built for; drivers translate its PTX for any later GPU."""

_CALLED = ("KernelLaunchParams", "SymInt32", "SymIntExprs", "TensorDesc", "aot_impl", "cdiv", "register")


class _Target:
    """What GPU the kernel is compiled for, in builds of one TensorRT module."""

    architecture = OLDEST_ARCHITECTURE


_targets: dict[str, _Target] = {}
_building = threading.Lock()


def plugin_module(trt: TensorRt) -> Any:
    """The module of `trt` that plugins are registered with.

    Raises BackendError where there is none that takes kernels compiled ahead of time, or no Triton to compile ours.
    """
    if not AVAILABLE:
        raise BackendError(
            "attention as a plugin needs triton, which is not installed, or is left out beside a PyTorch that is built "
            "for no GPU (TWIG_TRITON=1 takes it all the same); use inline or function"
        )
    try:
        module = importlib.import_module(f"{trt.__name__}.plugin")
    except ModuleNotFoundError as error:
        raise BackendError(
            f"{trt.__name__} {trt.__version__} has no plugin module; attention can be inline or function there"
        ) from error
    if missing := [name for name in _CALLED if not hasattr(module, name)]:
        raise BackendError(
            f"the plugins of {trt.__name__} {trt.__version__} lack {', '.join(missing)}; use 11 or later, or attention "
            f"inline or function"
        )
    return module


def plugin_for(trt: TensorRt, plugin: Any, architecture: int) -> AbstractContextManager[None]:
    """Have `trt` take our kernel, compiled for a compute capability (as 86), where a graph offers it a node.

    plugin: its `plugin_module`. Plugins belong to the whole process: ours is registered once and stays, and builds
    with it run one at a time. Raises BackendError for an architecture that the kernel is not built for.
    """
    if architecture < OLDEST_ARCHITECTURE:
        raise BackendError(
            f"attention as a plugin needs compute capability {OLDEST_ARCHITECTURE / 10} or later, not "
            f"{architecture / 10}; use inline or function"
        )
    return _registered(trt, plugin, architecture)


@contextmanager
def _registered(trt: TensorRt, plugin: Any, architecture: int) -> Iterator[None]:
    with _building:
        if trt.__name__ not in _targets:
            target = _Target()
            _register(trt, plugin, target)
            _targets[trt.__name__] = target
        _targets[trt.__name__].architecture = architecture
        yield


def _register(trt: Any, plugin: Any, target: _Target) -> None:
    dtypes = {
        trt.DataType.FLOAT: torch.float32,
        trt.DataType.HALF: torch.float16,
        trt.DataType.BF16: torch.bfloat16,
    }

    def describe(q: Any, k: Any, v: Any, mask: Any, tokens: Any, scalars: Any, heads: int) -> Any:
        return q.like()

    def implement(
        q: Any, k: Any, v: Any, mask: Any, tokens: Any, scalars: Any, heads: int, outputs: Any, tactic: int
    ) -> Any:
        dtype, length = dtypes[q.dtype], _fixed(k, 1, "tokens")
        head_dim = _fixed(q, 2, "the query's channels") // heads
        kernel = launchable(contiguous_attention_case(heads, head_dim, length, dtype), target.architecture)
        launch = plugin.KernelLaunchParams()
        launch.grid_x = heads
        launch.grid_y = plugin.cdiv(q.shape_expr[1], attention_tile(head_dim, length, dtype).block)
        launch.grid_z = q.shape_expr[0]
        launch.block_x = kernel.threads
        launch.shared_mem = kernel.shared_bytes
        integers = plugin.SymIntExprs(2)
        integers[0], integers[1] = (plugin.SymInt32(mask.shape_expr[axis]) for axis in (1, 2))
        return kernel.name, kernel.ptx, launch, integers

    # TensorRT reads the annotations as objects, and these exist only once its module is there.
    tensors = dict.fromkeys(("q", "k", "v", "mask", "tokens", "scalars"), plugin.TensorDesc)
    returned = tuple[str, str, plugin.KernelLaunchParams, plugin.SymIntExprs]
    describe.__annotations__ = {**tensors, "heads": int, "return": plugin.TensorDesc}
    implement.__annotations__ = {
        **tensors, "heads": int, "outputs": tuple[plugin.TensorDesc], "tactic": int, "return": returned,
    }  # fmt: skip
    plugin.register(PLUGIN)(describe)
    plugin.aot_impl(PLUGIN)(implement)


def _fixed(tensor: Any, axis: int, what: str) -> int:
    """Size of an axis that is compiled into the kernel."""
    size = tensor.shape_expr[axis]
    if not size.is_constant:
        raise BackendError(f"{what} must be a number in the graph that the kernel is compiled for, not a free axis")
    return int(size.constant_value())
