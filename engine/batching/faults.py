"""What a device's errors mean: memory that ran out can be had again, a device that failed stays failed."""

import torch

_FAILED = (
    "illegal memory access", "device-side assert", "launch failure", "launch timed out", "misaligned address",
    "illegal instruction", "invalid program counter", "hardware stack error", "address space", "ECC error",
    "context is destroyed", "unknown error",
)  # fmt: skip
_EXHAUSTED = ("out of memory", "ALLOC_FAILED")


def device_failed(error: BaseException) -> str | None:
    """What the device says that it failed of, where it did: nothing in this process can use it any more.

    CUDA reports such an error, which some kernel made before, at whatever call comes next, and at every one after.
    """
    return next((said for one in _chain(error) if _says(said := _first_line(one), _FAILED)), None)


def memory_ran_out(error: BaseException) -> bool:
    """Whether the device had no memory left, as PyTorch says it or a library under it."""
    return any(isinstance(one, torch.OutOfMemoryError) or _says(_first_line(one), _EXHAUSTED) for one in _chain(error))


def _says(line: str, phrases: tuple[str, ...]) -> bool:
    return ("CUDA" in line or "CUBLAS" in line or "CUDNN" in line) and any(phrase in line for phrase in phrases)


def _first_line(error: BaseException) -> str:
    """An error of CUDA goes on with advice, in which other errors are named."""
    return str(error).partition("\n")[0] if isinstance(error, RuntimeError) else ""


def _chain(error: BaseException | None) -> list[BaseException]:
    """An error and what it came of: leaving a stream or a capture of a failed device raises another one."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
