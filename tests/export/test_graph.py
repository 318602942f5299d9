"""Exported graphs against PyTorch: every network, any number of rows, more than one resolution."""

import numpy as np
import pytest
import torch

pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

import onnx
import onnxruntime

from twig.engine.backends.onnxruntime import OnnxRuntimeNetwork
from twig.engine.backends.protocol import Precision, Wanted
from twig.engine.backends.torch import TorchNetwork, flat_network
from twig.engine.models import checkpoint
from twig.engine.models.networks import Denoiser
from twig.engine.models.tensors import Network, Sizes, network_specs
from twig.export import build
from twig.export.form import AttentionForm
from twig.export.graph import example_inputs, export_onnx
from twig.export.parity import compare, example_calls
from twig.kernels import neutral_scalars, neutral_tokens

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def exported(builder, components, denoiser, specs):
    """Return a function: a network in PyTorch and as a graph in ONNX Runtime, and its table."""

    def export(name, precision=Precision.FP32):
        spec = specs[name]
        artifact = builder(Wanted(spec, "onnx", precision), components, denoiser)
        reference = TorchNetwork(flat_network(name, components, denoiser))
        return reference, OnnxRuntimeNetwork(artifact, spec, precision, CPU), spec

    return export


def sizes_of(spec):
    """One row, an odd number and eight, at two resolutions."""
    unit = max(8, spec.step)
    return [Sizes(1, unit, unit), Sizes(3, 2 * unit, unit), Sizes(8, unit, unit), Sizes(5, 2 * unit, 2 * unit)]


@pytest.mark.parametrize("name", sorted({*Network} - {Network.TEXT_ENCODER_2, Network.PREVIEW_DECODER}))
def test_a_graph_computes_what_pytorch_does(exported, name):
    reference, graph, spec = exported(name)
    with torch.inference_mode():
        for parity in compare(spec, reference, graph, example_calls(spec, sizes_of(spec), reference)):
            assert parity.scale > 1e-6, f"{parity.output} is all zero, so that nothing was compared"
            assert parity.max_error < 1e-4 * max(1, parity.scale), parity


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("on", [False, True])
def test_the_reweighting_is_an_input(exported, hard, on):
    reference, graph, spec = exported(Network.UNET)
    inputs = dict(
        zip((t.name for t in spec.inputs), example_inputs(spec, Sizes(4, 16, 16), torch.float32), strict=True)
    )
    if hard:
        inputs["mask_pyramid"] = inputs["mask_pyramid"].round()
    inputs["scalars"] = inputs["scalars"] * on
    inputs["tokens"] = inputs["tokens"] * torch.tensor([-1e4, -1e4, 1, 1, 0]).view(1, 5, 1)
    call = list(inputs.values())
    with torch.inference_mode():
        parity, _ = compare(spec, reference, graph, [call])
        neutral = {**inputs, "scalars": torch.zeros_like(inputs["scalars"])}
        changed = not torch.allclose(graph(call)[0], graph(list(neutral.values()))[0], atol=1e-5)
    assert parity.max_error < 1e-4
    assert changed == on


def test_each_residual_reaches_its_own_place(exported):
    reference, graph, spec = exported(Network.UNET)
    inputs = example_inputs(spec, Sizes(1, 16, 16), torch.float32)
    places = [i for i, tensor in enumerate(spec.inputs) if tensor.name.startswith("residual")]
    with torch.inference_mode():
        for place in places:
            call = [torch.zeros_like(t) if i in places and i != place else t for i, t in enumerate(inputs)]
            torch.testing.assert_close(graph(call)[0], reference(call)[0], rtol=1e-4, atol=1e-4)


def test_scale_zero_gives_no_residual_and_rows_scale_alone(exported):
    _, graph, spec = exported(Network.CONTROLNET)
    *inputs, _ = example_inputs(spec, Sizes(2, 16, 16), torch.float32)
    once = graph([*inputs, torch.tensor([0.0, 1.0])])
    twice = graph([*inputs, torch.tensor([0.0, 2.0])])
    for single, double in zip(once, twice, strict=True):
        assert single[0].abs().max() == 0
        torch.testing.assert_close(double[1], 2 * single[1])


def test_half_precision(exported):
    reference, graph, spec = exported(Network.VAE_DECODER, Precision.FP16)
    calls = example_calls(spec, [Sizes(2, 16, 16)], reference)
    with torch.inference_mode():
        (parity,) = compare(spec, reference, graph, calls)
    assert 0 < parity.max_error < 0.02 * parity.scale


@pytest.mark.slow
def test_half_precision_of_trained_weights(builder):
    """The embedded ControlNet: the largest error within 1 % of each residual's scale, the root mean square in 0.1 %."""
    trained = checkpoint.load()
    denoiser = Denoiser(trained.unet, trained.controlnet)
    spec = network_specs(trained, denoiser)[Network.CONTROLNET]
    artifact = builder(Wanted(spec, "onnx", Precision.FP16), trained, denoiser)
    reference = TorchNetwork(flat_network(Network.CONTROLNET, trained, denoiser))
    graph = OnnxRuntimeNetwork(artifact, spec, Precision.FP16, CPU)
    calls = example_calls(spec, [Sizes(1, 16, 16), Sizes(3, 16, 32)], reference)
    with torch.inference_mode():
        for parity in compare(spec, reference, graph, calls):
            assert 0 < parity.max_error < 0.01 * parity.scale, parity
            assert parity.rms_error < 0.001 * parity.scale, parity


def test_a_graph_whose_attention_is_written_otherwise_is_another_artifact(components, specs, monkeypatch):
    wanted = Wanted(specs[Network.UNET], "onnx", Precision.FP32)
    before = build.graph_key(wanted, components, AttentionForm.INLINE)
    assert build.graph_key(wanted, components, AttentionForm.INLINE).digest == before.digest
    monkeypatch.setattr(build, "body_digest", lambda: "another")
    assert build.graph_key(wanted, components, AttentionForm.INLINE).digest != before.digest


@pytest.mark.parametrize("form", list(AttentionForm))
def test_masked_attention_is_one_node_with_a_body_or_none(tmp_path, one_layer, form):
    (layer, spec), path = one_layer, tmp_path / "layer.onnx"
    export_onnx(layer, spec, path, Precision.FP32, attention=form)
    model = onnx.load(path)
    nodes = [node for node in model.graph.node if node.domain == "twig"]
    held = [] if form is AttentionForm.INLINE else ["MaskedAttention"]
    assert [function.name for function in model.functions if function.domain == "twig"] == held
    assert [node.op_type for node in nodes] == held
    marks = [{a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} for node in nodes]
    offered = {"plugin_namespace": b"twig", "plugin_version": b"1", "aot": 1} if form is AttentionForm.PLUGIN else {}
    assert marks == [{"heads": 2, **offered}] * len(held)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(1)
    for rows, grid in ((1, (4, 6)), (3, (5, 3))):
        q, k, v = (torch.randn(rows, n, 16, generator=generator) for n in (grid[0] * grid[1], 7, 7))
        mask = torch.rand(rows, *grid, generator=generator)
        tokens = torch.randn(rows, 5, 7, generator=generator)
        for scalars in (torch.rand(rows, 3, generator=generator), neutral_scalars(rows)):
            for tokens_used in (tokens, neutral_tokens(rows, 7)):
                inputs = (q, k, v, mask, tokens_used, scalars)
                names = (tensor.name for tensor in spec.inputs)
                (found,) = session.run(None, {n: t.numpy() for n, t in zip(names, inputs, strict=True)})
                with torch.no_grad():
                    np.testing.assert_allclose(found, layer(*inputs).numpy(), atol=1e-5, rtol=1e-4)
