"""TensorRT: a plan with one execution context a profile, on PyTorch's stream and memory."""

import importlib
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from ..api.errors import BackendError
from ..api.reading import MAX_TENSORS, read_bytes
from ..models.tensors import NetworkSpec, Sizes
from .protocol import Artifact, Precision
from .tensorrt_api import TensorRt, TrtContext, TrtEngine

DTYPES = {Precision.FP32: torch.float32, Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}

Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]


class TensorRtNetwork:
    """A plan's profiles; a resolution outside all of them is refused, more rows than they hold run in pieces.

    Outputs of one shape lie at one address, so a CUDA graph captured over a call stays valid; the next call of that
    shape overwrites them. Contexts share one block of device memory: calls are made one after another.
    """

    def __init__(
        self,
        artifact: Artifact,
        spec: NetworkSpec,
        precision: Precision,
        device: torch.device,
        trt: TensorRt | None = None,
        stream: Callable[[], int] | None = None,
    ) -> None:
        self.spec = spec
        self.device = device
        self.dtype = DTYPES[precision]
        self._stream = stream or (lambda: torch.cuda.current_stream(device).cuda_stream)
        self._trt = trt or cast(TensorRt, importlib.import_module("tensorrt"))
        self.engine = self._deserialized(artifact)
        self._memory = torch.empty(max(1, self.engine.device_memory_size_v2), dtype=torch.uint8, device=device)
        self._aux = [torch.cuda.Stream(device) for _ in range(self.engine.num_aux_streams)]
        self.profiles = [self._profile(index) for index in range(self.engine.num_optimization_profiles)]
        self.most_rows = max(largest[0] for _, largest in self.profiles)
        self._contexts: dict[int, TrtContext] = {}
        self._outputs: dict[Sizes, tuple[Tensor, ...]] = {}

    def __call__(self, inputs: Sequence[Tensor], wanted: int | None = None) -> tuple[Tensor, ...]:
        """Enqueue on PyTorch's current stream; inputs are read where they lie. Return the first `wanted` outputs."""
        if len(inputs[0]) > self.most_rows:
            pieces = zip(*(tensor.split(self.most_rows) for tensor in inputs), strict=True)
            outputs = [tuple(output.clone() for output in self._enqueue(piece)[:wanted]) for piece in pieces]
            return tuple(torch.cat(parts) for parts in zip(*outputs, strict=True))
        return self._enqueue(inputs)[:wanted]

    def _enqueue(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        sizes = Sizes(len(inputs[0]), *(inputs[0].shape[2:] if inputs[0].ndim == 4 else ()))
        context = self._context(self._covering(sizes))
        held = []
        for spec, tensor in zip(self.spec.inputs, inputs, strict=True):
            placed = tensor.to(spec.dtype or self.dtype).contiguous()
            held.append(placed)
            if not context.set_input_shape(spec.name, tuple(placed.shape)):
                raise BackendError(f"the plan takes no {spec.name} of shape {tuple(placed.shape)}")
            context.set_tensor_address(spec.name, placed.data_ptr())
        if sizes not in self._outputs:
            self._outputs[sizes] = tuple(self._output(context, spec.name) for spec in self.spec.outputs)
        for spec, output in zip(self.spec.outputs, self._outputs[sizes], strict=True):
            context.set_tensor_address(spec.name, output.data_ptr())
        if not context.execute_async_v3(self._stream()):
            raise BackendError(f"TensorRT could not run {self.spec.network.value} at {sizes}")
        return self._outputs[sizes]

    def _deserialized(self, artifact: Artifact) -> TrtEngine:
        runtime = self._trt.Runtime(self._trt.Logger(self._trt.Logger.WARNING))
        engine = runtime.deserialize_cuda_engine(read_bytes(artifact.path, MAX_TENSORS))
        if engine is None:
            raise BackendError(
                f"TensorRT {self._trt.__version__} takes the plan at {artifact.path} for no engine of its own"
            )
        return engine

    def _profile(self, index: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Smallest and largest shape of the first input."""
        smallest, _, largest = self.engine.get_tensor_profile_shape(self.spec.inputs[0].name, index)
        return tuple(smallest), tuple(largest)

    def _covering(self, sizes: Sizes) -> int:
        shape = sizes.of(self.spec.inputs[0], self.spec)
        for index, (smallest, largest) in enumerate(self.profiles):
            if all(low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)):
                return index
        ranges = " or ".join(f"{low} to {high}" for low, high in self.profiles)
        raise BackendError(f"{self.spec.network.value} was built for {self.spec.inputs[0].name} {ranges}, not {shape}")

    def _context(self, profile: int) -> TrtContext:
        if profile not in self._contexts:
            strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = self.engine.create_execution_context(strategy)
            context.set_device_memory(self._memory.data_ptr(), self._memory.numel())
            if self._aux:
                context.set_aux_streams([stream.cuda_stream for stream in self._aux])
            context.set_optimization_profile_async(profile, self._stream())
            self._contexts[profile] = context
        return self._contexts[profile]

    def _output(self, context: TrtContext, name: str) -> Tensor:
        return torch.empty(tuple(context.get_tensor_shape(name)), dtype=self.dtype, device=self.device)
