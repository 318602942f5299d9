"""What a processor computes with: the instruction sets that decide which backend is fastest on it."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

_INFO = Path("/proc/cpuinfo")
_SETS = {
    "avx2": "AVX2", "avx512f": "AVX512", "avx512_vnni": "VNNI", "avx_vnni": "VNNI", "amx_tile": "AMX",
    "avx512_bf16": "BF16", "amx_bf16": "BF16", "asimd": "NEON", "bf16": "BF16",
}  # fmt: skip
"""Flags of Linux, and what they are called here."""


class Processor(NamedTuple):
    """Its name, and those of `_SETS` that it has."""

    name: str
    instructions: tuple[str, ...]

    def __str__(self) -> str:
        """One line, as "AMD EPYC (AVX2)"."""
        return f"{self.name} ({', '.join(self.instructions) or 'no vector instructions that are known of'})"


def read_processor(info: str) -> Processor:
    """A processor out of what Linux says of it."""
    lines = [line.split(":", 1) for line in info.splitlines() if ":" in line]
    said = {name.strip(): value.strip() for name, value in reversed(lines)}
    flags = said.get("flags", said.get("Features", "")).split()
    return Processor(said.get("model name", "a processor"), tuple(dict.fromkeys(_SETS[f] for f in _SETS if f in flags)))


@cache
def processor() -> Processor:
    """The processor here; where it is not Linux nothing is known of it."""
    return read_processor(_INFO.read_text() if _INFO.exists() else "")
