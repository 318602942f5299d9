"""Other weights in a graph that is there: the same graph as an export of them would be, without one."""

import copy
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from twig.engine.backends.protocol import Precision, Wanted
from twig.engine.models.networks import Denoiser
from twig.engine.models.tensors import Network, network_specs
from twig.export import build
from twig.export.build import ArtifactBuilder
from twig.export.form import ORIGINS
from twig.export.refit import keep_origins, refitted
from twig.export.store import ArtifactStore


def trained(part, seed):
    """A network of the same configuration with other weights, none of which is like another."""
    torch.manual_seed(seed)
    made = copy.deepcopy(part)
    made.load_state_dict({name: torch.randn_like(tensor) for name, tensor in part.state_dict().items()})
    return made


def wanted(components, network):
    denoiser = Denoiser(components.unet, components.controlnet)
    specs = network_specs(components, denoiser)
    return Wanted(specs[network], "onnx", Precision.FP32), components, denoiser


def tensors(path):
    return {each.name: numpy_helper.to_array(each) for each in onnx.load(str(path)).graph.initializer}


@pytest.fixture
def exports(monkeypatch):
    """The graphs that were exported, by the folder they lie in."""
    done, export = [], build.export_onnx
    monkeypatch.setattr(build, "export_onnx", lambda *given, **named: (done.append(given[2]), export(*given, **named)))
    return done


def check(components, part, which, tmp_path, exports):
    """Two sets of weights in one store make one export, and the second graph is what an export of its own makes."""
    store = ArtifactBuilder(ArtifactStore(tmp_path / "store"))
    several = [
        replace(components, **{part: trained(getattr(components, part), seed)}, hashes=components.hashes | {part: name})
        for seed, name in enumerate("ab")
    ]
    first, second = (store.graph(*wanted(each, which)).path for each in several)
    assert len(exports) == 1
    alone = ArtifactBuilder(ArtifactStore(tmp_path / "alone")).graph(*wanted(several[1], which)).path
    found, expected = tensors(second), tensors(alone)
    assert found.keys() == expected.keys()
    assert all((found[name] == expected[name]).all() for name in found)
    held = {name: value for name, value in tensors(first).items() if value.size >= 8 and value.dtype.kind == "f"}
    weights = [name for name, value in held.items() if np.ptp(value)]
    assert weights
    assert not any((tensors(first)[name] == found[name]).all() for name in weights)
    assert store.store.verify() == {}


@pytest.mark.slow
def test_other_weights_take_no_export(components, tmp_path, exports):
    check(components, "vae", Network.VAE_DECODER, tmp_path, exports)


@pytest.mark.slow
def test_neither_do_those_of_a_unet(components, tmp_path, exports):
    check(components, "unet", Network.UNET, tmp_path, exports)


def written(path, **values):
    """A graph that holds these values and nothing else."""
    held = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in values.items()]
    onnx.save_model(onnx.helper.make_model(onnx.helper.make_graph([], "graph", [], [], held)), str(path))


def network(**values):
    made = nn.Module()
    for name, value in values.items():
        made.register_buffer(name, torch.tensor(value))
    return made


RISING = [float(i) for i in range(8)]
ONES = [1.0] * 8


def test_what_an_exporter_renamed_is_found_by_its_values(tmp_path):
    old, new = tmp_path / "old.onnx", tmp_path / "new" / "new.onnx"
    new.parent.mkdir()
    written(old, val_3=[[v] for v in RISING], bias=[1.0, 2.0], factors=[2.0, 2.0], ones=ONES)
    keep_origins(network(weight=RISING, bias=[1.0, 2.0]), "{}", old)
    other = network(weight=RISING[::-1], bias=[3.0, 4.0])
    assert refitted(other, "{}", old, new)
    found = tensors(new)
    assert found["val_3"].tolist() == [[v] for v in RISING[::-1]]
    assert found["bias"].tolist() == [3, 4]
    assert (found["factors"].tolist(), found["ones"].tolist()) == ([2, 2], ONES), "constants stay"
    assert refitted(network(weight=RISING, bias=[1.0, 2.0]), "{}", new, tmp_path / "third.onnx"), "and so on"


@pytest.mark.parametrize(
    ("config", "other"),
    [("{1}", {"weight": RISING}), ("{}", {"weight": RISING[:4]}), ("{}", {"weight": RISING, "more": ONES})],
)
def test_another_configuration_or_shape_is_exported_anew(tmp_path, config, other):
    written(tmp_path / "old.onnx", val_3=RISING)
    keep_origins(network(weight=RISING), "{}", tmp_path / "old.onnx")
    assert not refitted(network(**other), config, tmp_path / "old.onnx", tmp_path / "new.onnx")
    assert not (tmp_path / "new.onnx").exists()


@pytest.mark.parametrize("state", [{"one": RISING, "two": RISING}, {"one": ONES}, {"same": ONES, "one": RISING}])
def test_where_it_is_not_certain_which_tensor_is_which_nothing_is_kept(tmp_path, state):
    written(tmp_path / "old.onnx", val_3=RISING, val_4=ONES)
    keep_origins(network(**state), "{}", tmp_path / "old.onnx")
    assert not (tmp_path / ORIGINS).exists()
    assert not refitted(network(**state), "{}", tmp_path / "old.onnx", tmp_path / "new.onnx")
