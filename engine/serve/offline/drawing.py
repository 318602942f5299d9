"""Lines of a batch on engines: a few in flight at a time, each answered by what its pictures' records say."""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...api.errors import InvalidRequestError, TwigError
from ...api.event import Event
from ...api.portable import finite
from ...api.request import GenerationRequest
from ...api.result import GenerationResult
from ...engine import Engine
from ...records.audit import LOG_NAME, AuditLog, file_hash
from ...records.manifest import Manifest
from ...records.naming import run_name
from ...records.output import OutputFolder, manifest_beside
from ..answers import UNJUDGED, account
from ..asking import Asking
from ..bodies import ImageBody, from_values
from ..config import ServeConfig
from ..errors import SERVER, ApiError, told
from ..keeping import Kept, signer_of
from ..keys import LOCAL
from ..served import names_of, picked
from .ledger import Answered
from .lines import Entry, Line, entry_of, key_of

_IN_FILES = "a batch's pictures and records lie in its folder; leave it out"


@dataclass(frozen=True, eq=False)
class Drawing:
    """A model that lines are drawn by. folder: keeps the records of what it makes."""

    engine: Engine
    asking: Asking
    folder: OutputFolder

    @property
    def window(self) -> int:
        """Lines in flight: those that draw, and as many as take their places at once."""
        limits = self.engine.limits
        return min(limits.slots + limits.rows, limits.waiting)


class Drawer:
    """Draws lines on `engines` as a server under `config` would, and writes their records into the folder `out`.

    engines: those of `config.views`, in their order; a line's body names the model, or it is the first.
    """

    def __init__(self, engines: Sequence[Engine], config: ServeConfig, out: Path) -> None:
        log = AuditLog(config.records.log or out / LOG_NAME, prompts=config.records.prompts, root=out)
        signer = signer_of(config.records)
        self.models: dict[str, Drawing] = {}
        for engine, view in zip(engines, config.views, strict=True):
            drawing = Drawing(engine, Asking.over(engine, view), OutputFolder.of(engine, out, log, signer))
            self.models.update(dict.fromkeys(names_of(view), drawing))
        self.each = tuple(dict.fromkeys(self.models.values()))
        self._window = min(drawing.window for drawing in self.each)
        self._running: list[_Running] = []

    def prepare(self) -> None:
        """Raise RecordError or OSError unless records can be written; sweep what a killed run left half written."""
        self.each[0].folder.prepare()

    def answers(
        self, lines: Iterable[tuple[Line, bool]], stopped: Callable[[], bool] = lambda: False
    ) -> Generator[Answered]:
        """Yield an answer for each line as it is finished; its records are on the disk by then.

        lines: each with whether it repeats a custom_id. So many are read ahead as keep the engine's batches full.
        Once it is `stopped` or closed, what is in flight is cancelled and leaves no record.
        """
        coming, finished = iter(lines), deque[Answered]()
        line: tuple[Line, bool] | None = None
        try:
            while True:
                while len(self._running) < self._window and (line := next(coming, None)) is not None:
                    if (refused := self._enter(*line)) is not None:
                        finished.append(refused)
                        break
                while finished:
                    yield finished.popleft()
                if stopped():
                    return
                if self._running:
                    self._advance()
                    finished.extend(self._ended())
                elif line is None:
                    return
        finally:
            self._leave()

    def _advance(self) -> None:
        """Run a batch of every model that has something to do."""
        for drawing in self.each:
            if drawing.engine.pending:
                drawing.engine.advance()

    def _leave(self) -> None:
        """Cancel what is in flight, whose results nobody waits for."""
        for running in self._running:
            running.drawing.engine.cancel(running.id)
        self._running.clear()
        for drawing in self.each:
            drawing.engine.drain()

    def _enter(self, line: Line, repeats: bool) -> Answered | None:
        """Begin to draw a line; the answer of one that cannot be drawn."""
        try:
            entry = entry_of(line)
        except InvalidRequestError as error:
            return _unread(line, None, str(error))
        if repeats:
            return _unread(line, entry.custom_id, "an earlier line has this custom_id; give each one of its own")
        try:
            body = body_of(entry)
            drawing = picked(self.models, body.model)
            running = _Running(line, entry, drawing, request_of(entry, body, drawing.asking))
            running.begin()
            self._running.append(running)
        except (ApiError, InvalidRequestError) as error:
            return _refused(line, entry, error if isinstance(error, ApiError) else told(error))
        return None

    def _ended(self) -> Iterator[Answered]:
        """Answers of what has just ended, records written."""
        for running in [running for running in self._running if running.whole]:
            self._running.remove(running)
            yield self._answer(running)

    def _answer(self, running: "_Running") -> Answered:
        ordered = sorted(running.results, key=lambda result: result.index)
        images = [_image(result, running.drawing.folder) for result in ordered]
        line, entry = running.line, running.entry
        if all(result.verdict in UNJUDGED for result in running.results):
            message = running.results[0].error or "not finished in time"
            error = ApiError(500, "generation_failed", message, type=SERVER, more={"twig": images[0]["twig"]})
            return _refused(line, entry, error)
        body = {"created": int(time.time()), "output_format": "png", "data": images}
        key = key_of(entry.custom_id)
        return Answered(line.number, key, entry.custom_id, _response(200, key, body), None, False)


class _Running:
    """A line that is being drawn. id: of its request, in its engine."""

    def __init__(self, line: Line, entry: Entry, drawing: Drawing, request: GenerationRequest) -> None:
        self.line, self.entry, self.drawing, self.request = line, entry, drawing, request
        self.results: list[GenerationResult] = []
        self.id: int

    def begin(self) -> None:
        """Queue its request. Raises InvalidRequestError."""
        self.id = self.drawing.engine.submit(self.request, self.hear, together=True)

    def hear(self, event: Event) -> None:
        """Keep a result."""
        if event.result is not None:
            self.results.append(event.result)

    @property
    def whole(self) -> bool:
        """Whether every image is finished."""
        return len(self.results) == self.request.num_images


def body_of(entry: Entry) -> ImageBody:
    """The body of a line, without what belongs to a server. Raises ApiError naming the field that is wrong."""
    body = from_values(entry.body, ImageBody)
    for name, asked in (("stream", body.stream), ("output_format", body.format != "png")):
        _check_absent(name, asked)
    for name in ("draft", "mask", "manifest", "background"):
        _check_absent(f"twig.{name}", getattr(body.twig, name))
    return body


def request_of(entry: Entry, body: ImageBody, asking: Asking) -> GenerationRequest:
    """The request of a line: as a server takes its body, but that nothing expires which names no deadline.

    A seed that is not named follows from custom_id and prompt, so that a run that is taken up again draws the same.
    Raises ApiError naming the field that is wrong.
    """
    request = asking.request(body, LOCAL)
    seed = key_of(f"{entry.custom_id}\n{body.prompt}") >> 1 if body.twig.seed is None else request.seed
    return request.model_copy(update={"seed": seed, "timeout": body.twig.deadline})


def _image(result: GenerationResult, folder: OutputFolder) -> dict[str, Any]:
    """What the record of an image says: the one that a killed run left of it, else the one that is written now."""
    path = _left(result, folder) or manifest_beside(folder.save(result))
    manifest = Manifest.load(path)
    kept = Kept(path.stem, file_hash(path), path)
    return {"file": manifest.image, "twig": finite(account(manifest, kept, brought=False))}


def _left(result: GenerationResult, folder: OutputFolder) -> Path | None:
    """The manifest of a whole record that this very request left when a run was killed, None where there is none.

    What is drawn again in other company can end in other last bits, which would be a second record.
    """
    name = run_name(Manifest.of(result, folder.model), folder.log.secret)
    path = folder.path / f"{name}-{result.index}.json"
    with suppress(TwigError):
        image = Manifest.load(path).image
        if image is not None and (path.parent / image).is_file():
            return path
    return None


def _check_absent(name: str, asked: bool) -> None:
    if asked:
        raise ApiError(400, "unsupported_parameter", f"{name}: {_IN_FILES}", param=name)


def _unread(line: Line, custom_id: str | None, message: str) -> Answered:
    return Answered(line.number, line.key, custom_id, None, {"code": "invalid_line", "message": message}, True)


def _refused(line: Line, entry: Entry, error: ApiError) -> Answered:
    response = _response(error.status, line.key, finite(error.body))
    return Answered(line.number, line.key, entry.custom_id, response, None, True)


def _response(status: int, key: int, body: dict[str, Any]) -> dict[str, Any]:
    return {"status_code": status, "request_id": f"{key:016x}", "body": body}
