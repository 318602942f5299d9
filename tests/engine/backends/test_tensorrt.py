"""TensorRT's runtime, with a stand-in for what needs a GPU."""

from types import SimpleNamespace

import pytest
import torch

from twig.engine.api.errors import BackendError
from twig.engine.backends.protocol import Artifact, Precision
from twig.engine.backends.tensorrt import TensorRtNetwork
from twig.engine.models.tensors import Network, NetworkSpec, TensorSpec

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


def test_tensorrt_refuses_a_plan_of_another_version(plan):
    with pytest.raises(BackendError, match=r"takes the plan at .* for no engine of its own"):
        make_network(plan, None)
