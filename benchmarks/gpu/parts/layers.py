"""The operators of the networks' blocks against fp64, and how fast they are beside PyTorch's own layers."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from ....kernels import add_bias, add_layer_norm, geglu, group_norm
from ....kernels.add_bias import add_bias_reference
from ....kernels.add_layer_norm import add_layer_norm_reference
from ....kernels.geglu import geglu_reference
from ....kernels.group_norm import group_norm_reference
from ....kernels.testing import (
    GROUP_NORM_SHAPES,
    TOKEN_SHAPES,
    TOLERANCES,
    GroupNormShape,
    assert_close,
    group_norm_inputs,
)
from ...layer_kernels import group_norm_calls, group_norm_cost, timed_rows, token_calls
from ...printing import Row
from ..bench import Bench, named
from .machine import copy
from .operators import checked, poisoned

ODD = (GroupNormShape("odd", 96, 13), GroupNormShape("odd", 320, 7, shifted=False, silu=False))
WIDTHS = (112, 320, 640, 1280)
_MODEL = "sd15-512"
_BATCH = 32

Operator = Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]


def measure(bench: Bench) -> Iterator[Row]:
    """Rows of every check, then of times where there is a GPU."""
    shapes = [shape for shape in GROUP_NORM_SHAPES if shape.model == _MODEL]
    for dtype in (torch.float16, torch.bfloat16):
        for shape in ODD if bench.quick else (*shapes, *ODD):
            row: Row = {"measure": "fp64", "kernel": "group_norm", **shape._asdict(), "precision": named(dtype)}
            yield checked(row, partial(check_group_norm, bench, shape, dtype))
        for width in WIDTHS[: bench.pick(len(WIDTHS), 2)]:
            for name, check in token_checks(bench, width, dtype).items():
                yield checked({"measure": "fp64", "kernel": name, "width": width, "precision": named(dtype)}, check)
    if bench.cuda and not bench.quick:
        bandwidth = float(str(copy(bench)["bytes_per_second"]))
        yield from ({"measure": "layer", **row} for row in timed(bandwidth, shapes))


def check_group_norm(bench: Bench, shape: GroupNormShape, dtype: torch.dtype) -> Row:
    """Hold a normalisation of two pictures to fp64; return the largest error."""
    inputs = group_norm_inputs(2, shape.channels, shape.groups, (shape.side,) * 2, dtype, bench.device, shape.shifted)
    return _held(partial(group_norm, silu=shape.silu), partial(group_norm_reference, silu=shape.silu), inputs, dtype)


def token_checks(bench: Bench, width: int, dtype: torch.dtype) -> dict[str, Callable[[], Row]]:
    """Checks of what works on tokens, on an odd number of them, and of the addition of pictures."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator).to(bench.device, dtype)

    pictures = [normal(3, width, 13, 9).contiguous(memory_format=torch.channels_last) for _ in range(2)]
    tokens = {"x": normal(3, 61, width), "residual": normal(3, 61, width), "weight": normal(width)}
    cases: dict[str, tuple[Operator, Operator, dict[str, Any]]] = {
        "geglu": (geglu, geglu_reference, {"x": normal(3, 61, 2 * width)}),
        "add_layer_norm": (add_layer_norm, add_layer_norm_reference, {**tokens, "bias": normal(width), "eps": 1e-5}),
        "add_bias": (
            add_bias, add_bias_reference, {"x": pictures[0], "residual": pictures[1], "bias": normal(width)}
        ),
    }  # fmt: skip
    return {name: partial(_held, *case, dtype) for name, case in cases.items()}


def _held(ours: Operator, reference: Operator, inputs: dict[str, Any], dtype: torch.dtype) -> Row:
    """Hold what an operator makes, of memory that was poisoned, to its reference in fp64."""
    exact = {name: value.double() if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    with poisoned():
        actual = ours(**inputs)
    worst = 0.0
    for one, other in zip(_several(actual), _several(reference(**exact)), strict=True):
        assert_close(one, other, TOLERANCES[dtype], "output")
        worst = max(worst, float(((one - other).abs() / other.abs().clamp_min(1)).max()))
    return {"error": worst}


def _several(made: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (made,) if isinstance(made, torch.Tensor) else made


def timed(bandwidth: float, shapes: list[GroupNormShape]) -> Iterator[Row]:
    """Microseconds of every layer of Stable Diffusion 1.5 at 32 rows, eager contenders alone."""
    dtype = torch.float16
    for shape in shapes:
        inputs = group_norm_inputs(
            _BATCH, shape.channels, shape.groups, (shape.side,) * 2, dtype, "cuda", shape.shifted
        )
        calls = {n: call for n, call in group_norm_calls(inputs, shape.silu).items() if not n.startswith("compiled")}
        common: Row = {"kernel": "group_norm", **shape._asdict(), "batch": _BATCH, **group_norm_cost(shape, _BATCH)}
        expected = group_norm_reference(**inputs, silu=shape.silu)
        yield from timed_rows(common, calls, expected, TOLERANCES[dtype], bandwidth)
    for tokens in (shape for shape in TOKEN_SHAPES if shape.model == _MODEL):
        for kernel, (values, ours, theirs, read) in token_calls(tokens, _BATCH, dtype).items():
            common = {"kernel": kernel, **tokens._asdict(), "batch": _BATCH, "bytes": values * dtype.itemsize}
            expected = theirs(*(tensor.float() for tensor in read))
            calls = {"ours": partial(ours, *read), "pytorch": partial(theirs, *read)}
            yield from timed_rows(common, calls, expected, TOLERANCES[dtype], bandwidth)
