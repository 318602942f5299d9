"""Plans built ahead of time by NVIDIA's own builder, which needs no GPU, and what they are refused for."""

import inspect
from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("tensorrt_rtx", reason="builds plans without a GPU")
pytest.importorskip("onnx", reason="onnx is not installed")

import tensorrt_rtx as trt

from twig.engine.api.errors import BackendError
from twig.engine.backends import tensorrt_api
from twig.engine.backends.protocol import Precision, Wanted
from twig.engine.models.tensors import Network, Sizes
from twig.export import build
from twig.export.build import ArtifactBuilder
from twig.export.form import AttentionForm
from twig.export.graph import export_onnx
from twig.export.tensorrt import PlanOptions, Profile, _configure, build_plan

AMPERE = PlanOptions(compute_capabilities=(86,))
PROFILE = (Sizes(1, 16, 16), Sizes(4, 16, 16), Sizes(8, 32, 32))


@pytest.fixture(scope="module")
def graph(builder, components, denoiser, specs):
    """Return a function: the ONNX file of a network."""

    def export(name):
        return builder(Wanted(specs[name], "onnx", Precision.FP32), components, denoiser).path

    return export


@pytest.mark.slow
@pytest.mark.parametrize("network", [Network.UNET, Network.UNET_SHALLOW])
def test_the_unet_builds_with_its_conditions_as_inputs(graph, specs, tmp_path, network):
    timing = tmp_path / "timing"
    plan = build_plan(trt, graph(network), specs[network], [Profile(*PROFILE)], AMPERE, timing)
    assert len(plan) > 100_000
    assert timing.stat().st_size > 0


@pytest.mark.parametrize("form", list(AttentionForm))
def test_masked_attention_builds_in_every_form(tmp_path, one_layer, form):
    """A builder without plugins takes the body of a node that is offered to one."""
    layer, spec = one_layer
    export_onnx(layer, spec, tmp_path / "layer.onnx", Precision.FP16, attention=form)
    plan = build_plan(trt, tmp_path / "layer.onnx", spec, [Profile(*[Sizes(2, 4, 6)] * 3)], AMPERE)
    assert len(plan) > 10_000


def test_a_tensorrt_that_builds_for_its_own_gpu_alone_says_so():
    with pytest.raises(BackendError, match=r"tensorrt 11\.4 builds for the GPU here alone"):
        _configure(SimpleNamespace(__name__="tensorrt", __version__="11.4"), Recorder(), AMPERE)


def test_a_plan_is_built_once(builder, components, denoiser, specs):
    rtx = ArtifactBuilder(builder.store, trt=trt, options=AMPERE)
    wanted = Wanted(specs[Network.VAE_DECODER], "tensorrt", Precision.FP32, PROFILE)
    artifact = rtx(wanted, components, denoiser)
    assert rtx(wanted, components, denoiser) == artifact
    assert [row.digest for row in builder.store.ledger()].count(artifact.path.parent.name) == 1
    other = rtx(replace(wanted, sizes=(Sizes(1, 8, 8),) * 3), components, denoiser)
    assert other.path != artifact.path


@pytest.mark.parametrize("refittable", [True, False])
def test_other_weights_go_into_a_refittable_plan(builder, components, denoiser, specs, monkeypatch, refittable):
    """As on the GPU it was built for, but for TensorRT's own part, which needs that GPU to build and to refit it."""
    put = []
    monkeypatch.setattr(build, "build_plan", lambda *_: b"built")
    monkeypatch.setattr(build, "_gpu", lambda: f"a GPU of this test, {refittable}")
    monkeypatch.setattr(build, "refit", lambda trt, plan, graph: put.append((plan, graph)) or b"refitted")
    rtx = ArtifactBuilder(builder.store, trt=trt, options=replace(AMPERE, refittable=refittable))
    wanted = Wanted(specs[Network.VAE_DECODER], "tensorrt", Precision.FP32, PROFILE)
    plan = rtx(wanted, components, denoiser).path
    assert put == []
    other = replace(components, hashes={**components.hashes, "vae": "of other weights"})
    refitted = rtx(wanted, other, denoiser).path
    graph = rtx.graph(replace(wanted, format="onnx"), other, denoiser).path
    assert plan.read_bytes() == b"built"
    assert put == ([(b"built", graph)] if refittable else [])
    assert refitted.read_bytes() == (b"refitted" if refittable else b"built")


def test_a_graph_that_cannot_be_parsed_is_refused_with_the_parsers_words(specs, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendError, match=r"cannot parse .*bad\.onnx: ."):
        build_plan(trt, tmp_path / "bad.onnx", specs[Network.VAE_DECODER], [Profile(*PROFILE)], AMPERE)


def test_a_profile_that_contradicts_itself_is_refused(graph, specs):
    backwards = Profile(*reversed(PROFILE))
    with pytest.raises(BackendError, match="cannot build vae_decoder"):
        build_plan(trt, graph(Network.VAE_DECODER), specs[Network.VAE_DECODER], [backwards], AMPERE)


@pytest.mark.parametrize(
    ("protocol", "real"),
    [
        (tensorrt_api.TrtBuilder, trt.Builder),
        (tensorrt_api.TrtConfig, trt.IBuilderConfig),
        (tensorrt_api.TrtEngine, trt.ICudaEngine),
        (tensorrt_api.TrtContext, trt.IExecutionContext),
    ],
)
def test_what_is_called_is_there(protocol, real):
    called = {name for name, _ in inspect.getmembers(protocol, inspect.isfunction) if not name.startswith("_")}
    called |= {name for name in protocol.__annotations__ if not name.startswith("_")}
    assert called
    assert not {name for name in called if not hasattr(real, name)}


class Recorder:
    """Stands for a builder configuration; keeps what is set."""

    def __init__(self):
        self.flags, self.capabilities = [], []

    def set_flag(self, flag):
        self.flags.append(flag)

    def set_compute_capability(self, capability, index):
        self.capabilities.append((index, capability))


def test_options_reach_the_configuration():
    config = Recorder()
    options = PlanOptions((86, 120), stripped=True, version_compatible=True, hardware_compatible=True)
    _configure(trt, config, options)
    assert config.flags == [trt.BuilderFlag.REFIT, trt.BuilderFlag.STRIP_PLAN, trt.BuilderFlag.VERSION_COMPATIBLE]
    assert config.capabilities == [(0, trt.ComputeCapability.SM86), (1, trt.ComputeCapability.SM120)]
    assert config.hardware_compatibility_level == trt.HardwareCompatibilityLevel.AMPERE_PLUS
