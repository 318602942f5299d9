"""Number types that compiled networks compute in: names, apart from the libraries that compute."""

from enum import StrEnum


class Precision(StrEnum):
    """Number type a compiled network computes in."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
