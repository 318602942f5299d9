"""Masked attention as ONNX: one node of the domain `twig`, with a function body that any runtime can execute."""

import functools
from typing import Any

import onnx
import onnx_ir
import torch
from onnxscript import opset18 as op
from onnxscript import script
from onnxscript.values import Op, Opset

from ..kernels.masked_attention import kernel_takes
from .form import DOMAIN, NAME

VERSION = "1"

_twig = Opset(DOMAIN, 1)


@script(_twig, default_opset=op)
def MaskedAttention(q, k, v, mask, tokens, scalars, heads: int):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201, N802
    """Equations and shapes of `kernels.masked_attention`, in fp32, with the mask at the query's own resolution."""
    count = op.Constant(value_int=heads)
    split = op.Concat([0, 0], op.Reshape(count, [1]), [-1], axis=0)
    query = op.Transpose(op.Reshape(op.Cast(q, to=1), split), perm=[0, 2, 1, 3])
    key = op.Transpose(op.Reshape(op.Cast(k, to=1), split), perm=[0, 2, 3, 1])
    value = op.Transpose(op.Reshape(op.Cast(v, to=1), split), perm=[0, 2, 1, 3])
    b, bbar, c, g, pad = op.Split(tokens, num_outputs=5, axis=1)
    eta, rho, gamma = op.Split(op.Unsqueeze(scalars, [2]), num_outputs=3, axis=1)
    m = eta * op.Reshape(mask, [0, -1, 1])

    # What heads share is computed without their axis, what only scales a row of the output after the second product.
    head_dim = op.Cast(op.Shape(query, start=3, end=4), to=1)
    outside = op.Where(op.Equal(eta, 0.0), 0.0 * m, 1.0 - m)
    factor = 1.0 + m * (c - 1.0)
    bias = factor * pad + m * b + outside * bbar
    logits = op.MatMul(query, key) * op.Unsqueeze(factor / op.Sqrt(head_dim), [1]) + op.Unsqueeze(bias, [1])
    probability = op.Softmax(logits, axis=-1) * op.Unsqueeze(1.0 + m * (g - 1.0), [1])
    total = op.Max(op.ReduceSum(probability, [3], keepdims=1), 1e-6)
    rho = op.Unsqueeze(rho, [1])
    out = op.Unsqueeze(1.0 - gamma * m, [1]) * ((1.0 - rho) + rho / total) * op.MatMul(probability, value)
    merged = op.Reshape(op.Transpose(out, perm=[0, 2, 1, 3]), [0, 0, -1])
    return op.CastLike(merged, q)


def _schema() -> onnx.defs.OpSchema:
    parameter, attribute = onnx.defs.OpSchema.FormalParameter, onnx.defs.OpSchema.Attribute
    floats = [f"tensor({kind})" for kind in ("float", "float16", "bfloat16")]
    inputs = {"q": "T", "k": "T", "v": "T", "mask": floats[0], "tokens": floats[0], "scalars": floats[0]}
    return onnx.defs.OpSchema(
        NAME,
        DOMAIN,
        1,
        inputs=[parameter(name, kind) for name, kind in inputs.items()],
        outputs=[parameter("out", "T")],
        type_constraints=[("T", floats, "the network's own precision")],
        attributes=[attribute("heads", onnx.defs.OpSchema.AttrType.INT)],
    )


def translation_table() -> dict[Any, Any]:
    """How `torch.onnx.export` writes `twig::masked_attention`: as one node; the grid is the mask's own."""
    node = Op(_twig, NAME, _schema())

    def translate(q: Any, k: Any, v: Any, mask: Any, tokens: Any, scalars: Any, heads: int, grid: Any) -> Any:
        return node(q, k, v, mask, tokens, scalars, heads=heads)

    return {torch.ops.twig.masked_attention.default: translate}


@functools.cache
def function_body() -> onnx_ir.Function:
    """Body of the node, to be held in the model's list of functions."""
    return onnx_ir.from_proto(MaskedAttention.to_function_proto())


def offer_to_plugin(model: onnx_ir.Model) -> None:
    """Mark the nodes whose heads our kernel is built for, as TensorRT's parser wants plugins marked."""
    for node in model.graph:
        if node.domain == DOMAIN and kernel_takes(_head_dim(node)):
            node.attributes["plugin_namespace"] = onnx_ir.AttrString("plugin_namespace", DOMAIN)
            node.attributes["plugin_version"] = onnx_ir.AttrString("plugin_version", VERSION)
            node.attributes["aot"] = onnx_ir.AttrInt64("aot", 1)


def _head_dim(node: onnx_ir.Node) -> int:
    query = node.inputs[0]
    assert query is not None
    assert query.shape is not None
    channels = query.shape[-1]
    assert isinstance(channels, int), f"the query's channels are {channels}, not a number"
    return channels // node.attributes["heads"].as_int()
