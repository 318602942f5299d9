"""Models that are kept beside their compiled networks: they say and draw what the whole model does, and load less."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from twig.engine.api.choices import Solver
from twig.engine.api.request import GenerationRequest
from twig.engine.api.settings import Stage
from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine
from twig.engine.models import checkpoint
from twig.engine.models.kept import denoiser_of
from twig.engine.models.tensors import network_specs
from twig.engine.sampling.solver import solver_table

STAGE = Stage(steps=2, guidance_scale=3.0, cache_interval=2)
REQUEST = GenerationRequest(prompt="a red star on green", seed=3, draft=STAGE, final=STAGE)
LIMITS = Limits(slots=1, rows=2)
ABSENT = (
    "diffusers", "transformers", "huggingface_hub", "onnx", "onnxscript", "onnx_ir", "torch._dynamo",
    "torch.onnx._internal", "sympy", "accelerate", "peft", "matplotlib", "pandas",
)  # fmt: skip


@pytest.fixture(scope="module", params=["plain", "xl"])
def folder(request, tiny_checkpoint, tiny_xl_checkpoint):
    return {"plain": tiny_checkpoint, "xl": tiny_xl_checkpoint}[request.param]


@pytest.fixture(scope="module")
def opened(builder):
    """Open a folder as an engine whose networks run compiled."""

    def open_(folder, **options):
        options = {"backend": "onnxruntime", "limits": LIMITS, "artifacts": builder, **options}
        return Engine.from_pretrained(folder, **options)

    return open_


@pytest.fixture(scope="module")
def whole(folder):
    return checkpoint.load(folder)


@pytest.fixture(scope="module")
def kept(folder, opened):
    """The components of a second engine of the same folder."""
    assert opened(folder).components.whole is None
    found = opened(folder).components
    assert found.whole is not None
    return found


def test_a_kept_model_says_what_the_whole_one_does(kept, whole):
    for name in ("size", "max_tokens", "vae_scale_factor", "hashes", "sources", "sampler", "zero_empty", "upcast_vae"):
        assert getattr(kept, name) == getattr(whole, name), name
    assert (kept.segmenter.labels, kept.segmenter.background) == (whole.segmenter.labels, whole.segmenter.background)
    assert kept.segmenter.preprocessing == whole.segmenter.preprocessing
    mine, other = denoiser_of(kept), denoiser_of(whole)
    assert network_specs(kept, mine) == network_specs(whole, other)
    assert mine.shallow_share == other.shallow_share < 1


def test_a_kept_tokenizer_answers_as_transformers_does(kept, whole):
    for mine, other in zip(kept.tokenizers, whole.tokenizers, strict=True):
        for text in ("", "A Red  star, on green", "caf\u00e9 \u661f (x:1.2)", " <|endoftext|> a"):
            ids = mine(text, add_special_tokens=False, truncation=False, verbose=False).input_ids
            assert ids == other(text, add_special_tokens=False, truncation=False, verbose=False).input_ids
            assert mine.decode(ids) == other.decode(ids)
            assert mine.convert_ids_to_tokens(ids) == other.convert_ids_to_tokens(ids)
        assert (len(mine), mine.get_vocab(), mine.get_added_vocab()) == (
            len(other), other.get_vocab(), other.get_added_vocab()
        )  # fmt: skip
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "model_max_length"):
            assert getattr(mine, name) == getattr(other, name)
        for token in (",</w>", "no such token"):
            assert mine.convert_tokens_to_ids(token) == other.convert_tokens_to_ids(token)


def test_what_is_made_once_a_request_is_made_alike(kept, whole):
    mine, other = denoiser_of(kept), denoiser_of(whole)
    generator = torch.Generator().manual_seed(0)
    width = sum(encoder.config.hidden_size for encoder in whole.text_encoders)
    text = torch.randn(2, kept.max_tokens, width, generator=generator)
    for one, another in zip(mine.encode(text), other.encode(text), strict=True):
        pairs = zip((*one.unet, *one.controlnet), (*another.unet, *another.controlnet), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        sizes = (64, 64, 0, 0, 64, 64)
        added = [denoiser.sized(each, sizes).added for denoiser, each in ((mine, one), (other, another))]
        assert all(torch.equal(a, b) for a, b in zip(*added, strict=True))
    hint, steps = torch.rand(1, 3, *kept.size, generator=generator), torch.tensor([999.0, 501.0, 0.0])
    assert torch.equal(mine.controller().embed_hint(hint), other.controller().embed_hint(hint))
    assert torch.equal(mine.time_proj(steps), other.time_proj(steps))


@pytest.mark.parametrize("steps", [20, 33])  # one that is kept, one that is not
def test_solvers_step_alike(kept, whole, steps):
    for solver in (Solver.DDIM, Solver.DPMPP_2M):
        mine, other = (solver_table(solver, steps, each.scheduler, each.sampler) for each in (kept, whole))
        assert torch.equal(mine.columns, other.columns)
        assert torch.equal(mine.timesteps, other.timesteps)
        assert (mine.init_noise_sigma, mine.num_steps) == (other.init_noise_sigma, other.num_steps)


def test_what_is_not_compiled_is_loaded_when_a_request_needs_it(tiny_checkpoint, opened):
    skipping = REQUEST.model_copy(update={"clip_skip": 1})
    first, second = (opened(tiny_checkpoint).generate(skipping)[0] for _ in range(2))
    assert np.array_equal(np.asarray(first.image), np.asarray(second.image))


def test_a_model_whose_weights_were_changed_is_read_anew(tiny_checkpoint, opened, builder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, folder)
    opened(folder)
    before = opened(folder).components
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    after = opened(folder).components
    assert before.whole is not None
    assert after.whole is None
    assert before.hashes["unet"] != after.hashes["unet"]


def test_a_model_that_pytorch_changes_is_not_kept(tiny_checkpoint, opened, builder):
    models = len(builder.store.entries())
    opened(tiny_checkpoint, controlnet=[tiny_checkpoint / "controlnet", f"more={tiny_checkpoint / 'controlnet'}"])
    opened(tiny_checkpoint, backend={"unet": "onnxruntime", "controlnet": "onnxruntime"})
    assert len(builder.store.entries()) == models


OPENED = """
import json, sys
from pathlib import Path
from twig import Engine
from twig.engine.backends import onnxruntime
from twig.engine.batching.scheduler import Limits
from twig.export.build import ArtifactBuilder
from twig.export.store import ArtifactStore

store, folder, absent = json.load(sys.stdin)
artifacts = ArtifactBuilder(ArtifactStore(Path(store)))
engine = Engine.from_pretrained(folder, backend="onnxruntime", limits=Limits(slots=1, rows=2), artifacts=artifacts)
engine.estimate("a red star")
print(json.dumps([engine.components.whole is not None, [name for name in absent if name in sys.modules]]))
"""


def test_a_process_of_compiled_networks_imports_nothing_that_only_builds_them(tiny_checkpoint, opened, builder):
    opened(tiny_checkpoint)
    absent = ABSENT if torch.backends.cuda.is_built() else (*ABSENT, "triton")
    given = json.dumps([builder.store.root, tiny_checkpoint, absent], default=str)
    environment = {name: value for name, value in os.environ.items() if name != "TWIG_TRITON"}
    done = subprocess.run(
        [sys.executable, "-c", OPENED], input=given, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [True, []]
