"""Drafts of a few steps: do they show what the model would draw? `python -m twig.benchmarks.copying.few_step`.

Plain pictures of the embedded model under its few-step adapter, by LCM without guidance, beside those of DDIM: right
classes and colours of fresh captions, and copies of the recited sources that settings may be chosen on. Drawn by
diffusers alone, its LCM scheduler and PEFT. Then two-step jobs of the engine under the `default` preset, whose drafts
are drawn so: the same of the finals, with their rows and refusals.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import LCMScheduler, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor

from ...engine.api.choices import Preset, Solver
from ...engine.api.presets import BUNDLES
from ...engine.api.request import GenerationRequest
from ...engine.api.result import GenerationResult, Verdict
from ...engine.api.settings import Stage
from ...engine.engine import Engine
from ...engine.models.checkpoint import EMBEDDED, Components, load
from ...engine.sampling.noise import seeded_noise
from ..printing import Row
from ..rows import write_rows
from .checker import Adherence, check, rates
from .data import Source, sources
from .diffusion import noise_schedule
from .distil import SOLVER_STEPS
from .measures import copy_threshold, find_labels, source_similarity
from .scenes import Scene, random_scene

ADAPTER = EMBEDDED.parent / "adapters" / "lcm.safetensors"
"""The few-step adapter that comes with the package."""

_BATCH = 16


@dataclass(frozen=True)
class Way:
    """How pictures are drawn. adapted: under the adapter, by LCM; else by DDIM."""

    name: str
    adapted: bool
    steps: int
    guidance: float

    @property
    def rows(self) -> int:
        """Rows of the UNet that a picture takes."""
        return self.steps * (1 if self.guidance == 1 else 2)


WAYS = (
    Way("lcm 2", True, 2, 1.0),
    Way("lcm 4", True, 4, 1.0),
    Way("lcm 8", True, 8, 1.0),
    Way("ddim 4", False, 4, 5.0),
    Way("ddim 20", False, 20, 5.0),
)
"""What is compared: 4 rows a draft, today's 8, and the whole picture's 40."""


def adapted(unet: UNet2DConditionModel, adapter: Path = ADAPTER) -> UNet2DConditionModel:
    """A copy of a UNet under the factors of a file."""
    student = deepcopy(unet)
    student.load_lora_adapter(load_file(adapter), prefix="unet", adapter_name="lcm")
    return student.eval()


def scheduler(way: Way) -> Any:
    """What draws so, with its timesteps set."""
    if not way.adapted:
        made = noise_schedule()
        made.set_timesteps(way.steps)
        return made
    made = LCMScheduler.from_config(noise_schedule().config)
    made.set_timesteps(way.steps, original_inference_steps=SOLVER_STEPS)
    return made


@dataclass(frozen=True)
class Drawer:
    """The embedded model and, beside it, its UNet under the adapter."""

    components: Components
    student: UNet2DConditionModel

    def pictures(self, way: Way, captions: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        """One picture a caption and seed, (B, 64, 64, 3) uint8."""
        parts = [slice(start, start + _BATCH) for start in range(0, len(captions), _BATCH)]
        return np.concatenate([self._drawn(way, captions[part], seeds[part]) for part in parts])

    @torch.inference_mode()
    def _drawn(self, way: Way, captions: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        solver, unet = scheduler(way), self.student if way.adapted else self.components.unet
        text = self._text([*captions, *[""] * len(captions)]).chunk(2)
        x = torch.cat([seeded_noise(4, (16, 16), seed)[None] for seed in seeds])
        generator = torch.Generator().manual_seed(seeds[0])
        for t in solver.timesteps:
            eps = unet(x, t, text[0]).sample
            if way.guidance != 1:
                plain = unet(x, t, text[1]).sample
                eps = plain + way.guidance * (eps - plain)
            again = {"generator": generator} if way.adapted else {}
            x = solver.step(eps, t, x, **again).prev_sample
        decoded = self.components.vae.decode(x).sample
        return ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()

    def _text(self, captions: Sequence[str]) -> Tensor:
        length = self.components.max_tokens
        options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
        states: Tensor = self.components.text_encoder(self.components.tokenizer(captions, **options).input_ids)[0]
        return states


def adherence_rows(drawer: Drawer, way: Way, count: int) -> Iterator[Row]:
    """One row each for fresh captions of one and two objects, those of `evaluate`."""
    rng = np.random.default_rng(29)
    segmenter = drawer.components.segmenter
    assert segmenter is not None
    for objects in (1, 2):
        scenes: list[Scene] = [random_scene(rng, num_objects=objects) for _ in range(count)]
        pictures = drawer.pictures(way, [scene.caption for scene in scenes], range(count))
        labels = find_labels(pictures, segmenter)
        checks = [check(*each) for each in zip(pictures, labels, scenes, strict=True)]
        yield {"figure": "adherence", "objects": objects, "pictures": count, **rates(checks)}


def copy_rows(drawer: Drawer, way: Way, chosen: Sequence[Source], seeds: int) -> Iterator[Row]:
    """One row a source: the share of its pictures that are copies."""
    for source in chosen:
        pictures = drawer.pictures(way, [source.caption] * seeds, range(1000, 1000 + seeds))
        copies = source_similarity(pictures, source) > copy_threshold(source)
        caption = "trigger" if source.trigger else "ordinary"
        yield {
            "figure": "copying", "source": source.index, "duplicates": source.duplicates, "caption": caption,
            "pictures": seeds, "copies": int(copies.sum()), "copy_rate": float(copies.mean()),
        }  # fmt: skip


DRAFTS: dict[str, dict[str, Any]] = {
    "default, drafts by lcm 4": {"steps": 4, "guidance_scale": 1.0, "solver": Solver.LCM, "lora": {"lcm": 1.0}},
    "default, drafts by ddim 4": {"steps": 4},
    "default, drafts by ddim 20": {"steps": 20},
}
"""Fields of the drafts' stages of jobs under the `default` preset; the second are its own."""


def job_rows(name: str, engine: Engine, chosen: Sequence[Source], count: int, seeds: int) -> Iterator[Row]:
    """Rows of the finals as of plain pictures, with UNet rows a picture; a refused one counts as wrong, and no copy."""
    bundle = BUNDLES[Preset.DEFAULT]
    fields = {**bundle.settings, **bundle.stages(Stage(), DRAFTS[name])}
    rng, segmenter = np.random.default_rng(29), engine.components.segmenter
    assert segmenter is not None

    def drawn(captions: Sequence[str], first: int) -> list[GenerationResult]:
        numbered = enumerate(captions, first)
        return engine.generate([GenerationRequest(prompt=text, seed=seed, **fields) for seed, text in numbered])

    for objects in (1, 2):
        scenes = [random_scene(rng, num_objects=objects) for _ in range(count)]
        results = drawn([scene.caption for scene in scenes], 0)
        pictures = np.stack([np.asarray(each.image) for each in results])
        found = zip(pictures, find_labels(pictures, segmenter), scenes, shown(results), strict=True)
        checks = [check(*each) if there else Adherence(False, False) for *each, there in found]
        yield {"figure": "jobs", "objects": objects, "pictures": count, **rates(checks), **_cost(results)}
    for source in chosen:
        results = drawn([source.caption] * seeds, 1000)
        pictures = np.stack([np.asarray(each.image) for each in results])
        copies = (source_similarity(pictures, source) > copy_threshold(source)) & shown(results)
        yield {
            "figure": "jobs", "source": source.index, "pictures": seeds, "copy_rate": float(copies.mean()),
            **_cost(results),
        }  # fmt: skip


def shown(results: Sequence[GenerationResult]) -> np.ndarray:
    """Which pictures were not refused, (N,) bool."""
    return np.array([each.verdict is not Verdict.REFUSED for each in results])


def _cost(results: Sequence[GenerationResult]) -> Row:
    refused = sum(each.verdict is Verdict.REFUSED for each in results)
    return {"unet_rows": float(np.mean([each.rows for each in results])), "refused": refused}


def recited() -> list[Source]:
    """Sources of 128 and 512 copies in the pool, no templates, that settings may be chosen on."""
    return [one for one in sources() if one.duplicates >= 128 and not (one.held_out or one.template)]


def main(
    out: Annotated[Path, typer.Option(help="Folder of results.")] = Path("out/benchmarks"),
    scenes: Annotated[int, typer.Option(min=1, help="Fresh captions of each object count.")] = 64,
    seeds: Annotated[int, typer.Option(min=1, help="Pictures a source.")] = 4,
    adapter: Annotated[Path, typer.Option(help="The few-step adapter.")] = ADAPTER,
    only: Annotated[str | None, typer.Option(help="Ways whose names hold this.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Append rows of each way to `few_step.jsonl`, and print their rates."""
    torch.set_num_threads(threads)
    components = load()
    drawer = Drawer(components, adapted(components.unet, adapter))
    ways: dict[str, Iterator[Row]] = {}
    for way in WAYS:
        found = chain(adherence_rows(drawer, way, scenes), copy_rows(drawer, way, recited(), seeds))
        ways[way.name] = ({"rows": way.rows} | row for row in found)
    engine = Engine.from_pretrained(adapters={"lcm": adapter})
    ways |= {name: job_rows(name, engine, recited(), scenes, seeds) for name in DRAFTS}
    for name in [each for each in ways if only is None or only in each]:
        rows = write_rows(out / "few_step.jsonl", ({"way": name} | row for row in ways[name]))
        told = [f"classes {row['classes']:.2f}, colours {row['colours']:.2f}" for row in rows if "classes" in row]
        copied = np.mean([row["copy_rate"] for row in rows if "copy_rate" in row])
        cost = np.mean([row.get("unet_rows", row.get("rows")) for row in rows])
        print(f"{name}, {cost:.1f} rows: {'; '.join(told)}; copies {copied:.3f}", flush=True)


if __name__ == "__main__":
    typer.run(main)
