"""PTX for hosts that launch a kernel with the arguments they were told of, and no others."""

from __future__ import annotations

import re


def parameters(ptx: str, kernel: str) -> list[tuple[str, str]]:
    """Type and name of each parameter of the entry `kernel`, as ("u64", "kernel_param_0")."""
    return [(words[1].lstrip("."), words[-1]) for words in map(str.split, _listed(ptx, kernel).group(1).split(","))]


def with_declared_parameters(ptx: str, kernel: str, declared: int) -> str:
    """Drop the parameters of `kernel` past the first `declared`.

    Triton appends scratch pointers that only its own launcher fills. Raises ValueError where the kernel reads one, or
    has fewer parameters than were declared.
    """
    found = parameters(ptx, kernel)
    if len(found) < declared:
        raise ValueError(f"{kernel} has {len(found)} parameters, {declared} were declared")
    for _, name in found[declared:]:
        if len(re.findall(rf"\b{name}\b", ptx)) > 1:
            raise ValueError(f"{kernel} reads {name}, which no host but Triton's launcher passes")
    listed = _listed(ptx, kernel)
    kept = ",".join(listed.group(1).split(",")[:declared])
    return f"{ptx[: listed.start(1)]}{kept.rstrip()}\n{ptx[listed.end(1) :]}"


def renamed(ptx: str, kernel: str, name: str) -> str:
    """Give the entry `kernel` another name; its parameters, which begin with it, follow."""
    return re.sub(rf"\b{kernel}(?=\b|_param_)", name, ptx)


def _listed(ptx: str, kernel: str) -> re.Match[str]:
    found = re.search(rf"\.entry {kernel}\((.*?)\)", ptx, flags=re.DOTALL)
    if found is None:
        raise ValueError(f"this PTX has no entry {kernel}")
    return found
