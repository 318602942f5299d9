"""Graphs of the architectures that users bring, narrow and with random weights, against PyTorch on every runtime here.

SD 1.5 and its ControlNet: eight heads whatever the width, cross-attention at the upper levels only. SDXL: heads of one
width, several transformer layers a block with linear projections, text and size conditions added to the timestep.
"""

from dataclasses import dataclass

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import nn
from transformers import (
    ConvNextConfig,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("openvino", reason="openvino is not installed")

from twig.engine.api.errors import BackendError
from twig.engine.backends.onnxruntime import OnnxRuntimeNetwork
from twig.engine.backends.openvino import OpenVinoNetwork, process_core
from twig.engine.backends.openvino_norms import keep_channels_last
from twig.engine.backends.protocol import Artifact, Precision
from twig.engine.backends.torch import FlatControlNet, FlatSegmenter, FlatShallowUNet, FlatUNet, TorchNetwork
from twig.engine.models.networks import Denoiser
from twig.engine.models.tensors import Network, NetworkSpec, Sizes, TensorSpec, controlnet_spec, shallow_spec, unet_spec
from twig.export.graph import example_inputs, export_onnx
from twig.export.parity import compare, example_calls
from twig.export.store import ArtifactStore, Key

CPU = torch.device("cpu")
TOKENS = 77


def exported(name, *values):
    """A case that exports the network `name`: the least in the quick tests, the others in those that may be long."""
    return pytest.param(name, *values, marks=() if name == "sdxl-shallow" else pytest.mark.slow)


@dataclass(frozen=True)
class Case:
    """A flat network and its table."""

    flat: nn.Module
    spec: NetworkSpec


@pytest.fixture(scope="module")
def sd15():
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=768, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    with torch.no_grad():
        unet.time_embedding.linear_1.weight *= 4  # untrained, it hardly heeds its timestep
    controlnet = ControlNetModel.from_unet(unet)
    for convolution in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block):
        nn.init.normal_(convolution.weight, std=0.1)
    return Denoiser(unet.eval(), controlnet.eval())


@pytest.fixture(scope="module")
def cases(sd15):
    """Networks by name."""
    torch.manual_seed(1)
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=64, attention_head_dim=(4, 8),
        transformer_layers_per_block=(1, 2), use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=32 + 6 * 8,
    )  # fmt: skip
    controlnet = ControlNetModel.from_unet(unet)
    for convolution in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block):
        nn.init.normal_(convolution.weight, std=0.1)
    sdxl = Denoiser(unet.eval(), controlnet.eval())
    return {
        "sd15": Case(FlatUNet(sd15).eval(), unet_spec(sd15, TOKENS)),
        "sd15-controlnet": Case(FlatControlNet(sd15).eval(), controlnet_spec(sd15, TOKENS)),
        "sd15-shallow": Case(FlatShallowUNet(sd15).eval(), shallow_spec(sd15, TOKENS)),
        "sdxl": Case(FlatUNet(sdxl).eval(), unet_spec(sdxl, TOKENS)),
        "sdxl-shallow": Case(FlatShallowUNet(sdxl).eval(), shallow_spec(sdxl, TOKENS)),
        "sdxl-controlnet": Case(FlatControlNet(sdxl).eval(), controlnet_spec(sdxl, TOKENS)),
    }


def segmenter_spec(labels):
    pixels = TensorSpec("pixels", ("rows", 3, "height", "width"))
    scores = TensorSpec("scores", ("rows", labels, "out_height", "out_width"))
    return NetworkSpec(Network.SEGMENTER, (pixels,), (scores,), step=32)


@pytest.fixture(scope="module")
def graphs(cases, shared_folder, tmp_path_factory):
    """Return a function: a network's graph, exported by the first worker that asks for it."""
    store, programs = ArtifactStore(shared_folder / "architectures"), tmp_path_factory.mktemp("programs")

    def graph(name, precision):
        def build(folder):
            export_onnx(cases[name].flat, cases[name].spec, folder / "network.onnx", precision)

        return Artifact(store.folder(Key({"network": name, "precision": precision}), build) / "network.onnx", programs)

    return graph


def calls(case):
    """One row, odd counts and eight, at two resolutions."""
    unit = max(8, case.spec.step)
    sizes = [Sizes(1, unit, unit), Sizes(3, 2 * unit, unit), Sizes(8, unit, unit), Sizes(5, 2 * unit, unit)]
    return example_calls(case.spec, sizes, TorchNetwork(case.flat))


@pytest.mark.parametrize(
    ("name", "precision", "tolerance"),
    [
        exported("sd15", Precision.FP32, 1e-4),
        exported("sd15", Precision.FP16, 0.03),
        exported("sd15-controlnet", Precision.FP32, 1e-4),
        exported("sd15-shallow", Precision.FP32, 1e-4),
        exported("sdxl", Precision.FP32, 1e-4),
        exported("sdxl-shallow", Precision.FP32, 1e-4),
        exported("sdxl-controlnet", Precision.FP32, 1e-4),
    ],
)
def test_onnxruntime(cases, graphs, name, precision, tolerance):
    case = cases[name]
    network = OnnxRuntimeNetwork(graphs(name, precision), case.spec, precision, CPU)
    check(case, network, tolerance, calls(case))


@pytest.mark.parametrize(
    ("name", "precision", "tolerance"),
    [
        exported("sd15", Precision.FP32, 1e-4),
        exported("sd15", Precision.BF16, 0.1),
        exported("sd15-controlnet", Precision.FP32, 1e-4),
        exported("sd15-controlnet", Precision.BF16, 0.1),
        exported("sd15-shallow", Precision.FP32, 1e-4),
        exported("sdxl", Precision.FP32, 1e-4),
        exported("sdxl", Precision.BF16, 0.1),
        exported("sdxl-shallow", Precision.FP32, 1e-4),
        exported("sdxl-controlnet", Precision.FP32, 1e-4),
        exported("sdxl-controlnet", Precision.BF16, 0.1),
    ],
)
def test_openvino(cases, graphs, skip_without_bf16, name, precision, tolerance):
    if precision is Precision.BF16:
        skip_without_bf16()
    case = cases[name]
    network = OpenVinoNetwork(graphs(name, Precision.FP32), case.spec, precision, (1, 4, 8))
    check(case, network, tolerance, calls(case))


@pytest.mark.parametrize("name", [exported("sd15"), exported("sd15-controlnet"), exported("sdxl")])
def test_openvino_keeps_channels_last_in_every_group_norm(cases, graphs, name):
    case, artifact = cases[name], graphs(name, Precision.FP32)
    model = process_core().read_model(str(artifact.path))
    sizes = Sizes(2, 16, 24)
    model.reshape({spec.name: list(sizes.of(spec, case.spec)) for spec in case.spec.inputs})
    norms = [module for module in case.flat.modules() if isinstance(module, nn.GroupNorm)]
    assert keep_channels_last(model) == len(norms) > 0


@pytest.mark.slow
def test_bf16_keeps_late_timesteps_apart(sd15, cases, graphs, skip_without_bf16):
    """A timestep itself would be rounded, above 512 to a multiple of 4: a radian or two of the fastest sine."""
    skip_without_bf16()
    case = cases["sd15"]
    network = OpenVinoNetwork(graphs("sd15", Precision.FP32), case.spec, Precision.BF16, (8,))
    sample, _, *conditions = (t[:1].expand(8, *t.shape[1:]) for t in calls(case)[2])

    def predicted(run, timesteps):
        return run([sample, sd15.time_proj(timesteps), *conditions])[0]

    timesteps = torch.arange(962.0, 994.0, 4.0)
    with torch.inference_mode():
        expected, rounded = (predicted(TorchNetwork(case.flat), t) for t in (timesteps, timesteps.bfloat16().float()))
        found = predicted(network, timesteps)
    assert (found - expected).norm() < 0.5 * (rounded - expected).norm()


def check(case, network, tolerance, examples):
    """The largest error within `tolerance` of the output's scale; its root mean square far within."""
    with torch.inference_mode():
        for parity in compare(case.spec, TorchNetwork(case.flat), network, examples):
            assert parity.scale > 1e-6, f"{parity.output} is all zero, so that nothing was compared"
            assert parity.max_error <= tolerance * parity.scale, parity
            assert parity.rms_error <= tolerance * parity.scale / 4, parity


@pytest.mark.slow
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("on", [False, True])
def test_masks_and_residuals_of_sd15(cases, graphs, hard, on):
    case = cases["sd15"]
    network = OnnxRuntimeNetwork(graphs("sd15", Precision.FP32), case.spec, Precision.FP32, CPU)
    names = [tensor.name for tensor in case.spec.inputs]
    inputs = dict(zip(names, example_inputs(case.spec, Sizes(3, 16, 8), torch.float32), strict=True))
    inputs["mask_pyramid"] = inputs["mask_pyramid"].round() if hard else inputs["mask_pyramid"]
    inputs["scalars"] = inputs["scalars"] * on
    for i, name in enumerate(name for name in names if name.startswith("residual")):
        inputs[name] = inputs[name] * (0.1 + 0.2 * i)
    with torch.inference_mode():
        parity, _ = compare(case.spec, TorchNetwork(case.flat), network, [list(inputs.values())])
    assert parity.max_error < 1e-4 * parity.scale


class Undecided(nn.Module):
    """Takes one way or the other by what it sees, which no graph can."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, pixels):
        return pixels * self.scale if pixels.sum() > 0 else pixels


def test_a_segmenter_whose_pooling_follows_the_pictures_size_is_refused(tmp_path):
    stages = [f"stage{i}" for i in range(1, 5)]
    backbone = ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, out_features=stages)
    model = UperNetForSemanticSegmentation(
        UperNetConfig(backbone_config=backbone, hidden_size=16, use_auxiliary_head=False, num_labels=5)
    )
    with pytest.raises(BackendError, match=r"this segmenter cannot become an ONNX graph.*pools into a grid of 2"):
        export_onnx(FlatSegmenter(model).eval(), segmenter_spec(5), tmp_path / "network.onnx", Precision.FP32)


def test_a_segmenter_that_samples_a_pyramid_is_refused(tmp_path):
    """Its graph would be right at the size of the example alone."""
    backbone = SwinConfig(
        embed_dim=12, depths=[1] * 4, num_heads=[1, 2, 2, 2], window_size=4,
        out_features=[f"stage{i}" for i in range(1, 5)],
    )  # fmt: skip
    model = Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(
            backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, num_labels=5,
            encoder_layers=1, encoder_feedforward_dim=32, decoder_layers=2, num_attention_heads=2, num_queries=5,
        )
    )  # fmt: skip
    with pytest.raises(BackendError, match=r"this segmenter cannot become an ONNX graph.*samples levels whose sizes"):
        export_onnx(FlatSegmenter(model).eval(), segmenter_spec(5), tmp_path / "network.onnx", Precision.FP32)


def test_what_cannot_be_traced_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(BackendError, match="this segmenter cannot become an ONNX graph; name only the other networks"):
        export_onnx(Undecided().eval(), segmenter_spec(3), tmp_path / "network.onnx", Precision.FP32)
