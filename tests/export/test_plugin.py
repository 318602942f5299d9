"""Our kernel as a TensorRT plugin: what it tells TensorRT, and when it is refused.

TensorRT needs a GPU to build with plugins. A stand-in of `tensorrt.plugin` holds the registration to that module's
rules and evaluates the launch at sizes, as TensorRT would when it runs the plan.
"""

import importlib
import inspect
import itertools
import re
import sys
import types
from dataclasses import dataclass

import pytest
import torch

pytest.importorskip("triton", reason="the plugin's kernel is compiled by triton")
pytest.importorskip("tensorrt_rtx", reason="builds plans without a GPU")
pytest.importorskip("onnx", reason="onnx is not installed")

import onnx
import tensorrt_rtx as rtx

from twig.engine.api.errors import BackendError
from twig.engine.backends.protocol import Precision, Wanted
from twig.engine.models.tensors import Network, Sizes
from twig.export import build, graph
from twig.export.build import ArtifactBuilder
from twig.export.form import AttentionForm
from twig.export.plugin import PLUGIN, plugin_for, plugin_module
from twig.export.store import ArtifactStore
from twig.export.tensorrt import PlanOptions
from twig.kernels.ptx import parameters
from twig.kernels.testing import attention_inputs

operator = importlib.import_module("twig.kernels.masked_attention")

PROFILE = (Sizes(1, 16, 16), Sizes(4, 16, 16), Sizes(8, 32, 32))


class Size:
    """Symbolic size: a number, or what an axis of the plan's inputs is when it runs."""

    def __init__(self, at, constant=None):
        self.at, self.is_constant = at, constant is not None
        self._constant = constant

    def constant_value(self):
        assert self.is_constant
        return self._constant


def size(value):
    if isinstance(value, Size):
        return value
    return Size(lambda sizes: sizes[value]) if isinstance(value, str) else Size(lambda _: value, value)


@dataclass(frozen=True)
class TensorDesc:
    dtype: object
    shape_expr: tuple

    def like(self):
        return self


class KernelLaunchParams:
    NAMES = ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_mem")

    def __init__(self):
        for name in self.NAMES:
            setattr(self, name, 0 if name == "shared_mem" else 1)

    def __setattr__(self, name, value):
        if name not in self.NAMES:
            raise AttributeError(name)
        super().__setattr__(name, size(value))

    def at(self, sizes):
        return {name: getattr(self, name).at(sizes) for name in self.NAMES}


class SymInt32(Size):
    def __init__(self, value):
        super().__init__(size(value).at)


class SymIntExprs(list):
    def __init__(self, length):
        super().__init__([None] * length)


class Host:
    """Stands for TensorRT with its plugin module; what it has beside is `tensorrt_rtx`'s."""

    _numbers = itertools.count()

    def __init__(self):
        self.__name__ = f"tensorrt_stand_in_{next(self._numbers)}"
        self.__version__ = "11.4"
        self.registered, self.implemented = {}, {}
        self.plugin = types.SimpleNamespace(
            TensorDesc=TensorDesc, KernelLaunchParams=KernelLaunchParams, SymInt32=SymInt32, SymIntExprs=SymIntExprs,
            register=self._register, aot_impl=self._aot_impl,
            cdiv=lambda a, b: Size(lambda sizes: -(-size(a).at(sizes) // size(b).at(sizes))),
        )  # fmt: skip

    def __getattr__(self, name):
        return getattr(rtx, name)

    def _register(self, plugin_id):
        def decorate(function):
            assert plugin_id not in self.registered, "TensorRT registers a name once in a process"
            signature = inspect.signature(function)
            kinds = [parameter.annotation for parameter in signature.parameters.values()]
            assert all(parameter.default is inspect.Parameter.empty for parameter in signature.parameters.values())
            assert kinds == [TensorDesc] * 6 + [int], "tensors first, then attributes, annotated with objects"
            assert signature.return_annotation is TensorDesc
            self.registered[plugin_id] = function
            return function

        return decorate

    def _aot_impl(self, plugin_id):
        def decorate(function):
            expected = [*inspect.signature(self.registered[plugin_id]).parameters, "outputs", "tactic"]
            signature = inspect.signature(function)
            assert list(signature.parameters) == expected
            assert signature.return_annotation == tuple[str, str, KernelLaunchParams, SymIntExprs]
            self.implemented[plugin_id] = function
            return function

        return decorate

    def launch(self, heads, head_dim, length, dtype=rtx.DataType.HALF, query="pixels"):
        """What TensorRT is given for one node of a graph whose rows and grid are free."""
        channels, single = heads * head_dim, rtx.DataType.FLOAT
        shapes = [("rows", query, channels), ("rows", length, channels), ("rows", length, channels)]
        shapes += [("rows", "height", "width"), ("rows", 5, length), ("rows", 3)]
        dtypes = [dtype] * 3 + [single] * 3
        tensors = [TensorDesc(d, tuple(map(size, shape))) for d, shape in zip(dtypes, shapes, strict=True)]
        outputs = (self.registered[PLUGIN](*tensors, heads),)
        assert outputs[0].dtype == dtype
        return self.implemented[PLUGIN](*tensors, heads, outputs, 0)


@pytest.fixture
def host(monkeypatch):
    stand_in = Host()
    monkeypatch.setitem(sys.modules, f"{stand_in.__name__}.plugin", stand_in.plugin)
    return stand_in


class Recorder:
    """Stands for a Triton kernel; keeps the grid and the number of warps that it is launched with."""

    def __getitem__(self, grid):
        self.grid = grid
        return self

    def __call__(self, *arguments, num_warps, **constants):
        self.warps = num_warps


@pytest.fixture
def triton_launch(monkeypatch):
    """Return a function: the grid and the threads of a block that our own launcher asks Triton for."""
    recorder = Recorder()
    monkeypatch.setattr(operator, "require_launchable", lambda *_: None)
    for name in ("masked_attention_kernel", "masked_attention_long_kernel"):
        monkeypatch.setattr(operator, name, recorder)

    def launch(rows, heads, grid, length, head_dim, dtype):
        operator.launch_masked_attention(**attention_inputs(rows, heads, grid, length, head_dim, dtype))
        return recorder.grid, 32 * recorder.warps

    return launch


@pytest.mark.parametrize(
    ("heads", "head_dim", "length", "dtype", "grid", "rows"),
    [
        (8, 40, 77, torch.float16, (64, 64), 8),
        (8, 160, 77, torch.float16, (8, 8), 1),
        (10, 64, 154, torch.float16, (36, 28), 3),
        (8, 40, 77, torch.float32, (5, 7), 2),
    ],
)
def test_a_plan_launches_the_kernel_as_triton_does(host, triton_launch, heads, head_dim, length, dtype, grid, rows):
    with plugin_for(host, host.plugin, 90):
        pass
    kind = rtx.DataType.HALF if dtype == torch.float16 else rtx.DataType.FLOAT
    name, ptx, launch, integers = host.launch(heads, head_dim, length, kind)
    expected, threads = triton_launch(rows, heads, grid, length, head_dim, dtype)
    height, width = grid
    at = launch.at({"rows": rows, "pixels": height * width, "height": height, "width": width})
    assert (at["grid_x"], at["grid_y"], at["grid_z"]) == expected
    assert (at["block_x"], at["block_y"], at["block_z"]) == (threads, 1, 1)
    assert [integer.at({"height": height, "width": width}) for integer in integers] == [height, width]
    inputs, outputs = 6, 1
    assert len(parameters(ptx, name)) == inputs + len(integers) + outputs


def test_the_kernel_is_compiled_for_the_gpu_that_the_plan_is_for(host):
    for architecture, target in ((86, "sm_86"), (90, "sm_90a"), (80, "sm_80")):
        with plugin_for(host, host.plugin, architecture):
            assert re.search(r"^\.target (\w+)", host.launch(8, 40, 77)[1], flags=re.MULTILINE).group(1) == target


def test_what_is_compiled_in_must_be_a_number(host):
    with plugin_for(host, host.plugin, 90), pytest.raises(BackendError, match="tokens must be a number in the graph"):
        host.launch(8, 40, "words")


def test_an_older_gpu_is_refused(host):
    with pytest.raises(BackendError, match=r"needs compute capability 8\.0 or later, not 7\.5"):
        plugin_for(host, host.plugin, 75)


def test_a_tensorrt_whose_plugins_hold_no_kernel_is_refused(host):
    del host.plugin.KernelLaunchParams
    with pytest.raises(BackendError, match=r"the plugins of .* 11\.4 lack KernelLaunchParams"):
        plugin_module(host)


@pytest.fixture
def wanted(specs):
    return Wanted(specs[Network.UNET], "tensorrt", Precision.FP32, PROFILE)


def test_it_is_refused_before_anything_is_built(builder, components, denoiser, wanted, host):
    without = ArtifactBuilder(builder.store, trt=rtx, attention=AttentionForm.PLUGIN)
    with pytest.raises(BackendError, match="has no plugin module; attention can be inline or function"):
        without(wanted, components, denoiser)
    if not torch.cuda.is_available():
        here = ArtifactBuilder(builder.store, trt=host, attention=AttentionForm.PLUGIN)
        with pytest.raises(BackendError, match="compiled for the GPU here, and there is none"):
            here(wanted, components, denoiser)
    assert not any(row.key.get("attention", "").startswith(AttentionForm.PLUGIN) for row in builder.store.ledger())


def test_a_plan_for_every_gpu_holds_the_oldest_ones_kernel(tmp_path, components, denoiser, wanted, host, monkeypatch):
    """With a stand-in of TensorRT's builder, which takes the plugin while it builds."""
    forms = []

    def write(flat, spec, path, precision, *, attention):
        forms.append(attention)
        onnx.save(onnx.ModelProto(), path)

    monkeypatch.setattr(graph, "export_onnx", write)
    monkeypatch.setattr(build, "build_plan", lambda *_: host.launch(2, 16, 77)[1].encode())
    options = PlanOptions(hardware_compatible=True)
    builder = ArtifactBuilder(ArtifactStore(tmp_path), trt=host, options=options, attention=AttentionForm.PLUGIN)
    plan = builder(wanted, components, denoiser)
    assert b".target sm_80\n" in plan.path.read_bytes()
    assert builder(wanted, components, denoiser) == plan
    inline = ArtifactBuilder(builder.store)
    assert builder.graph(wanted, components, denoiser) != inline.graph(wanted, components, denoiser)
    assert forms == [AttentionForm.PLUGIN, AttentionForm.INLINE]


def test_nvidias_own_module_takes_the_plugin():
    """Where TensorRT 11 is installed; it needs no GPU for that."""
    tensorrt = pytest.importorskip("tensorrt", reason="TensorRT is not installed")
    with plugin_for(tensorrt, plugin_module(tensorrt), 90):
        assert hasattr(importlib.import_module("tensorrt.plugin").op.twig, "MaskedAttention")
