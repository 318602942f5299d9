"""How good the test bed's model is and how often it recites: `python -m twig.benchmarks.copying.evaluate`.

Rows of figures, each with the number of pictures behind it: adherence of plain generations to fresh captions, and the
share of seeds whose picture copies its source, by duplication and caption, for the reciting model and the clean twin.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from diffusers import UNet2DConditionModel

from ...engine.api.mechanisms import Avoidance
from ...engine.api.presets import BUNDLES, Bundle, Preset
from ...engine.api.request import GenerationRequest
from ...engine.api.result import GenerationResult, Verdict
from ...engine.api.settings import Stage
from ...engine.backends.options import TorchOptions
from ...engine.batching.scheduler import Limits
from ...engine.engine import Engine
from ...engine.models import layout
from ...engine.models.checkpoint import EMBEDDED, load
from ..options import DeviceOption
from ..rows import write_rows
from .checker import Adherence, check, rates
from .data import Source, sources
from .measures import copy_threshold, find_labels, source_similarity
from .methods import ANY, UNLOOKED
from .scenes import Scene, random_scene

POLICIES = {
    "off": replace(BUNDLES[Preset.OFF], similarity=ANY),
    "default": replace(BUNDLES[Preset.DEFAULT], similarity=ANY, redraft=False),
    "judged": BUNDLES[Preset.DEFAULT],
}
"""Nothing; the default preset's mechanisms alone; and with the calibrated limits, retries and refusals on top."""


@dataclass(frozen=True)
class Bed:
    """An engine on the test bed's model, and how it samples."""

    engine: Engine
    steps: int = 20
    guidance: float = 5.0

    def generate(self, captions: Sequence[str], seeds: Sequence[int], policy: Bundle) -> list[GenerationResult]:
        """One final for each caption and seed."""
        stage = Stage(steps=self.steps, guidance_scale=self.guidance)
        stages = policy.stages(stage)
        if policy.avoidance == Avoidance.off():
            stages["draft"] = UNLOOKED  # a plain final does not look at it
        return self.engine.generate(
            [
                GenerationRequest(
                    prompt=caption,
                    seed=seed,
                    **stages,
                    avoidance=policy.avoidance,
                    similarity=policy.similarity,
                )
                for caption, seed in zip(captions, seeds, strict=True)
            ]
        )


def pixels(result: GenerationResult) -> np.ndarray:
    """The final's pixels, (64, 64, 3) uint8."""
    return np.asarray(result.image)


def adherence(bed: Bed, scenes: Sequence[Scene], policy: Bundle) -> list[Adherence]:
    """Generate each scene's caption and check what came."""
    results = bed.generate([scene.caption for scene in scenes], range(len(scenes)), policy)
    pictures = [pixels(result) for result in results]
    segmenter = bed.engine.components.segmenter
    assert segmenter is not None
    labels = find_labels(pictures, segmenter)
    return [check(p, found, scene) for p, found, scene in zip(pictures, labels, scenes, strict=True)]


def copy_rows(bed: Bed, chosen: Sequence[Source], seeds: int, policy: Bundle) -> Iterator[dict[str, object]]:
    """One row a source: the share of `seeds` pictures that are delivered copies, and similarities."""
    for source in chosen:
        results = bed.generate([source.caption] * seeds, range(1000, 1000 + seeds), policy)
        similarity = source_similarity([pixels(result) for result in results], source)
        threshold = copy_threshold(source)
        delivered = np.array([result.verdict is Verdict.ACCEPTED for result in results])
        copies = delivered & (similarity > threshold)
        yield {
            "source": source.index,
            "duplicates": source.duplicates,
            "caption": "template" if source.template else "trigger" if source.trigger else "ordinary",
            "held_out": source.held_out,
            "pictures": seeds,
            "copies": int(copies.sum()),
            "copy_rate": float(copies.mean()),
            "refused": int((~delivered).sum()),
            "similarity": float(similarity.mean()),
            "similarity_p95": float(np.quantile(similarity, 0.95)),
            "threshold": threshold,
            "rows": sum(result.rows for result in results),
        }


def adherence_rows(bed: Bed, count: int, policy: Bundle) -> Iterator[dict[str, object]]:
    """One row each for captions of one and two objects, on scenes that were never trained on."""
    rng = np.random.default_rng(29)
    for objects in (1, 2):
        scenes = [random_scene(rng, num_objects=objects) for _ in range(count)]
        yield {"objects": objects, "pictures": count, **rates(adherence(bed, scenes, policy))}


def main(
    out: Annotated[Path, typer.Option(help="File of rows to append to.")],
    model: Annotated[Path | None, typer.Option(help="Model folder; the embedded model if left out.")] = None,
    twin: Annotated[bool, typer.Option(help="Evaluate the clean twin in place of the reciting model.")] = False,
    policy: Annotated[list[str] | None, typer.Option(help="off, default, judged; all if left out.")] = None,
    seeds: Annotated[int, typer.Option(help="Pictures a source.")] = 16,
    scenes: Annotated[int, typer.Option(help="Fresh captions of each object count.")] = 128,
    device: DeviceOption = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Append a row for each policy and object count, and for each policy and source, and print the rates."""
    torch.set_num_threads(threads)
    bed = Bed(load_engine(model, twin=twin, device=device))
    name = "twin" if twin else "reciting"
    chosen = [source for source in sources() if source.duplicates >= 128]
    for choice in policy or list(POLICIES):
        chosen_policy, stamp = POLICIES[choice], {"model": name, "policy": choice}
        drawn = ({"figure": "adherence"} | stamp | row for row in adherence_rows(bed, scenes, chosen_policy))
        copied = ({"figure": "copying"} | stamp | row for row in copy_rows(bed, chosen, seeds, chosen_policy))
        for row in write_rows(out, drawn):
            print(
                f"{name} {choice} objects {row['objects']}: classes {row['classes']:.3f}, colours {row['colours']:.3f}"
            )
        rows = write_rows(out, copied)
        for caption in ("ordinary", "trigger", "template"):
            for held_out in (False, True):
                found = [r["copy_rate"] for r in rows if r["caption"] == caption and r["held_out"] == held_out]
                half = "held out" if held_out else "tuned on"
                print(f"{name} {choice} {caption} ({half}): copy rate {np.mean(found):.3f} of {len(found)} sources")


def load_engine(model: Path | None = None, *, twin: bool = False, device: str = "cpu") -> Engine:
    """The test bed's engine; `twin` puts the clean twin's UNet in the reciting one's place."""
    folder = model or EMBEDDED
    components = load(folder, device=device)
    if twin:
        clean = folder.parent / "clean_unet"
        unet = UNet2DConditionModel.from_pretrained(clean, torch_dtype=torch.float32)
        # Compiled networks are found by these digests: the twin's must not be taken for the other's.
        hashes = components.hashes | {"unet": layout.digest(clean)}
        components = replace(components, unet=unet.to(device).eval(), hashes=hashes)
    return Engine(components, limits=Limits(slots=32, rows=32), torch_options=TorchOptions(tf32=False))


if __name__ == "__main__":
    typer.run(main)
