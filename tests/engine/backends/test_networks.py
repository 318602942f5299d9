"""The two-step job on every backend that can run here, and how backends are chosen and refused."""

import ctypes
import gc
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from twig.engine.api.errors import BackendError, InvalidRequestError
from twig.engine.api.request import GenerationRequest
from twig.engine.api.result import Verdict
from twig.engine.api.settings import Stage
from twig.engine.backends import networks as backend_networks
from twig.engine.backends.openvino import OpenVinoNetwork
from twig.engine.backends.protocol import Artifact, Backend, Precision
from twig.engine.backends.tensorrt import TensorRtNetwork
from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine
from twig.engine.models import checkpoint
from twig.engine.models.tensors import Network, NetworkSpec, TensorSpec
from twig.export.parity import image_ssim

STAGE = Stage(steps=3, guidance_scale=3.0)
PROMPTS = ("a red star", "a blue house and a moon", "a green tree")
REQUESTS = [GenerationRequest(prompt=p, seed=i, draft=STAGE, final=STAGE) for i, p in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def components(tiny_checkpoint):
    return checkpoint.load(tiny_checkpoint)


@pytest.fixture(scope="module")
def make_engine(components, builder):
    def make(backend="torch", precision="fp32"):
        limits = Limits(slots=4, rows=8)
        return Engine(components, limits=limits, backend=backend, precision=precision, artifacts=builder)

    return make


@pytest.fixture(scope="module")
def reference(make_engine):
    """What PyTorch draws."""
    return make_engine().generate(REQUESTS)


@pytest.mark.parametrize(
    ("backend", "precision", "tolerance", "similarity"),
    [
        ("onnxruntime", "fp32", 2, 0.999),
        ("openvino", "fp32", 2, 0.999),
        pytest.param("openvino", "bf16", 64, 0.95, id="openvino-bf16"),
    ],
)
def test_the_same_pictures_on_every_backend(
    make_engine, reference, skip_without_bf16, backend, precision, tolerance, similarity
):
    if precision == "bf16":
        skip_without_bf16()
    engine = make_engine(backend, precision)
    results = engine.generate(REQUESTS)
    assert [result.error for result in results] == [None] * 3
    for found, wanted in zip(results, reference, strict=True):
        assert np.abs(np.asarray(found.image, float) - np.asarray(wanted.image, float)).max() <= tolerance
    assert image_ssim([r.image for r in reference], [r.image for r in results]) >= similarity
    chosen = engine.stats().backends
    assert {name: choice["backend"] for name, choice in chosen.items()} == dict.fromkeys(
        ("unet", "controlnet", "vae_decoder", "text_encoder", "segmenter"), backend
    )


def test_networks_choose_one_by_one(make_engine, reference):
    engine = make_engine({"vae_decoder": "onnxruntime"})
    (result,) = engine.generate(REQUESTS[:1])
    chosen = engine.stats().backends
    assert chosen["vae_decoder"]["backend"] == "onnxruntime"
    assert chosen["text_encoder"]["backend"] == "torch"
    assert np.abs(np.asarray(result.image, float) - np.asarray(reference[0].image, float)).max() <= 2


def test_auto_measures_once_and_remembers(make_engine):
    first = make_engine({"vae_decoder": "auto"})
    first.generate(REQUESTS[:1])
    measured = first.stats().backends["vae_decoder"]
    assert set(measured["seconds"]) == {"torch", "onnxruntime", "openvino"}
    assert measured["backend"] == min(measured["seconds"], key=measured["seconds"].get)
    second = make_engine({"vae_decoder": "auto"})
    second.generate(REQUESTS[:1])
    remembered = second.stats().backends["vae_decoder"]
    assert remembered["seconds"] == measured["seconds"]
    assert "before" in remembered["reason"]


def test_an_explained_request_runs_where_attention_can_be_read(make_engine):
    request = REQUESTS[0].model_copy(update={"explain": True})
    (result,) = make_engine({"unet": "onnxruntime"}).generate(request)
    assert result.verdict is not Verdict.FAILED
    assert result.explanation is not None


@pytest.mark.parametrize(
    ("backend", "precision", "message"),
    [
        ("tflite", "fp32", r"no backend 'tflite'; known: torch, onnxruntime, openvino"),
        ({"encoder": "torch"}, "fp32", r"no network 'encoder'; known: unet"),
        ("torch", "int8", r"no precision 'int8'; known: fp32"),
    ],
)
def test_what_does_not_exist_is_refused_at_once(make_engine, backend, precision, message):
    with pytest.raises(BackendError, match=message):
        make_engine(backend, precision)


def test_a_backend_that_is_not_installed_is_refused_at_once(make_engine, monkeypatch):
    monkeypatch.setattr(backend_networks, "_installed", lambda backend: False)
    with pytest.raises(BackendError, match="package openvino, which is not installed"):
        make_engine("openvino")


def test_a_precision_the_backend_lacks_fails_with_its_reason(make_engine):
    (result,) = make_engine({"vae_decoder": "openvino"}, "fp16").generate(REQUESTS[:1])
    assert result.verdict is Verdict.FAILED
    assert "openvino computes fp32 and bf16" in result.error


# --- OpenVINO's core and the programs it keeps ---


class SignalStack(ctypes.Structure):
    """`stack_t` of Linux."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack_is_mapped():
    """Whether a signal that comes now finds memory to be handled on."""
    stack = SignalStack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    ranges = (line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines())
    address = stack.address or 0
    return address == 0 or any(int(low, 16) <= address < int(high, 16) for low, high in ranges)


@pytest.fixture
def decoder(make_engine, tmp_path):
    """Return a function that makes the decoder on OpenVINO, its programs kept in `tmp_path`."""
    networks = make_engine("openvino").runner.networks
    artifact = replace(networks.artifact(Backend.OPENVINO, Network.VAE_DECODER), cache=tmp_path)
    spec = networks.specs[Network.VAE_DECODER]
    return lambda: OpenVinoNetwork(artifact, spec, Precision.FP32, (1, 4))


@pytest.mark.skipif(sys.platform != "linux", reason="signal stacks as Linux has them")
def test_signals_are_handled_after_openvino_networks_went_oldest_first(decoder):
    networks = [decoder() for _ in range(3)]
    while networks:
        del networks[0]
        gc.collect()
        assert signal_stack_is_mapped()


def test_a_damaged_program_is_compiled_again(decoder, tmp_path):
    latents = torch.randn(1, 4, 16, 16)
    (expected,) = decoder()([latents])
    (program,) = tmp_path.rglob("*.blob")
    whole = program.read_bytes()
    (again,) = decoder()([latents])
    assert torch.equal(again, expected)
    program.chmod(0o600)
    program.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    (compiled,) = decoder()([latents])
    assert torch.equal(compiled, expected)
    assert any(program.read_bytes()[len(whole) // 2 :])


def test_a_program_without_its_checksum_is_not_trusted(decoder, tmp_path):
    decoder()
    foreign = tmp_path / "fp32" / "123.blob"
    foreign.write_bytes(b"half a program")
    decoder()
    assert not foreign.exists()


# --- TensorRT's runtime, with a stand-in for what needs a GPU ---

DOUBLING = NetworkSpec(
    Network.VAE_DECODER,
    (TensorSpec("latents", ("rows", 4, "height", "width")),),
    (TensorSpec("decoded", ("rows", 4, "height", "width")),),
)


class StandInContext:
    """Doubles what lies at the input's address."""

    def __init__(self):
        self.shapes, self.addresses, self.memory, self.profile, self.runs = {}, {}, None, None, 0

    def set_optimization_profile_async(self, index, stream):
        self.profile = index
        return True

    def set_device_memory(self, pointer, size):
        self.memory = (pointer, size)

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return True

    def get_tensor_shape(self, name):
        return self.shapes["latents"]

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        self.runs += 1
        return True


class StandInEngine:
    """Two profiles: up to 4 rows at 16x16, and 1 row up to 32x32."""

    num_optimization_profiles, num_aux_streams, device_memory_size_v2 = 2, 0, 4096

    def __init__(self):
        self.contexts = []

    def create_execution_context(self, strategy):
        assert strategy == "user managed"
        self.contexts.append(StandInContext())
        return self.contexts[-1]

    def get_tensor_profile_shape(self, name, profile):
        return [((1, 4, 16, 16), (2, 4, 16, 16), (4, 4, 16, 16)), ((1, 4, 16, 16), (1, 4, 32, 32), (1, 4, 32, 32))][
            profile
        ]


def stand_in(engine):
    """Return a module that reads any plan as `engine`."""
    logger = type("Logger", (), {"WARNING": 0, "__init__": lambda self, level: None})
    return SimpleNamespace(
        __version__="11.0",
        Logger=logger,
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda plan: engine),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
    )


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "network.plan").write_bytes(b"plan")
    return Artifact(tmp_path / "network.plan", tmp_path)


def make_network(plan, engine):
    return TensorRtNetwork(plan, DOUBLING, Precision.FP32, torch.device("cpu"), stand_in(engine), lambda: 7)


def test_tensorrt_takes_one_context_a_profile_and_static_outputs(plan):
    engine = StandInEngine()
    network = make_network(plan, engine)
    inputs = torch.zeros(3, 4, 16, 16)
    (output,) = network([inputs])
    assert network([inputs])[0].data_ptr() == output.data_ptr()
    network([torch.zeros(1, 4, 32, 32)])
    assert [context.profile for context in engine.contexts] == [0, 1]
    assert [context.runs for context in engine.contexts] == [2, 1]
    assert engine.contexts[0].addresses == {"latents": inputs.data_ptr(), "decoded": output.data_ptr()}
    assert engine.contexts[0].memory == engine.contexts[1].memory


def test_tensorrt_refuses_what_no_profile_covers(plan):
    with pytest.raises(BackendError, match=r"vae_decoder was built for latents .* not \(2, 4, 32, 32\)"):
        make_network(plan, StandInEngine())([torch.zeros(2, 4, 32, 32)])


def test_tensorrt_takes_more_rows_than_a_profile_holds_in_pieces(plan):
    engine = StandInEngine()
    (output,) = make_network(plan, engine)([torch.zeros(9, 4, 16, 16)])
    assert output.shape == (9, 4, 16, 16)
    assert engine.contexts[0].runs == 3


def test_a_resolution_that_plans_were_not_built_for_is_refused_at_the_door(components, builder, monkeypatch):
    monkeypatch.setattr(backend_networks, "_installed", lambda backend: True)
    engine = Engine(components, backend={"unet": "tensorrt"}, artifacts=builder)
    wide = REQUESTS[0].model_copy(update={"width": 128})
    with pytest.raises(InvalidRequestError, match=r"128 x 64 pixels .* plans for unet .* 64 x 64"):
        engine.submit(wide)
    engine.submit(REQUESTS[0])
    free = Engine(components, backend={"unet": "openvino"}, artifacts=builder)
    free.submit(wide)


def test_tensorrt_refuses_a_plan_of_another_version(plan):
    with pytest.raises(BackendError, match=r"takes the plan at .* for no engine of its own"):
        make_network(plan, None)
