"""The engine on the device against the engine on a CPU: the embedded model, under every policy, in fp32."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from ....engine.api.choices import Preset, Warp
from ....engine.api.mechanisms import (
    Avoidance,
    DelayedGuidance,
    InitialNoise,
    MaskedAttention,
    MaskedNoise,
    MovedControl,
    Repulsion,
    RestatedPrompt,
)
from ....engine.api.presets import BUNDLES
from ....engine.api.request import GenerationRequest, SimilarityPolicy
from ....engine.api.settings import Stage
from ....engine.backends.options import TorchOptions
from ....engine.batching.scheduler import Limits
from ....engine.engine import Engine
from ....engine.judging.registry import Registry, index_works
from ....engine.models.checkpoint import Components
from ...contenders import quality
from ...printing import Row
from ..bench import Bench
from ..models import embedded

LEAST_SSIM = 0.98
"""SSIM to the CPU's picture from which on a picture counts as the same: float rounding may move a mask's edge."""

_PROMPTS = (
    "a red star and a blue house on a green field",
    "a pink heart in the night sky",
    "a green tree on white snow",
)
_OFF = Avoidance.off()


def policies() -> dict[str, dict[str, Any]]:
    """Fields of a request by the name of what they switch on."""
    accept = SimilarityPolicy(limits={}, retries=0)
    alone: Mapping[str, Mapping[str, Any]] = {
        "delayed guidance": {"delayed_guidance": DelayedGuidance()},
        "resampled noise": {"initial_noise": InitialNoise(resample=0.7, sharpness_steps=0)},
        "sharpness": {"initial_noise": InitialNoise()},
        "masked noise": {"masked_noise": MaskedNoise()},
        "masked attention": {"masked_attention": MaskedAttention()},
        "spikes": {"masked_attention": MaskedAttention(tokens="spikes")},
        "moved control": {"moved_control": MovedControl()},
        "control on both rows": {"moved_control": MovedControl(rows="both")},
        "negative control": {"moved_control": MovedControl(negative=0.5)},
        "composed map": {"moved_control": MovedControl(warp=Warp.BANK)},
        "repulsion": {"repulsion": Repulsion()},
        "restated prompt": {"restated_prompt": RestatedPrompt()},
    }
    found: dict[str, dict[str, Any]] = {
        f"preset {preset.value}": dict(BUNDLES[preset].settings) for preset in Preset if preset in BUNDLES
    }
    found |= {
        name: {"avoidance": _OFF.model_copy(update=dict(fields)), "similarity": accept}
        for name, fields in alone.items()
    }
    explained = _OFF.model_copy(update={"masked_attention": MaskedAttention()})
    found["explained"] = {"avoidance": explained, "similarity": accept, "explain": True}
    found["early verdicts"] = {"similarity": SimilarityPolicy(limits={"ssim": 0.3}, retries=1, early=(0.5,))}
    found["two images"] = {"similarity": accept, "num_images": 2}
    return found


def requests(bench: Bench, fields: dict[str, Any]) -> list[GenerationRequest]:
    """Requests under one policy that differ in prompt and seed."""
    steps = bench.pick(8, 2)
    stages = {name: Stage(steps=steps) for name in ("draft", "final") if name not in fields}
    count = bench.pick(len(_PROMPTS), 1)
    return [GenerationRequest(prompt=p, seed=i, **{**fields, **stages}) for i, p in enumerate(_PROMPTS[:count])]


def measure(bench: Bench) -> Iterator[Row]:
    """Rows of every policy, of the user's own picture and of company."""
    works = _works(embedded("cpu"))
    options: dict[str, Any] = {"limits": Limits(slots=8, rows=16), "torch_options": TorchOptions(tf32=False)}
    here = Engine(embedded(bench.device), device=bench.device, dtype=torch.float32, registry=works, **options)
    there = Engine(embedded("cpu"), device="cpu", dtype=torch.float32, registry=works, **options)
    here.warmup()
    cases = {name: requests(bench, fields) for name, fields in policies().items()}
    cases["prompts of several chunks"] = [lengthened(request) for request in cases["masked attention"]]
    first = next(iter(cases.values()))
    photo = there.generate([GenerationRequest(prompt=_PROMPTS[0], seed=9, draft=Stage(steps=4), avoidance=_OFF)])[
        0
    ].image
    cases["source"] = [first[0].model_copy(update={"source": photo})]
    for name, asked in cases.items():
        yield compared(name, here, there, asked)
    mixed = [r.model_copy(update={"seed": 100 + i}) for i, (r, *_) in enumerate(cases.values())]
    yield compared("all mixed", here, there, mixed[: bench.pick(len(mixed), 8)])
    yield company(here, mixed[: bench.pick(len(mixed), 8)])


def lengthened(request: GenerationRequest) -> GenerationRequest:
    """A request whose prompt says the same again and again, weighted once."""
    said = ", ".join([request.prompt] * 9)
    return request.model_copy(update={"prompt": f"({request.prompt}:1.2) BREAK {said}"})


def _works(components: Components) -> Registry:
    """Two works to be kept away from."""
    rng = np.random.default_rng(3)
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.png" for i in range(2)]
        for path in paths:
            Image.fromarray(rng.integers(256, size=(*components.size, 3), dtype=np.uint8)).save(path)
        return index_works(components, paths)


def compared(name: str, here: Engine, there: Engine, asked: list[GenerationRequest]) -> Row:
    """How near the device's pictures are to the CPU's, and whether they end alike."""
    row: Row = {"measure": "cuda against cpu", "policy": name, "pictures": len(asked)}
    try:
        ours, theirs = here.generate(asked), there.generate(asked)
        if failed := [result.error for result in (*ours, *theirs) if result.image is None]:
            return {**row, "ok": False, "why": str(failed[0])}
        found = quality([np.asarray(r.image) for r in ours], [np.asarray(r.image) for r in theirs])
        verdicts = [[str(result.verdict) for result in results] for results in (ours, theirs)]
    except Exception as error:
        return {**row, "ok": False, "why": f"{type(error).__name__}: {error}"}
    ok = found["ssim_lowest"] >= LEAST_SSIM and verdicts[0] == verdicts[1]
    return {**row, **found, "verdicts": verdicts[0], "ok": ok} | ({} if ok else {"why": f"the CPU's are {verdicts[1]}"})


def company(here: Engine, asked: list[GenerationRequest]) -> Row:
    """Whether each picture alone is what it is in company, within one level of 255."""
    together, alone = here.generate(asked), [here.generate([request])[0] for request in asked]
    if failed := [result.error for result in (*together, *alone) if result.image is None]:
        return {"measure": "company", "ok": False, "why": str(failed[0])}
    firsts = {result.request.seed: result for result in reversed(together)}
    pairs = [(np.asarray(firsts[one.request.seed].image), np.asarray(one.image)) for one in alone]
    found = quality([a for a, _ in pairs], [b for _, b in pairs])
    return {"measure": "company", "pictures": len(pairs), **found, "ok": found["ssim_lowest"] >= 0.999}
