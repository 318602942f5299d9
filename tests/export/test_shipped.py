"""Graphs that come with the package: whole again with a network's weights, and those of the model as it is now."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from twig.engine.backends.networks import SERVED
from twig.engine.backends.onnxruntime import OnnxRuntimeNetwork
from twig.engine.backends.protocol import Artifact, Precision, Wanted
from twig.engine.backends.torch import flat_network
from twig.engine.models.checkpoint import load
from twig.engine.models.networks import Denoiser
from twig.engine.models.tensors import Network, network_specs
from twig.export.build import graph_key
from twig.export.form import ORIGINS, AttentionForm
from twig.export.graph import example_inputs, example_sizes
from twig.export.shipped import DATA, PACKED, SHIPPED, restored
from twig.export.shipping import ship
from twig.export.store import Key

KEY = Key({"network": "unet", "weights": "of this model", "torch": "2.13"})


@pytest.fixture
def network():
    """One layer, whose weight the graph holds turned over."""
    torch.manual_seed(0)
    return nn.Linear(16, 24)


@pytest.fixture
def graph(network, tmp_path):
    """A graph of the layer and of a constant that it has not, weights beside it."""
    held = {
        "turned": network.weight.detach().t().contiguous().numpy(),
        "bias": network.bias.detach().numpy(),
        "folded": np.arange(32, dtype=np.float32),
    }
    tensors = [numpy_helper.from_array(value, name) for name, value in held.items()]
    path = tmp_path / "graph" / "network.onnx"
    path.parent.mkdir()
    model = onnx.helper.make_model(onnx.helper.make_graph([], "graph", [], [], tensors))
    onnx.save_model(model, str(path), save_as_external_data=True, location=path.name + DATA, size_threshold=0)
    path.with_name(ORIGINS).write_text("{}")
    return path


def test_a_graph_is_whole_again_with_the_weights_of_the_network(network, graph, tmp_path):
    ship(network, KEY, graph, tmp_path / "shipped")
    assert network.bias.detach().numpy().tobytes() in graph.with_name(graph.name + DATA).read_bytes()
    assert restored(network, KEY, tmp_path / "shipped", tmp_path / graph.name)
    for file in graph.parent.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name


def test_nothing_is_shipped_of_where_it_was_made(network, graph, tmp_path):
    model = onnx.load(str(graph), load_external_data=False)
    model.graph.initializer[0].metadata_props.add(key="stack_trace", value="/home/somebody")
    graph.write_bytes(model.SerializeToString())
    ship(network, KEY, graph, tmp_path / "shipped")
    assert restored(network, KEY, tmp_path / "shipped", tmp_path / graph.name)
    assert b"somebody" in graph.read_bytes()
    assert b"somebody" not in (tmp_path / graph.name).read_bytes()


def test_its_weights_are_not_shipped(network, graph, tmp_path):
    ship(network, KEY, graph, tmp_path / "shipped")
    sizes = sum(file.stat().st_size for file in (tmp_path / "shipped").glob(f"*{DATA}{PACKED}"))
    assert sizes < network.weight.nbytes / 2


def test_who_exported_it_does_not_matter_but_what_it_computes_does(network, graph, tmp_path):
    ship(network, KEY, graph, tmp_path / "shipped")
    others = Key({**KEY.values, "weights": "of another model"})
    assert not restored(network, others, tmp_path / "shipped", tmp_path / graph.name)
    assert not restored(network, KEY, tmp_path / "nowhere", tmp_path / graph.name)
    assert not (tmp_path / graph.name).exists()
    assert restored(network, Key({**KEY.values, "torch": "2.14"}), tmp_path / "shipped", tmp_path / graph.name)


def test_every_network_of_the_embedded_model_came_and_computes_what_it_computes(tmp_path):
    """Else a first start takes a minute longer, or draws something else: `python -m twig.export.shipping`."""
    components = load(None)
    denoiser = Denoiser(components.unet, components.controlnet)
    specs = network_specs(components, denoiser)
    for network in (each for each in (*SERVED, Network.UNET_SHALLOW) if each in specs):
        spec, flat = specs[network], flat_network(network, components, denoiser)
        key = graph_key(Wanted(spec, "onnx", Precision.FP32), components, AttentionForm.INLINE)
        graph = tmp_path / "network.onnx"
        assert restored(flat, key, SHIPPED / network.value, graph), network
        inputs = example_inputs(spec, example_sizes(spec), torch.float32)
        found = OnnxRuntimeNetwork(Artifact(graph, tmp_path), spec, Precision.FP32, torch.device("cpu"))(inputs)
        with torch.inference_mode():
            expected = flat(*inputs)
        for one, other in zip(found, expected if isinstance(expected, tuple) else (expected,), strict=True):
            assert (one - other).abs().max() < 1e-3 * other.abs().max(), network
