"""A tensor that says it is on the device; its numbers lie in a tensor of the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from .memory import Block
    from .streams import Stream

CUDA = torch.device("cuda", 0)


class OnDevice(torch.Tensor):
    """Wraps `host`, which nobody but the device may touch. block: the memory of the device that it lies in."""

    host: torch.Tensor
    block: Block
    dispatch: Callable[..., Any]
    """How the device runs an operator: set while one is installed."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: torch.Tensor, block: Block) -> OnDevice:
        """Wrap a tensor of the CPU."""
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls, host.size(), strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype,
            layout=host.layout, device=CUDA,
        )  # fmt: skip
        wrapper.host, wrapper.block = host, block
        return wrapper

    def __repr__(self) -> str:
        return f"OnDevice({tuple(self.shape)}, {self.dtype})"

    def __deepcopy__(self, memo: dict[int, object]) -> torch.Tensor:
        return self.clone()

    def data_ptr(self) -> int:
        """Its address, by which tensors in one place are known."""
        return self.host.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        """The memory that it lies in."""
        return self.host.untyped_storage()

    def record_stream(self, stream: Stream) -> None:
        """Let the memory be free only when what `stream` was given by then is done."""
        self.block.recorded.add(stream)

    def numpy(self, *, force: bool = False) -> np.ndarray:
        """Copy to the host where that is forced; else raise TypeError as any device's tensor does."""
        if not force:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        return self.cpu().numpy()

    def tolist(self) -> Any:
        """Copy to the host."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return OnDevice.dispatch(func, args, kwargs or {})
