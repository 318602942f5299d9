"""ONNX Runtime: one session serves every batch size and resolution; tensors are bound where they lie."""

from collections.abc import Sequence

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from ..api.errors import BackendError
from ..models.tensors import NetworkSpec
from .protocol import Artifact, Precision

_QUIET = 3
_NUMPY = {torch.float32: np.float32, torch.float16: np.float16, torch.int64: np.int64}
_DTYPES = {Precision.FP32: torch.float32, Precision.FP16: torch.float16}


class OnnxRuntimeNetwork:
    """A network on the CPU provider, or on CUDA's where `device` is a GPU. Any number of rows, any resolution.

    Raises BackendError for bf16, which the CPU provider does not compute, and where the provider asked for is not
    the one that was created.
    """

    def __init__(self, artifact: Artifact, spec: NetworkSpec, precision: Precision, device: torch.device) -> None:
        if precision not in _DTYPES:
            raise BackendError(
                f"onnxruntime runs {' and '.join(_DTYPES)} here, not {precision.value}; choose one of them"
            )
        self.spec = spec
        self.device = device
        self.dtype = _DTYPES[precision]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _QUIET
        options.intra_op_num_threads = torch.get_num_threads()
        provider = "CPUExecutionProvider"
        settings: dict[str, str] = {}
        if device.type == "cuda":
            provider = "CUDAExecutionProvider"
            settings = {"device_id": str(device.index or 0)}
            # Without this a session that cannot use the GPU runs on the CPU and says nothing.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        self.session = onnxruntime.InferenceSession(str(artifact.path), options, providers=[(provider, settings)])
        if provider not in self.session.get_providers():
            raise BackendError(f"onnxruntime offers {self.session.get_providers()} here, not {provider}")

    def __call__(self, inputs: Sequence[Tensor], wanted: int | None = None) -> tuple[Tensor, ...]:
        """Run on `inputs` in place; outputs, the first `wanted` or all, are new tensors on the same device."""
        binding = self.session.io_binding()
        held = [
            self._bound(binding, spec.name, tensor, spec.dtype)
            for spec, tensor in zip(self.spec.inputs, inputs, strict=True)
        ]
        for spec in self.spec.outputs[:wanted]:
            binding.bind_output(spec.name, self.device.type, self.device.index or 0)
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        self.session.run_with_iobinding(binding)
        del held
        return tuple(torch.from_dlpack(value._ortvalue) for value in binding.get_outputs())

    def _bound(self, binding: onnxruntime.IOBinding, name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
        """Bind an input by address; return the tensor that must live until the run ends."""
        tensor = tensor.to(dtype or self.dtype).contiguous()
        binding.bind_input(
            name, self.device.type, self.device.index or 0, _NUMPY[tensor.dtype], list(tensor.shape), tensor.data_ptr()
        )
        return tensor
