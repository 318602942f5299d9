"""Group normalisation with channels last, in OpenVINO, against PyTorch's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("openvino", reason="openvino is not installed")

import openvino
from openvino import opset13 as ops

from twig.engine.backends.openvino import process_core
from twig.engine.backends.openvino_norms import keep_channels_last

SHAPE, GROUPS, EPS = (3, 12, 5, 7), 4, 1e-5


@pytest.fixture
def affine():
    """Weight and bias of the channels."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(12, generator=generator), torch.randn(12, generator=generator)


def as_exported(weight, bias, factor=1.0):
    """Group normalisation as a graph from PyTorch holds it; `factor` is the instance normalisation's own."""
    picture = ops.parameter(SHAPE, np.float32)
    rows = ops.mvn(ops.reshape(picture, [0, GROUPS, -1], True), [2], True, EPS, "INSIDE_SQRT")
    instance = ops.add(ops.multiply(rows, np.full((1, GROUPS, 1), factor, np.float32)), np.zeros((1, 4, 1), np.float32))
    shaped = ops.reshape(instance, ops.shape_of(picture), False)
    weighed = ops.multiply(shaped, weight.view(12, 1, 1).numpy())
    return openvino.Model([ops.add(weighed, bias.view(12, 1, 1).numpy())], [picture])


def run(model, picture):
    compiled = process_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.from_numpy(compiled([picture.numpy()])[0])


@pytest.mark.parametrize(("mean", "scale"), [(0, 1), (300, 1), (0.001, 1e-4)])
def test_it_computes_what_pytorch_does(affine, mean, scale):
    model = as_exported(*affine)
    assert keep_channels_last(model) == 1
    assert "MVN" not in {node.get_type_name() for node in model.get_ordered_ops()}
    picture = mean + scale * torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    expected = F.group_norm(picture.double(), GROUPS, *(t.double() for t in affine), EPS).float()
    torch.testing.assert_close(run(model, picture), expected, rtol=1e-4, atol=2e-4)


def test_what_only_looks_like_one_is_left_alone(affine):
    model = as_exported(*affine, factor=2.0)
    assert keep_channels_last(model) == 0
    picture = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    weight, bias = affine
    expected = F.group_norm(picture, GROUPS, 2 * weight, bias, EPS)
    torch.testing.assert_close(run(model, picture), expected, rtol=1e-4, atol=1e-4)
