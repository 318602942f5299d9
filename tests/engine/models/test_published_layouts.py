"""Folders as they are published, in every way that their files and configurations are written, drawn as diffusers does.

Narrow models of the real architectures: file names, names of tensors and configurations are those of the hub's folders.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from small_requests import request

from model_folders import edit
from twig.engine.api.mechanisms import Avoidance
from twig.engine.api.settings import Stage
from twig.engine.engine import Engine
from twig.engine.models.checkpoint import load

_OLD_TEXT = {
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "torch_dtype": "float32",
    "initializer_factor": 1.0,
}
_OLD_ATTENTION = (("to_q.", "query."), ("to_k.", "key."), ("to_v.", "value."), ("to_out.0.", "proj_attn."))


def rewritten(file, change):
    tensors = load_file(file)
    save_file({change(name): tensor for name, tensor in tensors.items()}, file, metadata={"format": "pt"})


def as_published(folder):
    """Old configurations and names of tensors, a slow tokenizer, and what lies in such folders without being read."""
    for part in folder.glob("text_encoder*"):
        file = next(part.glob("*.safetensors"))
        rewritten(file, lambda n: n if n.startswith(("text_model.", "text_projection.")) else f"text_model.{n}")
        counted = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
        save_file(load_file(file) | counted, file, metadata={"format": "pt"})
        edit(part / "config.json", **_OLD_TEXT, transformers_version="4.22.0.dev0")
    for part in folder.glob("tokenizer*"):
        whole = json.loads((part / "tokenizer.json").read_text())["model"]
        (part / "tokenizer.json").unlink()
        (part / "vocab.json").write_text(json.dumps(whole["vocab"]))
        merges = (pair if isinstance(pair, str) else " ".join(pair) for pair in whole["merges"])
        (part / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"never read")
    (folder / "vae_1_0").mkdir()


def with_old_vae(folder):
    def old(name):
        for new, former in _OLD_ATTENTION if ".attentions." in name else ():
            name = name.replace(new, former)
        return name

    rewritten(next((folder / "vae").glob("*.safetensors")), old)
    edit(folder / "vae/config.json", _diffusers_version="0.6.0")


def in_shards(folder):
    """The UNet in shards of a variant, their names in the order that diffusers once wrote."""
    part = folder / "unet"
    network = UNet2DConditionModel.from_pretrained(part)
    shutil.rmtree(part)
    network.half().save_pretrained(part, variant="fp16", max_shard_size="3MB")
    index = next(part.glob("*.index*"))
    index.write_text(index.read_text().replace(".fp16-", "-").replace('.safetensors"', '.fp16.safetensors"'))
    for file in part.glob("*.safetensors"):
        file.rename(part / file.name.replace(".fp16-", "-").replace(".safetensors", ".fp16.safetensors"))
    assert len(list(part.glob("*.safetensors"))) > 1


LAYOUTS = {
    "sd15 in shards of a variant": ("sd15", in_shards, as_published, with_old_vae),
    "sd21": ("sd21", as_published),
    "sdxl": ("sdxl", as_published),
}


@pytest.mark.parametrize(
    "layout", [pytest.param(each, marks=[pytest.mark.slow] * (each == "sd21")) for each in LAYOUTS]
)
def test_a_folder_draws_what_diffusers_draws_of_it(narrow, tmp_path, layout, capfd):
    family, *changes = LAYOUTS[layout]
    folder = shutil.copytree(narrow(family)[1], tmp_path / "model")
    for change in changes:
        change(folder)
    variant = "fp16" if "shards" in layout else None
    asked = request(
        "a lighthouse in a storm", width=64, height=64, avoidance=Avoidance.off(), similarity={"rule": None},
        draft=Stage(steps=1, solver="ddim"), final=Stage(steps=1, solver="ddim"),
    )  # fmt: skip
    capfd.readouterr()
    components = load(folder, variant=variant)
    assert capfd.readouterr().err == "", "no library's bars"
    (result,) = Engine(components).generate(asked)
    kind = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    pipe = kind.from_pretrained(folder, variant=variant, local_files_only=True, torch_dtype=torch.float32)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False, steps_offset=1)
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 1, "guidance_scale": asked.final.guidance_scale, "width": 64, "height": 64}
    generator = torch.Generator().manual_seed(result.attempts[-1].seed)
    expected = np.asarray(pipe(asked.prompt, generator=generator, **options).images[0]).astype(int)
    assert expected.std() > 1
    assert np.abs(np.asarray(result.image).astype(int) - expected).max() <= 2
