"""The operators of the networks' blocks against PyTorch's own layers: `python -m twig.benchmarks.kernels` times them.

As with attention, a contender that disagrees with the reference is named and not timed. Bytes are the least that the
operator can move; what else a contender moves shows in its share of the copy bandwidth.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from ..kernels import add_bias, add_layer_norm, geglu, group_norm
from ..kernels.group_norm import group_norm_reference
from ..kernels.testing import (
    GROUP_NORM_SHAPES,
    TOKEN_SHAPES,
    TOLERANCES,
    GroupNormShape,
    TokenShape,
    assert_close,
    group_norm_inputs,
)
from .device_timing import Call, time_calls
from .printing import Row

BATCHES = (2, 16, 32)
Operator = Callable[..., torch.Tensor]
Inputs = tuple[torch.Tensor, ...]


def group_norm_cost(shape: GroupNormShape, batch: int, element: int = 2) -> Row:
    """Bytes of one call that reads the picture twice, for moments and for the result, and writes it once."""
    return {"bytes": 3 * element * batch * shape.channels * shape.side**2}


def group_norm_calls(inputs: dict[str, Any], silu: bool) -> dict[str, Call]:
    """Contenders by name; PyTorch's own computes on planes and on channels last, with the operations around it."""
    x, shift = inputs["x"], inputs["shift"]
    planes = x.contiguous()

    def ours() -> torch.Tensor:
        return group_norm(**inputs, silu=silu)

    def layers(picture: torch.Tensor) -> torch.Tensor:
        if shift is not None:
            picture = picture + shift[:, :, None, None]
        y = F.group_norm(picture, inputs["groups"], inputs["weight"], inputs["bias"], inputs["eps"])
        return F.silu(y) if silu else y

    return {
        "ours": ours, "pytorch, planes": lambda: layers(planes), "pytorch, channels last": lambda: layers(x),
        "compiled, channels last": _compiled(layers, x),
    }  # fmt: skip


def _compiled(layers: Any, x: torch.Tensor) -> Call:
    compiled: Any = torch.compile(layers, dynamic=False)
    return lambda: compiled(x)


def token_calls(shape: TokenShape, batch: int, dtype: torch.dtype) -> dict[str, tuple[int, Operator, Operator, Inputs]]:
    """By kernel: values it moves at least, ours, PyTorch's layers, and what both read."""
    pixels, width = shape.side**2, shape.width
    values = batch * pixels * width

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, device="cuda").to(dtype)

    def picture() -> torch.Tensor:
        return normal(batch, width, shape.side, shape.side).contiguous(memory_format=torch.channels_last)

    def gated(x: torch.Tensor) -> torch.Tensor:
        value, gate = x.chunk(2, -1)
        return value * F.gelu(gate)

    def added(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        total = x + residual
        return F.layer_norm(total, (width,), weight, bias, 1e-5)

    def ours_added(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return add_layer_norm(x, residual, weight, bias, 1e-5)[1]

    tokens = normal(batch, pixels, width), normal(batch, pixels, width)
    return {
        "geglu": (12 * values, geglu, gated, (normal(batch, pixels, 8 * width),)),
        "add_layer_norm": (4 * values, ours_added, added, (*tokens, normal(width), normal(width))),
        "add_bias": (
            3 * values, add_bias, lambda x, residual, bias: x.add(bias.view(-1, 1, 1)).add_(residual),
            (picture(), picture(), normal(width)),
        ),
    }  # fmt: skip


def layer_rows(bandwidth: float, dtype: torch.dtype) -> Iterator[Row]:
    """Time every shape and batch; bandwidth: bytes a second of a copy."""
    for shape in GROUP_NORM_SHAPES:
        for batch in BATCHES if shape.side < 512 else BATCHES[:1]:
            inputs = group_norm_inputs(
                batch, shape.channels, shape.groups, (shape.side,) * 2, dtype, "cuda", shape.shifted
            )
            expected = group_norm_reference(**inputs, silu=shape.silu)
            calls = group_norm_calls(inputs, shape.silu)
            common = {"kernel": "group_norm", **shape._asdict(), "batch": batch, **group_norm_cost(shape, batch)}
            yield from timed_rows(common, calls, expected, TOLERANCES[dtype], bandwidth)
    for tokens in TOKEN_SHAPES:
        for batch in BATCHES:
            for kernel, (values, ours, theirs, read) in token_calls(tokens, batch, dtype).items():
                common = {"kernel": kernel, **tokens._asdict(), "batch": batch, "bytes": values * dtype.itemsize}
                expected = theirs(*(tensor.float() for tensor in read))
                calls = {"ours": partial(ours, *read), "pytorch": partial(theirs, *read)}
                yield from timed_rows(common, calls, expected, TOLERANCES[dtype], bandwidth)


def timed_rows(
    common: Row, calls: dict[str, Call], expected: torch.Tensor, tolerance: float, bandwidth: float
) -> Iterator[Row]:
    """Rows of the calls that give what is expected, and of why any other was not timed."""
    right: dict[str, Call] = {}
    for name, call in calls.items():
        try:
            # What PyTorch's layers round in between counts as theirs.
            assert_close(call(), expected, tolerance * (1 if name == "ours" else 4), name)
            right[name] = call
        except Exception as error:
            yield common | {"contender": name, "not_timed": str(error).splitlines()[0]}
    timed = time_calls(right)
    for name, microseconds in timed.items():
        share = int(str(common["bytes"])) / (microseconds["p50"] * 1e-6) / bandwidth
        ratio = microseconds["p50"] / timed["ours"]["p50"] if "ours" in timed else None
        yield common | {"contender": name, **microseconds, "of_copy_bandwidth": share, "over_ours": ratio}


def layer_model_rows() -> Iterator[Row]:
    """Bytes of each shape, from arithmetic alone."""
    for shape in GROUP_NORM_SHAPES:
        for batch in BATCHES:
            yield {"kernel": "group_norm", **shape._asdict(), "batch": batch, **group_norm_cost(shape, batch)}
