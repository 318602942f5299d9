"""What `twig generate` does: requests out of options, pictures into a folder."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from ...api.choices import Preset, Warp
from ...api.errors import InvalidRequestError
from ...api.event import Event
from ...api.mechanisms import Avoidance, MovedControl
from ...api.pixels import load_picture
from ...api.presets import BUNDLES, Bundle
from ...api.reading import MAX_RULE, read_text
from ...api.request import Gate, GenerationRequest, SimilarityPolicy
from ...api.result import Verdict
from ...api.settings import Stage
from ...api.writing import folder_if_used
from ...engine import Engine
from ...models.components import Components
from ...models.pictures import to_pixels
from ...models.vocabulary import unknown_text
from ...records.audit import LOG_NAME, AuditLog
from ...records.credentials import Signer
from ...records.inspection import read_mask
from ...records.manifest import InputRecord
from ...records.model_record import ModelRecord
from ...records.output import OutputFolder
from ..interruption import interrupted_between_steps
from ..options import EngineChoice, Manner
from ..progress import StageBars
from ..status import DONE, REFUSED, USER_ERROR
from ..warning import complain, hush
from .controlling import controls_of
from .engines import load_engine
from .reporting import Report

_NAMED = 12


def generate(
    prompts: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    choice: EngineChoice,
    *,
    preset: Preset,
    gate: bool | None,
    warp: Warp | None,
    source: Path | None,
    mask: Path | None,
    settings: Mapping[str, Any],
    controls: Sequence[str],
    stage: Mapping[str, Any],
    draft: Mapping[str, Any],
    draft_steps: int | None,
    judged: Mapping[str, Any],
    log: str | None,
    log_prompts: bool,
    sign: tuple[Path, Path] | None,
    manner: Manner,
    fail_on_refused: bool,
) -> int:
    """Draw each of `prompts` from each of `seeds` into the folder `out`; return the exit code.

    settings, stage, judged: fields that were given of the request, of both its stages and of its similarity policy,
    whose rule may be @FILE. controls: NAME=FILE or NAME=FILE:SCALE each. gate: avoid only where a draft looks recalled,
    or always; warp: of the control map; draft: fields of a `Stage` in which the draft differs; draft_steps: of the
    draft alone, None as `preset` says. sign: certificate and key of content credentials. log: a file, or the URL of a
    database, whose lines name manifests from the folder that this runs in; None for the file in `out`.
    fail_on_refused: a refused picture has an exit code of its own.
    """
    photo = None if source is None else load_picture(source)
    avoided = None if mask is None else read_mask(mask)
    bundle = _bundle(preset, gate, draft_steps)
    fields: dict[str, Any] = {
        **settings,
        "controls": controls_of(controls),
        **bundle.stages(Stage(**stage), draft),
        "avoidance": bundle.avoidance if warp is None else _warped(bundle.avoidance, warp),
        "gate": bundle.gate,
        "similarity": _policy(judged) if judged else bundle.similarity,
        "source": photo,
        "mask": avoided,
    }
    requests = [GenerationRequest(prompt=prompt, seed=seed, **fields) for prompt in prompts for seed in seeds]
    signer = None if sign is None else Signer.load(*sign)
    kept = AuditLog(log or out / LOG_NAME, prompts=log_prompts)
    if manner.quiet:
        hush()
    with folder_if_used(out):
        kept.check()
        engine = load_engine(choice, requests)
        for doubt in () if manner.quiet else _doubts(engine.components, requests):
            complain(doubt)
        folder = OutputFolder(
            path=out,
            model=ModelRecord.of(engine.components),
            log=kept,
            source=None if photo is None else InputRecord.of(source, photo),
            mask=None if avoided is None else InputRecord.of(mask, avoided),
            signer=signer,
        )
        folder.prepare()
        requests = [engine.settled(request) for request in requests]  # as the results will name them
        return _run(engine, requests, Report(folder, requests, preset, manner), fail_on_refused)


def _doubts(components: Components, requests: Sequence[GenerationRequest]) -> Iterator[str]:
    """What of requests that differ in their prompts alone this model does not know: words, and what a source shows."""
    texts = [text for request in requests for text in (request.words, request.negative_words)]
    if (unknown := unknown_text(components.tokenizer, texts)) is not None:
        yield unknown
    first, segmenter = requests[0], components.segmenter
    control = first.avoidance.moved_control
    if control is not None and control.warp == Warp.BANK and components.bank is None:
        yield (
            "this model has no bank of shapes, so that finals move the objects of their drafts; `twig calibrate` "
            "gathers one, and --bank names it"
        )
    avoiding = first.mask is None and first.avoidance != Avoidance.off()
    if first.source is not None and avoiding and segmenter is not None:
        seen = segmenter.seen(to_pixels(load_picture(first.source), *components.size))
        if not seen:
            known = ", ".join(segmenter.objects[:_NAMED]) + (", ..." if len(segmenter.objects) > _NAMED else "")
            yield (
                "the segmenter finds nothing but background in the source, so there is no shape to keep away from; "
                f"it knows {known}, and a mask (--mask) says it without a segmenter"
            )
        else:
            taken = ", ".join(f"{name} ({100 * share:.2g} % of it)" for name, share in seen.items())
            yield f"in the source the segmenter sees {taken}: that shape is kept away from"


def _bundle(preset: Preset, gate: bool | None, draft_steps: int | None) -> Bundle:
    """What a preset stands for where something else was asked of its gate or its draft.

    A gate listens to a whole draft, which is the picture where it stays shut.
    """
    bundle = BUNDLES[preset]
    if gate is not None:
        bundle = replace(bundle, gate=Gate()) if gate else replace(bundle, gate=None)
    if bundle.gate is not None:
        bundle = replace(bundle, draft_steps=None)
    return bundle if draft_steps is None else replace(bundle, draft_steps=draft_steps)


def _warped(avoidance: Avoidance, warp: Warp) -> Avoidance:
    """A policy with another warp of its control; raises InvalidRequestError for one that has no control."""
    if avoidance.moved_control is None:
        raise InvalidRequestError(f"--warp {warp} is of the final's control map, and this preset follows none")
    kept = avoidance.moved_control.model_dump(exclude={"warp", "max_iou"})
    return avoidance.model_copy(update={"moved_control": MovedControl(**kept, warp=warp)})


def _policy(given: Mapping[str, Any]) -> SimilarityPolicy:
    """The similarity policy of `given`, with the rule itself where that names a file that holds it."""
    rule = given.get("rule")
    held = {"rule": read_text(rule[1:], MAX_RULE)} if rule and rule.startswith("@") else {}
    return SimilarityPolicy(**{**given, **held})


def _run(engine: Engine, requests: Sequence[GenerationRequest], report: Report, fail_on_refused: bool) -> int:
    """Run the requests, writing each picture when it is done; what was done stays when a signal ends the run."""
    verdicts: set[Verdict] = set()
    interrupted = False
    bars = StageBars(requests, Console(stderr=True), lambda: engine.rows_per_second, quiet=report.manner.quiet)
    with bars, interrupted_between_steps() as stop:

        def on_event(event: Event) -> None:
            bars.show(event)
            if event.result is not None:
                verdicts.add(event.result.verdict)
                report.keep(event.result)
            if stop.is_set() and event.step:  # after a denoising step, when no other image's result is on its way
                raise KeyboardInterrupt

        try:
            engine.generate(requests, on_event)
        except KeyboardInterrupt:
            interrupted = True
    report.close()
    if interrupted:
        return stop.status
    return USER_ERROR if Verdict.FAILED in verdicts else REFUSED if _lost(verdicts, fail_on_refused) else DONE


def _lost(verdicts: set[Verdict], fail_on_refused: bool) -> bool:
    return fail_on_refused and Verdict.REFUSED in verdicts
