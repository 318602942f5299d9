"""Puts a pretended device in the place of PyTorch's own interface to CUDA for a while, and takes it away again."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from filelock import FileLock

from .device import Device
from .graphs import Graph
from .streams import Event, Stream
from .tensors import OnDevice

_MEMORY = 80 * 2**30


class CannotPretendError(Exception):
    """No device can be pretended here, and why."""


@contextlib.contextmanager
def installed(folder: Path) -> Iterator[Device]:
    """Pretend a device; what has to be compiled for it is kept in `folder`. Raises CannotPretendError."""
    load_guard(folder)
    device = Device()
    OnDevice.dispatch = device.run
    overwritten = torch.__future__.get_overwrite_module_params_on_conversion()
    with contextlib.ExitStack() as stack:
        for owner, name, value in _patches(device):
            stack.enter_context(patch.object(owner, name, value))
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwritten)
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, False)
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))  # its operators have no kernel for a CPU
        with device.mode:
            yield device


def load_guard(folder: Path) -> None:
    """Compile and load what lets PyTorch's own code switch to a device that is not there. Raises CannotPretendError."""
    if torch.cuda.is_available() or torch.version.hip is not None:
        raise CannotPretendError("this PyTorch has a GPU of its own, or is built for another kind")
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise CannotPretendError("there is no C++ compiler (Debian: apt-get install g++)")
    root, library = Path(torch.__file__).parent, folder / "pretended_guard.so"
    with FileLock(folder / "pretended_guard.lock"):
        if not library.exists():
            options = ["-shared", "-fPIC", "-std=c++20", f"-I{root / 'include'}", f"-L{root / 'lib'}", "-lc10"]
            source = Path(__file__).with_name("guard.cpp")
            done = subprocess.run([compiler, source, *options, "-o", library], capture_output=True, text=True)
            if done.returncode:
                raise CannotPretendError(f"{compiler}: {done.stderr.strip()[-300:]}")
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def _patches(device: Device) -> Iterator[tuple[object, str, Any]]:
    """Owner, name and value of what is other while the device is there."""
    for name, answer in {
        "_lazy_init": None, "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0,
        "set_device": None, "empty_cache": None, "get_device_name": "a pretended device",
        "get_device_capability": (9, 0),
    }.items():  # fmt: skip
        yield torch.cuda, name, _always(answer)
    memory = device.memory
    yield torch.cuda, "mem_get_info", lambda *_: (_MEMORY - memory.allocated, _MEMORY)
    for name in ("memory_allocated", "memory_reserved"):
        yield torch.cuda, name, lambda *_: memory.allocated
    for name in ("max_memory_allocated", "max_memory_reserved"):
        yield torch.cuda, name, lambda *_: memory.peak
    yield torch.cuda, "reset_peak_memory_stats", lambda *_: memory.reset_peak()
    yield torch.cuda, "synchronize", lambda *_: device.synchronize()
    yield torch.cuda, "Stream", Stream
    yield torch.cuda, "Event", Event
    yield torch.cuda, "CUDAGraph", Graph
    yield torch.cuda, "current_stream", lambda *_: device.stream
    yield torch.cuda, "default_stream", lambda *_: device.default
    yield torch.cuda, "stream", lambda stream: stream or contextlib.nullcontext()
    yield torch.cuda, "device", lambda *_: contextlib.nullcontext()
    yield torch.cuda, "is_current_stream_capturing", lambda: device.capturing is not None
    yield torch.cuda, "graph", lambda graph, pool=None, stream=None, **_: device.capture(graph, stream)
    yield torch, "tensor", _made_on_host(torch.tensor)
    yield torch, "as_tensor", _made_on_host(torch.as_tensor)
    yield torch.Tensor, "new_tensor", _new_tensor


def _always(answer: Any) -> Callable[..., Any]:
    return lambda *_, **__: answer


def _made_on_host(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """What makes tensors of numbers makes them on the host and copies them, which PyTorch does beneath any mode."""

    def made(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
        if isinstance(data, OnDevice):
            return data.to(device=device, **options)
        tensor = make(data, **options)
        return tensor if device is None else tensor.to(device)

    return made


def _new_tensor(self: torch.Tensor, data: Any, *, dtype: torch.dtype | None = None, device: Any = None) -> torch.Tensor:
    return torch.tensor(data, dtype=dtype or self.dtype, device=device or self.device)
