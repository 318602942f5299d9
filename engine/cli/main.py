"""The command `twig`. Other parts of the package add commands through the entry point group `twig.commands`."""

import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from ..._version import __version__
from ..api.errors import InvalidRequestError, TwigError
from ..api.event import Event
from ..api.presets import BUNDLES, Preset
from ..api.reading import MAX_RULE, read_text
from ..api.request import Gate, GenerationRequest, SimilarityPolicy
from ..api.result import GenerationResult, Verdict
from ..api.settings import Solver, Stage
from ..engine import Engine
from ..models.pictures import load_picture
from ..records.audit import AuditLog
from ..records.inspection import lines, read_mask, saved_picture
from ..records.manifest import InputRecord, Manifest, ModelRecord
from ..records.output import OutputFolder
from ..records.pictures import gate_text, score_text, verdict_text
from ..replay import replay
from .commands import calibrate, registry_app
from .interruption import interrupted_between_steps
from .options import (
    CalibrationOption,
    ControlNetOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    RegistryOption,
    RuleOption,
    SegmenterOption,
    given,
    load_engine,
    parts_named,
)
from .progress import StageBars

DONE, DIFFERS, USER_ERROR, INTERRUPTED = 0, 1, 2, 130
"""Exit codes: all was judged; a replay is not identical; the request cannot be served or failed; Ctrl-C."""

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


SourceOption = Annotated[Path | None, typer.Option(help="Picture that takes the draft's place; only its mask goes on.")]
_PRESETS = "; ".join(f"{preset}: {bundle.purpose}" for preset, bundle in BUNDLES.items()) + "."
MaskOption = Annotated[Path | None, typer.Option(help="Picture of the final's size, white where its shape is avoided.")]


def _print_version(asked: bool) -> None:
    if asked:
        print(f"twig {__version__}")
        raise typer.Exit


@app.callback()
def twig(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Say which.")
    ] = False,
) -> None:
    """Two-step image generation that keeps a picture's meaning and leaves its source's shape."""


@app.command()
def generate(
    prompts: Annotated[list[str], typer.Argument(help="What to draw; several prompts share the engine's batches.")],
    num_images: Annotated[int, typer.Option("--num-images", "-n", help="Pictures for each prompt.")] = 1,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")] = Path("out"),
    seed: Annotated[int, typer.Option(help="Everything random derives from it.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Steps of the draft and of the final.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale of both.")] = None,
    solver: Annotated[Solver | None, typer.Option(help="Solver of both.")] = None,
    negative: Annotated[str, typer.Option(help="What not to draw.")] = "",
    width: Annotated[int | None, typer.Option(help="Pixels; else the model's own size.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels; else the model's own size.")] = None,
    source: SourceOption = None,
    mask: MaskOption = None,
    preset: Annotated[Preset, typer.Option(help=_PRESETS)] = Preset.DEFAULT,
    gate: Annotated[
        bool | None,
        typer.Option("--gate/--always", help="Avoid only where a draft looks recalled, or always; else as preset."),
    ] = None,
    retries: Annotated[int | None, typer.Option(help="Stronger attempts after a picture that is too similar.")] = None,
    rule: RuleOption = None,
    calibration: CalibrationOption = None,
    registry: RegistryOption = None,
    model: ModelOption = None,
    controlnet: ControlNetOption = None,
    segmenter: SegmenterOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    explain: Annotated[bool, typer.Option("--explain", help="Also draw what each mechanism did.")] = False,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write prompts into the audit log too.")] = False,
) -> int:
    """Draw pictures, each with a draft, the mask of its shape, a final that avoids it, and a verdict."""
    photo = None if source is None else load_picture(source)
    avoided = None if mask is None else read_mask(mask)
    stage = Stage(**given(steps=steps, guidance_scale=guidance, solver=solver))
    chosen, judged = BUNDLES[preset], given(retries=retries, rule=_rule(rule))
    settings = given(
        negative_prompt=negative, seed=seed, width=width, height=height, draft=stage, final=stage,
        num_images=num_images, source=photo, mask=avoided, explain=explain,
        avoidance=chosen.avoidance, gate=chosen.gate if gate is None else Gate() if gate else None,
        similarity=SimilarityPolicy(**judged) if judged else chosen.similarity,
    )  # fmt: skip
    requests = [GenerationRequest(prompt=prompt, **settings) for prompt in prompts]
    parts = parts_named(source=model, controlnet=controlnet, segmenter=segmenter)
    engine = load_engine(parts, device, dtype, calibration, registry)
    out.mkdir(parents=True, exist_ok=True)
    folder = OutputFolder(
        path=out,
        model=ModelRecord.of(engine.components, **parts),
        log=AuditLog(out / "audit.jsonl", prompts=log_prompts),
        source=None if photo is None else InputRecord.of(source, photo),
        mask=None if avoided is None else InputRecord.of(mask, avoided),
    )
    return _generate(engine, requests, folder)


@app.command()
def inspect(
    manifest: Annotated[Path, typer.Argument(help="JSON file beside a picture.")],
    again: Annotated[bool, typer.Option("--replay", help="Generate the picture again and compare.")] = False,
    source: SourceOption = None,
    mask: MaskOption = None,
    registry: RegistryOption = None,
    model: ModelOption = None,
    controlnet: ControlNetOption = None,
    segmenter: SegmenterOption = None,
    device: DeviceOption = None,
) -> int:
    """Print a picture's manifest and check the picture beside it; with --replay make it again and compare.

    A replay takes model, source and mask from where the manifest says, unless you name them here; a registry you name.
    """
    record = Manifest.load(manifest)
    saved = saved_picture(record, manifest.parent)
    for label, text in lines(record, saved):
        print(f"{label:14}{text}")
    if not again:
        return DONE
    named = parts_named(source=model, controlnet=controlnet, segmenter=segmenter)
    recorded = given(**record.model.model_dump(include={"source", "controlnet", "segmenter"}))
    for part in recorded.keys() - named.keys():
        _check_on_disk(part, recorded[part])
    engine = load_engine(recorded | named, device or record.model.device, record.model.dtype, registry=registry)
    photo, avoided = source or _path(record.source), mask or _path(record.mask)
    outcome = replay(
        record,
        engine,
        saved,
        source=None if photo is None else load_picture(photo),
        mask=None if avoided is None else read_mask(avoided),
    )
    print(f"{'replay':14}{outcome}")
    return DONE if outcome.identical else DIFFERS


app.command()(calibrate)
app.add_typer(registry_app, name="registry")
for _command in entry_points(group="twig.commands"):
    app.add_typer(_command.load(), name=_command.name)


def main() -> None:
    """Run the command line; the console script's entry."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the command line with `arguments`; return its exit code. What a user got wrong is one line on stderr."""
    try:
        return app(list(arguments) or ["--help"], prog_name="twig", standalone_mode=False) or DONE
    except ValidationError as error:
        message = "; ".join(_problem(problem) for problem in error.errors())
    except typer.TyperException as error:
        message = error.format_message()
    except TwigError as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    if message:  # a command that was shown its help has no more to say
        print(f"twig: {' '.join(message.split())}", file=sys.stderr)
    return USER_ERROR


def _generate(engine: Engine, requests: Sequence[GenerationRequest], folder: OutputFolder) -> int:
    """Run the requests, writing each picture when it is done; what was done stays when Ctrl-C ends the run."""
    saved: list[tuple[GenerationResult, Path]] = []
    interrupted = False
    with StageBars(requests, Console(stderr=True)) as bars, interrupted_between_steps() as stop:

        def on_event(event: Event) -> None:
            bars.show(event)
            if event.result is not None:
                saved.append((event.result, folder.save(event.result)))
            if stop.is_set() and event.step:  # after a denoising step, when no other image's result is on its way
                raise KeyboardInterrupt

        try:
            engine.generate(requests, on_event)
        except KeyboardInterrupt:
            interrupted = True
    for request in requests:
        _report([pair for pair in saved if pair[0].request is request], folder)
    if saved:
        print(f"{'audit log':14}{folder.log.path}")
    failed = any(result.verdict is Verdict.FAILED for result, _ in saved)
    return INTERRUPTED if interrupted else USER_ERROR if failed else DONE


def _report(saved: list[tuple[GenerationResult, Path]], folder: OutputFolder) -> None:
    """Say how each image of one request ended and where it is, and write their contact sheet."""
    saved.sort(key=lambda pair: pair[0].index)
    if saved and saved[0][0].request.gate is not None and saved[0][0].gate is not None:
        print(f"{'gate':14}{gate_text(saved[0][0].gate)}")
    for result, path in saved:
        if result.error is not None:
            print(f"twig: {path}: {result.error}", file=sys.stderr)
        judged = ", ".join(score_text(name, score) for name, score in result.scores.items() if score.limit is not None)
        file = "manifest" if result.image is None else "picture"
        print(f"{file:14}{path}  {verdict_text(result)}{': ' if judged else ''}{judged}")
    if saved:
        print(f"{'contact sheet':14}{folder.save_sheet([result for result, _ in saved])}")


def _rule(given: str | None) -> str | None:
    """The rule itself, or what the file holds that it names."""
    return read_text(given[1:], MAX_RULE) if given and given.startswith("@") else given


def _path(record: InputRecord | None) -> Path | None:
    return None if record is None else record.path


def _problem(problem: Any) -> str:
    """One of pydantic's findings: where, what, and the value."""
    place = ".".join(map(str, problem["loc"]))
    return f"{place}: {problem['msg']}, got {problem['input']!r}"


def _check_on_disk(part: str, source: str | None) -> None:
    """A replay must not fetch what a manifest, which may come from anyone, names."""
    if source is not None and not Path(source).exists():
        option = "--model" if part == "source" else f"--{part}"
        raise InvalidRequestError(f"the manifest names {source!r}, which is not on this disk; name it with {option}")
