"""A compiled program of OpenVINO and its tensors: read where they lie, and bound again only where they moved."""

import weakref
from collections.abc import Callable, Sequence

import numpy as np
import openvino
import torch
from torch import Tensor


class Program:
    """One compiled program of static shapes. dtypes: what it reads each input in; pictures have channels last.

    Inputs that lie as it reads them are bound by address, again only where that is another than at the last call: a
    step's buffers never move. All others are copied into memory of the program's own. weights: memory that it was
    imported from, and reads.
    """

    def __init__(
        self, compiled: openvino.CompiledModel, dtypes: Sequence[torch.dtype], weights: np.ndarray | None = None
    ) -> None:
        self._request = compiled.create_infer_request()
        self._weights = weights  # OpenVINO reads them and does not own them: they go after the request, in this order
        shapes = [torch.Size(port.get_shape()) for port in compiled.inputs]
        self._inputs = [_Input(*told) for told in zip(shapes, dtypes, strict=True)]
        self._outputs = [torch.empty(list(port.get_shape())) for port in compiled.outputs]
        for number, output in enumerate(self._outputs):
            self._request.set_output_tensor(number, _shared(output))

    def __call__(self, inputs: Sequence[Tensor], wanted: int | None = None) -> tuple[Tensor, ...]:
        """Run on `inputs`, whose last row is repeated where the program has more.

        Return new tensors: all outputs, or the first so many that are `wanted`.
        """
        # A request does not own what is bound to it: `inputs` must live until it has run.
        for number, (place, tensor) in enumerate(zip(self._inputs, inputs, strict=True)):
            if tensor is place.last():
                continue
            read = place.given(tensor)
            if read.data_ptr() != place.bound:
                self._request.set_input_tensor(number, _shared(read))
                place.bound = read.data_ptr()
        self.run()
        rows = len(inputs[0])
        return tuple(_channels_first(output[:rows].clone()) for output in self._outputs[:wanted])

    def run(self) -> None:
        """Run on what is bound."""
        self._request.infer(share_outputs=True)  # else every output is copied for nobody


class _Input:
    """One input. bound: address that the program reads; own: memory for what lies otherwise, once there was such.

    last: the tensor that lies there itself, while it lives.
    """

    def __init__(self, shape: torch.Size, dtype: torch.dtype) -> None:
        self.bound = 0
        self.own: Tensor | None = None
        self.last: Callable[[], Tensor | None] = _nothing
        self._shape, self._dtype = shape, dtype

    def given(self, tensor: Tensor) -> Tensor:
        """`tensor` as the program reads it: itself, or a copy."""
        last = tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor
        if last.dtype is self._dtype and last.shape == self._shape and last.is_contiguous():
            self.last = weakref.ref(tensor)
            return last
        self.last = _nothing
        if self.own is None:
            self.own = torch.empty(self._shape, dtype=self._dtype)
        self.own[: len(last)] = last
        if len(last) < len(self.own):
            self.own[len(last) :] = last[-1:]
        return self.own


def _nothing() -> None:
    return None


def _channels_first(tensor: Tensor) -> Tensor:
    """A view of a picture with channels last as (B, C, H, W)."""
    return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor


def _shared(tensor: Tensor) -> openvino.Tensor:
    """`tensor` as OpenVINO sees it, in the same memory; NumPy has no bf16."""
    if tensor.dtype is torch.bfloat16:
        return openvino.Tensor(tensor.view(torch.int16).numpy(), list(tensor.shape), openvino.Type.bf16)
    return openvino.Tensor(tensor.numpy(), shared_memory=True)
