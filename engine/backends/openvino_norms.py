"""Group normalisation as OpenVINO's CPU plugin runs it fastest: where convolutions leave the pixels."""

from typing import NamedTuple

import numpy as np
import openvino
from openvino import Node, Output
from openvino import opset13 as ops
from openvino.passes import ConstantFolding, Manager


class _GroupNorm(NamedTuple):
    """One group normalisation of a graph. picture: what it reads (N, C, H, W); last: the node that gives its result."""

    picture: Output
    groups: int
    eps: float
    weight: Output
    bias: Output
    last: Node


def keep_channels_last(model: openvino.Model) -> int:
    """Rewrite each group normalisation of `model`, whose shapes are static, in place; return how many there were.

    Graphs hold one as a normalisation of (N, groups, rest), which needs channels first, while convolutions want them
    last: each costs two reorders of the picture, and the activation after it runs over rows as short as the picture is
    wide. Here the statistics are small tensors, and the rest is one pass over the picture as it lies:
    (x - mean) * (variance + eps)^-1/2 * weight + bias. The variance is the mean of squared differences, not a
    difference of mean squares, which would cancel.
    """
    folding = Manager()
    folding.register_pass(ConstantFolding())
    folding.run_passes(model)
    found = [norm for node in model.get_ordered_ops() if (norm := _group_norm(node)) is not None]
    for norm in found:
        norm.last.output(0).replace(_rewritten(norm).output(0))
    model.validate_nodes_and_infer_types()
    return len(found)


def _group_norm(node: Node) -> _GroupNorm | None:
    """Return the group normalisation whose statistics `node` computes, or None."""
    if node.get_type_name() != "MVN" or node.input_value(0).get_node().get_type_name() != "Reshape":
        return None
    chain = [node]
    # Instance normalisation's own weight and bias, then the picture's shape again, then group normalisation's.
    for kind, neutral in (("Multiply", 1), ("Add", 0), ("Reshape", None), ("Multiply", None), ("Add", None)):
        consumers = list(chain[-1].output(0).get_target_inputs())
        if len(consumers) != 1 or consumers[0].get_node().get_type_name() != kind:
            return None
        chain.append(consumers[0].get_node())
        parameter = chain[-1].input_value(1).get_node()
        if parameter.get_type_name() != "Constant" or (neutral is not None and np.any(parameter.data != neutral)):
            return None
    picture, (_, _, _, shaped, weighed, last) = node.input_value(0).get_node().input_value(0), chain
    if len(picture.get_shape()) != 4 or shaped.get_output_shape(0) != picture.get_shape():
        return None
    groups, eps = node.get_output_shape(0)[1], node.get_attributes()["eps"]
    return _GroupNorm(picture, groups, eps, weighed.input_value(1), last.input_value(1), last)


def _rewritten(norm: _GroupNorm) -> Node:
    rows, channels, height, width = norm.picture.get_shape()
    by_group, by_channel = [rows, norm.groups, channels // norm.groups], [rows, channels, 1, 1]

    def group_mean(values: Output) -> Node:
        pooled = ops.avg_pool(values, [1, 1], [0, 0], [0, 0], [height, width], False)
        return ops.reduce_mean(ops.reshape(pooled, by_group, False), [2], keep_dims=True)

    mean = ops.reshape(ops.broadcast(group_mean(norm.picture), by_group), by_channel, False)
    # Not as the square of x - mean: the plugin would keep that difference for both of its uses, rounded in bf16.
    variance = group_mean(ops.squared_difference(norm.picture, mean).output(0))
    inverse = ops.power(ops.add(variance, np.float32(norm.eps)), np.float32(-0.5))
    scale = ops.multiply(inverse, ops.reshape(norm.weight, [1, *by_group[1:]], False))
    # The reshape keeps the plugin from fusing the power into the pass over the picture, where every pixel would pay.
    scaled = ops.multiply(ops.subtract(norm.picture, mean), ops.reshape(scale, by_channel, False))
    return ops.add(scaled, norm.bias)
