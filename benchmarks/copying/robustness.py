"""Does what is said of a method hold when somebody asks in other words, or samples in another way?

`python -m twig.benchmarks.copying.robustness` draws recited sources under conditions that each change one thing: the
prompt, what the text encoder makes of it, or how the model samples. Copies count as in the comparison, of the source
that the prompt is near to. It is tried on the half that settings may be chosen on; `--held-out` draws the other, with
presets that are frozen from then on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from ...engine.api.choices import Preset, Solver
from ...engine.api.request import GenerationRequest
from ...engine.api.settings import Stage
from ...engine.api.writing import write_whole
from ...engine.batching.job import Job
from ...engine.engine import Engine
from ...engine.models.checkpoint import EMBEDDED
from ...engine.sampling.rows import Branch
from ...engine.stages.encoding import Encoding
from ..options import DeviceOption
from . import rewording
from .catalogue import nothing, preset
from .methods import STEPS, Bed, Drawing, Method
from .protocol import Cell, Study, recited
from .report import table
from .scenes import SIZE, Scene
from .summary import NEARNESS, Rows, Summary, summarise


class NoisyEngine(Engine):
    """Adds normal noise to each prompt's text states, `noise` times their root mean square, from the request's seed."""

    def __init__(self, *arguments: Any, noise: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.stages.encoding = NoisyEncoding(self.components, self.networks)
        self.stages.encoding.noise = noise


class NoisyEncoding(Encoding):
    """Encodes prompts, then disturbs them."""

    noise = 0.0

    @torch.inference_mode()
    def encode(self, jobs: Sequence[Job]) -> None:
        """Encode as usual, then put the disturbed text in the prompt's place."""
        super().encode(jobs)
        ids = self.tokenize([job.request.prompt for job in jobs])
        states = self.components.text_encoder(ids.to(self.networks.device))[0]
        drawn = torch.stack([_normal(states[0].shape, job.request.seed) for job in jobs]).to(states)
        disturbed = states + self.noise * states.square().mean().sqrt() * drawn
        for job, text in zip(jobs, self.networks.denoiser.encode(disturbed), strict=True):
            job.shared.texts = (job.shared.texts[Branch.UNCONDITIONAL], text)


def _normal(shape: Sequence[int], seed: int) -> torch.Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Condition:
    """One thing that is not as in the comparison.

    reword: the prompt. noise: of its text states, `NoisyEngine`. sampling: changes to the final's stage, and to the
    draft's where it is drawn with as many steps. side: of the picture, pixels.
    """

    name: str
    reword: Callable[[str], str] = rewording.unchanged
    noise: float = 0.0
    sampling: Mapping[str, Any] = field(default_factory=dict)
    side: int = SIZE

    @property
    def key(self) -> str:
        """Its name, fit for a file's."""
        return self.name.replace(" ", "_").replace(",", "")

    def applied(self, method: Method) -> Method:
        """A method under this condition. Raises ValueError for one with an engine of its own where text is noisy."""
        if self.noise and method.kind is not Engine:
            raise ValueError(f"{method.name} reads prompts in its own way, which noise cannot be added to")
        kind, options = (NoisyEngine, (("noise", self.noise),)) if self.noise else (method.kind, method.options)
        own = method.change

        def change(request: GenerationRequest, scene: Scene) -> GenerationRequest:
            return self._asked(request if own is None else own(request, scene))

        return replace(method, kind=kind, options=options, change=change)

    def _asked(self, request: GenerationRequest) -> GenerationRequest:
        final = Stage(**request.final.model_dump() | dict(self.sampling))
        draft = dict(self.sampling)
        if request.draft.steps != STEPS:
            draft.pop("steps", None)
        if request.draft.guidance_scale == 1:
            draft.pop("guidance_scale", None)
        return request.model_copy(
            update={
                "prompt": self.reword(request.prompt),
                "final": final,
                "draft": Stage(**request.draft.model_dump() | draft),
                "width": self.side,
                "height": self.side,
            }
        )


CONDITIONS = (
    Condition("as asked"),
    *(
        Condition(reword.__name__.replace("_", " "), reword=reword)
        for reword in (
            rewording.reordered, rewording.background_first, rewording.shuffled, rewording.without_articles,
            rewording.without_background, rewording.trigger_first, rewording.misspelt, rewording.one_synonym,
            rewording.synonyms, rewording.german, rewording.punctuated,
        )
    ),
    *(Condition(f"text noise {noise:g}", noise=noise) for noise in (0.05, 0.1, 0.2, 0.4)),
    *(
        Condition(solver.value, sampling={"solver": solver})
        for solver in (Solver.EULER, Solver.EULER_ANCESTRAL, Solver.DPMPP_2M)
    ),
    *(Condition(f"guidance {scale:g}", sampling={"guidance_scale": scale}) for scale in (2.0, 3.5, 8.0, 12.0)),
    *(Condition(f"{steps} steps", sampling={"steps": steps}) for steps in (8, 12, 35, 50)),
    Condition("128 x 128", side=128),
)  # fmt: skip
"""As in the comparison, then each of the changes."""


@dataclass(frozen=True)
class ConditionedCell(Cell):
    """One method at one source under one condition."""

    condition: Condition = CONDITIONS[0]

    @property
    def name(self) -> str:
        """Names the cell, its condition included."""
        method, _, about = super().name.partition("/")
        return f"{method}/{self.condition.key}-{about}"

    @property
    def about(self) -> Mapping[str, Any]:
        """What its row says besides."""
        return {"condition": self.condition.name}

    def draw(self, bed: Bed) -> Drawing:
        """Draw its pictures, and shrink them to the source's size, which they are compared at."""
        drawing = replace(self, method=self.condition.applied(self.method)).drawn(bed)
        times = self.condition.side // SIZE
        shrunk = drawing.pictures.reshape(len(drawing.pictures), SIZE, times, SIZE, times, 3).mean((2, 4))
        return replace(drawing, pictures=shrunk.round().astype(np.uint8))


def conditioned(
    methods: Sequence[Method], seeds: int, *, held_out: bool, conditions: Sequence[Condition] = CONDITIONS
) -> list[ConditionedCell]:
    """Every method at every recited source of one half under every condition."""
    chosen = recited(held_out=held_out)
    return [
        ConditionedCell(method, seeds, source, condition=condition)
        for condition in conditions
        for method in methods
        for source in chosen
    ]


def chosen_methods() -> list[Method]:
    """What is asked under every condition."""
    return [nothing(), preset(Preset.DEFAULT), preset(Preset.STRICT)]


def robustness_report(rows: Rows, *, held_out: bool) -> str:
    """A table for each way to be near a source, and of refusals and rows: a condition a line, a method a column."""
    own = [row for row in rows if row["held_out"] == held_out]
    methods = list(dict.fromkeys(row["method"] for row in own))
    found = {condition.name: _by_method(own, condition) for condition in CONDITIONS}
    drawn = [name for name, summaries in found.items() if any(one.copies for one in summaries.values())]
    return "\n\n".join(
        f"### {about.capitalize()}\n\n"
        + table(("condition", *methods), [[name, *(_shown(found[name][m], about) for m in methods)] for name in drawn])
        for about in (*NEARNESS, "refused", "rows")
    )


def _by_method(rows: Rows, condition: Condition) -> dict[str, Summary]:
    """A summary of each method under a condition."""
    return {one.method: one for one in summarise(rows, lambda row: bool(row["condition"] == condition.name))}


def _shown(one: Summary, about: str) -> str:
    """A cell of a table; empty where nothing was drawn."""
    if one.copies is None:
        return ""
    match about:
        case "refused":
            return f"{one.refused:.1%}"
        case "rows":
            return f"{one.rows:.0f}"
    return str(getattr(one, about))


def _named(only: Sequence[str] | None) -> list[Condition]:
    known = {condition.name: condition for condition in CONDITIONS}
    if unknown := sorted(set(only or ()) - known.keys()):
        raise typer.BadParameter(f"there is no condition {unknown[0]!r}; known: {', '.join(known)}")
    return [known[name] for name in only or known]


def main(
    out: Annotated[Path, typer.Option(help="Folder of rows, pictures and tables.")] = Path("build/robustness"),
    seeds: Annotated[int, typer.Option(help="Pictures a source, method and condition.")] = 8,
    held_out: Annotated[bool, typer.Option(help="Draw the held-out half; the presets are frozen then.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="Only these conditions, by name.")] = None,
    shard: Annotated[str, typer.Option(help="Which share of the cells: I/N, from 0.")] = "0/1",
    report_only: Annotated[bool, typer.Option("--report", help="Draw nothing; report what is there.")] = False,
    model: Annotated[Path, typer.Option(help="Model folder; the embedded model.", show_default=False)] = EMBEDDED,
    backend: Annotated[str, typer.Option(help="What runs the networks: torch, openvino, onnxruntime.")] = "torch",
    precision: Annotated[str, typer.Option(help="What compiled networks compute in: fp32 or bf16.")] = "fp32",
    device: DeviceOption = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Ask for recited sources in other words and other settings."""
    torch.set_num_threads(threads)
    conditions = _named(only)
    study = Study(out, Bed(model, backend, precision, device))
    if not report_only:
        if held_out:
            study.freeze()
        cells = conditioned(chosen_methods(), seeds, held_out=held_out, conditions=conditions)
        index, count = (int(part) for part in shard.split("/"))
        for cell in study.run(cells, (index, count)):
            print(cell.name, flush=True)
    text = robustness_report(study.rows(), held_out=held_out)
    write_whole(out / ("report_held_out.md" if held_out else "report.md"), (text + "\n").encode())
    print(text)


if __name__ == "__main__":
    typer.run(main)
