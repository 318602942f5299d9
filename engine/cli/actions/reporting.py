"""What `twig generate` says of its pictures: lines for people, an object each for programs."""

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ...api.choices import Preset
from ...api.request import GenerationRequest
from ...api.result import GateDecision, GenerationResult, Score
from ...records.output import OutputFolder, explanation_beside, manifest_beside
from ...records.wording import ending_text, gate_text, held_measures, why_text
from ..options import Manner
from ..warning import complain
from .speaking import write_json


@dataclass
class Page:
    """Requests whose pictures share a contact sheet, and where that lies, once one of them is known."""

    requests: Sequence[GenerationRequest]
    sheet: Path | None = None


_PAGE = 240
"""Pictures on a contact sheet; a call of more has several."""


class Report:
    """Writes results into `folder` and says so: of programs each as it comes, of people request by request.

    requests: those of the call, whose pictures share a contact sheet.
    """

    def __init__(
        self, folder: OutputFolder, requests: Sequence[GenerationRequest], preset: Preset, manner: Manner
    ) -> None:
        self.manner = manner
        self._folder, self._preset = folder, preset
        self._pages = [Page(page) for page in _paged(requests)]
        self._page_of = {id(request): page for page in self._pages for request in page.requests}
        self._saved: defaultdict[int, list[tuple[GenerationResult, Path]]] = defaultdict(list)

    def keep(self, result: GenerationResult) -> None:
        """Write `result`, and say so to a program that listens."""
        path = self._folder.save(result)
        self._saved[id(result.request)].append((result, path))
        page = self._page_of[id(result.request)]
        if page.sheet is None:
            page.sheet = self._folder.sheet_path(page.requests, result)
        if self.manner.json:
            write_json(self._values(result, path))

    def close(self) -> None:
        """Write the call's contact sheet, of those pictures that there are, and say how each of them ended."""
        for page in self._pages:
            results: list[GenerationResult] = []
            for request in page.requests:
                saved = sorted(self._saved[id(request)], key=lambda pair: pair[0].index)
                results += [result for result, _ in saved]
                if saved:
                    self._tell(saved)
            if results:
                self._say("contact sheet", str(self._folder.save_sheet(results, page.requests)))
        if any(self._saved.values()):
            self._say("audit log", str(self._folder.log))

    def _tell(self, saved: Sequence[tuple[GenerationResult, Path]]) -> None:
        first = saved[0][0]
        if first.request.gate is not None and first.gate is not None:
            self._say("gate", gate_text(first.gate))
        for result, path in saved:
            if result.error is not None:
                complain(f"{path}: {result.error}")
            self._say("manifest" if result.image is None else "picture", f"{path}  {self._ending(result, path)}")
            if result.explanation is not None:
                self._say("explanation", str(explanation_beside(path)))

    def _ending(self, result: GenerationResult, path: Path) -> str:
        """How a result ended: what it crossed, then the limits that it kept."""
        kept = [str(held) for held in held_measures(result.scores, result.rule) if not held.crossed]
        known = ", recorded already" if path in self._folder.repeats else ""
        ending = ending_text(result, brought=result.request.source is not None)
        return f"{ending}{known}{'; kept ' if kept else ''}{', '.join(kept)}"

    def _say(self, label: str, text: str) -> None:
        if not self.manner.quiet:
            print(f"{label:14}{text}", file=self._stream)

    @property
    def _stream(self) -> TextIO:
        return sys.stderr if self.manner.json else sys.stdout

    def _values(self, result: GenerationResult, path: Path) -> dict[str, Any]:
        """What a program is told of a result."""
        request, attempts = result.request, result.attempts
        crossed = [held for held in held_measures(result.scores, result.rule) if held.crossed]
        return {
            "verdict": result.verdict,
            "why": why_text(result, brought=request.source is not None) or None,
            "crossed": [held._asdict() | {"text": str(held)} for held in crossed],
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "seed": request.seed,
            "index": result.index,
            "preset": self._preset,
            "picture": None if result.image is None else str(path),
            "manifest": str(manifest_beside(path)),
            "sheet": str(self._page_of[id(request)].sheet),
            "explanation": None if result.explanation is None else str(explanation_beside(path)),
            "recorded_already": path in self._folder.repeats,
            "retries": max(0, len(attempts) - 1),
            "scores": _scores(result.scores, result.rule),
            "nearest": attempts[-1].nearest if attempts else None,
            "gate": None if result.gate is None else _gate(result.gate),
            "rule": result.rule,
            "rows": result.rows,
            "seconds": result.timings,
            "error": result.error,
        }


def _paged(requests: Sequence[GenerationRequest]) -> Iterator[list[GenerationRequest]]:
    """Requests in their order, as many at a time as have their pictures on one contact sheet."""
    page: list[GenerationRequest] = []
    for request in requests:
        if page and sum(each.num_images for each in (*page, request)) > _PAGE:
            yield page
            page = []
        page.append(request)
    if page:
        yield page


def _gate(gate: GateDecision) -> dict[str, Any]:
    return {"opened": gate.opened, "signals": _scores(gate.signals), "nearest": gate.nearest}


def _scores(scores: dict[str, Score], rule: str = "") -> dict[str, Any]:
    """Each measure with its limit and the operator that crosses it: what was crossed, what was kept, then the rest."""
    held = {each.name: each for each in held_measures(scores, rule)}
    told: dict[str, Any] = {
        name: {"value": each.value, "operator": each.operator, "limit": each.limit, "crossed": each.crossed}
        for name, each in held.items()
    }
    quiet = {name: score.value for name, score in scores.items() if name not in held}
    return told | {n: {"value": value, "operator": None, "limit": None, "crossed": False} for n, value in quiet.items()}
