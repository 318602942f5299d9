"""A peer in a process of its own, run as a script by the Python of its environment, which knows nothing of Twig.

    python theirs.py '{"runtime": "optimum-intel", "folder": "model", "cache": "cache"}'

It loads the folder and answers lines of JSON: a prompt, a file of latents (N, 4, h, w), steps and guidance scale give N
pictures of that prompt in a file (N, H, W, 3) uint8, what drawing took, and what the process took since it started.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Asked(NamedTuple):
    """A prompt, latents (N, 4, h, w) fp32 to begin with, the seeds that they are of, steps of DDIM, guidance scale."""

    prompt: str
    latents: np.ndarray
    seeds: list[int]
    steps: int
    guidance: float


Drawer = Callable[[Asked], np.ndarray]
"""Draws pictures (N, H, W, 3) uint8."""


def answer(make: Callable[[], Drawer]) -> None:
    """Load a contender and answer each line of stdin with one of stdout, which nothing else may write to."""
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    draw = make()
    for line in sys.stdin:
        wanted = json.loads(line)
        latents = np.load(wanted["latents"])
        asked = Asked(wanted["prompt"], latents, wanted["seeds"], wanted["steps"], wanted["guidance"])
        wall, cpu = time.perf_counter(), time.process_time()
        pictures = draw(asked)
        spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        np.save(wanted["out"], pictures)
        print(json.dumps(spent | since_start()), file=told, flush=True)


def since_start() -> dict[str, float]:
    """Processor seconds of the process and of those it started, and the most memory it held, in MiB."""
    own, started = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    total = sum(each.ru_utime + each.ru_stime for each in (own, started))
    return {"cpu_since_start": total, "peak_mib": own.ru_maxrss / 1024}


def diffusers_pipeline(folder: str, cache: str, compiled: bool = False) -> Drawer:
    """diffusers' own pipeline; compiled: its UNet and decoder by torch.compile, a program for each batch size."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(cache) / "inductor")
    import torch
    from diffusers import StableDiffusionPipeline

    torch.set_num_threads(1)
    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, **_UNCHECKED)
    if compiled:
        pipe.unet = torch.compile(pipe.unet, dynamic=False)
        pipe.vae.decode = torch.compile(pipe.vae.decode, dynamic=False)
    return _called(pipe, torch.from_numpy)


def compiled_pipeline(folder: str, cache: str) -> Drawer:
    """diffusers under torch.compile."""
    return diffusers_pipeline(folder, cache, compiled=True)


def optimum_onnx(folder: str, cache: str) -> Drawer:
    """ONNX Runtime under optimum's pipeline."""
    import torch
    from onnxruntime import SessionOptions
    from optimum.onnxruntime import ORTStableDiffusionPipeline

    torch.set_num_threads(1)
    options = SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    pipe = ORTStableDiffusionPipeline.from_pretrained(folder, session_options=options, **_UNCHECKED)
    return _called(pipe, torch.from_numpy)


def optimum_intel(folder: str, kept: str) -> Drawer:
    """OpenVINO under optimum's pipeline, reshaped to each batch size, which is faster than a dynamic one."""
    import torch
    from optimum.intel import OVStableDiffusionPipeline

    torch.set_num_threads(1)

    @cache
    def pipeline(count: int, side: int) -> Drawer:
        config = _openvino(kept)
        made = OVStableDiffusionPipeline.from_pretrained(folder, compile=False, ov_config=config, **_UNCHECKED)
        made.reshape(batch_size=1, height=side, width=side, num_images_per_prompt=count)
        made.compile()
        return _called(made, torch.from_numpy)

    return lambda asked: pipeline(len(asked.latents), _FACTOR * asked.latents.shape[-1])(asked)


def openvino_genai(folder: str, kept: str) -> Drawer:
    """OpenVINO GenAI, reshaped to each batch size. Its batch is of one prompt."""
    import openvino
    import openvino_genai

    class Given(openvino_genai.Generator):
        """Hands out latents that were made before."""

        def __init__(self, latents: np.ndarray) -> None:
            super().__init__()
            self.latents = latents

        def next(self) -> float:
            raise AssertionError("latents are asked for at once")

        def randn_tensor(self, shape: Any) -> Any:
            return openvino.Tensor(np.ascontiguousarray(self.latents.reshape(list(shape))))

        def seed(self, new_seed: int) -> None:
            raise AssertionError("latents are given")

    @cache
    def pipeline(count: int, side: int, guidance: float) -> Any:
        made = openvino_genai.Text2ImagePipeline(folder)
        made.reshape(count, side, side, guidance)
        made.compile("CPU", **_openvino(kept))
        return made

    def draw(asked: Asked) -> np.ndarray:
        count, side = len(asked.latents), _FACTOR * asked.latents.shape[-1]
        drawn = pipeline(count, side, asked.guidance).generate(
            asked.prompt, num_images_per_prompt=count, height=side, width=side, num_inference_steps=asked.steps,
            guidance_scale=asked.guidance, generator=Given(asked.latents),
        )  # fmt: skip
        return np.array(drawn.data)

    return draw


_FACTOR = 4  # pixels a side for each latent
_UNCHECKED: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def _openvino(kept: str) -> dict[str, Any]:
    return {
        "CACHE_DIR": str(Path(kept) / "openvino"), "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": "1",
        "INFERENCE_PRECISION_HINT": "f32",
    }  # fmt: skip


def _called(pipe: Any, tensor: Callable[[np.ndarray], Any]) -> Drawer:
    """A pipeline with diffusers' call."""
    pipe.set_progress_bar_config(disable=True)

    def draw(asked: Asked) -> np.ndarray:
        drawn = pipe(
            prompt=asked.prompt, num_images_per_prompt=len(asked.latents), latents=tensor(asked.latents),
            output_type="np", num_inference_steps=asked.steps, guidance_scale=asked.guidance,
            height=_FACTOR * asked.latents.shape[-2], width=_FACTOR * asked.latents.shape[-1],
        ).images  # fmt: skip
        return (np.asarray(drawn) * 255).round().astype(np.uint8)

    return draw


RUNTIMES: dict[str, Callable[[str, str], Drawer]] = {
    "diffusers": diffusers_pipeline,
    "torch.compile": compiled_pipeline,
    "optimum-onnx": optimum_onnx,
    "optimum-intel": optimum_intel,
    "openvino-genai": openvino_genai,
}


if __name__ == "__main__":
    chosen = json.loads(sys.argv[1])
    answer(lambda: RUNTIMES[chosen["runtime"]](chosen["folder"], chosen["cache"]))
