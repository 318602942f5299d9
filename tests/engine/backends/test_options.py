"""PyTorch's options: compiled regions draw the same pictures and compile once; switches hold while the engine steps."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch._dynamo.utils import counters

from twig.engine.api.errors import BackendError
from twig.engine.api.mechanisms import Avoidance, DelayedGuidance, MaskedAttention
from twig.engine.api.request import GenerationRequest, SimilarityPolicy
from twig.engine.api.settings import Stage
from twig.engine.backends.options import TorchOptions
from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine
from twig.engine.models import checkpoint
from twig.engine.models.networks import Denoiser
from twig.engine.models.tensors import Sizes, unet_inputs, unet_spec

RULE = MaskedAttention(bias=-4.0, tokens="words", layers=("down", "mid", "up"))
REQUESTS = [
    GenerationRequest(
        prompt="a red star", seed=seed, draft=Stage(steps=2), final=Stage(steps=2 + seed),
        avoidance=Avoidance(delayed_guidance=DelayedGuidance() if seed else None, masked_attention=RULE),
        similarity=SimilarityPolicy(limits={}, retries=0),
    )
    for seed in range(3)
]  # fmt: skip


@pytest.fixture
def traced(monkeypatch):
    """Trace and guard as ever, but run what was traced as it is: seconds in place of minutes."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager", fullgraph=True))
    torch._dynamo.reset()
    counters.clear()


def draw(components, requests=REQUESTS, **options):
    engine = Engine(components, limits=Limits(slots=3, rows=4), torch_options=TorchOptions(**options))
    engine.warmup()
    compiled = counters["stats"]["unique_graphs"]
    results = engine.generate(requests)
    assert [result.error for result in results] == [None] * len(requests)
    return engine, compiled, [np.asarray(result.image, dtype=int) for result in results]


def differ(found, wanted):
    return max(np.abs(a - b).max() for a, b in zip(found, wanted, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
def test_regions_compile_once_and_for_every_bucket(components, traced, fused):
    """One of the requests is explained, which runs where attention can be read."""
    bare = dataclasses.replace(components, controlnet=None)
    plain = [
        r.model_copy(update={"avoidance": r.avoidance.model_copy(update={"moved_control": None})}) for r in REQUESTS
    ]
    plain[0] = plain[0].model_copy(update={"explain": True})
    _, _, wanted = draw(bare, plain)
    _, compiled, found = draw(bare, plain, compile="default", fused=fused)
    assert differ(found, wanted) <= 1
    assert counters["stats"]["unique_graphs"] == compiled > 0, "everything was compiled at the start"
    assert not counters["graph_break"]


@pytest.mark.slow
def test_compiled_predictions_are_the_eager_ones():
    """With the real compiler, so on a UNet of one level (15 s of one core)."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    counters.clear()
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(16,), layers_per_block=1, down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",), mid_block_type=None, cross_attention_dim=32, attention_head_dim=2,
        norm_num_groups=8,
    ).eval()  # fmt: skip
    eager = Denoiser(unet, None)
    compiled = TorchOptions(compile="default").denoiser(eager)
    spec = unet_spec(eager, 12)
    for rows in (3, 2, 8):
        sizes = Sizes(rows, 8, 8)
        tensors = [torch.randn(sizes.of(t, spec)).to(t.dtype or torch.float32) for t in spec.inputs]
        inputs = unet_inputs(tensors, eager)
        with torch.inference_mode():
            assert (compiled.predict(inputs) - eager.predict(inputs)).abs().max() < 1e-4
        assert counters["stats"]["unique_graphs"] == 3, "six blocks of three kinds"


@pytest.mark.parametrize("options", [{"channels_last": True}, {"fused": True}], ids=lambda options: next(iter(options)))
def test_channels_last_draws_the_same_pictures(components, tiny_checkpoint, options):
    _, _, wanted = draw(components)
    engine, _, found = draw(checkpoint.load(tiny_checkpoint), **options)
    buffers = engine.arenas.loop((16, 16)).buffers
    for tensor in (buffers.sample, buffers.control_sample, buffers.hints, *buffers.residuals):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert differ(found, wanted) <= 1
    assert engine.components.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


def switches():
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.deterministic,
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"tf32": True}, ("high", True, False, False)),
        ({"tf32": False}, ("highest", False, False, False)),
        ({"deterministic": True}, ("highest", True, True, True)),
        ({}, ("highest", True, False, False)),
    ],
)
def test_switches_hold_while_the_engine_steps_and_are_put_back(components, options, expected):
    before, seen = switches(), set()
    engine = Engine(components, limits=Limits(slots=3, rows=4), torch_options=TorchOptions(**options))
    denoise = engine.stages.denoising.denoise
    engine.stages.denoising.denoise = lambda jobs, apart: (seen.add(switches()), denoise(jobs, apart))[1]
    (result,) = engine.generate(REQUESTS[:1])
    assert result.error is None
    assert seen == {expected}
    assert switches() == before == ("highest", True, False, False)


def test_what_cannot_be_served_is_refused_at_once(monkeypatch):
    with pytest.raises(BackendError, match="fused runs channels last"):
        TorchOptions(fused=True, channels_last=False)
    with pytest.raises(BackendError, match=r"compile is 'reduce-overhead'; the modes are default, max-autotune"):
        TorchOptions(compile="reduce-overhead")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with pytest.raises(BackendError, match="CUBLAS_WORKSPACE_CONFIG"):
        TorchOptions(deterministic=True).check(torch.device("cuda"))
