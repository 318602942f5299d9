"""Flat networks to ONNX: free rows and resolution, weights beside the graph, masked attention as a node or inlined."""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import onnx_ir.passes.common as passes
import torch
from torch import Tensor, nn
from torch.export import Dim

from ..engine.api.errors import BackendError
from ..engine.backends.protocol import Precision
from ..engine.models.tensors import NetworkSpec, Sizes
from .attention import function_body, offer_to_plugin, translation_table
from .form import OPSET, AttentionForm

MAX_ROWS = 63
"""diffusers' upsampling branches at 64 rows, which an exported graph cannot."""

_MAX_UNITS = 2**12
_EXAMPLE_ROWS = 2

DTYPES = {Precision.FP32: torch.float32, Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}


def example_inputs(spec: NetworkSpec, sizes: Sizes, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, ...]:
    """Inputs of plausible values: noise, sinusoids, a soft mask, biases and factors within and around neutral."""
    generator = torch.Generator().manual_seed(seed)
    inputs = []
    for tensor in spec.inputs:
        shape = sizes.of(tensor, spec)
        match tensor.name:
            case "time_proj" | "added_sizes":
                value = torch.randn(shape, generator=generator).sin()
            case "input_ids":
                value = torch.randint(0, 100, shape, generator=generator)
            case "mask_pyramid" | "tokens" | "scalars" | "scale":
                value = torch.rand(shape, generator=generator)
            case _:
                value = torch.randn(shape, generator=generator)
        inputs.append(value.to(tensor.dtype or dtype))
    return tuple(inputs)


def example_sizes(spec: NetworkSpec, rows: int = _EXAMPLE_ROWS) -> Sizes:
    """Small sizes, no two axes alike, so that tracing cannot take one for another."""
    unit = max(spec.step, 8)
    return Sizes(rows, 2 * unit, 3 * unit)


def dynamic_shapes(spec: NetworkSpec) -> tuple[dict[int, Any], ...]:
    """Torch's dimensions for each input: rows, height and width are free; levels within follow from them."""
    axes: dict[str, Any] = {"rows": Dim("rows", min=1, max=MAX_ROWS), "pyramid": Dim.AUTO}
    for name in ("height", "width"):
        unit = Dim(f"{name}_units", min=1, max=_MAX_UNITS)
        axes[name] = _times(spec.step, unit)
        axes |= {f"{name}_{level}": _times(spec.step >> level, unit) for level in range(spec.levels)}
    return tuple({i: axes[a] for i, a in enumerate(t.shape) if isinstance(a, str)} for t in spec.inputs)


def _times(factor: int, unit: Any) -> Any:
    return factor * unit if factor > 1 else unit


def export_onnx(
    flat: nn.Module,
    spec: NetworkSpec,
    path: Path,
    precision: Precision,
    *,
    attention: AttentionForm = AttentionForm.INLINE,
) -> None:
    """Write `flat` to `path`, its weights to `path` + `.data`.

    attention: how the graph holds masked attention. Raises BackendError for a network that cannot be traced, or in
    which more follows the picture's size than a graph can, and what `onnx.checker` raises.
    """
    _check_pooling(flat, spec)
    _check_sampling(flat, spec)
    module = _converted(flat, DTYPES[precision])
    inputs = example_inputs(spec, example_sizes(spec), DTYPES[precision])
    with torch.no_grad(), _quiet():
        program = _traced(module, inputs, spec)
    assert program is not None
    model = program.model
    body = function_body()
    model.functions[body.identifier()] = body
    model.opset_imports[body.domain] = 1
    if attention is AttentionForm.PLUGIN:
        offer_to_plugin(model)
    if attention is AttentionForm.INLINE:
        passes.InlinePass()(model)
        model.opset_imports.pop(body.domain)
    program.save(path, external_data=True)
    onnx.checker.check_model(str(path))


def _traced(module: nn.Module, inputs: tuple[Tensor, ...], spec: NetworkSpec) -> Any:
    shapes = dynamic_shapes(spec)
    try:
        return torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
            dynamic_shapes=(shapes,) if len(inputs) > 1 else shapes,
            custom_translation_table=translation_table(),
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise BackendError(_refusal(spec, _cause(error))) from error


def _check_pooling(flat: nn.Module, spec: NetworkSpec) -> None:
    """Refuse pooling into a grid: its windows follow the picture's size, in a graph they stay those of the example.

    At other sizes such a graph fails in ONNX Runtime, and in OpenVINO it divides by zero and takes the process along.
    """
    for name, module in flat.named_modules():
        if isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d) and module.output_size not in (1, (1, 1)):
            raise BackendError(_refusal(spec, f"{name} pools into a grid of {module.output_size}, whatever the size"))


def _check_sampling(flat: nn.Module, spec: NetworkSpec) -> None:
    """Refuse attention that samples a pyramid (Zhu et al., Deformable DETR, 2021), as Mask2Former's pixel decoder does.

    The models that have it hold the levels' sizes as numbers, so a graph keeps those of the example; at other sizes it
    fails, or computes something else.
    """
    for name, module in flat.named_modules():
        if "scaledeformableattention" in type(module).__name__.lower():
            raise BackendError(_refusal(spec, f"{name} samples levels whose sizes a graph would fix"))


def _refusal(spec: NetworkSpec, reason: str) -> str:
    return (
        f"this {spec.network.value} cannot become an ONNX graph; name only the other networks in backend={{...}}, and "
        f"PyTorch runs this one. {reason}"
    )


def _cause(error: BaseException) -> str:
    """First line of what the chain of errors began with."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what the exporter says of every graph: axes of one name, and torchvision's absence."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _converted(flat: nn.Module, dtype: torch.dtype) -> nn.Module:
    parameter = next(flat.parameters())
    return flat if parameter.dtype == dtype else copy.deepcopy(flat).to(dtype)
